"""What operators look at: numbers of updates, of listeners and of codecs; the logs of listeners."""
import json
import re
import time
from pathlib import Path

from harness.client import H2
from harness.config import LOG, TYPE, address, bootstrap, cluster, host, listener, route
from harness.runner import Group

FILE_LOG = TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog"


def home(ports):
    return Path(ports.log).parent


def publish(ports, version, name, *resources):
    """Puts a file in place at once, as file sources demand."""
    path = home(ports) / f"{name}.json"
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"version_info": version, "resources": list(resources)}))
    fresh.rename(path)


def source(p, name):
    return {"resource_api_version": "V3", "path_config_source": {"path": str(home(p) / f"{name}.json")}}


def endpoints(port, **fields):
    return {"@type": TYPE + "envoy.config.endpoint.v3.ClusterLoadAssignment", "cluster_name": "e", "endpoints": [
        {"lb_endpoints": [{"endpoint": {"address": address(port)}, **fields}]}]}


def table(*routes):
    return {"@type": TYPE + "envoy.config.route.v3.RouteConfiguration", "name": "routes",
            "virtual_hosts": [host(list(routes))]}


def dynamic(p):
    made = listener(p, [], "main", rds={"route_config_name": "routes", "config_source": source(p, "rds")})
    del made["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]
    publish(p, "l1", "lds", {"@type": TYPE + "envoy.config.listener.v3.Listener", **made})
    publish(p, "c1", "cds", {"@type": TYPE + "envoy.config.cluster.v3.Cluster", "name": "e", "type": "EDS",
                             "connect_timeout": "1s", "eds_cluster_config": {"eds_config": source(p, "eds")}})
    publish(p, "r1", "rds", table(route("/", "e")))
    publish(p, "e1", "eds", endpoints(p.up))
    whole = bootstrap(p, [])
    whole["dynamic_resources"] = {"lds_config": source(p, "lds"), "cds_config": source(p, "cds")}
    return whole


UPDATES = Group(dynamic)


def stats(t, pattern, without):
    lines = t.proxy.admin(rf"/stats?filter={pattern}")["body"].splitlines()
    return [line for line in lines if not re.search(without, line)]


@UPDATES.case("operators: updates that are taken and refused", [{}])
def _(t):
    names = r"^(cluster_manager\.cds|listener_manager\.lds|http\.main\.rds|cluster\.e\.(update|version|init_fetch))"
    # Of times only that they are there; what is not counted is listed in docs/configuration.md.
    hidden = r"(duration|version_text|update_empty|cluster\.e\.(init_fetch_timeout|update_no_rebuild))"

    def note(when):
        time.sleep(1.2)  # a file may be looked at up to a second later
        found = stats(t, names, hidden)
        t.note(**{when: [re.sub(r": \d{13}$", ": <time>", line) for line in found]})
    t.get("/")
    note("first")
    ports = t.proxy.ports
    publish(ports, "r2", "rds", table(route("/none", direct_response={"status": 404}), route("/", "e")))
    publish(ports, "e2", "eds", endpoints(ports.up2, load_balancing_weight=2))
    note("second")
    publish(ports, "r3", "rds", table(route("/", {"cluster": ""})))
    publish(ports, "e3", "eds", endpoints(ports.up, load_balancing_weight=0))
    note("refused")


def static(p):
    routes = [route("/d", direct_response={"status": 200}), route("/missing", direct_response={"status": 404}), route("/", "up")]
    logged = listener(p, routes, "logged")
    logged["access_log"] = [{"name": "file", "typed_config": {"@type": FILE_LOG, "path": p.log, "log_format": {
        "text_format_source": {"inline_string": "connection " + LOG}}}}]
    return bootstrap(p, [
        listener(p, routes), logged,
        listener(p, routes, "names", common_http_protocol_options={"headers_with_underscores_action": "DROP_HEADER"}),
        listener(p, routes, "no-names", common_http_protocol_options={"headers_with_underscores_action": "REJECT_REQUEST"}),
        listener(p, routes, "small", common_http_protocol_options={"max_headers_count": 10}),
        listener(p, routes, "once", drain_timeout="0.1s", common_http_protocol_options={"max_requests_per_connection": 1}),
        listener(p, routes, "ping", http2_protocol_options={
            "connection_keepalive": {"interval": "0.2s", "timeout": "0.2s", "interval_jitter": {"value": 0}}}),
    ])


NUMBERS = Group(static)


@NUMBERS.case("operators: responses of a listener")
def _(t):
    for path in ("/d", "/missing", "/d"):
        t.get(path)
    port = t.proxy.ports.listener("main")
    found = stats(t, rf"^listener\.127\.0\.0\.1_{port}\.http\.", "$^")
    t.note(stats=[line.replace(str(port), "<port>") for line in found])


@NUMBERS.case("operators: a connection in its listener's log", logs=3)
def _(t):
    conn = t.connect("logged")
    for _ in range(2):
        conn.send(b"GET /d HTTP/1.1\r\nhost: a.test\r\n\r\n")
        t.record.append(conn.response())
    conn.close()


def ask(path="/d", *more):
    return [(":method", "GET"), (":scheme", "http"), (":authority", "a.test"), (":path", path), *more]


HEAD = b"\x82\x86\x84\x41\x06a.test"
HEADERS, DATA, PRIORITY, RESET, WINDOW = 1, 0, 2, 3, 8


def codec(name, counters, listener="main", **kw):
    """What an HTTP/2 connection leaves in the codec's numbers."""
    def keep(function):
        @NUMBERS.case("operators: http2, " + name, **kw)
        def _(t):
            def now():
                pairs = (line.rsplit(": ", 1) for line in stats(t, rf"^http2\.({counters})$", "$^"))
                return {name: int(value) for name, value in pairs}
            before = now()
            conn = H2(t.proxy.ports.listener(listener))
            t.open.append(conn)
            function(t, conn)
            time.sleep(0.1)
            t.note(counted={name: value - before.get(name, 0) for name, value in now().items()})
            t.unsure = True
    return keep


@codec("a stream that its client resets", "rx_reset|tx_reset", logs=1)
def _(t, conn):
    conn.raw((HEADERS, 4, 1, HEAD), (RESET, 0, 1, b"\0\0\0\x08"))
    conn.watch(0.2)


@codec("a stream above the limits", "tx_reset|header_overflow", "small")
def _(t, conn):
    conn.finish([conn.start(ask("/d", *[(f"a{i}", "b") for i in range(20)]))])


@codec("names with underscores dropped", r"dropped_headers_with_underscores|requests_rejected\w+", "names", logs=1)
def _(t, conn):
    conn.finish([conn.start(ask("/d", ("a_b", "c"), ("d_e", "f")))])


@codec("names with underscores refused", r"dropped_headers_with_underscores|requests_rejected\w+", "no-names")
def _(t, conn):
    conn.finish([conn.start(ask("/d", ("a_b", "c")))])


@codec("PRIORITY flood", r"inbound_\w+_flood")
def _(t, conn):
    conn.raw(*[(PRIORITY, 0, 1, b"\0\0\0\0\0")] * 101)
    conn.watch(0.2)


@codec("WINDOW_UPDATE flood", r"inbound_\w+_flood")
def _(t, conn):
    conn.raw(*[(WINDOW, 0, 0, b"\0\0\0\x01")] * 6)
    conn.watch(0.2)


@codec("empty DATA flood", r"inbound_\w+_flood")
def _(t, conn):
    conn.raw((HEADERS, 4, 1, HEAD))
    time.sleep(0.1)
    conn.raw(*[(DATA, 0, 1, b"")] * 3)
    conn.watch(0.2)


@codec("a header that is not legal", "rx_messaging_error")
def _(t, conn):
    conn.raw((HEADERS, 5, 1, HEAD + b"\x40\x01A\x01b"))
    conn.watch(0.2)


@codec("a connection that is asked to go", "goaway_sent", "once", logs=1)
def _(t, conn):
    conn.finish([conn.start(ask())])
    conn.watch(0.3)


@codec("a client that answers no PING", "keepalive_timeout", "ping")
def _(t, conn):
    time.sleep(0.8)
