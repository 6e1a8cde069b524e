"""The PROXY protocol listener filter: versions 1 and 2, what is refused, addresses, TLVs, statistics."""
import base64
import socket
import time

from harness.config import HCM, TYPE, bootstrap, listener, route
from harness.matcher import exact, extension, network
from harness.runner import Group

PROXY = TYPE + "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
REQUEST = b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n"
V1 = b"PROXY TCP4 192.0.2.1 198.51.100.2 1111 2222\r\n"
FORMAT = ("%RESPONSE_CODE% remote %DOWNSTREAM_REMOTE_ADDRESS% direct %DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT% local %DOWNSTREAM_LOCAL_ADDRESS% "
          "metadata %DYNAMIC_METADATA(envoy.filters.listener.proxy_protocol)% %DYNAMIC_METADATA(own:b)% "
          "chain %FILTER_CHAIN_NAME% bytes %BYTES_RECEIVED% state "
          + " ".join(f"%FILTER_STATE(envoy.network.proxy_protocol.tlv{how})%" for how in (":FIELD:alpn", ":FIELD:b", ":FIELD:aws", ":FIELD:none")) + "\n")


def tlv(kind, value):
    return bytes([kind]) + len(value).to_bytes(2, "big") + value


def v2(source="192.0.2.1", target="198.51.100.2", ports=(1111, 2222), tlvs=b"", command=0x21, family=None, body=None):
    six = ":" in source
    if body is None:
        kind = socket.AF_INET6 if six else socket.AF_INET
        body = socket.inet_pton(kind, source) + socket.inet_pton(kind, target) + b"".join(p.to_bytes(2, "big") for p in ports)
    body += tlvs
    return SIGNATURE + bytes([command, (0x21 if six else 0x11) if family is None else family]) + len(body).to_bytes(2, "big") + body


def config(p):
    log = [{"name": "envoy.access_loggers.file", "typed_config": {
        "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": p.log,
        "log_format": {"text_format_source": {"inline_string": FORMAT}}}}]

    def on(name, more=(), before=(), **options):
        made = listener(p, [route("/", "up")], name, use_remote_address=True, access_log=log)
        made["listener_filters"] = [*before, {"name": "envoy.filters.listener.proxy_protocol", "typed_config": {"@type": PROXY, **options}}, *more]
        made["listener_filters_timeout"] = "0.4s"
        made["stat_prefix"] = name
        return made

    def tcp(made, cluster="up"):
        made["filter_chains"] = [{"filters": [{"name": "tcp", "typed_config": {
            "@type": TYPE + "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": made["name"], "cluster": cluster, "access_log": log}}]}]
        return made

    def inspector(which):
        return {"name": which, "typed_config": {"@type": TYPE + f"envoy.extensions.filters.listener.{which}_inspector.v3.{which.title()}Inspector"}}
    rules = {"rules": [
        {"tlv_type": 1, "on_tlv_present": {"key": "alpn"}},
        {"tlv_type": 2, "on_tlv_present": {"metadata_namespace": "own", "key": "a"}},
        {"tlv_type": 2, "on_tlv_present": {"metadata_namespace": "own", "key": "b"}},
        {"tlv_type": 0xea, "on_tlv_present": {"key": "aws", "value_string_encoding": "BASE64"}}]}
    chains = on("chains", (inspector("http"),))
    manager = chains["filter_chains"][0]["filters"]

    def chain(name, **match):
        return {"name": name, "filter_chain_match": match, "filters": manager}

    def prefix(address, length=32):
        return {"address_prefix": address, "prefix_len": length}
    chains["filter_chains"] = [
        chain("port", destination_port=2222),
        chain("target", prefix_ranges=[prefix("198.51.100.9")]),
        chain("source", source_prefix_ranges=[prefix("203.0.113.0", 24)]),
        chain("direct", direct_source_prefix_ranges=[prefix("127.0.0.1")], source_ports=[7777]),
        chain("two", application_protocols=["h2c"], source_prefix_ranges=[prefix("203.0.114.0", 24)]),
    ]
    matched = on("matched", **rules, tlv_location="FILTER_STATE")
    manager = matched["filter_chains"][0]["filters"]
    matched["filter_chains"] = [{"name": name, "filters": manager} for name in ("by field", "else")]
    chosen = {name: {"action": extension("google.protobuf.StringValue", value=name)} for name in ("by field", "else")}
    matched["filter_chain_matcher"] = exact(
        network("FilterStateInput", key="envoy.network.proxy_protocol.tlv", field="alpn"), {"h2": chosen["by field"]}, chosen["else"])
    late = on("late")
    late["continue_on_listener_filters_timeout"] = True
    disabled = on("disabled")
    disabled["listener_filters"][0]["filter_disabled"] = {"any_match": True}
    return bootstrap(p, [
        on("main"), on("allow", allow_requests_without_proxy_protocol=True), on("only2", disallowed_versions=["V1"]), on("only1", disallowed_versions=["V2"]),
        on("allow1", disallowed_versions=["V2"], allow_requests_without_proxy_protocol=True, stat_prefix="mine"),
        on("allow2", disallowed_versions=["V1"], allow_requests_without_proxy_protocol=True), on("rules", **rules), tcp(on("tcp", **rules)),
        on("state", **rules, tlv_location="FILTER_STATE"), tcp(on("tcp state", **rules, tlv_location="FILTER_STATE")), matched,
        on("passed", pass_through_tlvs={}), chains, on("before", before=[inspector("tls"), inspector("http")]),
        on("after", (inspector("tls"), inspector("http"))), on("twice", on("x")["listener_filters"]), late, disabled])


