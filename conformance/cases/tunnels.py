"""Upgrades and CONNECT over HTTP/1: what opens a tunnel, what refuses one, and how tunnels end."""
from harness.config import bootstrap, listener, route
from harness.runner import Group

WEBSOCKET = [{"upgrade_type": "websocket"}]


def config(p):
    routes = [
        route("/route-on", {"upgrade_configs": WEBSOCKET}),
        route("/route-off", {"upgrade_configs": [{"upgrade_type": "websocket", "enabled": False}]}),
        route("/direct", direct_response={"status": 200, "body": {"inline_string": "direct"}}),
        route("/redirect", redirect={"path_redirect": "/x"}),
        route("/dead", "dead"), route("/missing", "nowhere"),
        route("/idle", {"idle_timeout": "0.3s"}),
        route("/timeout", {"timeout": "0.3s"}),
        route("/retry", {"retry_policy": {"retry_on": "5xx,connect-failure,reset", "retry_back_off": {"base_interval": "0.001s"}}}),
        route("/", "up"),
    ]

    def listening(routes, *name, **hcm):
        return listener(p, routes, *name, route_config={"validate_clusters": False}, **hcm)
    connect = [route({"connect_matcher": {}}, "up"), route("/", "up")]

    def ending(cluster, **fields):
        return [route({"connect_matcher": {}}, {"cluster": cluster, "upgrade_configs": [
            {"upgrade_type": "CONNECT", "connect_config": {}}], **fields}), route("/", "up")]
    return bootstrap(p, [
        listening(routes),
        listening(routes, "ws", upgrade_configs=WEBSOCKET),
        listening(routes, "off", upgrade_configs=[{"upgrade_type": "websocket", "enabled": False}]),
        listening(routes, "case", upgrade_configs=[{"upgrade_type": "WebSocket"}, {"upgrade_type": "other"}]),
        listening(routes, "idle", upgrade_configs=WEBSOCKET, stream_idle_timeout="0.3s"),
        listening(connect, "connect"),
        listening(connect, "connects", upgrade_configs=[{"upgrade_type": "CONNECT"}]),
        *(listening(ending(cluster, **fields), "ends " + name, upgrade_configs=[{"upgrade_type": "CONNECT"}]) for name, cluster, fields in (
            ("here", "up", {}), ("dead", "dead", {}), ("empty", "empty", {}), ("missing", "nowhere", {}),
            ("after a retry", "dead", {"retry_policy": {"retry_on": "connect-failure", "retry_back_off": {"base_interval": "0.001s"}}}),
            ("in time", "up", {"timeout": "0.3s"}))),
    ])


