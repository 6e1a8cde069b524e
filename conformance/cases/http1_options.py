"""`http_protocol_options` of the connection manager and of clusters: casing, custom methods, absolute URLs, lenient framing."""
from harness.config import TYPE, bootstrap, cluster, listener, route
from harness.runner import Group

PRESERVE = TYPE + "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig"
OPTIONS = TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def preserve(**fields):
    return {"header_key_format": {"stateful_formatter": {
        "name": "preserve_case", "typed_config": {"@type": PRESERVE, **fields}}}}


def upstream(name, port, **options):
    return cluster(name, port, typed_extension_protocol_options={OPTIONS[len(TYPE):]: {
        "@type": OPTIONS, "explicit_http_config": {"http_protocol_options": options}}})


def config(p):
    routes = [route(f"/{c}", c) for c in ("proper", "keep", "full", "reason", "trailers", "chunked")] + [
        route("/direct", direct_response={"status": 200, "body": {"inline_string": "direct"}}), route("/", "up")]
    proper = {"header_key_format": {"proper_case_words": {}}}
    return bootstrap(p, [
        listener(p, routes),
        listener(p, routes, "proper", http_protocol_options={**proper, "enable_trailers": True}),
        listener(p, routes, "keep", http_protocol_options=preserve()),
        listener(p, routes, "keepproper", http_protocol_options=preserve(formatter_type_on_envoy_headers="PROPER_CASE")),
        listener(p, routes, "reason", http_protocol_options=preserve(forward_reason_phrase=True)),
        listener(p, routes, "custom", http_protocol_options={"allow_custom_methods": True}),
        listener(p, routes, "absolute", http_protocol_options={"allow_absolute_url": False}),
        listener(p, routes, "chunkedlength", http_protocol_options={"allow_chunked_length": True}),
        listener(p, routes, "old", http_protocol_options={"accept_http_10": True}),
        listener(p, routes, "lenient", stream_error_on_invalid_http_message=True),
        listener(p, routes, "override", http_protocol_options={"override_stream_error_on_invalid_http_message": True}),
    ], [
        upstream("proper", p.up, **proper), upstream("keep", p.up, **preserve()),
        upstream("full", p.up, send_fully_qualified_url=True), upstream("reason", p.up, **preserve(forward_reason_phrase=True)),
        upstream("trailers", p.up, enable_trailers=True), upstream("chunked", p.up, allow_chunked_length=True),
    ])


G = Group(config)


def raw(name, data, upstream=(), **kw):
    G.case("h1 options: " + name, upstream)(lambda t: t.h1(data, **kw))


def request(*headers, line="GET / HTTP/1.1", body=""):
    return line + "\r\n" + "".join(h + "\r\n" for h in headers) + "\r\n" + body


MIXED = ("HOST: a.test", "X-fOO-Bar: 1", "x_under.score-dot: 2")
ANSWER = [{"raw": b"HTTP/1.1 200 Fine By Me\r\nX-MiXed: 1\r\nContent-LENGTH: 2\r\nx-lower: 2\r\n\r\nok"}]
raw("proper case upstream", request(*MIXED, line="GET /proper HTTP/1.1"), ANSWER)
raw("proper case downstream", request(*MIXED), ANSWER, listener="proper")
raw("proper case, chunks and trailers", request("host: a.test", "transfer-encoding: chunked", line="POST /trailers HTTP/1.1",
    body="2\r\nab\r\n0\r\nx-t-a: 1\r\n\r\n"), [{"trailers": [("x-some-trailer", "1")]}], listener="proper")
raw("proper case of a local reply", request("host: a.test", line="GET /direct HTTP/1.1"), listener="proper")
raw("proper case of a refusal", request("host: a.test", "x y: 1"), listener="proper")
raw("case kept downstream", request(*MIXED), ANSWER, listener="keep")
raw("case kept upstream", request(*MIXED, line="GET /keep HTTP/1.1"), ANSWER)
raw("case kept both ways", request(*MIXED, line="GET /keep HTTP/1.1"), ANSWER, listener="keep")
raw("case kept, ours proper", request(*MIXED), ANSWER, listener="keepproper")
raw("case kept, ours proper, both ways", request(*MIXED, line="GET /keep HTTP/1.1"), ANSWER, listener="keepproper")
raw("case kept downstream, proper upstream", request(*MIXED, line="GET /proper HTTP/1.1"), ANSWER, listener="keep")
raw("case kept of the framing fields", request("Host: a.test", "Transfer-Encoding: chunked", line="POST /keep HTTP/1.1",
    body="2\r\nab\r\n0\r\n\r\n"), ANSWER, listener="keep")
