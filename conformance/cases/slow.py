"""Clients that take their time: heads and bodies that trickle, connections on which nothing comes."""
import time

from harness.client import H2
from harness.config import bootstrap, listener, route
from harness.runner import Group

LIMIT = "0.4s"


def config(p):
    routes = [route("/d", direct_response={"status": 200, "body": {"inline_string": "direct"}}), route("/", "up")]
    return bootstrap(p, [
        listener(p, routes, "heads", request_headers_timeout=LIMIT),
        listener(p, routes, "bodies", request_timeout=LIMIT),
        listener(p, routes, "streams", stream_idle_timeout=LIMIT),
        listener(p, routes, "quiet", drain_timeout="0.2s", common_http_protocol_options={"idle_timeout": LIMIT}),
    ])


G = Group(config)
GET = b"GET /d HTTP/1.1\r\nhost: a.test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 100\r\n\r\n"


def case(name, on, logs=1, **kw):
    """An HTTP/1 connection to the listener `on`; what the function gives is what the proxy says at the end."""
    def keep(function):
        @G.case("slow: " + name, logs=logs, **kw)
        def _(t):
            conn = t.connect(on)
            began = time.monotonic()
            said = function(t, conn)
            t.note(said=said, closed=conn.closed(), soon=time.monotonic() - began < 3)
            conn.close()
    return keep


def trickle(conn, data, step=1, pause=0.05):
    """Sends until the other side has said something."""
    conn.sock.settimeout(pause)
    for at in range(0, len(data), step):
        conn.send(data[at:at + step])
        try:
            conn._fill()
        except TimeoutError:
            pass
        if conn.buffer:
            break
    conn.sock.settimeout(8)
    return conn.response()


@case("a head that trickles", "heads")
def _(t, conn):
    return trickle(conn, GET[:-1])


@case("a head that stops", "heads")
def _(t, conn):
    conn.send(GET[:-1])
    return conn.response()


@case("a second head that stops", "heads", logs=2)
def _(t, conn):
    conn.send(GET)
    t.record.append(conn.response())
    conn.send(GET[:-1])
    return conn.response()


@case("a body that trickles", "bodies", blind=True)
def _(t, conn):
    conn.send(POST)
    # Three bytes within the limit, with time to spare on either side.
    return trickle(conn, b"x" * 100, pause=0.16)


@case("a body that stops", "bodies", blind=True)
def _(t, conn):
    conn.send(POST + b"x")
    return conn.response()


@case("a body that never comes", "bodies", blind=True)
def _(t, conn):
    conn.send(POST)
    return conn.response()


@case("a body that stops on an idle stream", "streams", blind=True)
def _(t, conn):
    conn.send(POST + b"x")
    return conn.response()


@case("nothing but a connection", "quiet", logs=0)
def _(t, conn):
    return None


@case("nothing after a request", "quiet")
def _(t, conn):
    conn.send(GET)
    return conn.response()


def frames(name, on, *raw, logs=None, **kw):
    """Frames after the preface, and what the proxy makes of the silence behind them."""
    @G.case("slow: HTTP/2, " + name, logs=logs, **kw)
    def _(t):
        conn = H2(t.proxy.ports.listener(on))
        t.open.append(conn)
        conn.raw(*raw)
        t.note(told=conn.watch(1.2))


HEAD = b"\x82\x86\x84\x41\x06a.test"
UPLOAD = b"\x83\x86\x84\x41\x06a.test"
frames("a body that never comes", "bodies", (1, 4, 1, UPLOAD), logs=1, blind=True)
frames("a body that stops", "bodies", (1, 4, 1, UPLOAD), (0, 0, 1, b"x"), logs=1, blind=True)
frames("a body that stops on an idle stream", "streams", (1, 4, 1, UPLOAD), (0, 0, 1, b"x"), logs=1, blind=True)