G = Group(config)


def talk(name, data, listener="main", logs=None, pieces=None, silent=False):
    @G.case("proxy protocol: " + name, logs=logs)
    def _(t):
        with t.counted("proxy_proto|listener_filter|pre_cx_timeout|no_filter_chain"):
            conn = t.connect(listener)
            t.proxy.ports.names[conn.sock.getsockname()[1]] = "client"
            if pieces:
                for i in range(0, len(data), pieces):
                    conn.send(data[i:i + pieces])
                    time.sleep(0.0015)
            else:
                conn.send(data)
            if silent:
                t.record.append(conn.end(0.8))
                return
            answer = conn.response()
            t.record.append(answer)
            t.expect += 1 if "line" in answer else 0
            t.unsure |= "line" not in answer


def both(name, header, **kw):
    talk(name, header + REQUEST, **kw)


both("v1", V1)
both("v1 over IPv6", b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n")
both("v1 over mapped IPv4", b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.2 1 2\r\n")
both("v1 unknown", b"PROXY UNKNOWN\r\n")
both("v1 unknown with addresses", b"PROXY UNKNOWN ffff:f:f ffff 65535 65535\r\n")
both("v1 byte by byte", V1, pieces=1)
for name, line in {
    "no such family": b"PROXY UDP4 192.0.2.1 198.51.100.2 1 2", "lower case": b"proxy TCP4 192.0.2.1 198.51.100.2 1 2",
    "no ports": b"PROXY TCP4 192.0.2.1 198.51.100.2", "one port": b"PROXY TCP4 192.0.2.1 198.51.100.2 1",
    "a word too many": b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2 3", "two spaces": b"PROXY  TCP4 192.0.2.1 198.51.100.2 1 2",
    "space at the end": b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2 ", "port over 65535": b"PROXY TCP4 192.0.2.1 198.51.100.2 65536 2",
    "negative port": b"PROXY TCP4 192.0.2.1 198.51.100.2 -1 2", "port with a plus": b"PROXY TCP4 192.0.2.1 198.51.100.2 +1 2",
    "port with zeros": b"PROXY TCP4 192.0.2.1 198.51.100.2 0001 2", "port zero": b"PROXY TCP4 192.0.2.1 198.51.100.2 0 0",
    "name for an address": b"PROXY TCP4 localhost 198.51.100.2 1 2", "octet with zeros": b"PROXY TCP4 192.0.02.1 198.51.100.2 1 2",
    "IPv6 in TCP4": b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2", "IPv4 in TCP6": b"PROXY TCP6 192.0.2.1 198.51.100.2 1 2",
    "scope": b"PROXY TCP6 fe80::1%lo 2001:db8::2 1 2", "multicast source": b"PROXY TCP4 224.0.0.1 198.51.100.2 1 2",
    "broadcast target": b"PROXY TCP4 192.0.2.1 255.255.255.255 1 2", "any source": b"PROXY TCP4 0.0.0.0 198.51.100.2 1 2",
    "any over IPv6": b"PROXY TCP6 :: 2001:db8::2 1 2", "multicast over IPv6": b"PROXY TCP6 ff02::1 2001:db8::2 1 2", "nothing": b"PROXY", "only a space": b"PROXY ",
    "no family": b"PROXY  ", "a NUL": b"PROXY TCP4 192.0.2.1\0 198.51.100.2 1 2", "tab": b"PROXY\tTCP4\t192.0.2.1\t198.51.100.2\t1\t2",
}.items():
    both("v1, " + name, line + b"\r\n")
both("v1 line ends in LF", V1.replace(b"\r", b""))
both("v1 with a CR inside", V1.replace(b" 1111", b"\r1111"))
for size in (107, 108, 109, 120, 300):
    both(f"v1 line of {size} bytes", b"PROXY UNKNOWN ".ljust(size - 2, b"x") + b"\r\n")
talk("v1 without an end", b"PROXY TCP4 192.0.2.1")
talk("v1 nothing behind", V1, silent=True)
talk("nothing at all", b"")
talk("half a signature", SIGNATURE[:7])
both("without", b"")
talk("a short line", b"GET /\r\n\r\n")

both("v2", v2())
both("v2 over IPv6", v2("2001:db8::1", "2001:db8::2", (1, 65535)))
both("v2 byte by byte", v2(tlvs=tlv(1, b"h2")), pieces=1)
both("v2 local", v2(command=0x20))
both("v2 local without addresses", v2(command=0x20, body=b"", family=0))
both("v2 local with what no TLV is", v2(command=0x20, body=b"xyz", family=0x99))
both("v2 datagram", v2(family=0x12))
both("v2 datagram over IPv6", v2("2001:db8::1", "2001:db8::2", family=0x22))
both("v2 unspecified", v2(family=0, body=b""))
both("v2 unspecified stream", v2(family=0x01, body=b""))
both("v2 unspecified transport", v2(family=0x10))
both("v2 transport 3", v2(family=0x13))
both("v2 unix", v2(family=0x31, body=b"/a".ljust(108, b"\0") + b"/b".ljust(108, b"\0")))
both("v2 family 4", v2(family=0x41))
both("v2 command 2", v2(command=0x22))
both("v2 version 1", v2(command=0x11))
both("v2 version 3", v2(command=0x31))
both("v2 addresses too short", v2(body=b"\0" * 11))
both("v2 no addresses", v2(body=b""))
both("v2 IPv6 too short", v2(family=0x21, body=b"\1" * 35))
both("v2 multicast source", v2("224.1.2.3"))
both("v2 any target", v2(target="0.0.0.0"))
both("v2 loopback", v2("127.0.0.9", "127.0.0.1"))
both("v2 mapped IPv4", v2("::ffff:192.0.2.1", "::ffff:192.0.2.2"))
both("v2 with TLVs that nobody wants", v2(tlvs=tlv(1, b"h2") + tlv(4, b"") + tlv(5, b"id" * 60)))
both("v2 TLV cut in its head", v2(tlvs=b"\1\0"))
both("v2 TLV cut in its value", v2(tlvs=b"\1\0\5abc"))
both("v2 TLV that ends empty", v2(tlvs=tlv(1, b"")))
both("v2 one stray byte", v2(tlvs=b"\4"))
both("v2 bad checksum", v2(tlvs=tlv(3, b"\0\0\0\0")))
both("v2 60000 bytes of TLVs", v2(tlvs=tlv(4, b"x" * 30000) * 2))
talk("v2 without its addresses", v2()[:20])
talk("v2 without its TLVs", v2(tlvs=tlv(1, b"hello"))[:-3])
both("v2 signature with one bit off", v2().replace(b"QUIT", b"QUIU"))

for where in ("allow", "allow1", "allow2"):
    both(f"{where}: without", b"", listener=where)
    both(f"{where}: v1", V1, listener=where)
    both(f"{where}: v2", v2(), listener=where)
    both(f"{where}: v1 malformed", b"PROXY nonsense\r\n", listener=where)
both("allow: signature begun", b"\r\n\r\n", listener="allow")
both("allow: v2 begun", SIGNATURE[:11], listener="allow")
talk("allow: PRO and no more", b"PRO", listener="allow")
both("only 2: v1", V1, listener="only2")
both("only 2: v2", v2(), listener="only2")
both("only 1: v1", V1, listener="only1")
both("only 1: v2", v2(), listener="only1")

TLVS = tlv(1, b"h2") + tlv(2, b"a.test") + tlv(0xea, b"\1vpce")
for where in ("rules", "tcp", "state", "tcp state", "matched"):
    both(f"{where}: v2", v2(tlvs=TLVS), listener=where, logs=1)
    both(f"{where}: no UTF-8", v2(tlvs=tlv(1, b"a\xff\xc3(\xe2\x82b")), listener=where, logs=1)
    both(f"{where}: a type twice", v2(tlvs=tlv(1, b"one") + tlv(1, b"two")), listener=where, logs=1)
    both(f"{where}: an empty value", v2(tlvs=tlv(1, b"")), listener=where, logs=1)
    both(f"{where}: v1", V1, listener=where, logs=1)
    both(f"{where}: local", v2(tlvs=TLVS, command=0x20), listener=where, logs=1)
both("TLVs passed on to nobody", v2(tlvs=TLVS), listener="passed")

both("chains: by port", v2(), listener="chains")
both("chains: by target", v2(target="198.51.100.9", ports=(1, 5)), listener="chains")
both("chains: by source", v2("203.0.113.9", ports=(1, 5)), listener="chains")
both("chains: by direct source and port", v2("203.0.114.9", ports=(7777, 5)), listener="chains")
both("chains: none", v2("203.0.115.9", ports=(1, 5)), listener="chains")
both("chains: v1 unknown", b"PROXY UNKNOWN\r\n", listener="chains")
talk("chains: none and nothing behind", v2("203.0.115.9", ports=(1, 5)), listener="chains")
for where in ("before", "after"):
    both(f"inspectors {where}", V1, listener=where)
both("twice: one header", V1, listener="twice")
both("twice: two headers", V1 + v2("203.0.113.7"), listener="twice")
both("late: v1", V1, listener="late")
talk("late: half a header", b"PROXY TCP4 ", listener="late", silent=True)
both("filter disabled", b"", listener="disabled")


@G.case("proxy protocol: x-forwarded-for")
def _(t):
    conn = t.connect()
    conn.send(V1 + b"GET / HTTP/1.1\r\nhost: a.test\r\nx-forwarded-for: 10.0.0.1\r\n\r\n")
    t.record.append(conn.response())
    t.expect += 1
