"""Command operators of access logs: every one that Envoy documents, each on a line of its own, in text and in JSON."""
import json
import re

from harness.config import TYPE, bootstrap, cluster, host, listener, route
from harness.runner import Group

TABLE = """
START_TIME(%s) EMIT_TIME(%s) REQUEST_HEADERS_BYTES RESPONSE_HEADERS_BYTES RESPONSE_TRAILERS_BYTES BYTES_RECEIVED BYTES_SENT
BYTES_RETRANSMITTED PACKETS_RETRANSMITTED PROTOCOL UPSTREAM_PROTOCOL RESPONSE_CODE RESPONSE_CODE_DETAILS
RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES) CONNECTION_TERMINATION_DETAILS UPSTREAM_REQUEST_ATTEMPT_COUNT RESPONSE_FLAGS RESPONSE_FLAGS_LONG
ROUTE_NAME VIRTUAL_CLUSTER_NAME UPSTREAM_HOST UPSTREAM_HOST_NAME UPSTREAM_HOST_NAME_WITHOUT_PORT UPSTREAM_HOSTS_ATTEMPTED
UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT UPSTREAM_HOST_NAMES_ATTEMPTED UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT UPSTREAM_CLUSTER
UPSTREAM_CLUSTER_RAW UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT(16) UPSTREAM_REMOTE_ADDRESS
UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(33) UPSTREAM_REMOTE_PORT UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID
UPSTREAM_DETECTED_CLOSE_TYPE UPSTREAM_LOCAL_CLOSE_REASON DOWNSTREAM_TRANSPORT_FAILURE_REASON UPSTREAM_TRANSPORT_FAILURE_REASON
DOWNSTREAM_LOCAL_CLOSE_REASON DOWNSTREAM_DETECTED_CLOSE_TYPE DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT
DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(8) DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT DOWNSTREAM_LOCAL_ADDRESS
DOWNSTREAM_DIRECT_LOCAL_ADDRESS DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT(0) DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT
DOWNSTREAM_LOCAL_PORT DOWNSTREAM_DIRECT_LOCAL_PORT DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID
STREAM_ID GRPC_STATUS GRPC_STATUS(SNAKE_STRING) GRPC_STATUS(NUMBER) GRPC_STATUS_NUMBER REQUEST_HEADER(:PATH) REQ(X-NONE?:METHOD):2
REQ(X-NONE) REQ(:PATH):0 RESPONSE_HEADER(CONTENT-TYPE):4 RESP(:STATUS) RESPONSE_TRAILER(GRPC-MESSAGE) TRAILER(X-END?GRPC-STATUS):1
DYNAMIC_METADATA(a) METADATA(DYNAMIC:a:b) CLUSTER_METADATA(of.cluster) CLUSTER_METADATA(of.cluster:n) METADATA(CLUSTER:of.cluster:o:t)
METADATA(CLUSTER:of.cluster:none) UPSTREAM_METADATA(of.host) UPSTREAM_METADATA(of.host:t) METADATA(UPSTREAM_HOST:of.host:l)
METADATA(ROUTE:of.route:t) METADATA(ROUTE:of.route):4 METADATA(VIRTUAL_HOST:of.vhost:t) METADATA(VIRTUAL_HOST:of.vhost:t):2
METADATA(LISTENER:of.listener:t) METADATA(LISTENER_FILTER_CHAIN:of.chain:b) FILTER_STATE(a) FILTER_STATE(a:PLAIN) UPSTREAM_FILTER_STATE(a)
FILTER_STATE(envoy.string) FILTER_STATE(envoy.string:PLAIN):3 FILTER_STATE(envoy.string:TYPED)
REQUESTED_SERVER_NAME REQUESTED_SERVER_NAME(SNI_FIRST) REQUESTED_SERVER_NAME(HOST_FIRST:HOST) REQUESTED_SERVER_NAME(SNI_FIRST:ORIG)
DOWNSTREAM_PEER_SUBJECT DOWNSTREAM_TLS_SESSION_ID DOWNSTREAM_TLS_VERSION DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256
DOWNSTREAM_PEER_ISSUER_SERIAL UPSTREAM_TLS_SESSION_ID UPSTREAM_SERVER_NAME UPSTREAM_TLS_VERSION TLS_JA3_FINGERPRINT TLS_JA4_FINGERPRINT
DOWNSTREAM_PEER_CERT_V_START UPSTREAM_PEER_CERT_V_END(%Y) HOSTNAME LOCAL_REPLY_BODY FILTER_CHAIN_NAME ACCESS_LOG_TYPE ENVIRONMENT(NONE)
ENVIRONMENT(PATH):1 TRACE_ID SPAN_ID QUERY_PARAM(a) QUERY_PARAM(b):1 QUERY_PARAM(none) QUERY_PARAM(c) QUERY_PARAMS QUERY_PARAMS(ORIG):3 QUERY_PARAMS(DECODED)
PATH PATH(NQ) PATH(NQ:PATH) PATH(WQ:ORIG) PATH(:PATH):3 PATH(WQ:ORIG_OR_PATH) CUSTOM_FLAGS UNIQUE_ID
"""
TIMES = """START_TIME START_TIME_LOCAL(%FT%T) EMIT_TIME_LOCAL(%s) DURATION REQUEST_DURATION REQUEST_TX_DURATION RESPONSE_DURATION
RESPONSE_TX_DURATION ROUNDTRIP_DURATION DOWNSTREAM_HANDSHAKE_DURATION UPSTREAM_CONNECTION_POOL_READY_DURATION
COMMON_DURATION(DS_RX_BEG:DS_RX_END:ms) COMMON_DURATION(US_CX_BEG:US_CX_END:us)
COMMON_DURATION(US_CX_END:US_TX_BEG:us) COMMON_DURATION(DS_RX_BEG:US_TX_END:ns)
COMMON_DURATION(US_TX_BEG:US_RX_BEG:us) COMMON_DURATION(US_RX_BEG:US_RX_BODY_BEG:us) COMMON_DURATION(US_RX_BEG:US_RX_END:us)
COMMON_DURATION(DS_RX_BEG:DS_TX_BEG:us) COMMON_DURATION(DS_TX_BEG:DS_TX_END:us) COMMON_DURATION(DS_RX_BEG:own:us)
COMMON_DURATION(DS_CX_BEG:DS_CX_END:us) UPSTREAM_CONNECTION_ID UPSTREAM_CONNECTION_IDS_ATTEMPTED CONNECTION_ID""".split()
OPERATORS = TABLE.split() + [
    'COALESCE({"operators": ["REQUESTED_SERVER_NAME", {"command": "REQ", "param": ":authority"}]})',
    'COALESCE({"operators": [{"command": "REQ", "param": "x-none"}, {"command": "REQ", "param": ":path", "max_length": 3}]}):2',
    'COALESCE({"operators": ["ROUTE_NAME"]})', 'COALESCE({"operators": ["RESPONSE_CODE"]})']


