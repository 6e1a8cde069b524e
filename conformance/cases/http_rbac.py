"""Access control for requests: the HTTP filter, its rules of routes, its notes and numbers."""
from harness.config import TYPE, bootstrap, listener, route
from harness.runner import Group

from .network_filters import LOCAL, OTHER, can, policy, rules, text, who

RBAC = TYPE + "envoy.extensions.filters.http.rbac.v3."
FORMAT = "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %DYNAMIC_METADATA(envoy.filters.http.rbac)% %DYNAMIC_METADATA(envoy.common)% %ROUTE_NAME%\n"
NAMED = {"name": "x-user", "string_match": {"exact": "me"}}
CONFIGS = {
    "allow": {"rules": rules("ALLOW", everybody=policy())},
    "deny": {"rules": rules("DENY", **{"every body": policy()})},
    "none": {}, "empty": {"rules": {}},
    "log": {"rules": rules("LOG", everybody=policy())},
    "shadow": {"shadow_rules": rules("DENY", everybody=policy())},
    "prefixes": {"rules": rules("ALLOW", a=policy()), "rules_stat_prefix": "one_", "shadow_rules": rules("ALLOW", b=policy()), "shadow_rules_stat_prefix": "two."},
    "header": {"rules": can({"header": NAMED})},
    "not header": {"rules": can({"not_rule": {"header": NAMED}})},
    "principal header": {"rules": who({"header": NAMED})},
    "method": {"rules": can({"header": {"name": ":method", "string_match": {"exact": "POST"}}})},
    "path": {"rules": can(text(exact="/a"))},
    "path prefix": {"rules": can(text(prefix="/a"))},
    "path header": {"rules": can({"header": {"name": ":path", "string_match": {"exact": "/a?b"}}})},
    "remote": {"rules": who({"remote_ip": OTHER})},
    "direct": {"rules": who({"direct_remote_ip": LOCAL})},
    "source": {"rules": who({"source_ip": LOCAL})},
    "route metadata": {"rules": can({"sourced_metadata": {"metadata_source": "ROUTE", "metadata_matcher": {
        "filter": "own", "path": [{"key": "k"}], "value": {"string_match": {"exact": "v"}}}}})},
}


def config(p):
    log = [{"name": "envoy.access_loggers.file", "typed_config": {
        "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": p.log,
        "log_format": {"text_format_source": {"inline_string": FORMAT}}}}]

    def own(**config):
        return {"typed_per_filter_config": {"rbac": {"@type": RBAC + "RBACPerRoute", **config}}}
    routes = [route("/off", "up", **own()), route("/none", "up", **own(rbac={})),
              route("/closed", "up", **own(rbac=rules_of(rules("DENY", own=policy()), "own_"))),
              route("/open", "up", **own(rbac=rules_of(rules("ALLOW", own=policy())))),
              route("/v", "up", metadata={"filter_metadata": {"own": {"k": "v"}}}), route("/w", "up", metadata={"filter_metadata": {"own": {"k": "w"}}}),
              route("/", "up")]
    return bootstrap(p, [listener(p, routes, name, [{"name": "rbac", "typed_config": {"@type": RBAC + "RBAC", **options}}], access_log=log,
                                  use_remote_address=name != "remote", xff_num_trusted_hops=0) for name, options in CONFIGS.items()])


def rules_of(rules, prefix=""):
    return {"rules": rules, "rules_stat_prefix": prefix}


G = Group(config)


def ask(name, listener, path="/", *headers, **kw):
    @G.case(f"http rbac: {name}")
    def _(t):
        with t.counted(r"rbac\."):
            t.get(path, *headers, listener=listener, **kw)


for name in CONFIGS:
    ask(name, name)
for name in ("header", "not header", "principal header"):
    for value in ("me", "you"):
        ask(f"{name}, {value}", name, "/", f"x-user: {value}")
    ask(f"{name}, two lines", name, "/", "x-user: you", "x-user: me")
ask("method POST", "method", method="POST")
for path in ("/a", "/a?b", "/a/b", "/b"):
    for name in ("path", "path prefix", "path header"):
        ask(f"{name} {path}", name, path)
ask("remote by x-forwarded-for", "remote", "/", "x-forwarded-for: 10.0.0.1")
ask("grpc", "deny", "/", "content-type: application/grpc", method="POST", body="")
ask("HEAD", "deny", method="HEAD")
for name in ("allow", "deny", "shadow", "prefixes"):
    for path in ("/off", "/none", "/closed", "/open"):
        ask(f"{name}, route {path}", name, path)
for path in ("/v", "/w"):
    ask(f"route metadata {path}", "route metadata", path)
