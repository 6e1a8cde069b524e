"""HTTP/1 messages: framing, malformed input, smuggling probes, limits, 1.0, HEAD, 100-continue, pipelining, trailers."""
from harness.config import bootstrap, listener, route
from harness.runner import Group


def config(p):
    routes = [route("/d", direct_response={"status": 200, "body": {"inline_string": "direct"}}), route("/h2", "up2"),
              route("/", "up")]
    return bootstrap(p, [
        listener(p, routes),
        listener(p, routes, "old", http_protocol_options={"accept_http_10": True, "default_host_for_http_10": "old.test"}),
        listener(p, routes, "trailers", http_protocol_options={"enable_trailers": True}),
        listener(p, routes, "small", max_request_headers_kb=1, common_http_protocol_options={"max_headers_count": 5}),
        listener(p, routes, "casing", http_protocol_options={"header_key_format": {"proper_case_words": {}}}),
        listener(p, routes, "nocontinue", proxy_100_continue=True),
        listener(p, routes, "absolute", http_protocol_options={"allow_absolute_url": False}),
        listener(p, routes, "chunkedlength", http_protocol_options={"allow_chunked_length": True}),
    ])


G = Group(config)
HOST = "host: a.test\r\n"


def raw(name, data, upstream=(), logs=None, blind=False, **kw):
    G.case("h1: " + name, upstream, logs, blind)(lambda t: t.h1(data, **kw))


def request(*headers, line="GET / HTTP/1.1", body=""):
    return line + "\r\n" + "".join(h + "\r\n" for h in headers) + "\r\n" + body


