"""CORS, fault, upgrades."""
from harness.config import TYPE, bootstrap, host, listener, route
from harness.runner import Group

CORS = TYPE + "envoy.extensions.filters.http.cors.v3."
FAULT = TYPE + "envoy.extensions.filters.http.fault.v3.HTTPFault"


def config(p):
    def cors(**policy):
        return {"envoy.filters.http.cors": {"@type": CORS + "CorsPolicy", **policy}}
    origins = [{"exact": "http://good.test"}, {"suffix": ".good.test"}, {"safe_regex": {"regex": "http://re[0-9]+"}}]
    routes = [
        route("/full", "up", typed_per_filter_config=cors(
            allow_origin_string_match=origins, allow_methods="GET, PUT", allow_headers="x-a, x-b", expose_headers="x-c",
            max_age="60", allow_credentials=True)),
        route("/least", "up", typed_per_filter_config=cors(allow_origin_string_match=[{"safe_regex": {"regex": ".*"}}])),
        route("/off", "up", typed_per_filter_config=cors(allow_origin_string_match=origins, filter_enabled={
            "default_value": {"numerator": 0}, "runtime_key": "none"})),
        route("/abort", "up", typed_per_filter_config={"envoy.filters.http.fault": {"@type": FAULT, "abort": {
            "http_status": 555, "percentage": {"numerator": 100}}}}),
        route("/zero", "up", typed_per_filter_config={"envoy.filters.http.fault": {"@type": FAULT, "abort": {
            "http_status": 555, "percentage": {"numerator": 0}}}}),
        route("/ws-off", {"upgrade_configs": [{"upgrade_type": "websocket", "enabled": False}]}),
        route("/", "up"),
    ]
    filters = [{"name": "envoy.filters.http.cors", "typed_config": {"@type": CORS + "Cors"}},
               {"name": "envoy.filters.http.fault", "typed_config": {"@type": FAULT}}]
    return bootstrap(p, [listener(p, [host(routes)], filters=filters),
                         listener(p, [host(routes)], "ws", filters=filters, upgrade_configs=[{"upgrade_type": "websocket"}])])


G = Group(config)
PREFLIGHT = ("access-control-request-method: GET",)


def get(name, *args, upstream=(), **kw):
    G.case("filters: " + name, upstream)(lambda t: t.get(*args, **kw))


get("cors preflight", "/full", "origin: http://good.test", *PREFLIGHT, method="OPTIONS")
get("cors preflight by suffix", "/full", "origin: http://a.good.test", *PREFLIGHT, method="OPTIONS")
get("cors preflight by regex", "/full", "origin: http://re12", *PREFLIGHT, method="OPTIONS")
get("cors preflight from another origin", "/full", "origin: http://bad.test", *PREFLIGHT, method="OPTIONS")
get("cors preflight without a method", "/full", "origin: http://good.test", method="OPTIONS")
get("cors preflight, least policy", "/least", "origin: http://any", *PREFLIGHT, method="OPTIONS")
get("cors request", "/full", "origin: http://good.test")
get("cors request from another origin", "/full", "origin: http://bad.test")
get("cors request without origin", "/full")
get("cors request, upstream has its own headers", "/full", "origin: http://good.test",
    upstream=[{"headers": [("access-control-allow-origin", "x"), ("access-control-expose-headers", "y")]}])
get("cors off", "/off", "origin: http://good.test", *PREFLIGHT, method="OPTIONS")
get("cors without a policy", "/", "origin: http://good.test", *PREFLIGHT, method="OPTIONS")
get("fault abort", "/abort")
get("fault abort at 0 per cent", "/zero")

UPGRADE = ("connection: Upgrade", "upgrade: websocket", "sec-websocket-key: x", "sec-websocket-version: 13")
get("upgrade refused by the upstream", "/", *UPGRADE, listener="ws", upstream=[{"status": 400, "body": b"no"}])
get("upgrade of another type", "/", "connection: upgrade", "upgrade: other", listener="ws")
get("upgrade off on the route", "/ws-off", *UPGRADE, listener="ws")
get("upgrade off on the listener", "/", *UPGRADE)


@G.case("filters: websocket", [{"status": 101, "headers": [("connection", "Upgrade"), ("upgrade", "websocket")],
                                "tunnel": True}], 1)
def _(t):
    conn = t.connect("ws")
    conn.send(("GET /ws HTTP/1.1\r\nhost: a.test\r\n" + "\r\n".join(UPGRADE) + "\r\n\r\nearly").encode())
    t.record.append(conn.response())
    t.note(first=conn.read(5))
    conn.send(b"hello")
    t.note(second=conn.read(5))
    conn.close()
