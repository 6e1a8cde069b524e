"""HTTP/2 from the client: pseudo-headers, forbidden headers, limits, resets."""
from harness.config import bootstrap, listener, route
from harness.runner import Group


def config(p):
    routes = [route("/d", direct_response={"status": 200, "body": {"inline_string": "direct"}}), route("/", "up")]
    return bootstrap(p, [listener(p, routes), listener(p, routes, "only1", codec_type="HTTP1"),
                         listener(p, routes, "only2", codec_type="HTTP2"),
                         listener(p, routes, "connect", http2_protocol_options={"allow_connect": True})])


G = Group(config)
BASE = [(":method", "GET"), (":scheme", "http"), (":authority", "a.test"), (":path", "/")]


def without(*names):
    return [h for h in BASE if h[0] not in names]


def case(name, head, logs=None, **kw):
    G.case("h2: " + name, logs=logs)(lambda t: t.h2(head=head, **kw))


for name, head in {
    "plain": BASE,
    "no method": without(":method"), "no path": without(":path"), "no scheme": without(":scheme"),
    "no authority": without(":authority"), "host in place of authority": without(":authority") + [("host", "b.test")],
    "host beside authority": BASE + [("host", "b.test")],
    "empty path": without(":path") + [(":path", "")], "path without slash": without(":path") + [(":path", "x")],
    "space in path": without(":path") + [(":path", "/a b")],
    "fragment in path": without(":path") + [(":path", "/a#b")],
    "asterisk path": without(":path", ":method") + [(":method", "OPTIONS"), (":path", "*")],
    "unknown pseudo-header": BASE + [(":nothing", "1")], "pseudo-header after a header": without(":path") + [("x-a", "1"), (":path", "/")],
    "repeated path": BASE + [(":path", "/2")], "status in a request": BASE + [(":status", "200")],
    "upper-case name": BASE + [("X-A", "1")], "name with a space": BASE + [("x a", "1")],
    "name with a quote": BASE + [('x"a', "1")],
    "connection header": BASE + [("connection", "close")], "transfer-encoding": BASE + [("transfer-encoding", "chunked")],
    "keep-alive header": BASE + [("keep-alive", "1")], "proxy-connection": BASE + [("proxy-connection", "1")],
    "upgrade header": BASE + [("upgrade", "websocket")], "te other than trailers": BASE + [("te", "gzip")],
    "te trailers": BASE + [("te", "trailers")],
    "CR in a value": BASE + [("x-a", "b\rc")], "LF in a value": BASE + [("x-a", "b\nx-b: c")], "NUL in a value": BASE + [("x-a", "b\0c")],
    "outer white space in a value": BASE + [("x-a", " b ")],
    "empty value": BASE + [("x-a", "")], "cookies": BASE + [("cookie", "a=1"), ("cookie", "b=2")],
    "repeated header": BASE + [("x-a", "1"), ("x-a", "2")],
    "101 headers": BASE + [(f"x-{i}", "v") for i in range(100)], "61 KiB of headers": BASE + [(f"x-{i}", "v" * 6250) for i in range(10)],
    "bad method": without(":method") + [(":method", "G@T")], "scheme https on plain": without(":scheme") + [(":scheme", "https")],
    "unknown scheme": without(":scheme") + [(":scheme", "gopher")],
    "authority with userinfo": without(":authority") + [(":authority", "u@a.test")],
    "authority with a space": without(":authority") + [(":authority", "a test")],
    "CONNECT not allowed": [(":method", "CONNECT"), (":authority", "a.test:80")],
    "content-length without a body": BASE + [("content-length", "5")],
    "two content-lengths": BASE + [("content-length", "0"), ("content-length", "1")],
    "bad content-length": BASE + [("content-length", "x")],
    "x-forwarded-proto": BASE + [("x-forwarded-proto", "https")],
    "expect 100-continue without a body": BASE + [("expect", "100-continue")],
}.items():
    case(name, head)
case("body longer than content-length", [*without(":path", ":method"), (":method", "POST"), (":path", "/d"),
                                         ("content-length", "1")], body=b"abc")
case("body shorter than content-length", [*without(":path", ":method"), (":method", "POST"), (":path", "/d"),
                                          ("content-length", "9")], body=b"abc")
case("pseudo-header in trailers", [*without(":method", ":path"), (":method", "POST"), (":path", "/d")], body=b"a",
     trailers=[(":path", "/x")])
case("codec HTTP2 forced", BASE, listener="only2")
case("preface to a codec HTTP1 listener", BASE, listener="only1")


@G.case("h2: HTTP/1 to a codec HTTP2 listener")
def _(t):
    t.h1("GET / HTTP/1.1\r\nhost: a.test\r\n\r\n", "only2")


@G.case("h2: two streams on one connection")
def _(t):
    from harness.client import H2
    conn = H2(t.proxy.ports.listener("main"))
    t.record.extend(conn.finish([conn.start(BASE), conn.start(without(":path") + [(":path", "/d")])]))
    conn.close()
    t.expect = 2


@G.case("h2: the client's reset is seen upstream", upstream=[{"delay": 0.3}], logs=1)
def _(t):
    from harness.client import H2
    import time
    conn = H2(t.proxy.ports.listener("main"))
    stream = conn.start(BASE)
    time.sleep(0.1)
    conn.state.reset_stream(stream, 8)
    conn.flush()
    time.sleep(0.1)
    conn.close()
