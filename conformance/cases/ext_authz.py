"""External authorization over gRPC."""
from harness.config import TYPE, bootstrap, host, listener, route
from harness.grpc import message
from harness.runner import Group

AUTHZ = TYPE + "envoy.extensions.filters.http.ext_authz.v3."
NAME = "envoy.filters.http.ext_authz"


def config(p):
    def per_route(**override):
        return {NAME: {"@type": AUTHZ + "ExtAuthzPerRoute", **override}}

    def authz(**fields):
        service = {"envoy_grpc": {"cluster_name": fields.pop("cluster", "up2"), **fields.pop("envoy_grpc", {})},
                   "timeout": fields.pop("timeout", "1s"), **fields.pop("service", {})}
        return [{"name": NAME, "typed_config": {
            "@type": AUTHZ + "ExtAuthz", "transport_api_version": "V3", "grpc_service": service, **fields}}]
    routes = [host([
        route("/off", "up", typed_per_filter_config=per_route(disabled=True)),
        route("/context", "up", typed_per_filter_config=per_route(check_settings={"context_extensions": {"a": "1", "b": "2"}})),
        route("/no-body", "up", typed_per_filter_config=per_route(check_settings={"disable_request_body_buffering": True})),
        route("/d", direct_response={"status": 200, "body": {"inline_string": "direct"}}),
        route({"prefix": "/", "headers": [{"name": "x-tenant", "string_match": {"exact": "a"}}]}, "up", name="tenant"),
        route("/", "up", name="rest")])]
    body = {"max_request_bytes": 8, "allow_partial_message": True}

    def custom(invert=False):
        """As istiod sends AuthorizationPolicy CUSTOM: shadow rules say which requests the service is asked about."""
        rules = {"action": "DENY", "policies": {"istio-ext-authz-ns[shop]-policy[p]-rule[0]": {
            "permissions": [{"header": {"name": "x-ask", "present_match": True}}], "principals": [{"any": True}]}}}
        return [{"name": "envoy.filters.http.rbac", "typed_config": {
            "@type": TYPE + "envoy.extensions.filters.http.rbac.v3.RBAC", "shadow_rules": rules,
            "shadow_rules_stat_prefix": "istio_ext_authz_"}}] + authz(filter_enabled_metadata={
                "filter": "envoy.filters.http.rbac", "path": [{"key": "istio_ext_authz_shadow_effective_policy_id"}],
                "value": {"string_match": {"prefix": "istio-ext-authz"}}, "invert": invert})
    return bootstrap(p, [
        listener(p, routes, filters=authz()),
        listener(p, routes, "named", filters=authz(
            envoy_grpc={"authority": "authz.test"}, service={"initial_metadata": [{"key": "x-token", "value": "secret"}]})),
        listener(p, routes, "slow", filters=authz(timeout="0.1s")),
        listener(p, routes, "slow-allowed", filters=authz(timeout="0.1s", failure_mode_allow=True, failure_mode_allow_header_add=True)),
        listener(p, routes, "dead", filters=authz(cluster="dead")),
        listener(p, routes, "empty", filters=authz(cluster="empty")),
        listener(p, routes, "unknown", filters=authz(cluster="unknown", status_on_error={"code": 500})),
        listener(p, routes, "body", filters=authz(with_request_body=body)),
        listener(p, routes, "raw-body", filters=authz(with_request_body={**body, "pack_as_bytes": True})),
        listener(p, routes, "whole-body", filters=authz(with_request_body={"max_request_bytes": 8})),
        listener(p, routes, "custom", filters=custom()),
        listener(p, routes, "custom-inverted", filters=custom(True)),
        listener(p, routes, "reroute", filters=authz(clear_route_cache=True)),
    ])


G = Group(config)


def option(name, value, **more):
    return {1: {1: name, 2: value}, **{{"append": 2, "action": 3}[k]: ({1: v} if k == "append" else v) for k, v in more.items()}}


def said(*answers, **more):
    return {"grpc": [message(a) for a in answers], **more}


ALLOW, DENY = {1: {}}, {1: {1: 7}}


