"""HTTP/1 messages made to be read in two ways, or to outlast their connection; what upstreams may say that they should not."""
import socket

from harness.config import bootstrap, listener, route
from harness.runner import Group

from .framing import NEXT, request


def config(p):
    routes = [route("/d", direct_response={"status": 200, "body": {"inline_string": "direct"}}), route("/up2", "up2"),
              route("/r", redirect={"path_redirect": "/x"}), route("/dead", "dead"), route("/", "up")]
    return bootstrap(p, [
        listener(p, routes),
        listener(p, routes, "trailers", http_protocol_options={"enable_trailers": True}),
        listener(p, routes, "cl+te", http_protocol_options={"allow_chunked_length": True}),
        listener(p, routes, "ws", upgrade_configs=[{"upgrade_type": "websocket"}]),
        listener(p, [route({"connect_matcher": {}}, "up"), route("/", "up")], "connect", upgrade_configs=[{"upgrade_type": "CONNECT"}]),
    ])


G = Group(config)
POST = "POST / HTTP/1.1"
DIRECT = "POST /d HTTP/1.1"


def raw(name, data, upstream=(), logs=None, blind=False, **kw):
    G.case("abuse: " + name, upstream, logs, blind)(lambda t: t.h1(data, **kw))


# The length of a message, in forms that some readers take and others do not.
for name, fields in {
    "CL with leading zeros": ["content-length: 0002"], "CL with a space inside": ["content-length: 0 2"],
    "CL with a parameter": ["content-length: 2;a"], "CL with a point": ["content-length: 2.0"], "CL in letters": ["content-length: two"],
    "CL in full-width digits": ["content-length: \xef\xbc\x92"], "CL with a trailing comma": ["content-length: 2,"],
    "CL list of two values": ["content-length: 2, 3"], "CL with a tab": ["content-length:\t2"], "CL with a NUL": ["content-length: 2\0"],
    "CL in quotes": ['content-length: "2"'], "CL with an underscore": ["content_length: 2", "content-length: 2"],
    "CL twice, one in upper case": ["Content-Length: 2", "CONTENT-LENGTH: 3"], "CL of 30 digits of zero": ["content-length: " + "0" * 29 + "2"],
    "CL at the bound": ["content-length: 18446744073709551615"], "CL behind a carriage return": ["content-length: 2\r"],
    "TE with a parameter": ["transfer-encoding: chunked;q=1"], "TE with a comma before": ["transfer-encoding: , chunked"],
    "TE with a comma behind": ["transfer-encoding: chunked,"], "TE in quotes": ['transfer-encoding: "chunked"'],
    "TE behind a tab": ["transfer-encoding:\tchunked"], "TE with space behind": ["transfer-encoding: chunked \t"],
    "TE empty": ["transfer-encoding:"], "TE empty with CL": ["transfer-encoding:", "content-length: 2"],
    "TE with a NUL": ["transfer-encoding: chunked\0"], "TE behind a byte above ASCII": ["transfer-encoding: \xa0chunked"],
    "TE with a space before the colon": ["transfer-encoding : chunked"], "TE with a tab before the colon": ["transfer-encoding\t: chunked"],
    "TE with a space before the name": [" transfer-encoding: chunked"], "TE with an underscore": ["transfer_encoding: chunked", "content-length: 2"],
    "TE identity then chunked": ["transfer-encoding: identity", "transfer-encoding: chunked"],
    "TE chunked then identity": ["transfer-encoding: chunked", "transfer-encoding: identity"],
    "TE identity, chunked": ["transfer-encoding: identity, chunked"], "TE identity with CL": ["transfer-encoding: identity", "content-length: 2"],
    "TE chunked twice in a list": ["transfer-encoding: chunked, chunked"], "TE in folded lines": ["transfer-encoding:", " chunked"],
    "TE in capitals with CL": ["Transfer-Encoding: CHUNKED", "Content-Length: 2"], "TE and two CL": ["transfer-encoding: chunked", "content-length: 2", "content-length: 3"],
    "TE named by connection": ["connection: transfer-encoding", "transfer-encoding: chunked"], "CL named by connection": ["connection: content-length", "content-length: 2"],
    "TE behind a bare CR": ["x-a: b\rtransfer-encoding: chunked"], "TE behind a bare LF": ["x-a: b\ntransfer-encoding: chunked"],
    "host named by connection": ["connection: host"], "x-forwarded-for named by connection": ["connection: x-forwarded-for", "x-forwarded-for: 1.2.3.4"],
}.items():
    raw(name, request("host: a.test", *fields, line=DIRECT, body="0\r\n\r\n" + NEXT))
