"""JSON Web Tokens with local keys: where they are found, who is let in, and what becomes of them."""
import base64
import hashlib
import hmac
import json
import subprocess
import tempfile
from pathlib import Path

from harness.config import TYPE, bootstrap, host, listener, route
from harness.runner import Group

JWT = TYPE + "envoy.extensions.filters.http.jwt_authn.v3."
NAME = "envoy.filters.http.jwt_authn"
FOREVER = 4102444800  # 2100
FORMAT = "%RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %DYNAMIC_METADATA(envoy.filters.http.jwt_authn)% %ROUTE_NAME%\n"


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Signer:
    """Keys of each kind, made by openssl for this run."""

    def __init__(self):
        self.home = Path(tempfile.mkdtemp(prefix="jwt-"))
        self.secret = b"a secret of more than thirty-two bytes"
        self.openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", self.home / "RS256")
        self.openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", self.home / "ES256")
        modulus = self.openssl("rsa", "-in", self.home / "RS256", "-noout", "-modulus").split(b"=")[1]
        point = self.openssl("pkey", "-in", self.home / "ES256", "-pubout", "-outform", "DER")[-64:]
        self.rsa = {"kty": "RSA", "kid": "rsa", "e": "AQAB", "n": encoded(bytes.fromhex(modulus.decode()))}
        self.ec = {"kty": "EC", "kid": "ec", "crv": "P-256", "alg": "ES256", "x": encoded(point[:32]), "y": encoded(point[32:])}
        self.oct = {"kty": "oct", "kid": "oct", "alg": "HS256", "k": encoded(self.secret)}

    def openssl(self, *words, **more):
        return subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, **more).stdout

    def sign(self, algorithm, data):
        if algorithm == "HS256":
            return hmac.digest(self.secret, data, hashlib.sha256)
        signature = self.openssl("dgst", "-sha256", "-sign", self.home / algorithm, input=data)
        if algorithm == "RS256":
            return signature
        parts, rest = [], signature[2:]  # two DER integers
        while rest:
            parts.append(rest[2:2 + rest[1]].lstrip(b"\0").rjust(32, b"\0"))
            rest = rest[2 + rest[1]:]
        return b"".join(parts)

    def token(self, algorithm="RS256", kid="rsa", header=None, by=None, **claims):
        claims = {"iss": "me", "aud": "shop", "sub": "you", "exp": FOREVER, **claims}
        claims = {name: value for name, value in claims.items() if value is not None}
        head = header if header is not None else {"alg": algorithm, **({"kid": kid} if kid else {})}
        text = ".".join(encoded(json.dumps(part).encode()) for part in (head, claims))
        return text + "." + encoded(self.sign(by or algorithm, text.encode()))


S = Signer()


def keys(*all):
    return {"inline_string": json.dumps({"keys": list(all)})}


def provider(issuer="me", **more):
    return {"issuer": issuer, "local_jwks": keys(S.rsa, S.ec, S.oct), **more}


def named(name):
    return {"provider_name": name}


EVERYTHING = {"audiences": ["https://shop/", "other"], "forward": True, "forward_payload_header": "x-payload", "payload_in_metadata": "payload",
              "header_in_metadata": "header", "normalize_payload_in_metadata": {"space_delimited_claims": ["scope"]}, "clear_route_cache": True,
              "claim_to_headers": [{"header_name": "x-sub", "claim_name": "sub"}, {"header_name": "x-deep", "claim_name": "a.b"},
                                   {"header_name": "x-number", "claim_name": "n"}, {"header_name": "x-true", "claim_name": "t"}]}
ISTIO = [named("a"), named("b"), {"requires_all": {"requirements": [
    {"requires_any": {"requirements": [named(name), {"allow_missing": {}}]}} for name in "ab"]}}]
