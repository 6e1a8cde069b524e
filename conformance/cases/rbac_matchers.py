"""Access control by the generic matcher, by templates of paths and by verified certificates; numbers by rule."""
import time

from harness.config import TYPE, bootstrap, listener, route
from harness.matcher import HEADER, SSL, always, both, either, exact, extension, first, network, one, prefix, ranges
from harness.runner import Group
from harness.tls import ask as ask_tls, downstream, serving, trusting

from .http_rbac import FORMAT, RBAC
from .network_filters import REQUEST, policy, rbac as network_rbac, rules, tcp
from .rbac_conditions import at, eq, v

PATH, USER = extension(HEADER, header_name=":path"), extension(HEADER, header_name="x-user")
IP, PORT, URI = network("SourceIPInput"), network("DestinationPortInput"), extension(SSL + "UriSanInput")
META = network("DynamicMetadataInput", filter="own", path=[{"key": "k"}])


def may(name, action="ALLOW"):
    return {"action": extension("envoy.config.rbac.v3.Action", name=name, action=action)}


def metadata(invert=False, **value):
    return extension("envoy.extensions.matching.input_matchers.metadata.v3.Metadata", value=value, invert=invert)


def template(text):
    config = extension("envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig", path_template=text)
    return {"rules": rules("ALLOW", it=policy([{"uri_template": config}]))}


PRESENT = one(URI, prefix="spiffe:")
ALL = extension("xds.type.matcher.v3.HttpAttributesCelMatchInput")
IS_A, ERROR = eq(at("request.path"), v("/a")), eq(at("request.nosuch"), v(1))


def when(condition, form="cel_expr_parsed"):
    return one(ALL, extension("xds.type.matcher.v3.CelMatcher", expr_match={form: {"expr": condition}}))


HTTP = {
    "condition": {"matcher": first((when(IS_A), may("a")), on_no_match=may("others", "DENY"))},
    "condition, old form": {"matcher": first((when(IS_A, "parsed_expr"), may("a")), on_no_match=may("others", "DENY"))},
    "condition in error": {"matcher": first((when(ERROR), may("a", "DENY")), ({"not_matcher": when(ERROR)}, may("b", "LOG")))},
    "path": {"matcher": exact(PATH, {"/a": may("a"), "/b": may("b", "DENY"), "/c": may("c", "LOG")})},
    "path else": {"matcher": exact(PATH, {"/a": may("a", "LOG")}, may("others"))},
    "prefix": {"matcher": prefix(PATH, {"/a": may("a"), "/a/b": may("a b\tc", "DENY")})},
    "nothing": {"matcher": {}},
    "both forms": {"matcher": always(may("m")), "rules": rules("DENY", r=policy())},
    "shadow": {"shadow_matcher": exact(PATH, {"/a": may("a"), "/b": may("b", "DENY"), "/c": may("c", "LOG")}),
               "shadow_rules_stat_prefix": "s_"},
    "shadow and rules": {"shadow_matcher": always(may("s", "DENY")), "rules": rules("ALLOW", r=policy())},
    "user": {"matcher": first((one(USER, exact="me"), may("me")), (one(USER, exact="me,you"), may("both", "LOG")), (one(USER, suffix="x"), may("x", "DENY")))},
    "user and path": {"matcher": first((both(one(USER, exact="me"), one(PATH, prefix="/a")), may("me")), (either(one(USER, exact="you"), one(PATH, exact="/b")), may("or")))},
    "not user": {"matcher": first(({"not_matcher": one(USER, exact="me")}, may("not me")))},
    "source": {"matcher": ranges(IP, (["10.0.0.0/8"], may("ten"), False), (["127.0.0.0/8"], may("local", "DENY"), False))},
    "certificate": {"matcher": first((PRESENT, may("named", "DENY")), on_no_match=may("others"))},
    "certificate later": {"matcher": first((one(PATH, exact="/a"), may("a")), (PRESENT, may("named", "DENY")), on_no_match=may("others"))},
    "metadata": {"matcher": first((one(META, metadata(string_match={"exact": "v"})), may("v")), (one(META, metadata(True, present_match=True)), may("none", "LOG")))},
    "metadata as text": {"matcher": first((one(META, prefix="v"), may("v")), on_no_match=may("others", "DENY"))},
    "by-rule": {"rules": rules("DENY", **{"a.b": policy([{"url_path": {"path": {"exact": "/a"}}}])}), "track_per_rule_stats": True,
                "shadow_rules": rules("ALLOW", sh=policy())},
    "by-rule-prefixes": {"rules": rules("ALLOW", it=policy()), "rules_stat_prefix": "one", "track_per_rule_stats": True,
                          "shadow_rules": rules("DENY", sh=policy()), "shadow_rules_stat_prefix": "two."},
    "by-rule-matcher": {"matcher": exact(PATH, {"/a": may("a a"), "/b": may("b", "DENY")}), "track_per_rule_stats": True},
}
TEMPLATES = {"/a/*/c": ("/a/b/c", "/a/b/c?d", "/a//c", "/a/b/d", "/a/b%2Fb/c", "/a/[/c"), "/a/**": ("/a/", "/a", "/a/b/c", "/ab"),
             "/{x}/{y=b/*}.js": ("/1/b/2.js", "/1/b/.js", "/1/c/2.js"), "/a/**/z": ("/a/b/c/z", "/a/z", "/a//z")}