def log(p, **form):
    return {"name": "envoy.access_loggers.file", "typed_config": {
        "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": p.log, "log_format": form}}


def lines(names):
    """A line for each operator; what takes its place is told without the operator's own percent signs."""
    return {"text_format_source": {"inline_string": "".join(f"{n.replace('%', '%%')} %{n}%\n" for n in names)}}


METADATA = {"t": "text", "n": 1, "b": True, "o": {"t": "x", "n": 1.5}, "l": [1, "a"]}


def config(p):
    def metadata(name):
        return {"filter_metadata": {name: METADATA}}
    routes = [host([
        route("/d", direct_response={"status": 200, "body": {"inline_string": "direct"}}, name="direct"),
        route("/refused", "dead"),
        route("/again", {"cluster": "dead", "retry_policy": {"retry_on": "connect-failure", "num_retries": 1}}),
        route("/moved", redirect={"path_redirect": "/d"}),
        route("/new", {"cluster": "facts", "prefix_rewrite": "/old"}, metadata=metadata("of.route"), name="r"),
        route("/grpc", "up2"),
        route("/", "facts", metadata=metadata("of.route"), name="rest")], metadata=metadata("of.vhost"))]
    state = [{"name": "state", "typed_config": {
        "@type": TYPE + "envoy.extensions.filters.http.set_filter_state.v3.Config",
        "on_request_headers": [{"object_key": "envoy.string", "format_string": {"text_format_source": {
            "inline_string": "a \"text\" of %REQ(:METHOD)%"}}}]}}]
    endpoint = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": p.up}}, "hostname": "one.test:80"},
                "metadata": metadata("of.host")}
    facts = {**cluster("facts"), "metadata": metadata("of.cluster"), "alt_stat_name": "other",
             "load_assignment": {"cluster_name": "facts", "endpoints": [{"lb_endpoints": [endpoint]}]}}

    def on(name, **form):
        made = listener(p, routes, name, filters=state, access_log=[log(p, **form)])
        made["metadata"] = metadata("of.listener")
        made["filter_chains"][0].update(name="chain", metadata=metadata("of.chain"))
        return made
    typed = {n: f"%{n}%" for n in OPERATORS if n not in ("START_TIME(%s)", "EMIT_TIME(%s)")}
    mixed = {
        "number": 5, "fraction": 1.5, "yes": True, "null": None, "empty": "", "list": ["%PROTOCOL%", 1, ["%REQ(X-NONE)%"]],
        "object": {"z": "%RESPONSE_CODE%", "a": "code %RESPONSE_CODE% of %REQ(X-NONE)%", "%PROTOCOL%": "key"}, "literal": "100%% \"quoted\"\n\t\u00e9",
        "odd": "%REQ(X-ODD)%", "missing": "%REQ(X-NONE)%", "two": "%REQ(X-NONE)%%REQ(X-NONE)%", "none": {}, "nothing": []}
    tcp = {"@type": TYPE + "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "tcp", "cluster": "facts"}

    def chain(name, **form):
        port = {"socket_address": {"address": "127.0.0.1", "port_value": p.listener(name)}}
        return {"name": name, "address": port, "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": {
            **tcp, "access_log": [log(p, **form)]}}]}]}
    return bootstrap(p, [
        on("text", **lines(OPERATORS)), on("times", **lines(TIMES)),
        on("empty", **lines(OPERATORS), omit_empty_values=True),
        on("typed", json_format=typed), on("mixed", json_format=mixed),
        on("mixed-empty", json_format=mixed, omit_empty_values=True),
        chain("tcp", **lines(OPERATORS)), chain("tcp-times", **lines(TIMES)), chain("tcp-typed", json_format=typed),
    ], extra=[facts])