# By listener: the providers and what is required.
CONFIGS = {
    "main": ({"a": provider()}, named("a")),
    "everything": ({"a": provider(**EVERYTHING)}, named("a")),
    "pad": ({"a": provider(forward_payload_header="x-payload", pad_forward_payload_header=True)}, named("a")),
    "places": ({"a": provider(from_headers=[{"name": "x-jwt", "value_prefix": "Token "}, {"name": "x-bare"}], from_params=["t"],
                              from_cookies=["session"])}, named("a")),
    "optional": ({"a": provider()}, {"requires_any": {"requirements": [named("a"), {"allow_missing": {}}]}}),
    "failed": ({"a": provider()}, {"requires_any": {"requirements": [named("a"), {"allow_missing_or_failed": {}}]}}),
    "missing alone": ({"a": provider(), "b": provider("they", from_headers=[{"name": "x-b"}])}, {"allow_missing": {}}),
    "failed alone": ({"a": provider(), "b": provider("they", from_headers=[{"name": "x-b"}])}, {"allow_missing_or_failed": {}}),
    "istio": ({"a": provider(payload_in_metadata="payload"), "b": provider("they", payload_in_metadata="payload")},
              {"requires_any": {"requirements": ISTIO}}),
    "all": ({"a": provider(from_headers=[{"name": "x-a"}]), "b": provider("they", from_headers=[{"name": "x-b"}])},
            {"requires_all": {"requirements": [named("a"), named("b")]}}),
    "audience": ({"a": provider(audiences=["other"])}, {"provider_and_audiences": {"provider_name": "a", "audiences": ["shop"]}}),
    "anybody": ({"a": provider("")}, named("a")),
    "one key": ({"a": provider(local_jwks=keys({**S.rsa, "alg": "RS512"}))}, named("a")),
    "skew": ({"a": provider(clock_skew_seconds=2000000000)}, named("a")),
}


def config(p):
    log = [{"name": "envoy.access_loggers.file", "typed_config": {
        "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": p.log,
        "log_format": {"text_format_source": {"inline_string": FORMAT}}}}]

    def own(**settings):
        return {"typed_per_filter_config": {NAME: {"@type": JWT + "PerRouteConfig", **settings}}}
    routes = [host([
        route("/off", "up", **own(disabled=True)), route("/named", "up", **own(requirement_name="else")),
        route("/wrong", "up", **own(requirement_name="nobody")),
        route({"prefix": "/", "headers": [{"name": "x-sub", "string_match": {"exact": "you"}}]}, "up", name="yours"),
        route("/", "up", name="rest")])]

    def filters(providers, required):
        rules = [{"match": {"path": "/open"}}, {"match": {"prefix": "/by-name"}, "requirement_name": "else"},
                 {"match": {"prefix": "/"}, "requires": required}]
        return [{"name": NAME, "typed_config": {"@type": JWT + "JwtAuthentication", "providers": providers, "rules": rules,
                                                "requirement_map": {"else": {"allow_missing": {}}}, "bypass_cors_preflight": True}}]
    return bootstrap(p, [listener(p, routes, name, filters(*made), access_log=log) for name, made in CONFIGS.items()])


G = Group(config)


def case(name, listener, path="/", *headers, **kw):
    @G.case("jwt: " + name)
    def _(t):
        with t.counted(r"jwt_authn\.(allowed|denied|cors)"):
            t.get(path, *headers, listener=listener, **kw)


def bearer(token):
    return f"authorization: Bearer {token}"


GOOD = S.token()
for name, token in {
    "RS256": GOOD, "ES256": S.token("ES256", "ec"), "HS256": S.token("HS256", "oct"), "no kid": S.token(kid=None), "another kid": S.token(kid="x"),
    "signed by another": S.token(by="ES256"), "a public key is no secret": S.token("HS256", "rsa"), "none": S.token(header={"alg": "none"}),
    "alg unknown": S.token(header={"alg": "XX1"}), "no alg": S.token(header={}), "alg no string": S.token(header={"alg": 1}),
    "kid no string": S.token(header={"alg": "RS256", "kid": 1}), "changed": GOOD[:-8] + "AAAAAAAA", "other issuer": S.token(iss="they"),
    "no issuer": S.token(iss=None), "issuer no string": S.token(iss=1), "sub no string": S.token(sub=1), "aud no string": S.token(aud=1),
    "aud a list": S.token(aud=["a", "shop"]), "aud a list of numbers": S.token(aud=[1]), "no exp": S.token(exp=None), "expired": S.token(exp=1000),
    "exp zero": S.token(exp=0), "exp text": S.token(exp="soon"), "exp negative": S.token(exp=-1), "exp a fraction": S.token(exp=FOREVER + 0.5),
    "not yet": S.token(nbf=FOREVER), "iat text": S.token(iat="x"), "jti no string": S.token(jti=1), "two parts": "a.b", "four parts": GOOD + ".x",
    "an empty part": GOOD.rsplit(".", 1)[0] + ".", "no base64 in the header": "!." + GOOD.split(".", 1)[1], "no JSON": encoded(b"x") + ".e30.AAAA",
    "no base64 in the payload": GOOD.split(".")[0] + ".*.AAAA", "payload no JSON": GOOD.split(".")[0] + "." + encoded(b"x") + ".AAAA",
    "no base64 in the signature": GOOD.rsplit(".", 1)[0] + ".***", "list as payload": GOOD.split(".")[0] + "." + encoded(b"[]") + ".AAAA",
}.items():
    case(name, "main", "/", bearer(token))
