"""Request bodies that come later than their heads."""
import time

from harness.config import TYPE, bootstrap, host, listener, route
from harness.runner import Group

FAULT = TYPE + "envoy.extensions.filters.http.fault.v3.HTTPFault"


def config(p):
    whole = {"percentage": {"numerator": 100}}
    late = {"envoy.filters.http.fault": {"@type": FAULT, "delay": {"fixed_delay": "0.4s", **whole},
                                         "abort": {"http_status": 503, **whole}}}
    routes = [route("/late", "up", typed_per_filter_config=late), route("/refused", "dead"), route("/", "up")]
    filters = [{"name": "envoy.filters.http.fault", "typed_config": {"@type": FAULT}}]
    return bootstrap(p, [listener(p, [host(routes)], filters=filters)])


G = Group(config)


def post(t, path, *parts, length=None, pause=0.1):
    """Sends a head, and each part of the body after a pause."""
    conn = t.connect()
    length = sum(map(len, parts)) if length is None else length
    conn.send(f"POST {path} HTTP/1.1\r\nhost: a.test\r\ncontent-length: {length}\r\n\r\n".encode())
    for part in parts:
        time.sleep(pause)
        conn.send(part)
    return conn


@G.case("upload: comes while a filter waits", logs=2)
def _(t):
    conn = post(t, "/late", b"hello")
    t.record.append(conn.response())
    conn.send(b"GET /refused HTTP/1.1\r\nhost: a.test\r\n\r\n")
    t.record.append(conn.response())
    conn.close()


@G.case("upload: half of it comes while a filter waits", logs=1)
def _(t):
    conn = post(t, "/late", b"hello", length=10)
    t.record.append(conn.response())
    conn.close()


@G.case("upload: no upstream", logs=1)
def _(t):
    conn = t.connect()
    conn.send(b"POST /refused HTTP/1.1\r\nhost: a.test\r\ncontent-length: 5\r\n\r\nhello")
    t.record.append(conn.response())
    conn.close()


@G.case("upload: slow, and not the upstream's fault", [{}], logs=1)
def _(t):
    conn = post(t, "/", b"a", b"b", b"c", pause=0.2)
    answer = conn.response()
    taken = dict(answer["headers"]).get("x-envoy-upstream-service-time")
    t.note(fast=taken is not None and int(taken) < 200)
    t.record.append(answer)
    conn.close()
