"""HTTP/2 clients that cost more than they pay: cut off, counted, and no harm to others on the same worker."""
import time

from harness.client import H2
from harness.config import bootstrap, listener, route
from harness.runner import Group

from .http2_connection import (CONTINUATION, DATA, HEAD, HEADERS, PING, PRIORITY, RESET, SETTINGS, WINDOW, ask)


def config(p):
    routes = [route("/d", direct_response={"status": 200, "body": {"inline_string": "direct"}}), route("/", "up")]
    return bootstrap(p, [
        listener(p, routes),
        listener(p, routes, "tight", stream_idle_timeout="0.4s"),
    ])


G = Group(config)
COUNTED = r"^http2\.(?!nghttp2)|premature"


def flood(name, *frames, upstream=(), logs=None, listener="main", count=COUNTED, seconds=0.6, mass=False):
    """What becomes of a client that sends these frames, with a pause at None, and of two others that do not. `mass`: how far it gets
    is a matter of time: only what is counted, and that it is cut off."""
    @G.case("flood: " + name, upstream, 0 if mass else logs, mass)
    def _(t):
        good = H2(t.proxy.ports.listener("main"))
        bad = H2(t.proxy.ports.listener(listener))
        t.open += [good, bad]
        good.finish([])
        with t.counted(count):
            pause = frames.index(None) if None in frames else len(frames)
            bad.raw(*frames[:pause])
            if frames[pause:]:
                time.sleep(0.1)
                bad.raw(*frames[pause + 1:])
            told = bad.watch(seconds)
            t.note(told="closed" in told if mass else told)
            t.record.extend(good.finish([good.start(ask("/d"))]))
            t.get("/d")
            bad.close()
            time.sleep(0.1)
        if mass:
            t.proxy.lines(len(frames))
        t.expect += 1
        t.unsure = True


def opened(n, *more, head=HEAD, flags=5):
    """`n` requests, each followed by frames on its stream."""
    return [frame for i in range(n) for frame in ((HEADERS, flags, 2 * i + 1, head), *((k, f, 2 * i + 1, p) for k, f, p in more))]


# HPACK of a request for `/d`.
DIRECT = b"\x82\x86\x44\x02/d\x41\x06a.test"
flood("nothing")
flood("empty DATA", (HEADERS, 4, 1, HEAD), None, *[(DATA, 0, 1, b"")] * 10)
flood("empty CONTINUATION", (HEADERS, 0, 1, HEAD), *[(CONTINUATION, 0, 1, b"")] * 10)
flood("padded DATA without content", (HEADERS, 4, 1, HEAD), None, *[(DATA, 8, 1, b"\x03\0\0\0")] * 10)
flood("PRIORITY", *[(PRIORITY, 0, 1, b"\0\0\0\0\0")] * 500)
flood("WINDOW_UPDATE", *[(WINDOW, 0, 0, b"\0\0\0\x01")] * 500)
flood("WINDOW_UPDATE on a stream", (HEADERS, 4, 1, HEAD), None, *[(WINDOW, 0, 1, b"\0\0\0\x01")] * 500)
flood("CONTINUATION", (HEADERS, 0, 1, HEAD), *[(CONTINUATION, 0, 1, b"\0\x01a\x7f\x81\x7d" + b"v" * 16000)] * 20)
flood("small CONTINUATION", (HEADERS, 0, 1, HEAD), *[(CONTINUATION, 0, 1, b"\0\x01a\x01b")] * 3000)
flood("SETTINGS", *[(SETTINGS, 0, 0, b"")] * 500)
flood("SETTINGS with entries", (SETTINGS, 0, 0, b"\0\x04\0\0\xff\xff" * 2000))
flood("SETTINGS, table sizes", *[(SETTINGS, 0, 0, b"\0\x01\0\0\0\0" + b"\0\x01\0\0\x10\0")] * 300)
flood("PING", *[(PING, 0, 0, b"12345678")] * 500)
flood("SETTINGS acknowledged that was not sent", *[(SETTINGS, 1, 0, b"")] * 10)
flood("RST_STREAM of a stream again and again", (HEADERS, 5, 1, HEAD), None, *[(RESET, 0, 1, b"\0\0\0\x08")] * 500, upstream=[{"delay": 1}])
flood("unknown frames", *[(0x42, 0, 0, b"what")] * 500)
# One field of 4,000 bytes in the table, then references to it of one byte each.
BOMB = DIRECT + b"\x40\x01a\x7f\xa1\x1e" + b"v" * 4000
flood("HPACK bomb", (HEADERS, 5, 1, BOMB + b"\xbe" * 10_000))
flood("HPACK bomb of empty fields", (HEADERS, 5, 1, DIRECT + b"\x40\x01a\0" + b"\xbe" * 10_000))
flood("many HPACK bombs", *[(HEADERS, 5, 2 * i + 1, BOMB + b"\xbe" * 10_000) for i in range(20)])
flood("101 cookie crumbs", (HEADERS, 5, 1, DIRECT + b"\x60\x03a=b" + b"\xbe" * 100))
flood("cookie crumbs of 64 KiB", (HEADERS, 5, 1, DIRECT + b"\x60\x7f\xe9\x07" + b"a" * 1128 + b"\xbe" * 57))
flood("rapid reset", *opened(600, (RESET, 0, b"\0\0\0\x08")), mass=True, count="premature")
flood("DATA after the end", (HEADERS, 5, 1, HEAD), None, (DATA, 1, 1, b"x"), upstream=[{"delay": 1}])
flood("streams above the limit", *opened(1100), upstream=[{"delay": 1}], mass=True, seconds=0.4)


@G.case("flood: resets asked for", [{"delay": 2}], 0, True)
def _(t):
    """Bodies longer than declared: resets that the client makes the proxy send."""
    bad = H2(t.proxy.ports.listener("main"))
    t.open.append(bad)
    with t.counted("premature"):
        for i in range(600):
            bad.raw((HEADERS, 4, 2 * i + 1, HEAD + b"\x0f\x0d\x011"), (DATA, 1, 2 * i + 1, b"xx"))
            time.sleep(0.001)
        t.note(cut_off="closed" in bad.watch(1))
        t.get("/d")
        time.sleep(0.1)
    t.proxy.lines(600)