def denied(status=None, body="", headers=()):
    inner = {**({1: {1: status}} if status else {}), 2: list(headers), **({3: body} if body else {})}
    return {1: {1: 7}, 2: inner}


def ok(headers=(), remove=(), response=()):
    return {1: {}, 3: {2: list(headers), 5: list(remove), 6: list(response)}}


def case(name, answer, path="/x?q=1", *headers, more=({},), **kw):
    G.case("ext_authz: " + name, [answer, *more])(lambda t: t.get(path, *headers, **kw))


case("allowed", said(ALLOW), "/x?q=1", "x-a: 1", "x-a: 2")
case("allowed with a body", said(ALLOW), method="POST", body="hello")
case("denied", said(DENY))
case("denied with a status", said(denied(401)))
case("denied with a body and headers", said(denied(302, "go", [option("location", "/login"), option("x-b", "1"), option("x-b", "2")])))
case("denied HEAD", said(denied(401, "no")), method="HEAD")
case("denied gRPC", said(denied(401, "no")), "/x", "content-type: application/grpc", method="POST")
case("headers set, appended and removed", said(ok(
    [option("x-new", "1"), option("x-a", "over"), option("x-b", "more", append=True),
     option("x-none", "1", append=True)], ["x-gone", "x-absent"])),
    "/", "x-a: 1", "x-b: 1", "x-gone: 1")
case("header actions", said(ok([option("x-a", "2", action=0), option("x-b", "2", action=1), option("x-c", "2", action=2),
                                option("x-d", "2", action=3), option("x-e", "2", action=1)])),
     "/", "x-a: 1", "x-b: 1", "x-c: 1", "x-d: 1")
case("the path is changed", said(ok([option(":path", "/new")])))
case("the host is removed", said(ok([], ["host", ":path", "x-gone"])), "/", "x-gone: 1")
case("response headers added", said(ok(response=[option("x-from-authz", "1"), option("x-from-authz", "2", append=True)])))
case("response headers on a direct response", said(ok(response=[option("x-from-authz", "1")])), "/d")
case("off on the route", {}, "/off")
case("context extensions", said(ALLOW), "/context")
case("status in the trailers", said(grpc_status=7, grpc=[None]))
case("service that answers 503", {"status": 503, "decode": True})
case("service that resets", {"reset": 2, "decode": True})
case("answer that is no message", {"grpc": [b"\x0a\xff"]})
case("authority and metadata", said(ALLOW), listener="named")
case("no answer in time", {"silent": True, "decode": True}, listener="slow")
case("no answer in time, let in", {"silent": True, "decode": True}, listener="slow-allowed")
case("dead service", {}, listener="dead")
case("service without endpoints", {}, listener="empty")
case("unknown cluster", {}, listener="unknown")
case("body, partial", said(ALLOW), "/", listener="body", method="POST", body="hello world")
case("body, whole", said(ALLOW), "/", listener="body", method="POST", body="hello")
case("body as bytes", said(ALLOW), "/", listener="raw-body", method="POST", body="hello world")
case("body too large", said(ALLOW), "/", listener="whole-body", method="POST", body="hello world")
case("body within the limit", said(ALLOW), "/", listener="whole-body", method="POST", body="hello w!")
case("body not wanted on the route", said(ALLOW), "/no-body", listener="body", method="POST", body="hello")
case("no body where one is wanted", said(ALLOW), "/", listener="body")
case("route chosen again", said(ok([option("x-tenant", "a")])), "/", listener="reroute")
case("route not chosen again", said(ok([option("x-tenant", "a")])), "/")
for only in "custom", "custom-inverted":
    case(f"{only}: the shadow rules name a policy", said(denied(401)), "/", "x-ask: 1", listener=only)
    case(f"{only}: they name none", said(denied(401)), listener=only)
for verdict, answer in {"allowed": said(ALLOW), "denied": said(denied(403, "no"))}.items():
    G.case("ext_authz: h2 " + verdict, [answer, {}])(lambda t: t.h2("/", [("x-a", "1")], b"body", method="POST"))
