"""HTTP/2 as a connection: settings, floods, keepalive, GOAWAY; messages that change version on the way."""
import time

from harness.client import H2
from harness.config import bootstrap, listener, route
from harness.runner import Group


def config(p):
    routes = [route("/d", direct_response={"status": 200, "body": {"inline_string": "direct"}}),
              route("/up2", "up2"), route("/", "up")]
    return bootstrap(p, [
        listener(p, routes),
        listener(p, routes, "tight", http2_protocol_options={
            "max_concurrent_streams": 1, "initial_stream_window_size": 65535, "initial_connection_window_size": 65535}),
        listener(p, routes, "keep", http2_protocol_options={"override_stream_error_on_invalid_http_message": True}),
        listener(p, routes, "ping", http2_protocol_options={
            "connection_keepalive": {"interval": "0.2s", "timeout": "0.3s", "interval_jitter": {"value": 0}}}),
        listener(p, routes, "once", drain_timeout="0.2s", common_http_protocol_options={"max_requests_per_connection": 1}),
        listener(p, routes, "short", drain_timeout="0.2s", common_http_protocol_options={"max_connection_duration": "0.2s"}),
        listener(p, routes, "idle", drain_timeout="0.2s", common_http_protocol_options={"idle_timeout": "0.2s"}),
        listener(p, routes, "names", common_http_protocol_options={"headers_with_underscores_action": "DROP_HEADER"}),
        listener(p, routes, "no-names", common_http_protocol_options={"headers_with_underscores_action": "REJECT_REQUEST"}),
        listener(p, routes, "small", max_request_headers_kb=1, common_http_protocol_options={"max_headers_count": 20}),
        listener(p, routes, "old", http_protocol_options={"accept_http_10": True}),
        listener(p, routes, "ws", upgrade_configs=[{"upgrade_type": "websocket"}],
                 http2_protocol_options={"allow_connect": True}),
    ])


G = Group(config)
BASE = [(":method", "GET"), (":scheme", "http"), (":authority", "a.test"), (":path", "/")]


def ask(path="/", *more, method="GET"):
    return [(":method", method), (":scheme", "http"), (":authority", "a.test"), (":path", path), *more]


def case(name, upstream=(), logs=None, **kw):
    return G.case("h2 connection: " + name, upstream, logs, **kw)


def connect(t, name="main"):
    conn = H2(t.proxy.ports.listener(name))
    t.open.append(conn)
    return conn


def frames(name, *raw, listener="main", logs=None, seconds=0.4):
    """Frames after the preface, with a pause at None; what the proxy makes of them."""
    @case(name, logs=logs)
    def _(t):
        conn = connect(t, listener)
        pause = raw.index(None) if None in raw else len(raw)
        conn.raw(*raw[:pause])
        if raw[pause:]:
            time.sleep(0.1)
            conn.raw(*raw[pause + 1:])
        t.note(told=conn.watch(seconds))
        t.unsure = True


# HPACK of BASE by static indices and literals: small enough to write by hand.
HEAD = b"\x82\x86\x84\x41\x06a.test"
HEADERS, DATA, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = 1, 0, 2, 3, 4, 5, 6, 7, 8, 9


@case("settings")
def _(t):
    conn = connect(t, "tight")
    t.record.extend(conn.finish([conn.start(ask("/d"))]))
    t.expect = 1
    settings = conn.state.remote_settings
    t.note(streams=settings.max_concurrent_streams, window=settings.initial_window_size)


