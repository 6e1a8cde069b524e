"""`max_stream_duration` of a cluster: how long one stream to its upstream may take."""
from harness.config import TYPE, bootstrap, cluster, listener, route
from harness.runner import Group


def limited(p, h2=False):
    explicit = {"http2_protocol_options": {}} if h2 else {"http_protocol_options": {}}
    return {"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": explicit,
        "common_http_protocol_options": {"max_stream_duration": "0.3s"}}}}


def config(p):
    retry = {"retry_policy": {"retry_on": "reset", "retry_back_off": {"base_interval": "0.001s"}}}
    routes = [route("/two", "two"), route("/retry", {"cluster": "one", **retry}),
              route("/5xx", {"cluster": "one", "retry_policy": {"retry_on": "5xx", "retry_back_off": {"base_interval": "0.001s"}}}),
              route("/dead", "gone"), route("/", "one")]
    return bootstrap(p, [listener(p, routes)], [
        cluster("one", p.up, **limited(p)), cluster("two", p.up2, **limited(p, True)), cluster("gone", p.dead, **limited(p))])


G = Group(config)


def get(name, path, upstream, counted="one", **kw):
    @G.case("stream duration: " + name, upstream, blind=True)
    def _(t):
        names = rf"^cluster\.{counted}\.(upstream_rq_(max_duration_reached|timeout|tx_reset|rx_reset|retry|[45]xx|408|504|200))$"

        def now():
            pairs = (line.rsplit(": ", 1) for line in t.proxy.admin(f"/stats?filter={names}")["body"].splitlines())
            return {key: int(value) for key, value in pairs}
        before = now()
        t.get(path, **kw)
        t.note(counted={k: v - before.get(k, 0) for k, v in now().items() if v != before.get(k, 0)})


get("in time", "/", [{"delay": 0.1}])
get("over", "/", [{"delay": 0.8}])
get("over on HTTP/2", "/two", [{"delay": 0.8}], "two")
get("over with a body", "/", [{"delay": 0.8}], method="POST", body="some body")
get("a retry is in time", "/retry", [{"delay": 0.8}, {}])
get("5xx asks for a retry", "/5xx", [{"delay": 0.8}, {}])
get("no try is in time", "/retry", [{"delay": 0.8}, {"delay": 0.8}])
get("no connection", "/dead", [], "gone")
