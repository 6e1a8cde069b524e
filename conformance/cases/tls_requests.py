"""TLS to upstreams by request: the protocol that the server chooses, names from requests and endpoints, transport sockets by
the endpoint's labels, and what logs and statistics tell."""
from harness.config import TYPE, address, bootstrap, cluster, listener, route
from harness.runner import Group
from harness.tls import file_log, trusting, upstream

LINE = ("%RESPONSE_CODE% %RESPONSE_FLAGS% %UPSTREAM_PROTOCOL% %UPSTREAM_TLS_VERSION% %UPSTREAM_TLS_CIPHER% %UPSTREAM_TLS_GROUP% %UPSTREAM_PEER_SUBJECT% "
        "%UPSTREAM_PEER_ISSUER% %UPSTREAM_PEER_DNS_SAN% %UPSTREAM_PEER_URI_SAN% %UPSTREAM_PEER_CERT_V_END(%Y)% "
        "%UPSTREAM_LOCAL_DNS_SAN% %UPSTREAM_LOCAL_URI_SAN%\n")
PARAMS = {"tls_maximum_protocol_version": "TLSv1_3"}
OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def socket(*names, params=PARAMS, **fields):
    return upstream(*names, validation=trusting(), params=params, **fields)


def options(kind="explicit", **names):
    kinds = {"explicit": {"explicit_http_config": {"http_protocol_options": {}}}, "auto": {"auto_config": {}},
             "http2": {"explicit_http_config": {"http2_protocol_options": {}}},
             "downstream": {"use_downstream_protocol_config": {"http_protocol_options": {}, "http2_protocol_options": {}}}}
    made = {"@type": TYPE + OPTIONS, **kinds[kind]}
    if names:
        made["upstream_http_protocol_options"] = names
    return {OPTIONS: made}


def endpoint(port, hostname=None, **labels):
    made = {"endpoint": {"address": address(port)}}
    if hostname:
        made["endpoint"]["hostname"] = hostname
    if labels:
        made["metadata"] = {"filter_metadata": {"envoy.transport_socket_match": labels}}
    return made


