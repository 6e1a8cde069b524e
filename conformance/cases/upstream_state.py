"""Filter state that says where a connection or a request goes and what it asks of TLS, and PROXY TLVs that the TCP proxy adds."""
import time

from harness.config import TYPE, bootstrap, cluster, listener, route
from harness.runner import Group
from harness.tls import file_log, trusting, upstream

from .hbone import state
from .network_filters import HEADER, REQUEST, tcp
from .upstream_proxy_protocol import PER_HOST, PROXY, RAW, tlv

SNI, ALPN, SAN = (f"envoy.network.{name}" for name in ("upstream_server_name", "application_protocols", "upstream_subject_alt_names"))
CLUSTER, TUNNELING, IDLE = (f"envoy.tcp_proxy.{name}" for name in ("cluster", "disable_tunneling", "per_connection_idle_timeout_ms"))
OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
LINE = " ".join([*(f"%FILTER_STATE({key}:PLAIN)% %FILTER_STATE({key})%" for key in (SNI, ALPN, SAN, CLUSTER, TUNNELING, IDLE)),
                 "%UPSTREAM_CLUSTER% %RESPONSE_FLAGS% %UPSTREAM_TRANSPORT_FAILURE_REASON%\n"])
# Name: the cluster, and what filter state says.
STATES = {
    "nothing": ("secure", {}),
    "name": ("secure", {SNI: "asked.test"}),
    "upper name": ("secure", {SNI: "ASKED.test"}),
    "own name": ("own", {SNI: "asked.test"}),
    "empty name": ("own", {SNI: ""}),
    "an address": ("own", {SNI: "10.0.0.1"}),
    "protocols": ("secure", {ALPN: "x,istio"}),
    "own protocols": ("own", {ALPN: "istio"}),
    "spaced protocols": ("secure", {ALPN: "x, istio,y"}),
    "no protocols": ("own", {ALPN: ""}),
    "subject": ("secure", {SAN: "b.test"}),
    "wildcard subject": ("secure", {SAN: "x.b.test"}),
    "other subject": ("secure", {SAN: "other.test"}),
    "one of two": ("secure", {SAN: "other.test,b.test"}),
    "no subjects": ("secure", {SAN: ""}),
    "own subject": ("bound", {SAN: "b.test"}),
    "own subject, other": ("bound", {SAN: "other.test"}),
    "all": ("own", {SNI: "asked.test", ALPN: "istio", SAN: "b.test"}),
    "plain": ("up", {SNI: "asked.test", ALPN: "istio", SAN: "b.test"}),
    "client's": ("secure", {SNI: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%.b.test"}),
}
# Only for requests, whose cluster asks by their own names.
AUTO = {
    "auto name": ("auto", {SNI: "asked.test"}),
    "auto name, empty": ("auto", {SNI: ""}),
    "auto subject": ("auto", {SAN: "x.b.test"}),
    "auto subject, other": ("auto", {SAN: "other.test"}),
}
# Only for the TCP proxy: filter state, fields.
ROUTED = {
    "cluster": ({CLUSTER: "up2"}, {}),
    "no such cluster": ({CLUSTER: "nowhere"}, {}),
    "empty cluster": ({CLUSTER: ""}, {}),
    "cluster, weighted": ({CLUSTER: "dead"}, {"cluster": None, "weighted_clusters": {"clusters": [{"name": "up", "weight": 1}]}}),
    "tunnel": ({}, {"tunneling_config": {"hostname": "h:1"}}),
    "no tunnel": ({TUNNELING: "true"}, {"tunneling_config": {"hostname": "h:1"}}),
    "a tunnel after all": ({TUNNELING: "false"}, {"tunneling_config": {"hostname": "h:1"}}),
    "perhaps a tunnel": ({TUNNELING: "yes"}, {"tunneling_config": {"hostname": "h:1"}}),
    "idle": ({IDLE: "300"}, {}),
    "idle, no number": ({IDLE: "soon"}, {"idle_timeout": "0.3s"}),
    "idle, for ever": ({IDLE: "0"}, {"idle_timeout": "0.3s"}),
}
TLVS = [tlv(1, b"fixed"), {"type": 9, "format_string": {"text_format_source": {"inline_string": "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% %REQUESTED_SERVER_NAME%"}}},
        tlv(1, b"again")]
MERGED = {"default": {}, **{policy: {"proxy_protocol_tlv_merge_policy": policy} for policy in (
    "ADD_IF_ABSENT", "OVERWRITE_BY_TYPE_IF_EXISTS_OR_ADD", "APPEND_IF_EXISTS_OR_ADD")}}


def kept(kind, values, **fields):
    return state(kind, *((key, "", text, "NONE") for key, text in values.items()), **fields)


def config(p):
    b = p.secure("B", cert="b", alpn=["istio", "http/1.1"])
    p.proxied("BEHIND")

    def secure(name, names=None, validation=None, **fields):
        made = cluster(name, b, transport_socket=upstream(validation=validation or trusting(), params={"tls_maximum_protocol_version": "TLSv1_3"}, **fields))
        if names:
            made["typed_extension_protocol_options"] = {OPTIONS: {
                "@type": TYPE + OPTIONS, "explicit_http_config": {"http_protocol_options": {}}, "upstream_http_protocol_options": names}}
        return made
    clusters = [
        secure("secure"), secure("own", sni="own.test", alpn=["http/1.1"]), secure("auto", {"auto_sni": True, "auto_san_validation": True}),
        secure("bound", validation=trusting(match_typed_subject_alt_names=[{"san_type": "DNS", "matcher": {"exact": "x.b.test"}}])),
        *(cluster(name, p.listener("BEHIND"), transport_socket={"name": "proxy", "typed_config": {
            "@type": PROXY, "transport_socket": RAW, "config": {"version": "V2", "pass_through_tlvs": passed, "added_tlvs": added}}})
          for name, passed, added in (("told", {}, []), ("told some", {"match_type": "INCLUDE", "tlv_type": [9]}, []), ("told formatted", {}, [*TLVS[1:], {**TLVS[1], "type": 1}]), ("host's", {}, TLVS)))]
    own = clusters[-1]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]
    own["metadata"] = {"typed_filter_metadata": {"envoy.transport_sockets.proxy_protocol": {"@type": PER_HOST, "added_tlvs": [
        {**TLVS[1], "type": 1}, tlv(3, b"three")]}}}
    # What a cluster's own rules ask for is in Envoy's filter state too, and only there.
    made = [listener(p, [route("/", to)], "http " + name, [kept("http", values)], access_log=[file_log(p, LINE if name in STATES else LINE[LINE.index("%UP"):])])
            for name, (to, values) in {**STATES, **AUTO}.items()]
    logs = {"access_log": [file_log(p, LINE)]}
    made += [tcp(p, "tcp " + name, kept("network", values), cluster=to, **logs) for name, (to, values) in STATES.items()]
    for name, (values, fields) in ROUTED.items():
        one = tcp(p, "tcp " + name, *([kept("network", values)] if values else []), **logs)
        proxy = one["filter_chains"][0]["filters"][-1]["typed_config"]
        proxy.update(fields)
        if "cluster" in fields:
            del proxy["cluster"]
        made.append(one)
    proxied = {"name": "proxy", "typed_config": {
        "@type": TYPE + "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol", "allow_requests_without_proxy_protocol": True,
        "pass_through_tlvs": {}}}
    for name, fields in MERGED.items():
        made.append({**tcp(p, "tlvs " + name, cluster="told", proxy_protocol_tlvs=TLVS, **fields, **logs), "listener_filters": [proxied]})
    made.append(tcp(p, "tlvs some", cluster="told some", proxy_protocol_tlvs=TLVS, **logs))
    made.append(tcp(p, "tlvs formatted", cluster="told formatted", **logs))
    made.append(tcp(p, "tlvs host's", cluster="host's", **logs))
    made.append(listener(p, [route("/", "told formatted")], "http tlvs formatted"))
    return bootstrap(p, made, clusters)


G = Group(config)
# The header of the other file with two TLVs more.
MORE = HEADER[:15] + bytes([HEADER[15] + 10]) + HEADER[16:] + b"\1\0\2ab\2\0\2cd"


def asks(t, name, first=b""):
    conn = t.connect(name)
    t.proxy.ports.names[conn.sock.getsockname()[1]] = "client"
    conn.send(first + REQUEST)
    t.record.append(conn.response())
    conn.close()


for name in (*STATES, *AUTO):
    G.case("upstream state: http " + name)(lambda t, name=name: t.get("/", host="x.b.test", listener="http " + name))
for name in STATES:
    G.case("upstream state: tcp " + name, logs=1)(lambda t, name=name: asks(t, "tcp " + name))
for name in ROUTED:
    if not name.startswith("idle"):
        G.case("upstream state: tcp " + name, logs=1)(lambda t, name=name: asks(t, "tcp " + name))
for name in ("idle", "idle, no number", "idle, for ever"):
    @G.case("upstream state: tcp " + name, logs=1)
    def _(t, name=name):
        conn = t.connect("tcp " + name)
        began = time.monotonic()
        t.note(**conn.end(1.0), late=time.monotonic() - began > 0.2)
        conn.close()
for name in (*MERGED, "some"):
    G.case(f"upstream state: tlvs {name}", logs=1)(lambda t, name=name: asks(t, "tlvs " + name))
for name in MERGED:
    G.case(f"upstream state: tlvs {name}, behind a proxy", logs=1)(lambda t, name=name: asks(t, "tlvs " + name, HEADER))
    G.case(f"upstream state: tlvs {name}, behind a proxy with TLVs", logs=1)(lambda t, name=name: asks(t, "tlvs " + name, MORE))
for name in ("tlvs formatted", "tlvs host's", "http tlvs formatted"):
    G.case("upstream state: " + name, logs=1)(lambda t, name=name: asks(t, name))
