"""Client certificates: who must show one, and which ones are accepted."""
from harness.certificates import certificates
from harness.config import bootstrap
from harness.runner import Group
from harness.tls import ask, downstream, serving, trusting


def san(kind, **matcher):
    return {"san_type": kind, "matcher": matcher}


def names(*matchers):
    return trusting(match_typed_subject_alt_names=list(matchers))


SANS = {
    "uri exact": names(san("URI", exact="spiffe://td/ns/one/sa/client")),
    "uri exact, other case": names(san("URI", exact="SPIFFE://td/ns/one/sa/client")),
    "uri prefix": names(san("URI", prefix="spiffe://td/ns/")),
    "uri suffix": names(san("URI", suffix="/sa/client")),
    "uri contains": names(san("URI", contains="/ns/one/")),
    "uri regex": names(san("URI", safe_regex={"regex": "spiffe://td/ns/[a-z]+/sa/client"})),
    "uri regex of a part": names(san("URI", safe_regex={"regex": "spiffe://td/ns"})),
    "uri ignoring case": names(san("URI", exact="SPIFFE://TD/ns/one/sa/client", ignore_case=True)),
    "dns exact": names(san("DNS", exact="client.test")),
    "dns exact, other case": names(san("DNS", exact="CLIENT.test")),
    "dns exact under a wildcard": names(san("DNS", exact="x.wild.test")),
    "dns exact two under a wildcard": names(san("DNS", exact="y.x.wild.test")),
    "dns exact of a wildcard's parent": names(san("DNS", exact="wild.test")),
    "dns suffix": names(san("DNS", suffix=".wild.test")),
    "dns prefix in upper case": names(san("DNS", prefix="CLIENT")),
    "dns regex": names(san("DNS", safe_regex={"regex": "client\\..*"})),
    "dns given a uri": names(san("DNS", exact="spiffe://td/ns/one/sa/client")),
    "ip exact": names(san("IP_ADDRESS", exact="10.1.2.3")),
    "ip prefix": names(san("IP_ADDRESS", prefix="10.1.")),
    "ip other": names(san("IP_ADDRESS", exact="10.1.2.4")),
    "email exact": names(san("EMAIL", exact="client@example.test")),
    "email suffix": names(san("EMAIL", suffix="@other.test")),
    "second of two": names(san("DNS", exact="none.test"), san("URI", prefix="spiffe://td/")),
    "untyped": trusting(match_subject_alt_names=[{"exact": "client.test"}]),
    "untyped of another": trusting(match_subject_alt_names=[{"exact": "other.test"}]),
}


def config(p):
    c = certificates()
    required = {"require_client_certificate": True}

    def on(name, validation, **fields):
        return serving(p, name, downstream("server", validation=validation, **fields))
    made = [
        on("none", None), on("asked", trusting()), on("required", trusting(), **required),
        on("required, no authority", None, **required),
        on("untrusted", trusting(trust_chain_verification="ACCEPT_UNTRUSTED")),
        on("untrusted, required", trusting(trust_chain_verification="ACCEPT_UNTRUSTED"), **required),
        on("untrusted, names", {**names(san("URI", exact="spiffe://td/none")), "trust_chain_verification": "ACCEPT_UNTRUSTED"}),
        on("untrusted, pinned", trusting(trust_chain_verification="ACCEPT_UNTRUSTED", verify_certificate_hash=[c.hash("two-uris")])),
        on("two authorities", trusting("both-ca"), **required),
        on("self-signed trusted", trusting("self-signed"), **required),
        on("intermediate trusted", trusting("inter1"), **required),
        on("names, none required", names(san("URI", prefix="spiffe://td/"))),
        on("hash, none required", {"verify_certificate_hash": [c.hash("client")]}), on("key, none required", {"verify_certificate_spki": [c.spki("client")]}),
        on("expiry passed over", trusting(allow_expired_certificate=True), **required),
        on("hash", {"verify_certificate_hash": [c.hash("client")]}, **required),
        on("hash with authority", trusting(verify_certificate_hash=[c.hash("client")]), **required),
        on("hash with colons", trusting(verify_certificate_hash=[
            ":".join(c.hash("client").upper()[i:i + 2] for i in range(0, 64, 2))]), **required),
        on("key", {"verify_certificate_spki": [c.spki("client")]}, **required),
        on("key or hash", trusting(verify_certificate_spki=[c.spki("client")], verify_certificate_hash=[c.hash("two-uris")]), **required),
        on("revocation", trusting(crl={"filename": c.path("ca", "crl")}), **required),
        on("revocation of another", trusting(crl={"filename": c.path("other-ca", "crl")}), **required),
        on("revocation of both", trusting(crl={"filename": c.path("both", "crl")}), **required),
        on("revocation of the leaf", trusting(crl={"filename": c.path("ca", "crl")}, only_verify_leaf_cert_crl=True), **required),
        *(on(f"depth {n}", trusting(max_verify_depth=n), **required) for n in range(3)),
        *(on("names: " + name, validation, **required) for name, validation in SANS.items()),
    ]
    return bootstrap(p, made)


