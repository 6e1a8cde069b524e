"""Access logs over gRPC: what a service is told of requests and connections."""
import time

from harness.config import TYPE, bootstrap, host, listener, route
from harness.runner import Group

ALS = TYPE + "envoy.extensions.access_loggers.grpc.v3."
ALLOWED = TYPE + "envoy.extensions.filters.http.set_filter_state.v3.Config"


def config(p):
    def log(name, kind="http", cluster="up2", common=None, **fields):
        service = {"envoy_grpc": {"cluster_name": cluster}}
        return {"name": f"envoy.access_loggers.{kind}_grpc", "typed_config": {
            "@type": ALS + ("HttpGrpcAccessLogConfig" if kind == "http" else "TcpGrpcAccessLogConfig"),
            "common_config": {"log_name": name, "grpc_service": service, "transport_api_version": "V3",
                              "buffer_flush_interval": "0.05s", **(common or {})}, **fields}}
    routes = [host([
        route("/d", direct_response={"status": 200, "body": {"inline_string": "direct"}}, name="direct"),
        route("/refused", "dead"),
        route("/", "up", name="rest", metadata={"filter_metadata": {"f": {"k": "of the route", "o": {"n": 1}}}})])]
    state = [{"name": "state", "typed_config": {
        "@type": ALLOWED, "on_request_headers": [{"object_key": "envoy.string", "format_string": {"text_format_source": {
            "inline_string": "of %REQ(:METHOD)%"}}}]}}]

    def metadata(kind, *path, **more):
        return {"metadata": {"kind": {kind: {}}, "metadata_key": {"key": "f", "path": [{"key": k} for k in path]}, **more}}
    tags = [{"tag": "literal", "literal": {"value": "50%"}}, {"tag": "environment", "environment": {"name": "NOBODY", "default_value": "default"}},
            {"tag": "unset", "environment": {"name": "NOBODY"}},
            {"tag": "header", "request_header": {"name": "x-a"}},
            {"tag": "no header", "request_header": {"name": "x-none", "default_value": "none"}},
            {"tag": "nothing", "request_header": {"name": "x-none"}},
            {"tag": "route", **metadata("route", "k")}, {"tag": "object", **metadata("route", "o")},
            {"tag": "no metadata", **metadata("request", "k", default_value="none")}]
    headers = {"additional_request_headers_to_log": ["X-A", "x-none", ":path"], "additional_response_headers_to_log": ["content-type", ":status"],
               "additional_response_trailers_to_log": ["x-end"]}

    def on(name, *logs):
        return listener(p, routes, name, filters=state, access_log=list(logs))
    tcp = {"@type": TYPE + "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "tcp", "cluster": "up",
           "access_log": [log("tcp", "tcp")]}
    bytes_ = {"name": "tcp", "address": {"socket_address": {"address": "127.0.0.1", "port_value": p.listener("tcp")}},
              "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": tcp}]}]}
    return bootstrap(p, [
        on("plain", log("plain")), on("refused", log("refused")), on("direct", log("direct")), on("h2", log("h2", **headers)),
        on("all", log("all", common={"custom_tags": tags, "filter_state_objects_to_log": ["envoy.string", "nothing"]}, **headers)),
        on("two", log("two", common={"buffer_flush_interval": "600s", "buffer_size_bytes": 330})),
        on("each", log("each", common={"buffer_flush_interval": "600s", "buffer_size_bytes": 0})),
        on("nobody", log("nobody", cluster="dead")), on("unknown", log("unknown", cluster="unknown")),
        bytes_])


G = Group(config)


def told(t, entries=1):
    """Waits until the service has been told of so many."""
    until = time.monotonic() + 3
    while time.monotonic() < until:
        seen = t.proxy.backend.settled()
        if sum(len(m.get("entries", [])) for r in seen for m in r.get("messages", [])) >= entries:
            return
        time.sleep(0.02)


def case(name, listener, upstream=(), entries=1, counters=True):
    def keep(function):
        @G.case("access log service: " + name, [*upstream, {"grpc": []}], logs=0)
        def _(t):
            with t.counted(r"^access_logs\."):
                function(t, listener)
                told(t, entries)
    return keep


case("a request", "plain", [{}])(lambda t, on: t.get("/x?q=1", "user-agent: me", "referer: there", listener=on, method="POST", body="hello"))
case("nobody listens", "refused")(lambda t, on: t.get("/refused", listener=on))
case("a direct response", "direct")(lambda t, on: t.get("/d", listener=on, method="PUT", body=""))
case("all that can be asked for", "all", [{"body": b"b", "trailers": [("x-end", "1")]}])(
    lambda t, on: t.get("/x", "x-a: 1", "x-a: \xe9", listener=on))
case("HTTP/2", "h2", [{}])(lambda t, on: t.h2("/x", [("x-a", "1")], listener=on))


@case("two requests in one message", "two", entries=2)
def _(t, on):
    t.get("/d", listener=on)
    t.get("/d", listener=on)


@case("each on its own", "each", entries=2)
def _(t, on):
    t.get("/d", listener=on)
    told(t)
    t.get("/d", listener=on)


@case("a connection", "tcp", [{}])
def _(t, on):
    conn = t.connect(on)
    conn.send(b"GET /x HTTP/1.1\r\nhost: a.test\r\n\r\n")
    t.record.append(conn.response())
    conn.close()


for name in ("nobody", "unknown"):
    @G.case(f"access log service: {name}", logs=0)
    def _(t, name=name):
        for _ in range(3):
            t.get("/d", listener=name)
