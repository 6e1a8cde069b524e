"""The TCP proxy: ends of both directions, limits, tries, and what the logs of the proxy and of its listener tell."""
import socket
import struct
import time

from harness.config import TYPE, address, bootstrap, cluster
from harness.runner import Group

TCP = TYPE + "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
FORMAT = ("%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% %BYTES_RECEIVED% %BYTES_SENT% "
          "%UPSTREAM_CLUSTER% %UPSTREAM_HOST% %UPSTREAM_REQUEST_ATTEMPT_COUNT% %UPSTREAM_TRANSPORT_FAILURE_REASON% %PROTOCOL% "
          "%UPSTREAM_PROTOCOL%\n")
COUNTED = (r"^tcp\.\w+\.(downstream_cx_(total|no_route|.x_bytes_total)|idle_timeout|max_downstream_connection_duration)$|^cluster\.\w+\.upstream_(cx_total|cx_destroy|cx_connect_(fail|attempts|timeout)\w*|cx_none_healthy|cx_overflow"
           r"|cx_rx_bytes_total|cx_tx_bytes_total|rq_total|rq_pending\w*)$")


def read(conn, record):
    """Everything until the end, and which one."""
    try:
        while data := conn.recv(65536):
            record["bytes"] += data.decode("latin-1")
        record["end"] = "closed"
    except ConnectionResetError:
        record["end"] = "reset"


def reset(conn):
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    conn.close()


def collects(conn, record):
    """Reads to the end, and answers that."""
    read(conn, record)
    if record["end"] == "closed":
        conn.sendall(b"bye")


def echoes(conn, record):
    while data := conn.recv(65536):
        record["bytes"] += data.decode("latin-1")
        conn.sendall(data)


def ends(conn, record):
    """Speaks, ends its direction, and reads on."""
    conn.sendall(b"hello")
    conn.shutdown(socket.SHUT_WR)
    read(conn, record)


def closes(conn, record):
    """Reads something, speaks and closes."""
    record["bytes"] += conn.recv(65536).decode("latin-1")
    conn.sendall(b"hello")


def resets(conn, record):
    record["bytes"] += conn.recv(65536).decode("latin-1")
    reset(conn)


def log(p, name, format=FORMAT, filter=None):
    return [{**({"filter": filter} if filter else {}), "name": "envoy.access_loggers.file", "typed_config": {
        "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": p.log,
        "log_format": {"text_format_source": {"inline_string": name + " " + format}}}}]


def tcp(p, name, to="up", format=FORMAT, filter=None, **fields):
    proxy = {"@type": TCP, "stat_prefix": name.replace(" ", "_"), "access_log": log(p, "proxy", format, filter), **fields}
    if "weighted_clusters" not in fields:
        proxy["cluster"] = to
    return {"name": name, "address": address(p.listener(name)), "access_log": log(p, "listener", format),
            "filter_chains": [{"filters": [{"name": "tcp", "typed_config": proxy}]}]}


