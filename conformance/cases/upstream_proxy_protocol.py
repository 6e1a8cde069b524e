"""The PROXY protocol to upstreams: versions 1 and 2, TLVs, around TLS, and connections that are not shared."""
import base64

from harness import tls
from harness.config import TYPE, bootstrap, cluster, listener, route
from harness.runner import Group

from .network_filters import HEADER, REQUEST, tcp

PROXY = TYPE + "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport"
PER_HOST = TYPE + "envoy.config.core.v3.PerHostConfig"
RAW = {"name": "envoy.transport_sockets.raw_buffer", "typed_config": {"@type": TYPE + "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"}}


def tlv(kind, value):
    return {"type": kind, "value": base64.b64encode(value).decode()}


CONFIGS = {
    "v1": {},
    "v2": {"version": "V2"},
    "all": {"version": "V2", "pass_through_tlvs": {}},
    "some": {"version": "V2", "pass_through_tlvs": {"match_type": "INCLUDE", "tlv_type": [2]}},
    "none": {"version": "V2", "pass_through_tlvs": {"match_type": "INCLUDE"}},
    "added": {"version": "V2", "added_tlvs": [tlv(1, b"mine"), tlv(9, b"once"), tlv(9, b"again")], "pass_through_tlvs": {}},
    "host": {"version": "V2", "added_tlvs": [tlv(1, b"mine"), tlv(9, b"nine")], "pass_through_tlvs": {}},
    "long": {"version": "V2", "added_tlvs": [tlv(1, b"x" * 40000), tlv(2, b"y" * 40000), tlv(3, b"fits"), tlv(4, b"z" * 65000)]},
}


def config(p):
    def wrapped(options, inner=RAW):
        return {"name": "proxy", "typed_config": {"@type": PROXY, "config": options, "transport_socket": inner}}
    p.proxied("BEHIND")
    p.proxied("BEHIND2", h2=True)
    p.proxied("SECURE", secure={})
    clusters = [cluster(name, p.listener("BEHIND"), transport_socket=wrapped(options)) for name, options in CONFIGS.items()]
    own = next(c for c in clusters if c["name"] == "host")["load_assignment"]["endpoints"][0]["lb_endpoints"][0]
    own["metadata"] = {"typed_filter_metadata": {"envoy.transport_sockets.proxy_protocol": {"@type": PER_HOST, "added_tlvs": [tlv(1, b"host's")]}}}
    clusters.append(cluster("h2", p.listener("BEHIND2"), h2=True, transport_socket=wrapped({"version": "V2"})))
    clusters.append(cluster("secure", p.listener("SECURE"), transport_socket=wrapped({"version": "V2"}, tls.upstream(sni="a.test", params={"tls_maximum_protocol_version": "TLSv1_3"}))))
    names = [c["name"] for c in clusters]
    proxied = {"name": "proxy", "typed_config": {
        "@type": TYPE + "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol", "allow_requests_without_proxy_protocol": True, "pass_through_tlvs": {}}}
    routes = [*(route(f"/{name}", name) for name in names),
              route("/mirror", {"cluster": "up", "request_mirror_policies": [{"cluster": "v2"}]}), route("/", "up")]
    made = [listener(p, routes), listener(p, routes, "xff", use_remote_address=False, xff_num_trusted_hops=1),
            *(tcp(p, "tcp " + name, cluster=name) for name in ("v1", "all", "secure"))]
    for one in made:
        one["listener_filters"] = [proxied]
    return bootstrap(p, made, clusters)


G = Group(config)
# The header of the other file with two TLVs more.
MORE = HEADER[:15] + bytes([HEADER[15] + 10]) + HEADER[16:] + b"\2\0\2ab\2\0\2cd"


def ask(t, conn, path):
    conn.send(f"GET {path} HTTP/1.1\r\nhost: a.test\r\n\r\n".encode())
    t.record.append(conn.response())


def connect(t, where, name="client"):
    conn = t.connect(where)
    t.proxy.ports.names[conn.sock.getsockname()[1]] = name
    return conn


for name in (*CONFIGS, "h2", "secure"):
    @G.case("upstream proxy protocol: " + name, logs=1)
    def _(t, name=name):
        with t.counted("proxyprotocol"):
            ask(t, connect(t, "main"), f"/{name}")

    @G.case(f"upstream proxy protocol: {name}, behind another proxy", logs=1)
    def _(t, name=name):
        conn = connect(t, "main")
        conn.send(MORE)
        ask(t, conn, f"/{name}")

for name in ("v1", "v2", "h2"):
    @G.case(f"upstream proxy protocol: {name}, two clients", logs=4)
    def _(t, name=name):
        conns = [connect(t, "main", f"client{i}") for i in range(2)]
        for conn in conns * 2:
            ask(t, conn, f"/{name}")

for name in ("v1", "all", "secure"):
    @G.case("upstream proxy protocol: tcp " + name, logs=1)
    def _(t, name=name):
        conn = connect(t, "tcp " + name)
        conn.send(HEADER + REQUEST)
        t.record.append(conn.response())
        conn.close()


@G.case("upstream proxy protocol: an address from x-forwarded-for", logs=1)
def _(t):
    conn = connect(t, "xff")
    conn.send(b"GET /v1 HTTP/1.1\r\nhost: a.test\r\nx-forwarded-for: 192.0.2.1, 192.0.2.2\r\n\r\n")
    t.record.append(conn.response())


@G.case("upstream proxy protocol: mirrored", logs=1)
def _(t):
    ask(t, connect(t, "main"), "/mirror")
    t.upstream(2)
