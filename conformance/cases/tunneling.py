"""The TCP proxy's `tunneling_config`: connections that go on in a CONNECT or a POST."""
from harness.config import bootstrap
from harness.internal import tcp
from harness.runner import Group

ADDED = [{"header": {"key": "x-added", "value": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}},
         {"header": {"key": "x-twice", "value": "a"}}, {"header": {"key": "x-twice", "value": "b"}}]
WAYS = {
    "connect": {"hostname": "b.test:80"},
    "headers": {"hostname": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%:80", "headers_to_add": ADDED},
    "post": {"hostname": "b.test", "use_post": True},
    "post to a path": {"hostname": "b.test", "use_post": True, "post_path": "/a?b"},
}


def config(p):
    made = [tcp(p, f"{name}, {version}", cluster, tunneling_config=way) for name, way in WAYS.items()
            for version, cluster in (("HTTP/1", "up"), ("HTTP/2", "up2"))]
    return bootstrap(p, [*made, *(tcp(p, name, to, tunneling_config=WAYS["connect"], **fields) for name, to, fields in (
        ("twice", "up2", {"max_connect_attempts": 2}), ("dead", "dead", {}), ("empty", "empty", {})))])


G = Group(config)
OPEN = {"HTTP/1": {"raw": b"HTTP/1.1 200 OK\r\n\r\n", "tunnel": True}, "HTTP/2": {"tunnel": True}}


def echo(name, listener, upstream, logs=1):
    @G.case("tunneling: " + name, upstream, logs)
    def _(t):
        conn = t.connect(listener)
        conn.send(b"hello")
        t.note(echo=conn.read(5))
        conn.sock.shutdown(1)
        t.note(end=conn.end()["connection"])


for WAY in WAYS:
    echo(f"{WAY} over HTTP/2", f"{WAY}, HTTP/2", [OPEN["HTTP/2"]])
for WAY in ("connect", "headers"):
    echo(f"{WAY} over HTTP/1", f"{WAY}, HTTP/1", [OPEN["HTTP/1"]])


def refused(name, listener, upstream=()):
    """Nothing is said: how much of it had been read is a matter of time."""
    @G.case("tunneling: " + name, upstream, 1)
    def _(t):
        t.note(end=t.connect(listener).end())


refused("refused over HTTP/1", "connect, HTTP/1", [{"status": 403}])
refused("refused over HTTP/2", "connect, HTTP/2", [{"status": 403, "early": True}])
refused("another success over HTTP/2", "connect, HTTP/2", [{"status": 202, "early": True}])
refused("an answer that ends at once", "connect, HTTP/2", [{"status": 200, "body": b"", "early": True}])
refused("reset", "connect, HTTP/2", [{"reset": 8, "early": True}])
refused("closed over HTTP/1", "connect, HTTP/1", [{"close": True}])
refused("refused twice", "twice", [{"status": 503, "early": True}, {"status": 401, "early": True}])
refused("a dead upstream", "dead")
refused("no upstream", "empty")


@G.case("tunneling: refused, then not", [{"status": 503, "early": True}, {"tunnel": True}], 1)
def _(t):
    conn = t.connect("twice")
    conn.send(b"hello")
    t.note(echo=conn.read(5))
    conn.sock.shutdown(1)
    t.note(end=conn.end()["connection"])
