"""Header mutation, XFF, XFP, request ids, hop-by-hop headers, `server`, `x-envoy-*`."""
from harness.config import TYPE, bootstrap, host, listener, route
from harness.runner import Group


def add(key, value, action=None):
    made = {"header": {"key": key, "value": value}}
    return {**made, "append_action": action} if action else made


def config(p):
    routes = [
        route("/add", "up", request_headers_to_add=[
            add("x-new", "one"), add("x-old", "appended"), add("x-over", "over", "OVERWRITE_IF_EXISTS_OR_ADD"),
            add("x-absent", "made", "ADD_IF_ABSENT"), add("x-only", "changed", "OVERWRITE_IF_EXISTS")],
            response_headers_to_add=[add("x-resp", "route"), add("x-up", "over", "OVERWRITE_IF_EXISTS_OR_ADD")],
            request_headers_to_remove=["x-gone"], response_headers_to_remove=["x-secret"]),
        route("/format", "up", request_headers_to_add=[
            add("x-proto", "%PROTOCOL%"), add("x-req", "%REQ(x-in?x-alt)%"), add("x-trunc", "%REQ(x-in):3%"),
            add("x-down", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"), add("x-pct", "100%%"),
            add("x-route", "%ROUTE_NAME%"), add("x-local", "%DOWNSTREAM_LOCAL_PORT%"), add("x-empty", "%REQ(none)%")],
            response_headers_to_add=[add("x-code", "%RESPONSE_CODE%"), add("x-cluster", "%UPSTREAM_CLUSTER%"),
                                     add("x-host", "%UPSTREAM_HOST%"), add("x-flags", "%RESPONSE_FLAGS%")], name="fmt"),
        route("/direct", direct_response={"status": 200, "body": {"inline_string": "d"}},
              response_headers_to_add=[add("x-direct", "yes")]),
        route("/", "up"),
    ]
    hosts = [host(routes, request_headers_to_add=[add("x-level", "vhost")], response_headers_to_remove=["x-vh"])]
    level = {"request_headers_to_add": [add("x-level", "config")], "response_headers_to_add": [add("x-rc", "config")],
             "internal_only_headers": ["x-internal"]}
    plain = [route("/", "up")]
    original = {"name": "envoy.http.original_ip_detection.xff", "typed_config": {
        "@type": TYPE + "envoy.extensions.http.original_ip_detection.xff.v3.XffConfig", "xff_num_trusted_hops": 1}}
    return bootstrap(p, [
        listener(p, hosts, route_config=level),
        listener(p, plain, "edge", use_remote_address=True),
        listener(p, plain, "edge1", use_remote_address=True, xff_num_trusted_hops=1),
        listener(p, plain, "skip", use_remote_address=True, skip_xff_append=True),
        listener(p, plain, "detect", original_ip_detection_extensions=[original]),
        listener(p, plain, "via", via="fair", server_name="mine", server_header_transformation="APPEND_IF_ABSENT"),
        listener(p, plain, "pass", server_header_transformation="PASS_THROUGH", generate_request_id=False),
        listener(p, plain, "keepid", use_remote_address=True, preserve_external_request_id=True,
                 always_set_request_id_in_response=True),
        listener(p, plain, "strip", strip_matching_host_port=True),
        listener(p, plain, "stripany", strip_any_host_port=True),
        listener(p, plain, "dot", strip_trailing_host_dot=True),
        listener(p, plain, "norm", normalize_path=True, merge_slashes=True,
                 path_with_escaped_slashes_action="UNESCAPE_AND_REDIRECT"),
        listener(p, plain, "slashes", normalize_path=True, path_with_escaped_slashes_action="REJECT_REQUEST"),
        listener(p, plain, "under", common_http_protocol_options={"headers_with_underscores_action": "REJECT_REQUEST"}),
        listener(p, plain, "drop", common_http_protocol_options={"headers_with_underscores_action": "DROP_HEADER"}),
    ])


G = Group(config)
ID = "x-request-id: 6f1d2a00-1111-4222-8333-444455556666"


def get(name, *args, upstream=(), **kw):
    G.case("headers: " + name, upstream)(lambda t: t.get(*args, **kw))


get("add, append, overwrite, remove", "/add", "x-old: a", "x-over: a", "x-absent: a", "x-only: a", "x-gone: a",
    upstream=[{"headers": [("x-secret", "s"), ("x-up", "u"), ("x-resp", "up"), ("x-vh", "v")]}])
get("add to a request without them", "/add")
get("formatters", "/format", "x-in: abcdef")
get("formatters: alternative header", "/format", "x-alt: alt")
get("on a direct response", "/direct")
get("internal-only headers are removed", "/", "x-internal: 1")
get("request id generated", "/")
get("request id of an internal caller", "/", ID)
get("request id from the edge is replaced", "/", ID, listener="edge")
get("request id preserved at the edge", "/", ID, listener="keepid")
get("request id not generated", "/", listener="pass", upstream=[{"headers": [("server", "backend")]}])
get("XFF without use_remote_address", "/", "x-forwarded-for: 1.2.3.4")
get("XFF appended at the edge", "/", "x-forwarded-for: 1.2.3.4", listener="edge")
get("XFF of two addresses at the edge", "/", "x-forwarded-for: 1.2.3.4, 10.0.0.1", listener="edge")
get("XFF absent at the edge", "/", listener="edge")
get("XFF with a trusted hop", "/", "x-forwarded-for: 1.2.3.4,5.6.7.8", listener="edge1")
get("XFF not appended when skipped", "/", "x-forwarded-for: 1.2.3.4", listener="skip")
get("XFF detection extension", "/", "x-forwarded-for: 1.2.3.4, 5.6.7.8", listener="detect")
get("XFF invalid", "/", "x-forwarded-for: nonsense", listener="edge")
get("XFP set by an internal caller", "/", "x-forwarded-proto: https")
get("XFP from the edge is replaced", "/", "x-forwarded-proto: https", listener="edge")
get("XFP invalid", "/", "x-forwarded-proto: gopher")
get("x-envoy headers from the edge are removed", "/", "x-envoy-retry-on: 5xx", "x-envoy-internal: true",
    "x-envoy-upstream-rq-timeout-ms: 5", "x-envoy-expected-rq-timeout-ms: 7", "x-envoy-foo: 1",
    "x-forwarded-for: 8.8.8.8", listener="edge1")
get("x-envoy-decorator-operation", "/", "x-envoy-decorator-operation: op")
get("via and server if absent", "/", listener="via", upstream=[{"headers": [("server", "backend")]}])
get("server passed through", "/", listener="pass", upstream=[{"headers": [("server", "backend")]}])
get("server overwritten", "/", upstream=[{"headers": [("server", "backend"), ("date", "then"), ("via", "1.1 x")]}])
get("hop-by-hop request headers", "/", "connection: x-hop, keep-alive", "x-hop: 1", "keep-alive: timeout=5", "te: trailers",
    "proxy-connection: keep-alive")
get("te other than trailers", "/", "te: gzip, trailers", "connection: te")
for te in ("trailers", "gzip, trailers", "trailers;q=0.5", "TRAILERS", "gzip", "deflate;q=0.5,trailers "):
    get(f"te {te}", "/", f"te: {te}")
    get(f"te {te}, nominated", "/", f"te: {te}", "connection: te")
get("te on two lines", "/", "te: gzip", "te: trailers")
get("connection nominates nothing bad", "/", "connection: close, x-forwarded-for")
get("hop-by-hop response headers", "/", upstream=[{"headers": [("connection", "x-hop"), ("x-hop", "1"),
                                                               ("keep-alive", "timeout=5"), ("proxy-connection", "a")]}])
get("response x-envoy headers are removed", "/", upstream=[{"headers": [
    ("x-envoy-upstream-service-time", "7"), ("x-envoy-foo", "1"), ("x-envoy-immediate-health-check-fail", "no"),
    ("x-envoy-degraded", "1"), ("x-envoy-ratelimited", "1")]}])
get("repeated and empty headers survive", "/", "x-e:", "x-r: a", "x-r: b", "cookie: a=1", "cookie: b=2",
    upstream=[{"headers": [("set-cookie", "a"), ("set-cookie", "b"), ("x-e", "")]}])
get("header names are lower-cased", "/", "X-MiXed: V", upstream=[{"headers": [("X-MiXed", "V")]}])
get("header bytes above ASCII", "/", "x-bytes: \xe9\xff", upstream=[{"headers": [("x-bytes", "\xe9")]}])
get("host port stripped when it matches", "/", listener="strip", host="a.test:1")
get("any host port stripped", "/", listener="stripany", host="a.test:1")
get("trailing host dot stripped", "/", listener="dot", host="a.test.:80")
get("user-agent absent and present", "/", "user-agent: me/1", "referer: x")
get("path normalised", "/a/../b/./c//d?e=/../", listener="norm")
get("path percent-encoding normalised", "/%41%7e%2d%zz/%2e%2e/x", listener="norm")
get("path above the root", "/../../x", listener="norm")
get("escaped slashes redirected", "/a%2Fb%5cc?q=%2F", listener="norm")
get("escaped slashes rejected", "/a%2fb", listener="slashes")
get("path left alone by default", "/a/../b//c%2F%41?x#y")
get("underscore rejected", "/", "x_y: 1", listener="under")
get("underscore dropped", "/", "x_y: 1", listener="drop")
get("underscore allowed", "/", "x_y: 1")


@G.case("headers: underscores counted")
def _(t):
    with t.counted(r"^http1\."):
        t.get("/", "x_y: 1", "x_z: 1", listener="drop")
        t.get("/", "x_y: 1", "x_z: 1", listener="under")
    with t.counted(r"^http2\.(dropped|requests_rejected)"):
        t.h2(head=[(":method", "GET"), (":scheme", "http"), (":authority", "a.test"), (":path", "/"), ("x_y", "1"), ("x_z", "1")], listener="drop")


@G.case("headers: h2 underscore rejected")
def _(t):
    t.h2(headers=[("x_y", "1")], listener="under")


@G.case("headers: h2 edge")
def _(t):
    t.h2(headers=[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https")], listener="edge")
