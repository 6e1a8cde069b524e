"""External authorization of connections: the network filter before the TCP proxy and the connection manager."""
from harness.config import TYPE, bootstrap, listener, route
from harness.runner import Group

from .ext_authz import ALLOW, DENY, denied, said
from .network_filters import REQUEST, log, policy, rbac, rules, tcp

AUTHZ = TYPE + "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz"
# As istiod sends AuthorizationPolicy CUSTOM: shadow rules say which connections the service is asked about.
ONLY = {"filter": "envoy.filters.network.rbac", "path": [{"key": "istio_ext_authz_shadow_effective_policy_id"}],
        "value": {"string_match": {"prefix": "istio-ext-authz"}}}


def authz(name, cluster="up2", timeout="5s", **fields):
    return {"name": "authz", "typed_config": {"@type": AUTHZ, "stat_prefix": name, "transport_api_version": "V3", "grpc_service": {
        "envoy_grpc": {"cluster_name": cluster}, "timeout": timeout}, **fields}}


def shadow(name, **principal):
    found = rules("DENY", **{"istio-ext-authz-ns[shop]-policy[p]-rule[0]": policy(principals=[principal or {"any": True}])})
    return rbac(name, {"shadow_rules": found, "shadow_rules_stat_prefix": "istio_ext_authz_"})


def config(p):
    elsewhere = {"remote_ip": {"address_prefix": "10.0.0.0", "prefix_len": 8}}
    web = listener(p, [route("/", "up")], "web", access_log=log(p))
    web["filter_chains"][0]["filters"].insert(0, authz("web"))
    return bootstrap(p, [
        tcp(p, "plain", authz("plain")), tcp(p, "dead", authz("dead", "dead")), tcp(p, "open", authz("open", "dead", failure_mode_allow=True)),
        tcp(p, "slow", authz("slow", timeout="0.1s")), tcp(p, "custom", shadow("custom"), authz("custom", filter_enabled_metadata=ONLY)),
        tcp(p, "not-custom", shadow("not-custom", **elsewhere), authz("not-custom", filter_enabled_metadata=ONLY)),
        tcp(p, "then-denied", authz("then-denied"), rbac("then-denied", {"rules": rules("DENY", all=policy())})),
        tcp(p, "denied-first", rbac("denied-first", {"rules": rules("DENY", all=policy())}), authz("denied-first")),
        tcp(p, "two", authz("two-a"), authz("two-b")), web,
    ])


G = Group(config)


def case(name, listener, *upstream, logs=1, http=False):
    @G.case("network ext_authz: " + name, list(upstream), logs=logs)
    def _(t):
        with t.counted(r"ext_authz\.|rbac\."):
            conn = t.connect(listener)
            conn.send(REQUEST)
            if http:
                t.record.append(conn.response())
            else:
                t.note(**conn.end(1.0))
            conn.close()


case("allowed", "plain", said(ALLOW), {})
case("denied", "plain", said(DENY))
case("denied with an answer", "plain", said(denied(401, "no")))
case("a dead service", "dead")
case("a dead service, let in", "open", {})
case("no answer in time", "slow", {"silent": True, "decode": True})
case("an error", "plain", said(grpc_status=14, grpc=[None]))
case("one that shadow rules name, allowed", "custom", said(ALLOW), {})
case("one that shadow rules name, denied", "custom", said(DENY))
case("one that they do not name", "not-custom", {})
case("allowed, and then denied by rules", "then-denied", said(ALLOW))
case("denied by rules first", "denied-first")
case("two, both allow", "two", said(ALLOW), said(ALLOW), {})
case("two, the second denies", "two", said(ALLOW), said(DENY))
case("before HTTP, allowed", "web", said(ALLOW), {}, http=True)
case("before HTTP, denied", "web", said(DENY), logs=0)