G = Group(config)
ASK = ("connection: Upgrade", "upgrade: websocket")
AGREE = {"status": 101, "headers": [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-accept", "y")]}
ECHO = [{**AGREE, "tunnel": True}]


def get(name, *args, upstream=(), **kw):
    G.case("tunnel: " + name, upstream)(lambda t: t.get(*args, **kw))


get("websocket without configuration", "/", *ASK)
get("websocket off on the listener", "/", *ASK, listener="off")
get("websocket off on the route", "/route-off", *ASK, listener="ws")
get("websocket to a direct response", "/direct", *ASK, listener="ws")
get("websocket to a direct response without configuration", "/direct", *ASK)
get("websocket to a redirect", "/redirect", *ASK, listener="ws")
get("websocket to a dead host", "/dead", *ASK, listener="ws")
get("websocket to a missing cluster", "/missing", *ASK, listener="ws")
get("websocket that the upstream answers with 200", "/", *ASK, listener="ws", upstream=[{"body": b"no tunnel"}])
get("websocket that the upstream answers with 403", "/", *ASK, listener="ws", upstream=[{"status": 403, "body": b"no"}])
get("websocket that the upstream answers with 204", "/", *ASK, listener="ws", upstream=[{"status": 204}])
get("websocket that the upstream answers chunked", "/", *ASK, listener="ws", upstream=[{"trailers": []}])
get("websocket that the upstream does not answer", "/", *ASK, listener="ws", upstream=[{"close": True}])
get("websocket agreed to without an upgrade field", "/", *ASK, listener="ws",
    upstream=[{"raw": b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "close_after": True}])
get("websocket that no try opens", "/retry", *ASK, listener="ws", upstream=[{"status": 503}, {"status": 503, "body": b"no"}])
get("unknown protocol", "/", "connection: upgrade", "upgrade: nonsense", listener="ws")
get("upgrade without the connection option", "/", "upgrade: websocket", listener="ws")
get("connection option without upgrade", "/", "connection: upgrade", listener="ws")
get("upgrade among other connection options", "/", "connection: keep-alive, Upgrade", "upgrade: websocket", listener="ws",
    upstream=[{"status": 403}])
get("upgrade to h2c and websocket", "/", "connection: upgrade", "upgrade: h2c, websocket", listener="ws", upstream=[{"status": 403}])
get("upgrade type in another case", "/", "connection: Upgrade", "upgrade: WEBSOCKET", listener="case", upstream=[{"status": 403}])
get("upgrade of another protocol", "/", "connection: Upgrade", "upgrade: other", listener="case", upstream=[{"status": 403}])


def tunnel(name, path="/", listener="ws", upstream=ECHO, logs=1):
    """A case that talks through an opened tunnel: `talk(t, conn)` goes on after the 101."""
    def keep(talk):
        @G.case("tunnel: " + name, upstream, logs)
        def _(t):
            conn = t.connect(listener)
            head = f"GET {path} HTTP/1.1\r\nhost: a.test\r\n" + "\r\n".join(ASK) + "\r\n\r\n"
            conn.send(head.encode())
            t.record.append(conn.response())
            talk(t, conn)
            conn.close()
    return keep


@tunnel("a retry opens it", "/retry", upstream=[{"status": 503}, {**AGREE, "tunnel": True}])
def _(t, conn):
    conn.send(b"hello")
    t.record.append({"echo": conn.read(5)})


@tunnel("a retry after a reset opens it", "/retry", upstream=[{"close": True}, {**AGREE, "tunnel": True}])
def _(t, conn):
    conn.send(b"hello")
    t.record.append({"echo": conn.read(5)})


@tunnel("bytes both ways")
def _(t, conn):
    for text in (b"hello", b"\0\xff" * 3):
        conn.send(text)
        t.record.append({"echo": conn.read(len(text))})


@tunnel("on by the route", "/route-on", "main")
def _(t, conn):
    conn.send(b"hello")
    t.record.append({"echo": conn.read(5)})


@tunnel("large messages")
def _(t, conn):
    conn.send(b"x" * 200_000)
    t.record.append({"echo": len(conn.read(200_000))})


@tunnel("the upstream ends first", upstream=[{**AGREE, "close_after": True}])
def _(t, conn):
    t.record.append({"closed": conn.closed()})


@tunnel("bytes behind the 101", upstream=[{"raw": b"HTTP/1.1 101 S\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nfirst",
                                          "tunnel": True}])
def _(t, conn):
    t.record.append({"first": conn.read(5)})
    conn.send(b"hello")
    t.record.append({"echo": conn.read(5)})


@tunnel("the client half-closes")
def _(t, conn):
    conn.send(b"hello")
    t.record.append({"echo": conn.read(5)})
    conn.sock.shutdown(1)
    t.record.append({"closed": conn.closed()})


@tunnel("idle timeout of the connection manager", listener="idle")
def _(t, conn):
    t.record.append({"closed": conn.closed()})


@tunnel("idle timeout of the route", "/idle")
def _(t, conn):
    conn.send(b"hello")
    t.record.append({"echo": conn.read(5), "closed": conn.closed()})


@tunnel("outlives the route's timeout", "/timeout")
def _(t, conn):
    t.record.append({"closed": conn.closed(0.8)})
    conn.send(b"hello")
    t.record.append({"echo": conn.read(5)})


@G.case("tunnel: bytes before the upstream's answer", [{**AGREE, "delay": 0.2, "tunnel": True}], 1)
def _(t):
    conn = t.connect("ws")
    conn.send(("GET / HTTP/1.1\r\nhost: a.test\r\n" + "\r\n".join(ASK) + "\r\n\r\nearly").encode())
    t.record.append(conn.response())
    t.record.append({"echo": conn.read(5)})


# What follows a refused tunnel on its connection is never a request.
@G.case("tunnel: a request behind a refused upgrade", [{"status": 403}], 1)
def _(t):
    t.h1("GET / HTTP/1.1\r\nhost: a.test\r\n" + "\r\n".join(ASK) + "\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a.test\r\n\r\n",
         "ws", after=1)


def raw(name, data, upstream=(), **kw):
    G.case("connect: " + name, upstream)(lambda t: t.h1(data, **kw))


CONNECT = "CONNECT b.test:80 HTTP/1.1\r\nhost: b.test:80\r\n\r\n"
raw("no route", CONNECT)
raw("a route that does not allow it", CONNECT, listener="connect")
raw("refused by the upstream", CONNECT, [{"status": 403, "body": b"no"}], listener="connects")
raw("another host field", "CONNECT b.test:80 HTTP/1.1\r\nhost: a.test\r\n\r\n", [{"status": 403}], listener="connects")
raw("no port", "CONNECT b.test HTTP/1.1\r\nhost: b.test\r\n\r\n", [{"status": 403}], listener="connects")
raw("with a length", "CONNECT b.test:80 HTTP/1.1\r\nhost: b.test:80\r\ncontent-length: 2\r\n\r\nab", [{"status": 403}],
    listener="connects")
raw("with chunks", "CONNECT b.test:80 HTTP/1.1\r\nhost: b.test:80\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", [{"status": 403}],
    listener="connects")
raw("of a path", "CONNECT / HTTP/1.1\r\nhost: b.test\r\n\r\n", listener="connects")
raw("a request behind a refused one", CONNECT + "GET /smuggled HTTP/1.1\r\nhost: a.test\r\n\r\n", listener="connect", after=1)


@G.case("connect: the client ends its half first", [{"raw": b"HTTP/1.1 200 OK\r\n\r\n", "tunnel": True}], 1)
def _(t):
    conn = t.connect("connects")
    conn.send(CONNECT.encode())
    conn._until(b"\r\n\r\n")
    conn.send(b"hello")
    t.record.append({"echo": conn.read(5)})
    conn.sock.shutdown(1)
    t.record.append({"closed": conn.closed()})


@G.case("connect: the upstream ends first", [{"raw": b"HTTP/1.1 200 OK\r\n\r\nbye", "close_after": True}], 1)
def _(t):
    conn = t.connect("connects")
    conn.send(CONNECT.encode())
    conn._until(b"\r\n\r\n")
    t.record.append({"said": conn.read(3), "closed": conn.closed()})


@G.case("connect: proxied to the upstream", [{"raw": b"HTTP/1.1 200 OK\r\n\r\n", "tunnel": True}], 1)
def _(t):
    conn = t.connect("connects")
    conn.send(CONNECT.encode())
    head = conn._until(b"\r\n\r\n").decode().split("\r\n")
    t.record.append({"line": head[0], "headers": [h.split(": ", 1) for h in head[1:]]})
    conn.send(b"hello")
    t.record.append({"echo": conn.read(5)})
    conn.close()


def ends(name, upstream=(), logs=1, listener=None):
    """A CONNECT that ends at the proxy, whose bytes are a connection's to the upstream."""
    def keep(talk):
        @G.case("connect: ends " + name, upstream, logs)
        def _(t):
            conn = t.connect("ends " + (listener or name))
            conn.send(CONNECT.encode())
            try:
                head = conn._until(b"\r\n\r\n").decode().split("\r\n")
                t.note(line=head[0], headers=[h.split(": ", 1) for h in head[1:]])
            except EOFError:
                t.note(closed=True)
            talk(t, conn)
    return keep


GET = b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n"


@ends("here", [{}])
def _(t, conn):
    conn.send(GET)
    t.note(answer=conn.response())
    conn.sock.shutdown(1)
    t.note(closed=conn.closed())


@ends("in time", [{"delay": 0.6}])
def _(t, conn):
    conn.send(GET)
    t.note(answer=conn.response())
    conn.sock.shutdown(1)
    t.note(closed=conn.closed())


@ends("and the upstream closes", [{"close_after": True}], listener="here")
def _(t, conn):
    conn.send(GET)
    t.note(answer=conn.response(), closed=conn.closed())


for WHERE in ("dead", "empty", "missing", "after a retry"):
    ends(WHERE)(lambda t, conn: t.note(end=conn.end()))
