"""Internal listeners: connections handed over inside the process, by the TCP proxy and by the router."""
from harness.config import cluster, route
from harness.internal import ORIGINAL_DST, extended, http, inside, passing, tcp, to_internal
from harness.runner import Group
from harness.tls import downstream, file_log, trusting, upstream

LOCAL = "envoy.filters.listener.original_dst"
TOLD = " %DYNAMIC_METADATA(" + LOCAL + ")% %DYNAMIC_METADATA(a)% %DYNAMIC_METADATA(b)% %DYNAMIC_METADATA(c)%"


def config(p):
    def metadata_of(made, **namespaces):
        return {**made, "metadata": {"filter_metadata": namespaces}}
    ways = {
        "restore": {LOCAL: {"local": "10.1.2.3:80"}, "a": {"k": "v", "n": 5}, "c": {"not": "passed"}},
        "restore v6": {LOCAL: {"local": "[2001:db8::1]:80"}},
        "restore text": {LOCAL: {"local": "no address"}},
        "restore host": {LOCAL: {"local": "a.test:80"}},
        "restore number": {LOCAL: {"local": 5}},
        "restore nothing": {"a": {"k": "v"}},
    }
    sockets = {name: passing(LOCAL, "a", "absent", cluster=["b"]) for name in ways}
    restored = inside(tcp(p, "restored", "up", TOLD), listener_filters=[ORIGINAL_DST],
                      access_log=[file_log(p, "listener of restored %DOWNSTREAM_LOCAL_ADDRESS% %FILTER_CHAIN_NAME%\n")])
    secure = inside(tcp(p, "secure", "up"))
    secure["filter_chains"][0]["transport_socket"] = downstream("server")
    tls = upstream(validation=trusting())
    return extended(p, [
        tcp(p, "front", "to plain"), inside(tcp(p, "plain", "up")),
        tcp(p, "front id", "to plain with id"), tcp(p, "front nowhere", "to nowhere"),
        tcp(p, "front retry", "to nowhere", max_connect_attempts=3),
        tcp(p, "front tls", "to secure"), secure,
        tcp(p, "front tls passing", "to secure, passing"),
        inside(http(p, "inner http", [route("/", "up")])),
        http(p, "outer", [route("/h2", "to http over h2"), route("/nowhere", "to nowhere"),
                          route("/passing", "plain, passing"), route("/", "to http")]),
        *(tcp(p, name, name) for name in ways), restored,
    ], [
        to_internal("to plain", "plain"), to_internal("to plain with id", "plain", "10.0.0.1:8080"),
        to_internal("to nowhere", "nowhere"), to_internal("to secure", "secure", socket=tls),
        to_internal("to secure, passing", "secure", socket=passing(inner=tls)),
        to_internal("to http", "inner http"), to_internal("to http over h2", "inner http", h2=True),
        cluster("plain, passing", p.up, transport_socket=passing(LOCAL)),
        *(metadata_of(to_internal(name, "restored", metadata=given, socket=sockets[name]), b={"of": "cluster"}, c={"not": "passed"})
          for name, given in ways.items()),
    ])


G = Group(config)
REQUEST = b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n"


def through(name, listener, logs, upstream=({},)):
    """A request's bytes through TCP proxies."""
    @G.case("internal: " + name, upstream, logs)
    def _(t):
        conn = t.connect(listener)
        conn.send(REQUEST)
        t.record.append(conn.response())
        conn.close()


through("a TCP proxy to a listener", "front", 2)
through("an endpoint id", "front id", 2)
through("no such listener", "front nowhere", 1, ())
through("no such listener, tried again", "front retry", 1, ())
through("TLS inside of the process", "front tls", 2)
through("TLS inside of internal_upstream", "front tls passing", 2)
through("the original destination from metadata", "restore", 3)
through("an IPv6 destination from metadata", "restore v6", 3)
through("a destination that is no address", "restore text", 3)
through("a destination that is a name", "restore host", 3)
through("a destination that is a number", "restore number", 3)
through("no destination", "restore nothing", 3)


@G.case("internal: half-close both ways", [{"raw": b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 300_000, "close_after": True}], 2)
def _(t):
    conn = t.connect("front")
    conn.send(REQUEST)
    conn.sock.shutdown(1)
    end = conn.end()
    t.note(end=end["connection"], length=len(end["bytes"]))


@G.case("internal: large bodies both ways", [{"body": b"y" * 500_000}], 2)
def _(t):
    conn = t.connect("front")
    conn.send(b"POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 500000\r\n\r\n" + b"x" * 500_000)
    answer = conn.response()
    t.note(line=answer["line"], length=len(answer["body"]))
    conn.close()


@G.case("internal: the router over HTTP/1", [{}, {}], 4)
def _(t):
    t.get("/a", listener="outer")
    t.get("/b", listener="outer")


@G.case("internal: the router over HTTP/2", [{}, {}], 4)
def _(t):
    t.get("/h2/a", listener="outer")
    t.get("/h2/b", listener="outer")


@G.case("internal: the router's bodies", [{"body": b"z" * 200_000}], 2)
def _(t):
    t.get("/", listener="outer", method="POST", body="b" * 200_000)


@G.case("internal: the router and no such listener", (), 1)
def _(t):
    t.get("/nowhere", listener="outer")


@G.case("internal: internal_upstream to a plain address", [{}], 1)
def _(t):
    t.get("/passing", listener="outer")


@G.case("internal: numbers of the listener", [{}], 2)
def _(t):
    with t.counted(r"^listener\.envoy_internal_plain\.downstream_cx_(total|destroy)$"):
        conn = t.connect("front")
        conn.send(REQUEST)
        t.record.append(conn.response())
        conn.close()


@G.case("internal: listeners as the admin interface tells them", (), 0)
def _(t):
    lines = t.proxy.admin("/listeners")["body"].splitlines()
    t.note(lines=sorted(line for line in lines if "envoy://" in line))
