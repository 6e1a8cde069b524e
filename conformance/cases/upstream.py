"""The router's upstream side: local replies, timeouts, retries, resets, balancing, h2 upstreams."""
from harness.config import address, bootstrap, cluster, listener, route
from harness.runner import Group


def config(p):
    retry = {"retry_on": "5xx", "num_retries": 2, "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.002s"}}

    def on(what, **more):
        return {"retry_policy": {**retry, "retry_on": what, **more}}
    routes = [
        route("/dead", "dead"), route("/empty", "empty"), route("/tiny", "tiny"), route("/off", "off"),
        route("/timeout", {"timeout": "0.2s"}),
        route("/pertry", {"timeout": "2s", **on("5xx", per_try_timeout="0.2s", num_retries=1)}),
        route("/h2timeout", {"cluster": "up2", "timeout": "0.2s"}),
        route("/never", {"timeout": "0s"}),
        route("/idle", {"timeout": "0s", "idle_timeout": "0.2s"}),
        route("/r5xx", on("5xx")), route("/rgw", on("gateway-error")), route("/rreset", on("reset")),
        route("/rconn", {"cluster": "mixed", **on("connect-failure")}), route("/r409", on("retriable-4xx")),
        route("/rcodes", on("retriable-status-codes", retriable_status_codes=[418])),
        route("/rheaders", on("retriable-headers", retriable_headers=[{"name": "x-again", "present_match": True}])),
        route("/rh2", {"cluster": "up2", **on("refused-stream")}),
        route("/rgrpc", {"cluster": "up2", **on("unavailable,cancelled")}),
        route("/rdead", {"cluster": "dead", **on("connect-failure")}),
        route("/rnone", "up"), route("/h2", "up2"), route("/maxgrpc", {"cluster": "up2", "max_stream_duration": {
            "grpc_timeout_header_max": "1s"}}),
        route("/duration", {"max_stream_duration": {"max_stream_duration": "0.2s"}}),
        route("/nohealthy", "sick"),
        route("/", "up"),
    ]
    tiny = cluster("tiny", p.up, circuit_breakers={"thresholds": [{"max_requests": 0, "max_pending_requests": 0,
                                                                   "max_connections": 0, "track_remaining": True}]})
    sick = cluster("sick", common_lb_config={"healthy_panic_threshold": {"value": 0}})
    sick["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
        {"health_status": "UNHEALTHY", "endpoint": {"address": address(p.up)}}]
    mixed = cluster("mixed", p.dead, p.up)
    return bootstrap(p, [
        listener(p, routes),
        listener(p, routes, "plain", common_http_protocol_options={"max_stream_duration": "0.3s"}),
        listener(p, routes, "inside", use_remote_address=True, internal_address_config={
            "cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]}),
        listener(p, routes, "hcmtimeout", request_timeout="0.2s"),
        listener(p, routes, "headertimeout", request_headers_timeout="0.2s"),
        listener(p, routes, "idle", drain_timeout="0.1s", common_http_protocol_options={"idle_timeout": "0.2s"}),
        listener(p, routes, "streamidle", stream_idle_timeout="0.2s"),
        listener(p, routes, "once", common_http_protocol_options={"max_requests_per_connection": 2}),
        listener(p, [route("/", direct_response={"status": 200})], "norouter"),
        listener(p, [route("/", {"timeout": "0.2s"})], "suppress", local_reply_config={"mappers": [
            {"filter": {"status_code_filter": {"comparison": {"op": "GE", "value": {"default_value": 500, "runtime_key": "none"}}}},
             "status_code": 599, "body": {"inline_string": "mapped"},
             "headers_to_add": [{"header": {"key": "x-mapped", "value": "1"}}],
             "body_format_override": {"json_format": {"code": "%RESPONSE_CODE%", "body": "%LOCAL_REPLY_BODY%",
                                                      "path": "%REQ(:path)%"}}}]}),
        listener(p, [route("/x", "up")], "textreply", local_reply_config={"body_format": {
            "text_format_source": {"inline_string": "sorry: %LOCAL_REPLY_BODY% %RESPONSE_CODE%\n"},
            "content_type": "text/x-sorry"}}),
        listener(p, [{**route("/", "up")}], "quiet", server_name="q"),
    ], [tiny, sick, mixed, cluster("off", p.up, connect_timeout="0.1s")])


G = Group(config)
GRPC = ("content-type: application/grpc", "te: trailers")


def get(name, *args, upstream=(), logs=None, **kw):
    G.case("upstream: " + name, upstream, logs)(lambda t: t.get(*args, **kw))


def h2(name, *args, upstream=(), logs=None, **kw):
    G.case("upstream: " + name, upstream, logs)(lambda t: t.h2(*args, **kw))


get("connection refused", "/dead")
get("no endpoints", "/empty")
get("no healthy endpoint", "/nohealthy")
get("circuit open", "/tiny")
get("reset before the response", "/", upstream=[{"reset": True}])
get("close before the response", "/", upstream=[{"close": True}])
get("closed while idle, then another request", "/", upstream=[{"close_after": True}])
get("request after that", "/")
get("connection: close from the upstream", "/", upstream=[{"headers": [("connection", "close")], "close_after": True}])
get("route timeout", "/timeout", upstream=[{"delay": 0.5}])
get("route timeout over h2", "/h2timeout", upstream=[{"delay": 0.5}])
get("timeout 504 becomes 204 by header", "/timeout", "x-envoy-upstream-rq-timeout-alt-response: 1", listener="inside", upstream=[{"delay": 0.5}])
get("timeout header of a stranger is ignored", "/", "x-envoy-upstream-rq-timeout-ms: 200", upstream=[{"delay": 0.3}])
get("x-envoy headers of an internal caller are kept", "/", "x-envoy-foo: 1", "x-envoy-expected-rq-timeout-ms: 7", listener="inside")
get("per-try timeout header", "/rnone", "x-envoy-upstream-rq-per-try-timeout-ms: 200", "x-envoy-retry-on: 5xx",
    listener="inside", upstream=[{"delay": 0.5}, {}])
get("retried on another host", "/rconn")
get("timeout header", "/", "x-envoy-upstream-rq-timeout-ms: 200", listener="inside", upstream=[{"delay": 0.5}])
get("timeout disabled", "/never")
get("per-try timeout retried", "/pertry", upstream=[{"delay": 0.5}, {}])
get("per-try timeout exhausted", "/pertry", upstream=[{"delay": 0.5}])
get("stream idle timeout of the route", "/idle", upstream=[{"delay": 0.6}])
get("stream idle timeout of the listener", "/never", listener="streamidle", upstream=[{"delay": 0.6}])
get("max stream duration of the route", "/duration", upstream=[{"delay": 0.6}])
get("max stream duration of the listener", "/never", listener="plain", upstream=[{"delay": 0.7}])
get("retry 5xx succeeds", "/r5xx", upstream=[{"status": 503}, {"status": 500}, {}])
get("retry 5xx exhausted", "/r5xx", upstream=[{"status": 503, "body": b"last"}])
get("retry repeats the body", "/r5xx", method="POST", body="again", upstream=[{"status": 503}, {}])
get("retry not on 4xx", "/r5xx", upstream=[{"status": 404}])
get("retry gateway-error not on 500", "/rgw", upstream=[{"status": 500}])
get("retry gateway-error on 502", "/rgw", upstream=[{"status": 502}, {}])
# The connection ends here: on one that was used before, we send a request that is safe to repeat once more.
get("retry on reset", "/rreset", upstream=[{"reset": True}, {"headers": [("connection", "close")], "close_after": True}])
get("retry on reset exhausted", "/rreset", upstream=[{"reset": True}])
get("retry on close as 5xx", "/r5xx", upstream=[{"close": True}, {}])
get("retry on 409", "/r409", upstream=[{"status": 409}, {}])
get("retry on listed status", "/rcodes", upstream=[{"status": 418}, {}])
get("retry on a response header", "/rheaders", upstream=[{"headers": [("x-again", "1")]}, {}])
get("retry on refused stream", "/rh2", upstream=[{"reset": 7}, {}])
get("retry connect failure exhausted", "/rdead")
get("retry by header", "/rnone", "x-envoy-retry-on: 5xx", "x-envoy-max-retries: 1", listener="inside", upstream=[{"status": 503}, {}])
get("h1 to h2", "/h2?x=1", "cookie: a=1", "cookie: b=2", method="POST", body="data")
get("h1 to h2 response trailers dropped", "/h2", upstream=[{"trailers": [("x-t", "1")]}])
get("h1 to h2 empty response", "/h2", upstream=[{"body": b""}])
get("h1 to h2 reset", "/h2", upstream=[{"reset": 2}])
get("h1 to h2 refused", "/h2", upstream=[{"reset": 7}])
get("h1 to h2 reset after headers", "/h2", upstream=[{"reset_after": 2, "trailers": []}], logs=1)
get("h1 to h2 connection closed", "/h2", upstream=[{"close": True}])
get("h1 to h2 interim", "/h2", upstream=[{"interim": [(103, [("link", "</a>")])]}])
get("h1 to h2 bad response header", "/h2", upstream=[{"headers": [("x bad", "1")]}])
get("h1 to h2 HEAD", "/h2", method="HEAD", upstream=[{"body": b"", "headers": [("content-length", "5")]}])
get("h1 to h2 content-length mismatch", "/h2", upstream=[{"headers": [("content-length", "5")]}], logs=1)
get("gRPC local reply over h1", "/dead", *GRPC, method="POST", body="x")
get("gRPC no route over h1", "/x", *GRPC, listener="textreply", method="POST", body="x", host="none")
get("local reply mapped to JSON", "/a?b", listener="suppress", upstream=[{"delay": 0.5}])
get("local reply not mapped", "/", listener="suppress", upstream=[{"status": 503}])
get("local reply body format", "/y", listener="textreply")
get("content-type of a local reply by accept", "/dead", "accept: application/json")
get("max requests per connection", "/", listener="once")

h2("h2 to h1", "/x?y=1", [("cookie", "a=1"), ("cookie", "b=2")], b"data", method="POST")
h2("h2 to h1 empty", "/")
h2("h2 to h1 trailers", "/", body=b"d", trailers=[("x-t", "1")], method="POST")
h2("h2 to h1 response trailers", "/", upstream=[{"trailers": [("x-t", "1")]}])
h2("h2 to h1 HEAD", "/", method="HEAD")
h2("h2 to h1 body without length", "/", body=b"data", method="POST", upstream=[{"raw": b"HTTP/1.1 200 OK\r\n\r\nuntil", "close_after": True}])
h2("h2 to h1 cut", "/", upstream=[{"truncate": 9}])
h2("h2 to h2", "/h2", body=b"data", trailers=[("x-t", "1")], method="POST", upstream=[{"trailers": [("x-u", "2")]}])
h2("h2 to h2 trailers only", "/h2", [("content-type", "application/grpc"), ("te", "trailers")], b"\0\0\0\0\0", method="POST",
   upstream=[{"body": b"", "headers": [("content-type", "application/grpc"), ("grpc-status", "5")]}])
h2("h2 to h2 gRPC", "/h2", [("content-type", "application/grpc"), ("te", "trailers")], b"\0\0\0\0\0", method="POST",
   upstream=[{"body": b"\0\0\0\0\0", "headers": [("content-type", "application/grpc")], "trailers": [("grpc-status", "0")]}])
h2("h2 to h2 reset", "/h2", upstream=[{"reset": 8}])
h2("h2 to h2 reset after headers", "/h2", upstream=[{"reset_after": 2, "trailers": []}])
h2("h2 interim", "/", upstream=[{"interim": [(103, [("link", "</a>")])]}])
h2("h2 dead", "/dead")
h2("h2 empty", "/empty")
h2("h2 timeout", "/timeout", upstream=[{"delay": 0.5}])
h2("gRPC local reply", "/dead", [("content-type", "application/grpc"), ("te", "trailers")], b"x", method="POST")
h2("gRPC local reply no healthy", "/empty", [("content-type", "application/grpc")], b"x", method="POST")
h2("gRPC timeout", "/timeout", [("content-type", "application/grpc")], b"x", method="POST", upstream=[{"delay": 0.5}])
h2("gRPC-Web is not gRPC", "/dead", [("content-type", "application/grpc-web")], b"x", method="POST")
h2("gRPC upstream 503 without grpc-status", "/h2", [("content-type", "application/grpc")], b"x", method="POST", upstream=[{"status": 503}])
h2("gRPC retry on unavailable", "/rgrpc", [("content-type", "application/grpc")], b"x", method="POST",
   upstream=[{"body": b"", "headers": [("grpc-status", "14")]}, {}])
h2("grpc-timeout header", "/maxgrpc", [("content-type", "application/grpc"), ("grpc-timeout", "200m")], b"x", method="POST",
   upstream=[{"delay": 0.6}])


@G.case("upstream: request timeout while the body is awaited")
def _(t):
    t.h1("POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 5\r\n\r\nab", "hcmtimeout")


@G.case("upstream: headers timeout")
def _(t):
    t.h1("GET / HTTP/1.1\r\nhost: a.te", "headertimeout")


@G.case("upstream: idle connection closed")
def _(t):
    t.h1("GET / HTTP/1.1\r\nhost: a.test\r\n\r\n", "idle", after=1.5)


@G.case("upstream: second request on a connection with a limit")
def _(t):
    one = "GET / HTTP/1.1\r\nhost: a.test\r\n\r\n"
    t.h1(one + one, "once", count=2)