def config(p):
    both = p.secure("BOTH", cert="server", alpn=["h2", "http/1.1"])
    h1 = p.secure("H1TLS", cert="server", alpn=["http/1.1"])
    silent = p.secure("NOALPN", cert="server")
    b = p.secure("B", cert="b", alpn=["http/1.1"])
    mutual = p.secure("MUTUAL", cert="server", ca="ca")
    mesh = p.secure("MESH", cert="server", ca="ca", alpn=["istio", "http/1.1"])
    clusters = []

    def add(name, port, tls=None, kind="explicit", names=None, hostname=None, **fields):
        made = cluster(name, port, transport_socket=tls or socket(), typed_extension_protocol_options=options(kind, **(names or {})),
                       **fields)
        made["load_assignment"]["endpoints"][0]["lb_endpoints"] = [endpoint(port, hostname)]
        clusters.append(made)

    for kind in ("auto", "explicit", "http2", "downstream"):
        add(f"{kind}-both", both, kind=kind)
    add("auto-h1", h1, kind="auto")
    add("auto-silent", silent, kind="auto")
    add("auto-own", both, socket(alpn=["http/1.1"]), "auto")
    add("own", both, socket(alpn=["istio", "http/1.1"]))
    add("sni", b, names={"auto_sni": True})
    add("sni-fixed", b, socket(sni="fixed.test"), names={"auto_sni": True})
    add("sni-header", b, names={"auto_sni": True, "override_auto_sni_header": "x-sni"})
    add("san", b, socket(sni="fixed.test"), names={"auto_san_validation": True})
    add("sni-san", b, names={"auto_sni": True, "auto_san_validation": True})
    add("sni-bound", b, socket(auto_sni_san_validation=True), names={"auto_sni": True})
    add("host", b, socket(sni="fixed.test", auto_host_sni=True), hostname="b.test")
    add("host-none", b, socket(sni="fixed.test", auto_host_sni=True))
    add("host-sni", b, socket(auto_host_sni=True), names={"auto_sni": True}, hostname="b.test")
    add("host-bound", b, socket(auto_host_sni=True, auto_sni_san_validation=True), hostname="a.test")
    add("mutual", mutual, socket("client"))
    matches = [
        {"name": "mtls", "match": {"tlsMode": "istio"}, "transport_socket": socket("client", sni="mesh.test", alpn=["istio"])},
        {"name": "sub", "match": {"a": "1", "b": "2"}, "transport_socket": socket(sni="sub.test")},
        {"name": "plain", "match": {}, "transport_socket": {"name": "envoy.transport_sockets.raw_buffer", "typed_config": {
            "@type": TYPE + "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"}}}]
    for name, labels, port in (("mtls", {"tlsMode": "istio"}, mesh), ("sub", {"a": "1", "b": "2", "c": "3"}, silent),
                               ("part", {"a": "1"}, p.up), ("plain", {}, p.up)):
        made = cluster("match-" + name, port, transport_socket_matches=matches)
        made["load_assignment"]["endpoints"][0]["lb_endpoints"] = [endpoint(port, **labels)]
        clusters.append(made)
    for name, labels in (("locality", {}), ("own", {"a": "1", "b": "2"})):
        made = cluster("match-" + name, mesh if name == "locality" else silent, transport_socket_matches=matches[:2])
        made["load_assignment"]["endpoints"][0].update(
            metadata=endpoint(0, tlsMode="istio")["metadata"],
            lb_endpoints=[endpoint(mesh if name == "locality" else silent, **labels)])
        clusters.append(made)
    made = cluster("match-none", silent, transport_socket_matches=matches[:2], transport_socket=socket(sni="default.test"))
    clusters.append(made)
    routes = [route({"path": "/" + c["name"]}, c["name"]) for c in clusters]
    routes += [route({"path": "/rewritten"}, {"cluster": "sni", "host_rewrite_literal": "rewritten.b.test"}),
               route({"path": "/auto-rewritten"}, {"cluster": "host-sni", "auto_host_rewrite": True}),
               route({"path": "/added"}, {"cluster": "sni-header"},
                     request_headers_to_add=[{"header": {"key": "x-sni", "value": "added.test"}}])]
    return bootstrap(p, [listener(p, routes, access_log=[file_log(p, LINE)])], clusters)


G = Group(config)


def case(name, *asked, path=None):
    path = path or name.split(":")[0].replace(" ", "-")

    @G.case("tls request: " + name)
    def _(t):
        stats = r"\.(ssl\.(handshake|no_|fail|versions|ciphers|curves|sigalgs)|upstream_cx_http|upstream_cx_total|upstream_rq_pending_total)"
        with t.counted(rf"^cluster\.{path}{stats}"):
            for host, headers in asked or (("a.test", ()),):
                t.get("/" + path, *headers, host=host)


for name in ("auto both", "explicit both", "http2 both", "downstream both", "auto h1", "auto silent", "auto own", "own", "mutual",
             "host", "host none", "host sni", "host bound", "match mtls", "match sub", "match part", "match plain", "match none", "match locality", "match own",
             "rewritten", "auto-rewritten"):
    case(name)
case("auto both: again", ("a.test", ()), ("a.test", ()), path="auto-both")
case("auto h1: again", ("a.test", ()), ("a.test", ()), path="auto-h1")
for name in ("sni", "sni fixed", "san", "sni san", "sni bound"):
    for host in ("b.test", "x.b.test", "a.test", "b.test:8443", "B.test", "10.0.0.1", "[::1]:443"):
        case(f"{name}: {host}", (host, ()))
case("sni: two hosts", ("b.test", ()), ("x.b.test", ()), ("b.test", ()))
case("sni header: none", ("a.test", ()))
case("sni header: one", ("a.test", ("x-sni: header.test",)))
case("sni header: with port", ("a.test", ("x-sni: header.test:1",)))
case("sni header: address", ("a.test", ("x-sni: 10.0.0.1",)))
case("sni header: empty", ("a.test", ("x-sni:",)))
case("sni header: added by the route", ("a.test", ()), path="added")


@G.case("tls request: all of a host's names at once")
def _(t):
    for host in ("one.b.test", "two.b.test", "three.b.test"):
        t.get("/sni-san", host=host)