G = Group(config)
N = len(OPERATORS)
ID = r"^(HOSTNAME|UNIQUE_ID|STREAM_ID) [^-\s]\S*$"
MASKED = r"^(START|EMIT)_TIME\(%s\) \d{10}$"


def told(t, count, mask):
    """Lines of the log with what is chance or time told as its form."""
    found = t.proxy.lines(count)

    def form(line):
        name, _, value = line.rpartition(" ")
        if re.match(ID, line):
            return f"{name} <some>"
        return f"{name} {re.sub(r'[0-9]+', '<n>', value)}" if re.match(mask, line) else line
    t.note(log=sorted(form(line) for line in found))


def case(name, *asked, listener="text", mask=MASKED, count=N, upstream=({},), **kw):
    @G.case("log operators: " + name, list(upstream), logs=0)
    def _(t):
        t.get(*asked, listener=listener, **kw)
        told(t, count, mask)


ODD = ("x-odd: \"\\\xe9",)
case("a request", "/x?a=1&b=%20two&a=3&b&c=x+y%2", "x-envoy-original-path: /mine", method="POST", body="hello")
case("a direct response", "/d", upstream=())
case("a redirect", "/moved", upstream=())
case("a path that is rewritten", "/new?a=b%2Fc%3d&c=%zzf")
case("nobody listens", "/refused", upstream=())
case("nobody listens, twice", "/again", upstream=())
case("values that are empty", "/x", listener="empty")
for name in ("text", "empty"):
    case(f"no upstream, {name}", "/d?a=", listener=name, upstream=())
case("times", "/x", listener="times", mask=".*", count=len(TIMES))
case("times of a direct response", "/d", listener="times", mask=".*", count=len(TIMES), upstream=())
case("times, nobody listens", "/refused", listener="times", mask=".*", count=len(TIMES), upstream=())


@G.case("log operators: gRPC over HTTP/2", [{"body": b"", "trailers": [("grpc-status", "3"), ("grpc-message", "not good"), ("x-end", "1")]}], logs=0)
def _(t):
    t.h2("/grpc?b=1", [("content-type", "application/grpc"), ("te", "trailers")], b"\0\0\0\0\0", method="POST", listener="text")
    told(t, N, MASKED)


@G.case("log operators: gRPC, a status that is none", [{"body": b"", "trailers": [("grpc-status", "77")]}], logs=0)
def _(t):
    t.h2("/grpc", [("content-type", "application/grpc"), ("te", "trailers")], b"", method="POST", listener="text")
    told(t, N, MASKED)


def json_lines(t, count=1):
    """Lines of JSON: the order of the keys and the values are what is compared, not how a string is escaped."""
    found = [json.loads(line.encode("latin-1"), object_pairs_hook=list) for line in t.proxy.lines(count)]
    hidden = ("HOSTNAME", "UNIQUE_ID", "STREAM_ID")

    def form(name, value):
        if name in hidden and value:
            return "<some>"
        return f"the number {value}" if name.endswith("_PORT") and value else value
    t.note(log=[[[k, form(k, v)] for k, v in line] for line in found])


for name in ("typed", "mixed", "mixed-empty"):
    for path, upstream in {"/x?a=1&b=2": [{}], "/d": []}.items():
        @G.case(f"log operators: JSON, {name}, {path}", upstream, logs=0)
        def _(t, name=name, path=path):
            t.get(path, *ODD, listener=name)
            json_lines(t)


@G.case("log operators: JSON, gRPC", [{"body": b"", "trailers": [("grpc-status", "0")]}], logs=0)
def _(t):
    t.h2("/grpc", [("content-type", "application/grpc"), ("te", "trailers")], b"", method="POST", listener="typed")
    json_lines(t)


def tcp(name, count, mask=MASKED):
    @G.case("log operators: " + name, [{}], logs=0)
    def _(t):
        conn = t.connect(name)
        conn.send(b"GET /x HTTP/1.1\r\nhost: a.test\r\n\r\n")
        t.record.append(conn.response())
        conn.close()
        if count == 1:
            json_lines(t)
        else:
            told(t, count, mask)


tcp("tcp", N)
tcp("tcp-times", len(TIMES), ".*")
tcp("tcp-typed", 1)