raw("CL and TE, both allowed, pipelined", request("host: a.test", "content-length: 4", "transfer-encoding: chunked", line=DIRECT,
                                                  body="0\r\n\r\n" + NEXT), listener="cl+te", count=2)

for name, body in {
    "size empty": "\r\nab\r\n0\r\n\r\n", "size with a prefix": "0x2\r\nab\r\n0\r\n\r\n", "size with a plus": "+2\r\nab\r\n0\r\n\r\n",
    "size with a minus": "-2\r\nab\r\n0\r\n\r\n", "size behind a space": " 2\r\nab\r\n0\r\n\r\n", "size behind a tab": "\t2\r\nab\r\n0\r\n\r\n",
    "size with zeros before": "0002\r\nab\r\n0\r\n\r\n", "size with 100 zeros before": "0" * 100 + "2\r\nab\r\n0\r\n\r\n",
    "size in 17 digits": "00000000000000002\r\nab\r\n0\r\n\r\n", "size with an underscore": "1_0\r\nab\r\n0\r\n\r\n",
    "size that overflows 32 bits": "100000002\r\nab\r\n0\r\n\r\n", "CR without LF behind the size": "2\rab\r\n0\r\n\r\n",
    "extension without a name": "2;\r\nab\r\n0\r\n\r\n", "extension quoted": '2;a="b"\r\nab\r\n0\r\n\r\n',
    "extension with a line end in quotes": '2;a="\r\nab\r\n0\r\n\r\n', "extension with a bare LF": "2;a\nab\r\n0\r\n\r\n",
    "extension with a bare CR": "2;a\rb\r\nab\r\n0\r\n\r\n", "extension with a NUL": "2;a\0b\r\nab\r\n0\r\n\r\n",
    "extension of 20 KB": "2;" + "a" * 20_000 + "\r\nab\r\n0\r\n\r\n", "extension of the last chunk": "2\r\nab\r\n0;a=b\r\n\r\n",
    "last chunk of many zeros": "2\r\nab\r\n0000\r\n\r\n", "last chunk with space": "2\r\nab\r\n0 \r\n\r\n",
    "data longer than its size by a line end": "2\r\nab\r\n\r\n0\r\n\r\n", "no line end behind the data": "2\r\nab0\r\n\r\n",
    "trailer with framing": "2\r\nab\r\n0\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n",
    "trailer with routing": "2\r\nab\r\n0\r\nhost: b.test\r\nauthorization: x\r\nx-forwarded-for: 1.2.3.4\r\n\r\n",
    "trailer without a colon": "2\r\nab\r\n0\r\nnonsense\r\n\r\n", "trailer with space before the colon": "2\r\nab\r\n0\r\nx-a : b\r\n\r\n",
    "trailer that is folded": "2\r\nab\r\n0\r\nx-a: b\r\n c\r\n\r\n", "trailer with a bare LF": "2\r\nab\r\n0\r\nx-a: b\n\r\n",
    "trailer with a NUL": "2\r\nab\r\n0\r\nx-a: b\0\r\n\r\n", "trailer with a bare CR": "2\r\nab\r\n0\r\nx-a: b\rc\r\n\r\n",
    "150 trailers": "2\r\nab\r\n0\r\n" + "".join(f"x-{i}: v\r\n" for i in range(150)) + "\r\n",
    "trailers of 70 KB": "2\r\nab\r\n0\r\nx-a: " + "v" * 70_000 + "\r\n\r\n",
}.items():
    for listening in ("main", "trailers") if "trailer" in name else ("main",):
        raw(f"chunks: {name}" + (", kept" if listening != "main" else ""), request("host: a.test", "transfer-encoding: chunked", line=DIRECT, body=body),
            listener=listening)