def config(p):
    log = [{"name": "envoy.access_loggers.file", "typed_config": {
        "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": p.log,
        "log_format": {"text_format_source": {"inline_string": FORMAT}}}}]
    routes = [route("/closed", "up", typed_per_filter_config={"rbac": {"@type": RBAC + "RBACPerRoute", "rbac": {
        "matcher": always(may("closed", "DENY")), "rules_stat_prefix": "own"}}}),
        route("/tracked", "up", typed_per_filter_config={"rbac": {"@type": RBAC + "RBACPerRoute", "rbac": {
            "matcher": always(may("tracked")), "rules_stat_prefix": "own", "track_per_rule_stats": True}}}),
        route("/", "up")]

    def filters(options):
        return [{"name": "rbac", "typed_config": {"@type": RBAC + "RBAC", **options}}]
    made = [listener(p, routes, name, filters(options), access_log=log) for name, options in HTTP.items()]
    made += [listener(p, routes, name, filters(template(name)), access_log=log) for name in TEMPLATES]
    return bootstrap(p, made)


G = Group(config)


def ask(name, where, path="/", *headers, **kw):
    @G.case(f"rbac matcher: {name}")
    def _(t):
        with t.counted(r"rbac\."):
            t.get(path, *headers, listener=where, **kw)


for name in ("condition", "condition, old form", "condition in error", "path", "path else", "prefix", "shadow", "by-rule", "by-rule-matcher", "certificate later"):
    for path in ("/a", "/b", "/c", "/a/b/c", "/a?b"):
        ask(f"{name} {path}", name, path)
for name in ("nothing", "both forms", "shadow and rules", "source", "certificate", "metadata", "metadata as text", "by-rule-prefixes"):
    ask(name, name)
for name in ("user", "not user", "user and path"):
    for headers in ((), ("me",), ("you",), ("me", "you"), ("x",), ("",)):
        for path in ("/", "/a/b") if name == "user and path" else ("/",):
            ask(f"{name} {path} {headers}", name, path, *("x-user: " + h for h in headers))
for name in ("path", "by-rule", "by-rule-prefixes"):
    for path in ("/closed", "/tracked"):
        ask(f"{name}, route {path}", name, path)
for name, paths in TEMPLATES.items():
    for path in paths:
        ask(f"template {name}: {path}", name, path)

