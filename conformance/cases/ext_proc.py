"""External processing."""
from harness.config import TYPE, bootstrap, listener, route
from harness.grpc import message
from harness.runner import Group

PROC = TYPE + "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"


def config(p):
    def proc(**fields):
        return [{"name": "envoy.filters.http.ext_proc", "typed_config": {
            "@type": PROC, "grpc_service": {"envoy_grpc": {"cluster_name": "up2"}, "timeout": "1s"},
            "message_timeout": "0.3s", **fields}}]
    routes = [route("/d", direct_response={"status": 200, "body": {"inline_string": "direct"}}), route("/", "up")]
    duplex = {"request_body_mode": "FULL_DUPLEX_STREAMED", "response_body_mode": "FULL_DUPLEX_STREAMED",
              "request_trailer_mode": "SEND", "response_trailer_mode": "SEND"}
    return bootstrap(p, [
        listener(p, routes, filters=proc()),
        listener(p, routes, "request", filters=proc(processing_mode={"response_header_mode": "SKIP"})),
        listener(p, routes, "allow", filters=proc(failure_mode_allow=True)),
        listener(p, routes, "duplex", filters=proc(processing_mode=duplex)),
    ])


G = Group(config)


def head(side, set_headers=(), remove=(), **common):
    """A HeadersResponse for the request (1) or the response (2)."""
    mutation = {1: [{1: {1: n, 3: v}} for n, v in set_headers], 2: list(remove)}
    return {side: {1: {2: mutation, **common}}}


def body(side, data, end):
    """A part of a body in full duplex: request (3) or response (4)."""
    return {side: {1: {3: {3: {1: data, 2: end}}}}}


def said(*answers, **more):
    return {"grpc": [message(a) if a is not None else None for a in answers], **more}


def case(name, answer, path="/", *headers, more=({},), **kw):
    G.case("ext_proc: " + name, [answer, *more])(lambda t: t.get(path, *headers, **kw))


case("both heads seen", said(head(1), head(2)), "/x?q=1", "x-a: 1", "x-a: 2")
case("both heads changed", said(head(1, [("x-new", "1"), (":path", "/new")], ["x-gone"]), head(2, [("x-new", "2")], ["content-type"])),
     "/", "x-gone: 1")
case("immediate response to the request", said({7: {1: {1: 418}, 2: {1: [{1: {1: "x-why", 3: "proc"}}]}, 3: "tea", 5: "because"}}))
case("immediate response to the response", said(head(1), {7: {1: {1: 418}, 3: "tea"}}))
case("processor ends the call", said(None))
case("processor ends the call with an error", said(None, grpc_status=13))
case("processor ends the call with an error, let through", said(None, grpc_status=13), listener="allow")
case("processor answers the wrong side", said(head(2)))
case("no answer in time", said())
case("no answer in time, let through", said(), listener="allow")
case("request only", said(head(1, [("x-new", "1")])), listener="request")
case("local reply", said(head(1), head(2, [("x-new", "1")])), "/d")
case("with a body that is not asked for", said(head(1), head(2)), method="POST", body="hello")
case("full duplex, bodies replaced", said(
    head(1), body(3, "HELLO", True), head(2), body(4, "BYE", True)), listener="duplex", method="POST", body="hello")
case("full duplex, no request body", said(head(1), head(2), body(4, "BYE", True)), listener="duplex")