# The smuggling probes and their neighbours. `next` would be seen as a request of its own if framing went wrong.
NEXT = "GET /smuggled HTTP/1.1\r\nhost: a.test\r\n\r\n"
for name, data in {
    "CL and TE": request("host: a.test", "content-length: 4", "transfer-encoding: chunked", line="POST / HTTP/1.1", body="0\r\n\r\n" + NEXT),
    "TE then CL": request("host: a.test", "transfer-encoding: chunked", "content-length: 4", line="POST / HTTP/1.1", body="0\r\n\r\n"),
    "duplicate equal CL": request("host: a.test", "content-length: 2", "content-length: 2", line="POST / HTTP/1.1", body="ab"),
    "differing CL": request("host: a.test", "content-length: 2", "content-length: 3", line="POST / HTTP/1.1", body="abc"),
    "CL list": request("host: a.test", "content-length: 2, 2", line="POST / HTTP/1.1", body="ab"),
    "CL with plus": request("host: a.test", "content-length: +2", line="POST / HTTP/1.1", body="ab"),
    "CL negative": request("host: a.test", "content-length: -1", line="POST / HTTP/1.1"),
    "CL empty": request("host: a.test", "content-length:", line="POST / HTTP/1.1"),
    "CL overflow": request("host: a.test", "content-length: 18446744073709551617", line="POST / HTTP/1.1"),
    "CL hexadecimal": request("host: a.test", "content-length: 0x2", line="POST / HTTP/1.1", body="ab"),
    "TE not chunked": request("host: a.test", "transfer-encoding: gzip", line="POST / HTTP/1.1"),
    "TE gzip, chunked": request("host: a.test", "transfer-encoding: gzip, chunked", line="POST / HTTP/1.1", body="0\r\n\r\n"),
    "TE chunked, gzip": request("host: a.test", "transfer-encoding: chunked, gzip", line="POST / HTTP/1.1", body="0\r\n\r\n"),
    "TE twice chunked": request("host: a.test", "transfer-encoding: chunked", "transfer-encoding: chunked", line="POST / HTTP/1.1", body="0\r\n\r\n"),
    "TE xchunked": request("host: a.test", "transfer-encoding: xchunked", line="POST / HTTP/1.1", body="0\r\n\r\n"),
    "TE identity": request("host: a.test", "transfer-encoding: identity", line="POST / HTTP/1.1"),
    "TE with vertical tab": request("host: a.test", "transfer-encoding: \x0bchunked", line="POST / HTTP/1.1", body="0\r\n\r\n"),
    "TE on HTTP/1.0": request("host: a.test", "transfer-encoding: chunked", line="POST / HTTP/1.0", body="0\r\n\r\n"),
    "space before the colon": request("host: a.test", "x-a : b"),
    "space before the colon of CL": request("host: a.test", "content-length : 2", line="POST / HTTP/1.1", body="ab"),
    "obs-fold": request("host: a.test", "x-a: b", " c"),
    "bare LF after the request line": "GET / HTTP/1.1\nhost: a.test\r\n\r\n",
    "bare LF after a header": "GET / HTTP/1.1\r\nhost: a.test\n\r\n",
    "bare LF everywhere": "GET / HTTP/1.1\nhost: a.test\n\n",
    "bare CR in a value": request("host: a.test", "x-a: b\rc"),
    "NUL in a value": request("host: a.test", "x-a: b\0c"),
    "NUL in a name": request("host: a.test", "x\0a: b"),
    "non-token name": request("host: a.test", "x(a): b"),
    "empty name": request("host: a.test", ": b"),
    "line without colon": request("host: a.test", "nonsense"),
    "no host": request("x-a: b"),
    "empty host": request("host:"),
    "two hosts": request("host: a.test", "host: b.test"),
    "two equal hosts": request("host: a.test", "host: a.test"),
    "host with a space": request("host: a test"),
    "host with a slash": request("host: a.test/x"),
    "host with userinfo": request("host: u@a.test"),
    "space in the target": request("host: a.test", line="GET /a b HTTP/1.1"),
    "tab in the target": request("host: a.test", line="GET /a\tb HTTP/1.1"),
    "fragment in the target": request("host: a.test", line="GET /a#b HTTP/1.1"),
    "byte above ASCII in the target": request("host: a.test", line="GET /\xe9 HTTP/1.1"),
    "control byte in the target": request("host: a.test", line="GET /\x01 HTTP/1.1"),
    "target without slash": request("host: a.test", line="GET a HTTP/1.1"),
    "absolute form": request("host: a.test", line="GET http://b.test/x?y HTTP/1.1"),
    "absolute form without path": request("host: a.test", line="GET http://b.test HTTP/1.1"),
    "absolute form https": request("host: a.test", line="GET https://b.test/x HTTP/1.1"),
    "asterisk form": request("host: a.test", line="OPTIONS * HTTP/1.1"),
    "asterisk with GET": request("host: a.test", line="GET * HTTP/1.1"),
    "CONNECT without upgrade": request("host: a.test:80", line="CONNECT a.test:80 HTTP/1.1"),
    "TRACE": request("host: a.test", line="TRACE / HTTP/1.1"),
    "unknown method": request("host: a.test", line="BREW / HTTP/1.1"),
    "lower-case method": request("host: a.test", line="get / HTTP/1.1"),
    "bad method": request("host: a.test", line="G@T / HTTP/1.1"),
    "HTTP/0.9": "GET /\r\n\r\n",
    "HTTP/1.0 not accepted": request("host: a.test", line="GET / HTTP/1.0"),
    "HTTP/1.2": request("host: a.test", line="GET / HTTP/1.2"),
    "HTTP/2.0 version": request("host: a.test", line="GET / HTTP/2.0"),
    "lower-case version": request("host: a.test", line="GET / http/1.1"),
    "two spaces in the request line": request("host: a.test", line="GET  / HTTP/1.1"),
    "leading space": request("host: a.test", line=" GET / HTTP/1.1"),
    "space before the first header": "GET / HTTP/1.1\r\n host: a.test\r\n\r\n",
    "leading empty lines": "\r\n\r\n" + request("host: a.test"),
    "TLS hello on a plain port": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "101 headers": request("host: a.test", *[f"x-{i}: v" for i in range(100)]),
    "100 headers": request("host: a.test", *[f"x-{i}: v" for i in range(99)]),
    "61 KiB of headers": request("host: a.test", "x-big: " + "v" * 62500),
    "59 KiB of headers": request("host: a.test", "x-big: " + "v" * 59000),
    "61 KiB of target": request("host: a.test", line="GET /" + "v" * 62500 + " HTTP/1.1"),
    "value with outer white space": request("host: a.test", "x-a: \t b c \t "),
    "upgrade not configured": request("host: a.test", "connection: upgrade", "upgrade: websocket"),
    "h2c upgrade ignored": request("host: a.test", "connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABk"),
    "chunk: bad size": request("host: a.test", "transfer-encoding: chunked", line="POST / HTTP/1.1", body="zz\r\n"),
    "chunk: size overflow": request("host: a.test", "transfer-encoding: chunked", line="POST / HTTP/1.1", body="ffffffffffffffff1\r\n"),
    "chunk: bare LF after the size": request("host: a.test", "transfer-encoding: chunked", line="POST / HTTP/1.1", body="2\nab\r\n0\r\n\r\n"),
    "chunk: bare LF after the data": request("host: a.test", "transfer-encoding: chunked", line="POST / HTTP/1.1", body="2\r\nab\n0\r\n\r\n"),
    "chunk: data longer than its size": request("host: a.test", "transfer-encoding: chunked", line="POST / HTTP/1.1", body="2\r\nabc\r\n0\r\n\r\n"),
    "chunk: extension": request("host: a.test", "transfer-encoding: chunked", line="POST / HTTP/1.1", body="2;a=b\r\nab\r\n0\r\n\r\n"),
    "chunk: upper-case TE": request("host: a.test", "transfer-encoding: Chunked", line="POST / HTTP/1.1", body="2\r\nab\r\n0\r\n\r\n"),
    "chunk: space after the size": request("host: a.test", "transfer-encoding: chunked", line="POST / HTTP/1.1", body="2 \r\nab\r\n0\r\n\r\n"),
}.items():
    bad = name in ("chunk: bad size", "chunk: size overflow", "chunk: bare LF after the size", "chunk: bare LF after the data",
                   "chunk: data longer than its size")
    # How much of a request the backend was sent before its body turned out bad is a matter of timing.
    raw(name, data, blind=bad)
    if bad:
        raw(name + ", to a direct response", data.replace("POST / ", "POST /d "))