raw("case kept of the length", request("Host: a.test", "CONTENT-length: 2", line="POST /keep HTTP/1.1", body="ab"), ANSWER,
    listener="keep")
raw("reason phrase kept", request("host: a.test", line="GET /reason HTTP/1.1"), ANSWER, listener="reason")
raw("reason phrase kept upstream only", request("host: a.test", line="GET /reason HTTP/1.1"), ANSWER)
raw("case kept of a local reply", request("Host: a.test", line="GET /direct HTTP/1.1"), listener="keepproper")
raw("case of two equal names", request("Host: a.test", "X-A: 1", "x-a: 2"), listener="keep")

raw("custom method", request("host: a.test", line="BREW / HTTP/1.1"), listener="custom")
raw("custom method, lower case", request("host: a.test", line="brew / HTTP/1.1"), listener="custom")
raw("custom method, no token", request("host: a.test", line="BR(EW / HTTP/1.1"), listener="custom")
for method in ("MSEARCH", "M-SEARCH", "PURGE", "PRI", "QUERY", "PROPFIND"):
    raw(f"method {method}", request("host: a.test", line=f"{method} / HTTP/1.1"))

raw("absolute URL off, authority form", request("host: a.test", line="GET b.test:80 HTTP/1.1"), listener="absolute")
raw("absolute URL off, asterisk", request("host: a.test", line="OPTIONS * HTTP/1.1"), listener="absolute")
raw("absolute URL with userinfo", request("host: a.test", line="GET http://u:p@b.test/x HTTP/1.1"))
raw("absolute URL with a port", request("host: a.test", line="GET http://b.test:8080/x HTTP/1.1"))
raw("absolute URL with a query only", request("host: a.test", line="GET http://b.test?x=1 HTTP/1.1"))
raw("absolute URL in capitals", request("host: a.test", line="GET HTTP://B.test/x HTTP/1.1"))
raw("absolute URL of another scheme", request("host: a.test", line="GET ftp://b.test/x HTTP/1.1"))
raw("absolute URL without host", request("host: a.test", line="GET http:///x HTTP/1.1"))
raw("absolute URL without Host field", request(line="GET http://b.test/x HTTP/1.1"))
raw("fully qualified URL upstream", request("host: a.test", line="GET /full?q=1 HTTP/1.1"))

raw("CL and TE allowed", request("host: a.test", "content-length: 4", "transfer-encoding: chunked", line="POST / HTTP/1.1",
    body="2\r\nab\r\n0\r\n\r\n"), listener="chunkedlength")
raw("CL and TE allowed, bad CL", request("host: a.test", "content-length: x", "transfer-encoding: chunked", line="POST / HTTP/1.1",
    body="2\r\nab\r\n0\r\n\r\n"), listener="chunkedlength")
raw("CL and TE allowed, zero CL", request("host: a.test", "content-length: 0", "transfer-encoding: chunked", line="POST / HTTP/1.1",
    body="2\r\nab\r\n0\r\n\r\n"), listener="chunkedlength")
raw("CL and TE allowed upstream", request("host: a.test", line="GET /chunked HTTP/1.1"),
    [{"raw": b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"}])
raw("trailers to an upstream that takes them", request("host: a.test", "transfer-encoding: chunked",
    line="POST /trailers HTTP/1.1", body="2\r\nab\r\n0\r\nx-t: 1\r\n\r\n"), [{"trailers": [("x-r", "1")]}], listener="proper")

raw("HTTP/1.0 with a body", request("host: a.test", "content-length: 2", line="POST / HTTP/1.0", body="ab"), listener="old", after=1)
raw("HTTP/1.0 with chunks", request("host: a.test", "transfer-encoding: chunked", line="POST / HTTP/1.0", body="0\r\n\r\n"),
    listener="old")
raw("HTTP/1.0 without host", request(line="GET / HTTP/1.0"), listener="old")
raw("HTTP/1.0 HEAD", request("host: a.test", line="HEAD / HTTP/1.0"), listener="old")

for where in ("lenient", "override"):
    raw(f"400 keeps the connection, {where}", request("x-a: 1"), listener=where, after=0.3)
    raw(f"malformed closes, {where}", request("host: a.test", "x y: 1"), listener=where, after=0.3)