case("missing", "main", "/x?a=b")
case("missing, a long path", "main", "/" + "x" * 300)
case("another scheme of authorization", "main", "/", "authorization: Basic abc")
case("twice, one bad", "main", "/", bearer(GOOD), bearer("a.b.c"))
case("twice, both good", "main", "/", bearer(GOOD), bearer(S.token("ES256", "ec")))
case("in the query", "main", f"/x?a=1&access_token={GOOD}")
case("text before the scheme", "main", "/", f"authorization: x Bearer {GOOD}")
case("behind spaces", "main", "/", f"authorization: Bearer   {GOOD}")
case("no rule asks", "main", "/open")
case("a rule by name", "main", "/by-name")
case("a rule by name, bad", "main", "/by-name", bearer("a.b.c"))
case("off on the route", "everything", "/off", "x-sub: forged", "x-payload: forged")
case("named on the route", "main", "/named")
case("wrongly named on the route", "main", "/wrong")
case("preflight", "main", "/", "origin: http://a", "access-control-request-method: GET", method="OPTIONS")
case("no preflight", "main", "/", "origin: http://a", method="OPTIONS")
FULL = S.token(scope="read write", a={"b": "deep"}, n=12, t=True)
case("everything that becomes of it", "everything", "/", bearer(FULL), "x-sub: forged", "x-payload: forged", "x-deep: forged")
case("claims of other types", "everything", "/", bearer(S.token(a=1, n=1.5, t=None, sub="")))
case("an audience that is not", "everything", "/", bearer(S.token(aud="x")))
case("forged headers without a token", "optional", "/", "x-sub: you")
case("payload, filled up", "pad", "/", bearer(S.token(x="1"), ))
for place in (f"x-jwt: Token {GOOD}", f"x-jwt: {GOOD}", f"x-bare: {GOOD}", f"cookie: a=b; session={GOOD}", f"cookie: session=\"{GOOD}\"", bearer(GOOD)):
    case("place " + place[:20], "places", "/", place)
case("place a parameter", "places", f"/x?t={GOOD}")
case("place a parameter, others stay", "places", f"/x?a=1&t={GOOD}&b=2")
for kind, lines in {"none": [], "good": [bearer(GOOD)], "bad": [bearer("a.b.c")], "of another": [bearer(S.token(iss="they"))],
                    "expired": [bearer(S.token(exp=1000))], "good, then bad": [bearer(GOOD), bearer("a.b.c")],
                    "bad, then good": [bearer("a.b.c"), bearer(GOOD)], "another place": [f"x-b: {GOOD}"], "the other's": [f"x-b: {S.token(iss='they')}"],
                    "both": [f"x-a: {GOOD}", f"x-b: {S.token(iss='they')}"], "unknown": [bearer(S.token(iss="nobody"))]}.items():
    for listener_name in "optional", "failed", "missing alone", "failed alone", "istio", "all":
        case(f"{listener_name}: {kind}", listener_name, "/", *lines)
case("audience of the requirement", "audience", "/", bearer(GOOD))
case("anybody's", "anybody", "/", bearer(S.token(iss="whoever")))
case("no key that fits", "one key", "/", bearer(GOOD))
case("clocks far apart", "skew", "/", bearer(S.token(exp=1000000000)))
case("expired for all that", "skew", "/", bearer(S.token(exp=1)))