SERVERS = {f.__name__: f for f in (collects, echoes, ends, closes, resets)}
TYPED = "%ACCESS_LOG_TYPE% %BYTES_RECEIVED% %BYTES_SENT% %UPSTREAM_HOST% %RESPONSE_FLAGS%\n"
PROXIES = {
    **{name: {"to": name} for name in SERVERS},
    "refused": {"to": "dead"},
    "refused thrice": {"to": "dead", "max_connect_attempts": 3},
    "waits": {"to": "dead", "max_connect_attempts": 3, "backoff_options": {"base_interval": "0.1s", "max_interval": "0.2s"}},
    "nobody": {"to": "empty"},
    "missing": {"to": "nowhere"},
    "full": {"to": "full", "max_connect_attempts": 2},
    "idle": {"to": "echoes", "idle_timeout": "0.3s"},
    "never idle": {"to": "echoes", "idle_timeout": "0s"},
    "duration": {"to": "echoes", "max_downstream_connection_duration": "0.3s"},
    "duration with jitter": {"to": "echoes", "max_downstream_connection_duration": "0.3s",
                             "max_downstream_connection_duration_jitter_percentage": {"value": 10}},
    "weighted": {"weighted_clusters": {"clusters": [{"name": "echoes", "weight": 1}, {"name": "echoes", "weight": 3}]}},
    "metadata": {"to": "echoes", "metadata_match": {"filter_metadata": {"envoy.lb": {"a": "b"}}}},
    "weighted metadata": {"weighted_clusters": {"clusters": [
        {"name": "echoes", "weight": 1, "metadata_match": {"filter_metadata": {"envoy.lb": {"a": "b"}}}}]}},
    "hashed": {"to": "echoes", "hash_policy": [{"source_ip": {}}]},
    "on connected": {"to": "echoes", "format": TYPED, "access_log_options": {"flush_access_log_on_connected": True}},
    "on connected, refused": {"to": "dead", "format": TYPED, "access_log_options": {"flush_access_log_on_connected": True}},
    "on connected, old": {"to": "echoes", "format": TYPED, "flush_access_log_on_connected": True},
    "only connected": {"to": "echoes", "format": TYPED, "filter": {"log_type_filter": {"types": ["TcpUpstreamConnected"]}},
                       "access_log_options": {"flush_access_log_on_connected": True}},
    "all but connected": {"to": "echoes", "format": TYPED,
                          "filter": {"log_type_filter": {"types": ["TcpUpstreamConnected"], "exclude": True}},
                          "access_log_options": {"flush_access_log_on_connected": True}},
    "on start": {"to": "echoes", "format": TYPED, "access_log_options": {"flush_access_log_on_start": True}},
    "all": {"to": "echoes", "format": TYPED, "access_log_options": {
        "flush_access_log_on_start": True, "flush_access_log_on_connected": True, "access_log_flush_interval": "0.3s"}},
    "interval, old": {"to": "echoes", "format": TYPED, "access_log_flush_interval": "0.3s"},
}
ON_DATA, ON_HANDSHAKE = ({"upstream_connect_mode": mode} for mode in ("ON_DOWNSTREAM_DATA", "ON_DOWNSTREAM_TLS_HANDSHAKE"))
WAITING = {
    "on data": {**ON_DATA, "max_early_data_bytes": 1024},
    "on data, no buffer": {**ON_DATA, "max_early_data_bytes": 0},
    "on handshake": {**ON_HANDSHAKE, "max_early_data_bytes": 0},
    "early data": {"max_early_data_bytes": 1024},
    "little early data": {"max_early_data_bytes": 4},
}
PROXIES.update({f"{name}, {to}": {"to": to, **fields} for name, fields in WAITING.items() for to in ("collects", "echoes", "ends", "dead")})
PROXIES["on data, idle"] = {"to": "echoes", "idle_timeout": "0.3s", **WAITING["on data"]}
PROXIES["on data, connected"] = {"to": "echoes", "format": TYPED, "access_log_options": {
    "flush_access_log_on_start": True, "flush_access_log_on_connected": True}, **WAITING["on data"]}


SLOW = {
    "slow": {"to": "slow", "max_connect_attempts": 2},
    "slow idle": {"to": "slower", "idle_timeout": "0.3s"},
    "slow duration": {"to": "slower", "max_downstream_connection_duration": "0.3s"},
}


def config(p):
    clusters = [cluster(name, p.raw("server " + name, serve)) for name, serve in SERVERS.items()]
    echo = p.listener("server echoes")
    clusters.append(cluster("full", echo, circuit_breakers={"thresholds": [{"max_connections": 0}]}))
    return bootstrap(p, [tcp(p, name, **fields) for name, fields in PROXIES.items()], clusters)