G = Group(config)


def case(name, where, **kw):
    def run(t):
        with t.counted(r"^listener\..*ssl\.(con|fail|hand|no_)"):
            ask(t, where, settle=True, **kw)
    G.case("tls clients: " + name)(run)


NAMES = ("client", "two-uris", "nameless", "other", "expired", "not-yet", "self-signed", "server-only", "deep")

for who in (None, "self-signed"):
    case(f"required, no authority: {who or 'no certificate'}", "required, no authority", cert=who)
for where in ("none", "asked", "required", "untrusted", "untrusted, required"):
    case(f"{where}: no certificate", where)
    for who in ("client", "other", "expired", "not-yet", "self-signed", "server-only"):
        case(f"{where}: {who}", where, cert=who)
for where in ("required", "asked", "untrusted, required"):
    for who in (None, "client", "other", "expired"):
        case(f"{where}: {who or 'no certificate'} in TLS 1.2", where, cert=who, version="1.2")
for where in ("untrusted, names", "untrusted, pinned"):
    for who in (None, "client", "two-uris", "other"):
        case(f"{where}: {who or 'no certificate'}", where, cert=who)
for where in ("names, none required", "hash, none required", "key, none required"):
    for who in (None, "client", "other"):
        case(f"{where}: {who or 'no certificate'}", where, cert=who)
for who in ("client", "other"):
    case(f"two authorities: {who}", "two authorities", cert=who)
for who in ("self-signed", "client"):
    case(f"self-signed trusted: {who}", "self-signed trusted", cert=who)
for who in ("shallow", "deep", "client"):
    case(f"intermediate trusted: {who}", "intermediate trusted", cert=who)
for who in ("client", "expired", "not-yet", "other"):
    case(f"expiry passed over: {who}", "expiry passed over", cert=who)
for where in ("hash", "hash with authority", "hash with colons", "key", "key or hash"):
    for who in (None, "client", "two-uris", "other"):
        case(f"{where}: {who or 'no certificate'}", where, cert=who)
for where in ("revocation", "revocation of another", "revocation of both", "revocation of the leaf"):
    for who in ("client", "revoked", "shallow", "deep"):
        case(f"{where}: {who}", where, cert=who)
for depth in range(3):
    for who in ("client", "shallow", "deep"):
        case(f"depth {depth}: {who}", f"depth {depth}", cert=who)
for name in SANS:
    case(f"names: {name}", "names: " + name, cert="client")
case("names: uri exact: without names", "names: uri exact", cert="nameless")
case("names: uri exact: of another authority", "names: uri exact", cert="other")
case("names: uri prefix: second of two", "names: uri prefix", cert="two-uris")