for name, data in {
    "host with two ports": request("host: a.test:80:80"), "host with a port in letters": request("host: a.test:http"),
    "host with a port too large": request("host: a.test:99999"), "host of a port": request("host: :80"), "host with a bracket": request("host: [::1"),
    "host list": request("host: a.test,b.test"), "host with a tab": request("host: a\ttest"), "host with a backslash": request("host: a.test\\b"),
    "host with a question mark": request("host: a.test?b"), "host with a hash": request("host: a.test#b"), "host with a percent sign": request("host: a%2etest"),
    "host with a byte above ASCII": request("host: \xe4.test"), "host with a NUL": request("host: a.test\0b.test"), "host folded": request("host: a.test", " b.test"),
    "host with a scheme": request("host: http://a.test"), "host with space around": request("host:  a.test \t"), "host in capitals twice": request("HOST: a.test", "Host: b.test"),
    "host with a space before the colon": request("host : a.test"), "host with a trailing comma": request("host: a.test,"),
    "absolute form against host": request("host: b.test", line="GET http://a.test/ HTTP/1.1"), "absolute form without a host": request(line="GET http://a.test/ HTTP/1.1"),
    "absolute form with two hosts": request("host: a.test", "host: b.test", line="GET http://a.test/ HTTP/1.1"),
    "absolute form without an authority": request("host: a.test", line="GET http:///x HTTP/1.1"), "absolute form with a port": request("host: a.test", line="GET http://b.test:81/x HTTP/1.1"),
    "absolute form of another scheme": request("host: a.test", line="GET ftp://b.test/ HTTP/1.1"), "absolute form in capitals": request("host: a.test", line="GET HTTP://b.test/ HTTP/1.1"),
    "absolute form with a backslash": request("host: a.test", line="GET http://b.test\\@c.test/ HTTP/1.1"),
    "absolute form with one slash": request("host: a.test", line="GET http:/b.test/ HTTP/1.1"), "target with two slashes": request("host: a.test", line="GET //b.test/ HTTP/1.1"),
    "target with a backslash": request("host: a.test", line="GET /\\b.test/ HTTP/1.1"), "target of an authority": request("host: a.test", line="GET a.test:80 HTTP/1.1"),
    "target with a NUL": request("host: a.test", line="GET /\0 HTTP/1.1"), "target with DEL": request("host: a.test", line="GET /\x7f HTTP/1.1"),
    "target with a bare CR": request("host: a.test", line="GET /\rx HTTP/1.1"), "target empty": request("host: a.test", line="GET  HTTP/1.1"),
    "target with an incomplete escape": request("host: a.test", line="GET /%2 HTTP/1.1"), "target with an escaped NUL": request("host: a.test", line="GET /%00 HTTP/1.1"),
    "words behind the version": request("host: a.test", line="GET / HTTP/1.1 x"), "space behind the version": request("host: a.test", line="GET / HTTP/1.1 "),
    "tabs in the request line": request("host: a.test", line="GET\t/\tHTTP/1.1"), "version 1.10": request("host: a.test", line="GET / HTTP/1.10"),
    "version 1": request("host: a.test", line="GET / HTTP/1"), "version 3": request("host: a.test", line="GET / HTTP/3"), "version with spaces": request("host: a.test", line="GET / HTTP / 1.1"),
    "method of 1,000 letters": request("host: a.test", line="G" * 1000 + " / HTTP/1.1"), "method with a NUL": request("host: a.test", line="GE\0T / HTTP/1.1"),
    "method PRI": request("host: a.test", line="PRI * HTTP/1.1"), "name with a byte above ASCII": request("host: a.test", "x-\xe4: b"),
    "name with a quote": request("host: a.test", 'x"a: b'), "name of a pseudo-header": request("host: a.test", ":path: /x"),
    "name that begins with a colon": request("host: a.test", ":: b"), "name with a tab": request("host: a.test", "x\ta: b"), "name of 10 KB": request("host: a.test", "x" * 10_000 + ": b"),
    "value with DEL": request("host: a.test", "x-a: b\x7f"), "value with ESC": request("host: a.test", "x-a: b\x1b[0m"), "value above ASCII": request("host: a.test", "x-a: \xe4\xff"),
    "value with a tab": request("host: a.test", "x-a: b\tc"), "value of spaces": request("host: a.test", "x-a:    "), "two CR before the LF": "GET / HTTP/1.1\r\r\nhost: a.test\r\n\r\n",
    "CR at the end of a value": request("host: a.test", "x-a: b\r"), "LF before the head": "\n" + request("host: a.test"), "CR before the head": "\r" + request("host: a.test"),
    "byte order mark": "\xef\xbb\xbf" + request("host: a.test"), "expect of something": request("host: a.test", "expect: 200-ok"),
    "x-forwarded-proto of something": request("host: a.test", "x-forwarded-proto: javascript"), "te of something": request("host: a.test", "te: gzip, trailers", "connection: te"),
    "keep-alive and proxy-connection": request("host: a.test", "keep-alive: 300", "proxy-connection: keep-alive"),
    "upgrade with a body": request("host: a.test", "connection: upgrade", "upgrade: websocket", "content-length: 2", line=POST, body="ab"),
    "HTTP/2 settings in an upgrade": request("host: a.test", "connection: upgrade, http2-settings", "upgrade: h2c, websocket", "http2-settings: AAMAAABk"),
}.items():
    raw(name, data)