frames("a stream above the limit is refused", (HEADERS, 4, 1, HEAD), (HEADERS, 5, 3, HEAD), listener="tight", logs=None)
frames("DATA on an idle stream", (DATA, 1, 1, b"x"))
frames("DATA on stream 0", (DATA, 1, 0, b"x"))
frames("HEADERS on an even stream", (HEADERS, 5, 2, HEAD))
frames("HEADERS on stream 0", (HEADERS, 5, 0, HEAD))
frames("PUSH_PROMISE from a client", (PUSH, 4, 1, b"\0\0\0\x02" + HEAD))
frames("SETTINGS of an odd length", (SETTINGS, 0, 0, b"\0" * 5))
frames("a window that is too large in SETTINGS", (SETTINGS, 0, 0, b"\0\x04\xff\xff\xff\xff"))
frames("PING of a wrong length", (PING, 0, 0, b"\0" * 7))
frames("a frame that is too large", (DATA, 0, 0, b"x" * 16385))
frames("WINDOW_UPDATE by zero", (WINDOW, 0, 0, b"\0\0\0\0"))
frames("a window that overflows", (WINDOW, 0, 0, b"\x7f\xff\xff\xff"))
frames("a stray CONTINUATION", (CONTINUATION, 4, 1, HEAD))
frames("DATA between HEADERS and CONTINUATION", (HEADERS, 0, 1, HEAD), (DATA, 1, 1, b"x"))
frames("a bad HPACK index", (HEADERS, 5, 1, b"\xff\xff\x03"))
frames("an unknown frame type", (0x42, 0, 0, b"what"))
frames("RST_STREAM on an idle stream", (RESET, 0, 1, b"\0\0\0\x08"))
frames("GOAWAY from the client", (GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\0"))
frames("empty DATA in a row", (HEADERS, 4, 1, HEAD), None, *[(DATA, 0, 1, b"")] * 3)
frames("one empty DATA", (HEADERS, 4, 1, HEAD), (DATA, 0, 1, b""), (DATA, 1, 1, b"x"), logs=1)
frames("empty CONTINUATION in a row", (HEADERS, 0, 1, HEAD), *[(CONTINUATION, 0, 1, b"")] * 3, logs=None)
frames("PRIORITY flood", *[(PRIORITY, 0, 1, b"\0\0\0\0\0")] * 101)
frames("as much PRIORITY as allowed", *[(PRIORITY, 0, 1, b"\0\0\0\0\0")] * 100)
frames("WINDOW_UPDATE flood", *[(WINDOW, 0, 0, b"\0\0\0\x01")] * 6)
frames("as many WINDOW_UPDATE as allowed", *[(WINDOW, 0, 0, b"\0\0\0\x01")] * 5)
frames("CONTINUATION without end", (HEADERS, 0, 1, HEAD), *[(CONTINUATION, 0, 1, b"\0\x01a\x7f\x81\x7d" + b"v" * 16000)] * 20,
       logs=None, seconds=1)
frames("SETTINGS many times", *[(SETTINGS, 0, 0, b"")] * 50)


@case("streams opened and reset", blind=True, logs=0)
def _(t):
    conn = connect(t)
    for i in range(600):
        conn.raw((HEADERS, 4, 2 * i + 1, HEAD), (RESET, 0, 2 * i + 1, b"\0\0\0\x08"))
    told = conn.watch(1)
    # Whether a GOAWAY goes before depends on how many of the streams are read at once.
    t.note(told=[x for x in told if not x.startswith(("ping", "goaway"))])
    t.proxy.lines(600)  # how many got so far is a matter of time


for bad, head in {"connection header": ask("/d", ("connection", "close")), "upper-case name": ask("/d", ("X-A", "1")),
                  "no path": ask("/d")[:3], "te other than trailers": ask("/d", ("te", "gzip")),
                  "authority with userinfo": [*ask("/d")[:2], (":authority", "u@a.test"), (":path", "/d")],
                  "CR in a value": ask("/d", ("x-a", "b\rc"))}.items():
    @case("kept open after: " + bad, logs=2)
    def _(t, head=head):
        conn = connect(t, "keep")
        t.record.extend(conn.finish([conn.start(head)]))
        t.record.extend(conn.finish([conn.start(ask("/d"))]))


@case("keepalive pings are answered")
def _(t):
    t.note(told=connect(t, "ping").watch(0.7))


@case("keepalive pings are not answered")
def _(t):
    t.note(told=connect(t, "ping").watch(1.2, answer=False))


def note(t, conn, seconds):
    """Fairway times the second GOAWAY by a ping: whether it comes before a stream's end is the client's doing."""
    told = [x for x in conn.watch(seconds) if x != "ping"]
    t.note(told=[x for x in told if not x.startswith("end ")], ended=[x for x in told if x.startswith("end ")])


for name, wait in {"once": 1.0, "short": 1.0, "idle": 1.0}.items():
    @case("goaway: " + name, logs=1)
    def _(t, name=name, wait=wait):
        conn = connect(t, name)
        conn.raw((HEADERS, 5, 1, HEAD))
        note(t, conn, wait)


@case("goaway while a stream goes on", [{"delay": 0.6}], logs=1)
def _(t):
    conn = connect(t, "short")
    conn.raw((HEADERS, 5, 1, HEAD))
    note(t, conn, 1.2)


for name, head in {"names": ask("/", ("x_a", "1"), ("x-b", "1")), "no-names": ask("/", ("x_a", "1"))}.items():
    case("underscores: " + name)(lambda t, name=name, head=head: t.h2(head=head, listener=name))
case("too many headers for a small listener")(lambda t: t.h2(head=ask("/", *[(f"x-{i}", "1") for i in range(17)]), listener="small"))
case("just enough headers for a small listener")(lambda t: t.h2(head=ask("/", *[(f"x-{i}", "1") for i in range(16)]), listener="small"))
case("headers too large for a small listener")(lambda t: t.h2(head=ask("/", ("x-a", "v" * 1100)), listener="small"))

TRAILERS = [("x-end", "1"), ("x-end", "2")]
for there in ("/", "/up2"):
    case(f"request trailers to {there}")(
        lambda t, there=there: t.h2(there, [("te", "trailers")], b"body", [("x-end", "1")], "POST"))
    case(f"request trailers without a body to {there}")(
        lambda t, there=there: t.h2(there, [], b"", [("x-end", "1")], "POST"))
    case(f"response trailers from {there}", [{"body": b"data", "trailers": TRAILERS}])(lambda t, there=there: t.h2(there))
    case(f"response trailers without a body from {there}", [{"body": b"", "trailers": TRAILERS}])(
        lambda t, there=there: t.h2(there))
    case(f"interim response from {there}", [{"interim": [(103, [("link", "</a>")])]}])(lambda t, there=there: t.h2(there))
    case(f"HEAD to {there}", [{"body": b"", "headers": [("content-length", "7")]}] if there == "/up2" else [{}])(
        lambda t, there=there: t.h2(there, method="HEAD"))
    for status in (204, 304):
        case(f"{status} from {there}", [{"status": status, "body": b"", "headers": []}])(lambda t, there=there: t.h2(there))
    case(f"large bodies by {there}", [{"body": b"r" * 300_000}])(
        lambda t, there=there: upload(t, there, b"q" * 300_000))


def upload(t, path, body):
    """A body larger than the windows: sent as they open."""
    conn = connect(t)
    stream = conn.start(ask(path, method="POST"), end=False)
    conn.finish([])
    while body:
        room = min(conn.state.local_flow_control_window(stream), 16384)
        if room == 0:
            conn.state.receive_data(conn.sock.recv(65536))
            conn.flush()
            continue
        conn.state.send_data(stream, body[:room], end_stream=len(body) <= room)
        body = body[room:]
        conn.flush()
    record, = conn.finish([stream])
    record["body"] = f"{len(record['body'])} bytes"
    t.record.append(record)
    t.expect = 1


case("HTTP/1 request trailers to HTTP/2")(lambda t: t.h1(
    "POST /up2 HTTP/1.1\r\nhost: a.test\r\ntransfer-encoding: chunked\r\ntrailer: x-end\r\n\r\n4\r\nbody\r\n0\r\nx-end: 1\r\n\r\n"))
case("HTTP/2 response trailers to HTTP/1", [{"trailers": TRAILERS}])(lambda t: t.get("/up2"))
case("HTTP/2 response to HTTP/1.0")(lambda t: t.h1("GET /up2 HTTP/1.0\r\nhost: a.test\r\n\r\n", "old"))
case("upstream resets before the response", [{"reset": 2}])(lambda t: t.h2("/up2"))
case("upstream refuses the stream", [{"reset": 7}])(lambda t: t.h2("/up2"))
case("upstream resets in the response", [{"body": b"part", "reset_after": 2}], logs=1)(lambda t: t.h2("/up2"))
case("upstream resets in the response to HTTP/1", [{"body": b"part", "reset_after": 2}], logs=1)(lambda t: t.get("/up2"))
case("HTTP/1 upstream closes in the response", [{"body": b"part", "truncate": 9}], logs=1)(lambda t: t.h2("/"))
case("HTTP/2 upstream goes away", [{"close": True}, {}])(lambda t: t.h2("/up2"))


@case("the client resets towards an HTTP/2 upstream", [{"delay": 0.3}], logs=1)
def _(t):
    conn = connect(t)
    stream = conn.start(ask("/up2"))
    time.sleep(0.1)
    conn.state.reset_stream(stream, 8)
    conn.flush()
    time.sleep(0.5)


@case("the client leaves in a request body", logs=1)
def _(t):
    conn = connect(t)
    conn.start(ask("/up2", method="POST"), b"part", end=False)
    time.sleep(0.2)
    conn.close()


@case("websocket by extended CONNECT", [{"status": 101, "headers": [("connection", "Upgrade"), ("upgrade", "websocket")],
                                         "tunnel": True}], logs=1)
def _(t):
    conn = connect(t, "ws")
    conn.finish([])
    stream = conn.start([(":method", "CONNECT"), (":scheme", "http"), (":authority", "a.test"), (":path", "/"),
                         (":protocol", "websocket"), ("sec-websocket-version", "13")], end=False)
    time.sleep(0.2)
    conn.state.send_data(stream, b"hello")
    conn.flush()
    time.sleep(0.2)
    conn.state.reset_stream(stream, 8)
    conn.flush()


case("extended CONNECT where it is not allowed")(lambda t: t.h2(head=[
    (":method", "CONNECT"), (":scheme", "http"), (":authority", "a.test"), (":path", "/"), (":protocol", "websocket")]))
GRPC = ("content-type", "application/grpc")
case("local reply to gRPC: no route")(lambda t: t.h2(head=[*ask("/d", GRPC, method="POST")[:2], (":authority", ""), (":path", "/d"), GRPC]))
case("local reply to gRPC: upstream dead", [{"close": True}])(lambda t: t.h2("/up2", [GRPC], b"x", method="POST"))
case("local reply to gRPC: direct response")(lambda t: t.h2("/d", [GRPC], method="POST"))
case("local reply to gRPC over HTTP/1")(lambda t: t.get("/d", "content-type: application/grpc+proto", method="POST", body=""))
case("local reply to HEAD")(lambda t: t.h2("/d", method="HEAD"))

# What an HTTP/2 upstream may say that it should not.
for name, headers in {"101 headers": [(f"x-{i}", "v") for i in range(100)], "61 KiB of headers": [("x-big", "v" * 62500)], "59 KiB of headers": [("x-big", "v" * 59000)],
                      "upper-case name": [("X-A", "b")], "connection header": [("connection", "close")], "transfer-encoding": [("transfer-encoding", "chunked")],
                      "CR in a value": [("x-a", "b\rc")], "name with a space": [("x a", "b")], "name with a quote": [('x"a', "b")], "te": [("te", "trailers")],
                      "two content-lengths": [("content-length", "2"), ("content-length", "3")], "content-length too small": [("content-length", "1")],
                      "content-length too large": [("content-length", "9")], "bad content-length": [("content-length", "x")],
                      "unknown pseudo-header": [(":nothing", "1")], "pseudo-header of requests": [(":path", "/")]}.items():
    case(f"HTTP/2 upstream says {name}", [{"headers": headers, "body": b"ok"}], logs=1)(lambda t: t.get("/up2"))
for name, status in {"status 99": 99, "status 1000": 1000, "status 101": 101, "status 0": 0}.items():
    case(f"HTTP/2 upstream says {name}", [{"status": status}], logs=1)(lambda t: t.get("/up2"))
case("HTTP/2 upstream says 1,000 times 103", [{"interim": [(103, [("link", "</a>")])] * 1000}], logs=1)(lambda t: t.get("/up2"))
case("HTTP/2 upstream says 150 trailers", [{"body": b"ok", "trailers": [(f"x-{i}", "v") for i in range(150)]}], logs=1)(lambda t: t.h2("/up2"))
case("150 request trailers", blind=True)(lambda t: t.h2("/up2", [], b"body", [(f"x-{i}", "v") for i in range(150)], "POST"))