raw("body with content-length", request("host: a.test", "content-length: 5", line="POST / HTTP/1.1", body="hello"))
raw("body chunked", request("host: a.test", "transfer-encoding: chunked", line="POST / HTTP/1.1", body="3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"))
raw("POST without framing", request("host: a.test", line="POST / HTTP/1.1"))
raw("GET with a body", request("host: a.test", "content-length: 2", body="ab"))
raw("DELETE with a body", request("host: a.test", "content-length: 2", line="DELETE / HTTP/1.1", body="ab"))
raw("connection: close", request("host: a.test", "connection: close"))
raw("keep-alive after a direct response with unread body", request("host: a.test", "content-length: 3",
    line="POST /d HTTP/1.1", body="abc") + request("host: a.test"), count=2)
raw("pipelined", request("host: a.test", line="GET /1 HTTP/1.1") + request("host: a.test", line="GET /2 HTTP/1.1"), count=2)
raw("pipelined, second malformed", request("host: a.test", line="GET /1 HTTP/1.1") + "G@T / HTTP/1.1\r\n\r\n", count=2)
raw("HEAD", request("host: a.test", line="HEAD / HTTP/1.1"))
raw("HEAD of a missing route's body", request("host: a.test", line="HEAD /d HTTP/1.1"))
raw("request trailers dropped by default", request("host: a.test", "transfer-encoding: chunked", line="POST / HTTP/1.1",
    body="2\r\nab\r\n0\r\nx-t: 1\r\n\r\n"))
raw("request trailers to h1", request("host: a.test", "transfer-encoding: chunked", line="POST / HTTP/1.1",
    body="2\r\nab\r\n0\r\nx-t: 1\r\n\r\n"), listener="trailers")
raw("request trailers to h2", request("host: a.test", "transfer-encoding: chunked", line="POST /h2 HTTP/1.1",
    body="2\r\nab\r\n0\r\nx-t: 1\r\n\r\n"), listener="trailers")
raw("response trailers from h1 dropped", request("host: a.test"), [{"trailers": [("x-t", "1")]}])
raw("response trailers from h2", request("host: a.test", line="GET /h2 HTTP/1.1"), [{"trailers": [("x-t", "1")]}], listener="trailers")
raw("response trailers from h2 dropped", request("host: a.test", line="GET /h2 HTTP/1.1"), [{"trailers": [("x-t", "1")]}])
raw("expect: 100-continue", request("host: a.test", "expect: 100-continue", "content-length: 2", line="POST / HTTP/1.1", body="ab"))
raw("expect: 100-continue proxied", request("host: a.test", "expect: 100-continue", "content-length: 2",
    line="POST / HTTP/1.1", body="ab"), listener="nocontinue")