raw("upgrade with a body where upgrades are", request("host: a.test", "connection: upgrade", "upgrade: websocket", "content-length: 2", line=POST, body="ab"), listener="ws")
raw("CONNECT with a body", request("host: a.test:80", "content-length: 2", line="CONNECT a.test:80 HTTP/1.1", body="ab"), listener="connect")
raw("CONNECT with chunks", request("host: a.test:80", "transfer-encoding: chunked", line="CONNECT a.test:80 HTTP/1.1", body="0\r\n\r\n"), listener="connect")
raw("CONNECT without a port", request("host: a.test", line="CONNECT a.test HTTP/1.1"), listener="connect")
raw("CONNECT with a path", request("host: a.test", line="CONNECT / HTTP/1.1"), listener="connect")
raw("CONNECT against host", request("host: b.test:81", line="CONNECT a.test:80 HTTP/1.1"), [{"status": 403}], listener="connect")

# What comes behind a message that has been answered.
for name, data, count in (
        ("behind a refusal", "G@T / HTTP/1.1\r\n\r\n" + NEXT, 1),
        ("behind a missing host", request() + NEXT, 1),
        ("behind a direct response with a body to come", request("host: a.test", "content-length: 100", line=DIRECT, body=NEXT), 1),
        ("behind a redirect with a chunked body", request("host: a.test", "transfer-encoding: chunked", line="POST /r HTTP/1.1", body="2\r\nab\r\n0\r\n\r\n") + NEXT, 2),
        ("behind a failure to connect", request("host: a.test", "content-length: 2", line="POST /dead HTTP/1.1", body="ab") + NEXT, 2),
        ("behind connection: close", request("host: a.test", "connection: close", line="GET /d HTTP/1.1") + NEXT, 1),
        ("behind an upgrade that is not configured", request("host: a.test", "connection: upgrade", "upgrade: websocket", line="GET /d HTTP/1.1") + NEXT, 1),
        ("behind an early answer", request("host: a.test", "content-length: 4", line="POST /early HTTP/1.1", body="body") + NEXT, 2)):
    raw(name, data, [{"early": True}, {}] if "early" in name else (), count=count, after=1)


def half(name, data, logs=None, blind=False):
    """A client that ends its direction behind `data`."""
    @G.case("abuse: end " + name, (), logs, blind)
    def _(t):
        with t.counted(r"http\.main\.downstream_rq_(total|http1|rx)"):
            conn = t.connect()
            conn.send(data.encode("latin-1"))
            conn.sock.shutdown(socket.SHUT_WR)
            t.note(**conn.end())
        t.unsure = True


half("at once", "")
half("in the request line", "GET /")
half("in the head", "GET / HTTP/1.1\r\nhost: a")
half("behind an empty line", "\r\n")
half("in a body", request("host: a.test", "content-length: 9", line=POST, body="ab"), blind=True)
half("in a chunk's size", request("host: a.test", "transfer-encoding: chunked", line=POST, body="2"), blind=True)
half("in a chunk", request("host: a.test", "transfer-encoding: chunked", line=POST, body="5\r\nab"), blind=True)
half("in trailers", request("host: a.test", "transfer-encoding: chunked", line=POST, body="2\r\nab\r\n0\r\nx-a"), blind=True)