NETWORK = {
    "source": {"matcher": exact(IP, {"127.0.0.1": may("me")})}, "source else": {"matcher": exact(IP, {"10.0.0.1": may("me")}, may("others", "DENY"))},
    "no match": {"matcher": exact(IP, {"10.0.0.1": may("me")})}, "log": {"matcher": exact(IP, {"127.0.0.1": may("me", "LOG")})},
    "log else": {"matcher": exact(IP, {"10.0.0.1": may("me", "LOG")}, may("others"))},
    "ranges": {"matcher": ranges(IP, (["127.0.0.0/8"], exact(PORT, {"1": may("one")}), False), (["0.0.0.0/0"], may("any"), False))},
    "shadow": {"shadow_matcher": always(may("s", "DENY")), "shadow_rules_stat_prefix": "s_"},
    "certificate": {"matcher": first((PRESENT, may("named", "DENY")), on_no_match=may("others"))},
    "both forms": {"matcher": always(may("m")), "rules": rules("DENY", r=policy())},
    "template": template("/some/*"),
}
N = Group(lambda p: bootstrap(p, [tcp(p, name, network_rbac(name, options)) for name, options in NETWORK.items()]))


def talk(name):
    @N.case("rbac matcher, network: " + name, logs=1)
    def _(t):
        with t.counted(r"rbac|tcp\.t\."):
            conn = t.connect(name)
            conn.send(REQUEST)
            t.note(**conn.end(0.3))
            conn.close()
            time.sleep(0.1)


for name in NETWORK:
    talk(name)


def mtls(**config):
    custom = extension("envoy.extensions.rbac.principals.mtls_authenticated.v3.Config", **config)
    return {"rules": rules("ALLOW", it=policy(principals=[{"custom": custom}]))}


def san(kind, **value):
    return mtls(san_matcher={"san_type": kind, "matcher": value})


PEERS = {
    "validated": mtls(any_validated_client_certificate=True), "uri": san("URI", prefix="spiffe:"), "another uri": san("URI", exact="spiffe://none"),
    "dns": san("DNS", suffix="test"), "certificate": {"matcher": first((PRESENT, may("named", "DENY")), on_no_match=may("others"))},
    "subject": {"matcher": first((one(extension(SSL + "SubjectInput"), contains="CN="), may("cn")), on_no_match=may("others", "DENY"))},
    "uris": {"matcher": first((one(URI, contains=","), may("several")), (one(URI, contains="spiffe"), may("one")), on_no_match=may("none", "DENY"))},
    "names": {"matcher": first((one(extension(SSL + "DnsSanInput"), contains="test"), may("dns")), on_no_match=may("others", "DENY"))},
    "server name": {"matcher": exact(network("ServerNameInput"), {"a.test": may("a")}, may("others", "DENY"))},
}


def secured(p):
    sockets = {"": downstream("server", validation=trusting()),
               "untrusted ": downstream("server", validation=trusting(trust_chain_verification="ACCEPT_UNTRUSTED"))}
    inspector = {"name": "tls", "typed_config": {"@type": TYPE + "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"}}
    made = [serving(p, kind + name, socket, routes=[route("/", "up")]) for kind, socket in sockets.items() for name in PEERS]
    for one in made:
        manager = one["filter_chains"][0]["filters"][0]["typed_config"]
        manager["http_filters"].insert(0, {"name": "rbac", "typed_config": {
            "@type": RBAC + "RBAC", **PEERS[one["name"].removeprefix("untrusted ")]}})
        manager["access_log"][0]["typed_config"]["log_format"]["text_format_source"]["inline_string"] = FORMAT
        one["listener_filters"] = [inspector]
    return bootstrap(p, made)


S = Group(secured)
for where in PEERS:
    for who in (None, "client", "two-uris", "nameless"):
        S.case(f"rbac matcher, TLS: {where}: {who or 'no certificate'}")(lambda t, where=where, who=who: ask_tls(t, where, cert=who) and None)
for who in ("client", "other"):
    S.case(f"rbac matcher, TLS: untrusted: {who}")(lambda t, who=who: ask_tls(t, "untrusted validated", cert=who) and None)