def silent(p):
    """Clusters in a network where nobody answers."""
    clusters = [cluster("slow", 80, connect_timeout="0.15s"), cluster("slower", 80, connect_timeout="5s")]
    for made in clusters:
        endpoint = made["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
        endpoint["address"]["socket_address"]["address"] = "192.0.2.1"
    return bootstrap(p, [tcp(p, name, **fields) for name, fields in SLOW.items()], clusters)


G, S = Group(config), Group(silent, redirects=lambda p: [])


def case(name, where=None, logs=2, group=G):
    def keep(function):
        @group.case("tcp proxy: " + name, logs=logs)
        def _(t):
            with t.counted(COUNTED):
                conn = t.connect(where or name)
                function(t, conn)
                conn.close()
                time.sleep(0.15)
    return keep


def says(data, end=True, wait=2.0):
    """The client speaks, perhaps ends its direction, and reads to the end."""
    def run(t, conn):
        began = time.monotonic()
        conn.send(data)
        if end:
            conn.sock.shutdown(socket.SHUT_WR)
        t.note(**conn.end(wait), tenths=int((time.monotonic() - began) * 10) // 2 * 2 if wait > 0.5 else None)
    return run


case("client ends", "collects")(says(b"a" * 100))
case("client ends without a word", "collects")(says(b""))
case("much, echoed", "echoes")(says(b"x" * 300000))
case("server ends", "ends")(says(b"thanks"))
case("server ends, client does not", "ends")(says(b"thanks", end=False, wait=0.3))
case("server closes", "closes")(says(b"question", end=False))
case("server closes, client ends", "closes")(says(b"question"))
case("server resets", "resets")(says(b"question", end=False))


@case("client resets", "collects")
def _(t, conn):
    conn.send(b"question")
    time.sleep(0.1)
    reset(conn.sock)


@case("client closes", "collects")
def _(t, conn):
    conn.send(b"question")
    conn.sock.close()


@case("client closes with bytes unread", "echoes")
def _(t, conn):
    conn.send(b"question")
    time.sleep(0.2)
    conn.sock.close()


# Whether what the client says comes before its end is chance, so it says nothing.
for one in ("refused", "refused thrice", "nobody", "missing", "full"):
    case(one)(says(b"", end=False))
case("backoff", "waits")(lambda t, conn: t.note(**conn.end(2.0)))
case("connect timeout", "slow", group=S)(says(b"question", end=False))
case("idle while it connects", "slow idle", group=S)(says(b"question", end=False))
case("duration while it connects", "slow duration", group=S)(says(b"question", end=False))
case("idle")(says(b"question", end=False))
case("idle, without a word", "idle")(says(b"", end=False))


@case("busy, then idle", "idle")
def _(t, conn):
    for _ in range(4):
        conn.send(b"q")
        time.sleep(0.15)
    t.note(**conn.end(1.0))


case("never idle")(says(b"question", end=False, wait=0.4))
case("duration")(says(b"question", end=False))
case("duration with jitter")(says(b"question", end=False))
for one in ("weighted", "metadata", "weighted metadata", "hashed"):
    case(one)(says(b"question"))
case("log on connected", "on connected", logs=3)(says(b"question"))
case("log on connected, refused", "on connected, refused", logs=2)(says(b"", end=False))
case("log on connected, by the old field", "on connected, old", logs=3)(says(b"question"))
case("log only on connected", "only connected")(says(b"question"))
case("log but on connected", "all but connected")(says(b"question"))
case("log on start", "on start", logs=3)(says(b"question"))


def talks(t, conn):
    conn.send(b"one")
    t.note(read=conn.read(3))
    time.sleep(0.4)
    conn.send(b"two")
    t.note(read=conn.read(3))


case("log on start, connected and at times", "all", logs=5)(talks)
case("log at times, by the old field", "interval, old", logs=3)(talks)

for one in WAITING:
    case(f"{one}, collects")(says(b"a" * 100))
    case(f"{one}, much", f"{one}, echoes")(says(b"x" * 300000))
    case(f"{one}, two words", f"{one}, echoes")(lambda t, conn: (conn.send(b"one "), time.sleep(0.1), says(b"two")(t, conn)))
    case(f"{one}, without a word", f"{one}, collects")(says(b"", wait=0.5))
    case(f"{one}, silent", f"{one}, ends")(says(b"", end=False, wait=0.3))
    case(f"{one}, server ends", f"{one}, ends")(says(b"thanks"))
    case(f"{one}, refused", f"{one}, dead")(says(b"", end=False, wait=0.3))
case("on data, idle")(says(b"", end=False))
case("on data, connected", logs=4)(says(b"question"))
case("on data, refused after a word", "on data, dead")(lambda t, conn: (conn.send(b"word"), time.sleep(0.1), t.note(ended="connection" in conn.end(1.0))))