# What an upstream may say.
GET = request("host: a.test")
OK = b"HTTP/1.1 200 OK\r\n"
EMPTY = b"content-length: 0\r\n\r\n"
for name, answer in {
    "status of two digits": b"HTTP/1.1 20 OK\r\n" + EMPTY, "status of four digits": b"HTTP/1.1 2000 OK\r\n" + EMPTY, "status 000": b"HTTP/1.1 000 X\r\n" + EMPTY,
    "status 099": b"HTTP/1.1 099 X\r\n" + EMPTY, "status 600": b"HTTP/1.1 600 X\r\n" + EMPTY, "status with a sign": b"HTTP/1.1 +20 OK\r\n" + EMPTY,
    "status line in lower case": b"http/1.1 200 OK\r\n" + EMPTY, "version 2.0": b"HTTP/2.0 200 OK\r\n" + EMPTY, "version 1.2": b"HTTP/1.2 200 OK\r\n" + EMPTY,
    "no version": b"200 OK\r\n" + EMPTY, "reason with a NUL": b"HTTP/1.1 200 O\0K\r\n" + EMPTY, "reason with a bare CR": b"HTTP/1.1 200 O\rK\r\n" + EMPTY,
    "status without a reason or a space": b"HTTP/1.1 200\r\n" + EMPTY, "bytes before the status": b"\r\n" + OK + EMPTY, "head in bare LF": b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
    "CL twice": OK + b"content-length: 2\r\ncontent-length: 2\r\n\r\nok", "CL list": OK + b"content-length: 2, 2\r\n\r\nok", "CL with a plus": OK + b"content-length: +2\r\n\r\nok",
    "CL negative": OK + b"content-length: -1\r\n\r\n", "CL empty": OK + b"content-length:\r\n\r\n", "CL that overflows": OK + b"content-length: 18446744073709551617\r\n\r\n",
    "TE chunked twice": OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "TE gzip, chunked": OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "TE identity": OK + b"transfer-encoding: identity\r\ncontent-length: 0\r\n\r\n", "TE in HTTP/1.0": b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "204 with CL": b"HTTP/1.1 204 No\r\ncontent-length: 2\r\n\r\n", "204 with TE": b"HTTP/1.1 204 No\r\ntransfer-encoding: chunked\r\n\r\n",
    "304 with TE": b"HTTP/1.1 304 Not\r\ntransfer-encoding: chunked\r\n\r\n", "100 with CL": b"HTTP/1.1 100 Continue\r\ncontent-length: 2\r\n\r\n" + OK + EMPTY,
    "103 with TE": b"HTTP/1.1 103 Early\r\ntransfer-encoding: chunked\r\n\r\n" + OK + EMPTY, "101 with CL": b"HTTP/1.1 101 Switch\r\nconnection: upgrade\r\nupgrade: websocket\r\ncontent-length: 2\r\n\r\n",
    "1,000 times 100": b"HTTP/1.1 100 Continue\r\n\r\n" * 1000 + OK + EMPTY, "1,000 times 103": b"HTTP/1.1 103 Early\r\nlink: </a>\r\n\r\n" * 1000 + OK + EMPTY,
    "name with a space": OK + b"x a: b\r\n" + EMPTY, "name empty": OK + b": b\r\n" + EMPTY, "line without a colon": OK + b"nonsense\r\n" + EMPTY,
    "value with a bare CR": OK + b"x-a: b\rc\r\n" + EMPTY, "value with a bare LF": OK + b"x-a: b\nx-b: c\r\n" + EMPTY, "value with DEL": OK + b"x-a: \x7f\r\n" + EMPTY,
    "value above ASCII": OK + b"x-a: \xe4\r\n" + EMPTY, "name with an underscore": OK + b"x_a: b\r\n" + EMPTY, "fields of one connection": OK + b"keep-alive: 1\r\nproxy-connection: x\r\nupgrade: h2c\r\n" + EMPTY,
    "chunk: bad size": OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n", "chunk: too long": OK + b"transfer-encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
    "chunk: size that overflows": OK + b"transfer-encoding: chunked\r\n\r\nffffffffffffffff1\r\n", "chunk: cut": OK + b"transfer-encoding: chunked\r\n\r\n5\r\nab",
    "chunk: no last one": OK + b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n", "chunk: extension": OK + b"transfer-encoding: chunked\r\n\r\n2;a=b\r\nab\r\n0\r\n\r\n",
    "chunk: trailer with framing": OK + b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\ncontent-length: 9\r\n\r\n",
}.items():
    raw("upstream: " + name, GET, [{"raw": answer, "close_after": True}], logs=1)
for name, extra in {"a second response": OK + b"content-length: 5\r\n\r\nwrong", "bytes": b"bytes", "an empty line": b"\r\n"}.items():
    @G.case(f"abuse: upstream: {name} behind a response", [{"raw": OK + b"content-length: 2\r\n\r\nok" + extra}, {"body": b"right"}])
    def _(t):
        t.get()
        t.get()
raw("upstream: a body to HEAD", request("host: a.test", line="HEAD / HTTP/1.1"), [{"raw": OK + b"content-length: 2\r\n\r\nok"}])
raw("upstream: chunks to HEAD", request("host: a.test", line="HEAD / HTTP/1.1"), [{"raw": OK + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"}])
raw("upstream: 101 to an upgrade of another protocol", request("host: a.test", "connection: upgrade", "upgrade: websocket"),
    [{"raw": b"HTTP/1.1 101 Switch\r\nconnection: upgrade\r\nupgrade: other\r\n\r\n", "close_after": True}], listener="ws", logs=1)
raw("upstream: 200 to an upgrade, then bytes", request("host: a.test", "connection: upgrade", "upgrade: websocket") + NEXT,
    [{"raw": OK + b"content-length: 2\r\n\r\nok"}], listener="ws", logs=1, blind=True)