raw("expect: other", request("host: a.test", "expect: nothing", "content-length: 2", line="POST / HTTP/1.1", body="ab"))
raw("HTTP/1.0 accepted", request("host: a.test", line="GET / HTTP/1.0"), listener="old", after=1)
raw("HTTP/1.0 default host", request(line="GET / HTTP/1.0"), listener="old", after=1)
raw("HTTP/1.0 keep-alive", request("host: a.test", "connection: keep-alive", line="GET / HTTP/1.0")
    + request("host: a.test", line="GET / HTTP/1.0"), listener="old", count=2)
raw("HTTP/1.0 with a chunked response", request("host: a.test", line="GET / HTTP/1.0"), [{"trailers": []}], listener="old")
raw("small header limit", request("host: a.test", "x-big: " + "v" * 1100), listener="small")
raw("small header count", request("host: a.test", *[f"x-{i}: v" for i in range(6)]), listener="small")
raw("proper case words", request("host: a.test"), [{"headers": [("x-some-name", "v")]}], listener="casing")
raw("absolute form not allowed", request("host: a.test", line="GET http://b.test/x HTTP/1.1"), listener="absolute")
raw("CL and TE with allow_chunked_length", request("host: a.test", "content-length: 4", "transfer-encoding: chunked",
    line="POST / HTTP/1.1", body="2\r\nab\r\n0\r\n\r\n"), listener="chunkedlength")


# What the upstream may say

OK = b"HTTP/1.1 200 OK\r\n"
for name, answer in {
    "plain": b"content-length: 2\r\n\r\nok",
    "until close": b"\r\nuntil close",
    "chunked": b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "CL and TE": b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "differing CL": b"content-length: 2\r\ncontent-length: 3\r\n\r\nokk",
    "bad CL": b"content-length: x\r\n\r\n",
    "TE gzip": b"transfer-encoding: gzip\r\n\r\n",
    "NUL in a value": b"x-a: b\0c\r\ncontent-length: 0\r\n\r\n",
    "space before the colon": b"x-a : b\r\ncontent-length: 0\r\n\r\n",
    "obs-fold": b"x-a: b\r\n c\r\ncontent-length: 0\r\n\r\n",
    "101 headers": b"".join(b"x-%d: v\r\n" % i for i in range(100)) + b"content-length: 0\r\n\r\n",
    "61 KiB of headers": b"x-big: " + b"v" * 62500 + b"\r\ncontent-length: 0\r\n\r\n",
}.items():
    raw("upstream: " + name, request("host: a.test"), [{"raw": OK + answer, "close_after": True}])
raw("upstream: nonsense", request("host: a.test"), [{"raw": b"nonsense\r\n\r\n", "close_after": True}])
raw("upstream: HTTP/1.0", request("host: a.test"), [{"raw": b"HTTP/1.0 200 OK\r\n\r\nold", "close_after": True}])
raw("upstream: no reason phrase", request("host: a.test"), [{"raw": b"HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n"}])
raw("upstream: own reason phrase", request("host: a.test"), [{"raw": b"HTTP/1.1 200 Fine By Me\r\ncontent-length: 0\r\n\r\n"}])
raw("upstream: status 299", request("host: a.test"), [{"status": 299}])
raw("upstream: status 999", request("host: a.test"), [{"raw": b"HTTP/1.1 999 X\r\ncontent-length: 0\r\n\r\n", "close_after": True}])
raw("upstream: 204", request("host: a.test"), [{"status": 204}])
raw("upstream: 304 with content-length", request("host: a.test"), [{"raw": b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"}])
raw("upstream: 101 unasked", request("host: a.test"), [{"status": 101, "close_after": True}])
raw("upstream: 102 before the answer", request("host: a.test"), [{"interim": [(102, [])]}])
raw("upstream: 103 before the answer", request("host: a.test"), [{"interim": [(103, [("link", "</a>")])]}])
raw("upstream: HEAD with content-length", request("host: a.test", line="HEAD / HTTP/1.1"), [{"body": b"hello"}])
raw("upstream: body shorter than promised", request("host: a.test"), [{"truncate": 10}], logs=1)
raw("upstream: answers before the body", request("host: a.test", "content-length: 2", line="POST / HTTP/1.1", body="ab"),
    [{"early": True}])
