"""Who the client is: `x-forwarded-for`, IP detection, internal and edge requests, and the headers that follow from it."""
from harness.config import TYPE, bootstrap, host, listener, route
from harness.runner import Group

DETECTION = TYPE + "envoy.extensions.http.original_ip_detection."


def xff(**fields):
    return {"name": "xff", "typed_config": {"@type": DETECTION + "xff.v3.XffConfig", **fields}}


def custom(**fields):
    return {"name": "custom", "typed_config": {
        "@type": DETECTION + "custom_header.v3.CustomHeaderConfig", "header_name": "x-real-ip", **fields}}


def cidr(address, length):
    return {"address_prefix": address, "prefix_len": length}


def mutation(*mutations):
    return {"name": "early", "typed_config": {
        "@type": TYPE + "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        "mutations": list(mutations)}}


def append(key, value, action=None):
    made = {"header": {"key": key, "value": value}}
    return {"append": {**made, "append_action": action} if action else made}


def config(p):
    told = route("/", "up", response_headers_to_add=[
        {"header": {"key": "x-remote", "value": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}},
        {"header": {"key": "x-direct", "value": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"}}])
    plain = [host([route("/early", "up"), route({"prefix": "/", "headers": [
        {"name": "x-early", "string_match": {"exact": "yes"}}]}, direct_response={
            "status": 200, "body": {"inline_string": "early"}}), told])]
    inside = {"internal_address_config": {"cidr_ranges": [cidr("127.0.0.0", 8), cidr("10.0.0.0", 8)]}}
    trusted = {"cidrs": [cidr("127.0.0.0", 8), cidr("10.1.0.0", 16)]}

    def on(name, **fields):
        return listener(p, plain, name, **fields)
    return bootstrap(p, [
        on("main", **inside),
        on("edge", use_remote_address=True, **inside),
        on("edge2", use_remote_address=True, xff_num_trusted_hops=2, **inside),
        on("hops", xff_num_trusted_hops=1, **inside),
        on("xff0", original_ip_detection_extensions=[xff(xff_num_trusted_hops=0)], **inside),
        on("xffappend", original_ip_detection_extensions=[xff(skip_xff_append=False)], **inside),
        on("cidrs", original_ip_detection_extensions=[xff(xff_trusted_cidrs=trusted)], **inside),
        on("strangers", original_ip_detection_extensions=[xff(xff_trusted_cidrs={"cidrs": [cidr("9.0.0.0", 8)]})], **inside),
        on("custom", original_ip_detection_extensions=[custom()], **inside),
        on("trust", original_ip_detection_extensions=[custom(allow_extension_to_set_address_as_trusted=True)], **inside),
        on("reject", original_ip_detection_extensions=[custom(reject_with_status={"code": "Unauthorized"})], **inside),
        on("forbid", original_ip_detection_extensions=[custom(reject_with_status={"code": "OK"})], **inside),
        on("chain", original_ip_detection_extensions=[custom(), xff()], **inside),
        on("xffcustom", original_ip_detection_extensions=[xff(skip_xff_append=False), custom()], **inside),
        on("customxff", original_ip_detection_extensions=[custom(), xff(skip_xff_append=False)], **inside),
        on("earlyxff", early_header_mutation_extensions=[mutation(
            append("x-forwarded-for", "10.0.0.44"), append("x-request-id", "early"), append("x-envoy-retry-on", "5xx"))], **inside),
        on("early", early_header_mutation_extensions=[mutation(
            append("x-early", "yes"), append("x-seen", "%REQ(x-in)%", "OVERWRITE_IF_EXISTS_OR_ADD"),
            {"remove": "x-out"}), mutation(append("x-second", "%REQ(x-early)%"))], use_remote_address=True),
        on("port", use_remote_address=True, append_x_forwarded_port=True),
        on("portin", append_x_forwarded_port=True),
        on("https", scheme_header_transformation={"scheme_to_overwrite": "https"}),
        on("agent", add_user_agent=True),
        on("always", always_set_request_id_in_response=True),
        on("uuid", request_id_extension={"typed_config": {
            "@type": TYPE + "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig", "pack_trace_reason": False}},
           use_remote_address=True, always_set_request_id_in_response=True),
        on("via", via="1.1 fair"),
        on("certs", forward_client_cert_details="ALWAYS_FORWARD_ONLY"),
        on("certset", forward_client_cert_details="SANITIZE_SET", set_current_client_cert_details={"uri": True}),
        on("certappend", forward_client_cert_details="APPEND_FORWARD", set_current_client_cert_details={"uri": True}),
        on("certforward", forward_client_cert_details="FORWARD_ONLY"),
        on("continue", proxy_100_continue=True),
        on("dot", strip_trailing_host_dot=True),
        on("dotport", strip_trailing_host_dot=True, strip_any_host_port=True),
        on("stripany", strip_any_host_port=True),
        on("headers3", common_http_protocol_options={"max_headers_count": 3}),
        on("requests2", common_http_protocol_options={"max_requests_per_connection": 2}),
    ])


G = Group(config)
ID = "x-request-id: 6f1d2a00-1111-4222-8333-444455556666"
XENVOY = ("x-envoy-retry-on: 5xx", "x-envoy-max-retries: 1", "x-envoy-upstream-rq-timeout-ms: 900", "x-envoy-ip-tags: t",
          "x-envoy-original-path: /o", "x-envoy-original-host: o", "x-envoy-original-url: u", "x-envoy-force-trace: true",
          "x-envoy-upstream-alt-stat-name: s", "x-envoy-decorator-operation: d", "x-envoy-downstream-service-cluster: c",
          "x-envoy-downstream-service-node: n", "x-envoy-upstream-stream-duration-ms: 1000", "x-envoy-other: 1",
          "x-envoy-retriable-status-codes: 500", "x-envoy-retriable-header-names: a",
          "x-envoy-upstream-rq-per-try-timeout-ms: 800", "x-envoy-upstream-rq-timeout-alt-response: 1",
          "x-envoy-expected-rq-timeout-ms: 7", "x-envoy-retry-grpc-on: cancelled", "x-envoy-external-address: 1.1.1.1",
          "x-envoy-attempt-count: 4", "x-envoy-peer-metadata: p", "x-envoy-internal: true", "x-envoy-is-timeout-retry: true")


def get(name, *args, upstream=(), **kw):
    G.case("edge: " + name, upstream)(lambda t: t.get(*args, **kw))


FORWARDED = {
    "absent": (), "one internal": ("10.0.0.1",), "one external": ("1.2.3.4",), "two": ("1.2.3.4, 10.1.2.3",),
    "three": ("1.2.3.4,10.1.0.1 , 10.1.0.2",), "all trusted": ("10.1.0.9,10.1.0.1",), "two lines": ("1.2.3.4", "10.1.0.2"),
    "nonsense": ("1.2.3.4, who",), "IPv6": ("2001:db8::1",), "IPv6 in brackets": ("[2001:db8::1]",),
    "with a port": ("1.2.3.4:80",), "empty": ("",), "trailing comma": ("1.2.3.4,",)}
for where in ("main", "edge", "edge2", "hops", "xff0", "xffappend", "cidrs", "strangers"):
    for what, lines in FORWARDED.items():
        get(f"XFF {what} on {where}", "/", *["x-forwarded-for: " + v for v in lines], listener=where)
for where in ("custom", "trust", "reject", "forbid", "chain", "xffcustom", "customxff"):
    for what, lines in {"absent": (), "valid": ("10.0.0.7",), "external": ("9.9.9.9",), "bad": ("x",), "two": ("1.1.1.1", "2.2.2.2"),
                        "IPv6": ("2001:db8::2",)}.items():
        get(f"address header {what} on {where}", "/", *["x-real-ip: " + v for v in lines],
            "x-forwarded-for: 10.0.0.3", listener=where)
for where in ("main", "edge"):
    get(f"x-envoy headers on {where}", "/", *XENVOY, listener=where)
    get(f"x-envoy headers of an internal sender on {where}", "/", *XENVOY, *(
        ["x-forwarded-for: 10.0.0.1"] if where == "main" else []), listener=where)
for what, lines in {"absent": (), "present": ("10.0.0.3",), "nonsense": ("me",)}.items():
    get(f"XFF {what} under an address header", "/", "x-real-ip: 9.9.9.9", *["x-forwarded-for: " + v for v in lines], listener="customxff")
    get(f"XFF {what} before an address header", "/", "x-real-ip: 9.9.9.9", *["x-forwarded-for: " + v for v in lines], listener="xffcustom")
get("XFF internal behind a trusted proxy", "/", "x-forwarded-for: 10.0.0.9,10.1.0.1", listener="cidrs")
get("XFF internal behind two trusted proxies", "/", "x-forwarded-for: 1.1.1.1,10.0.0.9,10.1.0.1", listener="cidrs")
get("mutations before the client is known", "/", listener="earlyxff")
get("mutations before the client is known, twice", "/", "x-forwarded-for: 1.1.1.1", listener="earlyxff")
get("mutations before routing", "/", "x-in: i", "x-out: o", listener="early")
get("mutations before routing reach the upstream", "/early", "x-in: i", "x-out: o", "x-forwarded-for: 1.1.1.1", listener="early")
get("x-forwarded-port at the edge", "/", listener="port")
get("x-forwarded-port replaced at the edge", "/", "x-forwarded-port: 99", listener="port")
get("x-forwarded-port inside", "/", listener="portin")
get("x-forwarded-port kept inside", "/", "x-forwarded-port: 99", listener="portin")
get("scheme overwritten", "/", listener="https")
get("scheme overwritten over x-forwarded-proto", "/", "x-forwarded-proto: http", listener="https")
get("user agent added", "/", listener="agent")
get("user agent kept", "/", "user-agent: me", "x-envoy-downstream-service-cluster: c", listener="agent")
get("request id in the response", "/", ID, listener="always")
get("request id made for the response", "/", listener="always")
get("request id without a trace reason", "/", ID, listener="uuid")
get("force-trace puts the request id into the response", "/", ID, "x-envoy-force-trace: 1", "x-forwarded-for: 10.0.0.1")
get("request id in a local reply", "/early", ID, "x-real-ip: x", listener="reject")
get("via appended", "/", "via: 1.0 fred", listener="via", upstream=[{"headers": [("via", "1.1 up")]}])
for where in ("main", "certs", "certset", "certappend", "certforward"):
    get(f"client certificate header on {where}", "/", "x-forwarded-client-cert: By=a;Hash=b", listener=where)
get("100-continue passed on", "/", "expect: 100-continue", method="POST", body="data", listener="continue")
get("host dot stripped", "/", host="a.test.", listener="dot")
get("host dot before a port stripped", "/", host="a.test.:8080", listener="dot")
get("host dot alone", "/", host=".", listener="dot")
get("host dot and port stripped", "/", host="a.test.:8080", listener="dotport")
get("IPv6 host port stripped", "/", host="[::1]:8080", listener="stripany")
get("IPv6 host without port kept", "/", host="[::1]", listener="stripany")
get("host port that is no number kept", "/", host="a.test:x", listener="stripany")
get("host port too large kept", "/", host="a.test:99999", listener="stripany")
get("referer that is no URL", "/", "referer: nonsense")
get("referer that is a URL", "/", "referer: https://a.test/x?y")
get("too many headers", "/", "a: 1", "b: 2", "c: 3", listener="headers3")
get("just enough headers", "/", "a: 1", "b: 2", listener="headers3")


@G.case("edge: connection closed after its last request")
def _(t):
    t.h1("GET / HTTP/1.1\r\nhost: a.test\r\n\r\n" * 2, "requests2", 2, 1.0)
