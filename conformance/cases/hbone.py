"""The waypoint: HBONE in, inner HTTP and TCP by destination, HBONE out, as istiod's three listeners do it."""
import time

from harness.config import TYPE, cluster, route
from harness.hbone import Hbone
from harness.internal import EXT, ORIGINAL_DST, extended, http, inside, passing, tcp, to_internal
from harness.matcher import exact, extension, network, ranges
from harness.runner import Group
from harness.tls import downstream, trusting, upstream

KEY = "envoy.filters.listener.original_dst"
LOCAL, REMOTE = KEY + ".local_ip", KEY + ".remote_ip"
STATE = " ".join(["", *(f"%FILTER_STATE({key}:PLAIN)%" for key in (
    LOCAL, "io.istio.connect_authority", "io.istio.peer_principal", "io.istio.local_principal", "here", "everywhere"))])
PEER = "URI:spiffe://td/ns/one/sa/client"
INSPECTOR = {"name": "http_inspector", "typed_config": {"@type": EXT + "filters.listener.http_inspector.v3.HttpInspector"},
             "filter_disabled": {"destination_port_range": {"start": 9000, "end": 9002}}}
H2 = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
    "@type": TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    "explicit_http_config": {"http2_protocol_options": {"allow_connect": True}}}}


def state(kind, *values, **fields):
    """A filter that sets filter state: (key, factory, format, sharing)."""
    field = {"http": "on_request_headers", "network": "on_new_connection"}[kind]
    made = [{"object_key": key, **({"factory_key": factory} if factory else {}), "shared_with_upstream": sharing,
             "format_string": {"text_format_source": {"inline_string": text}}} for key, factory, text, sharing in values]
    return {"name": "connect_authority", "typed_config": {
        "@type": EXT + f"filters.{kind}.set_filter_state.v3.Config", field: made, **fields}}


AUTHORITY = state(
    "http", (LOCAL, "", "%REQ(:AUTHORITY)%", "ONCE"), ("io.istio.connect_authority", "envoy.string", "%REQ(:AUTHORITY)%", "ONCE"),
    (REMOTE, "", "%DOWNSTREAM_REMOTE_ADDRESS%", "ONCE"),
    ("io.istio.peer_principal", "envoy.string", "%DOWNSTREAM_PEER_URI_SAN%", "ONCE"),
    ("io.istio.local_principal", "envoy.string", "%DOWNSTREAM_LOCAL_URI_SAN%", "ONCE"),
    ("here", "envoy.string", "only here", "NONE"), ("everywhere", "envoy.string", "%REQ(x-far)%", "TRANSITIVE"))


def chain(name):
    """What the matcher of `main_internal` does: this chain takes the connection."""
    return {"action": extension("google.protobuf.StringValue", value=name)}


def destinations():
    """The tree of `main_internal`: services by address and port, then by name; pods by what is spoken."""
    ports = exact(network("DestinationPortInput"), {"80": chain("web"), "9000": chain("db"), "9001": chain("db plain"), "9002": chain("refuses")})
    spoken = exact(network("ApplicationProtocolInput"), {"'http/1.1'": chain("direct-http"), "'h2c'": chain("direct-http")}, chain("direct-tcp"))
    named = exact(network("FilterStateInput", key="io.istio.connect_authority"), {"db.test:9000": chain("db plain")})
    return ranges(network("DestinationIPInput"), (["10.96.0.1/32"], ports, False), (["127.0.0.0/8"], spoken, False), on_no_match={"matcher": named})


def config(p):
    connect = [route({"connect_matcher": {}}, {"cluster": "main_internal", "upgrade_configs": [
        {"upgrade_type": "CONNECT", "connect_config": {}}]})]
    terminate = http(p, "connect_terminate", connect, STATE + " %RESPONSE_CODE_DETAILS% %UPSTREAM_PROTOCOL% %REQ(:AUTHORITY)%",
                     filters=[AUTHORITY], upgrade_configs=[{"upgrade_type": "CONNECT"}], stream_idle_timeout="0s",
                     http2_protocol_options={"max_concurrent_streams": 100, "allow_connect": True})
    terminate["filter_chains"][0]["transport_socket"] = downstream(
        "server", validation=trusting(match_typed_subject_alt_names=[{"san_type": "URI", "matcher": {"prefix": "spiffe://td/"}}]),
        alpn=["h2"], params={"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        require_client_certificate=True)
    by_name = [route("/plain", "plain"), route("/dead", "dead"), route("/", "inbound-vip http")]
    web = http(p, "web", by_name, STATE + " %RESPONSE_CODE_DETAILS%")
    bytes_to = {name: tcp(p, name, to, STATE) for name, to in (
        ("db", "inbound-vip tcp"), ("db plain", "plain"), ("refuses", "dead"))}
    restore = state("network", (LOCAL, "", f"%FILTER_STATE({LOCAL}:PLAIN)%", "ONCE"))
    direct_tcp = tcp(p, "direct-tcp", "encap", STATE, filters=[restore])
    direct_http = http(p, "direct-http", [route("/", "encap")], STATE)
    direct_http["filter_chains"][0]["filters"].insert(0, restore)
    main = inside(tcp(p, "main_internal", "up"), listener_filters=[ORIGINAL_DST, INSPECTOR], listener_filters_timeout="0.2s",
                  continue_on_listener_filters_timeout=True)
    chains = {"web": web, "direct-http": direct_http, "direct-tcp": direct_tcp, **bytes_to}
    main["filter_chains"] = [{"name": name, "filters": made["filter_chains"][0]["filters"]} for name, made in chains.items()]
    main["filter_chain_matcher"] = destinations()
    main["access_log"] = [{**log, "filter": {"response_flag_filter": {"flags": ["NR"]}}}
                          for log in http(p, "main_internal", [])["filter_chains"][0]["filters"][0]["typed_config"]["access_log"]]
    originate = inside(tcp(p, "connect_originate", "connect_originate", STATE, tunneling_config={
        "hostname": "%DOWNSTREAM_LOCAL_ADDRESS%", "headers_to_add": [
            {"header": {"key": "x-from", "value": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}}]}), listener_filters=[ORIGINAL_DST])
    hbone = p.secure("HBONE", cert="server", ca="ca", alpn=["h2"])
    tls = upstream("client", validation=trusting(match_typed_subject_alt_names=[{"san_type": "URI", "matcher": {"prefix": "spiffe://td/"}}]),
                   alpn=["h2"], params={"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"})
    out = {"name": "connect_originate", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "1s",
           "typed_extension_protocol_options": H2, "transport_socket": tls, "cleanup_interval": "60s",
           "original_dst_lb_config": {"upstream_port_override": hbone, "metadata_key": {"key": KEY, "path": [{"key": "waypoint"}]}}}
    pod = {KEY: {"local": "127.0.0.1:8080"}}
    return extended(p, [terminate, main, originate], [
        to_internal("main_internal", "main_internal", socket=passing()), to_internal("encap", "connect_originate", socket=passing()),
        to_internal("inbound-vip http", "connect_originate", "127.0.0.1:8080", pod, passing(KEY)),
        to_internal("inbound-vip tcp", "connect_originate", "127.0.0.1:8080", pod, passing(KEY)),
        cluster("plain", p.up, transport_socket=passing(KEY)), out])


G = Group(config)
WEB, DB, PLAIN, REFUSES = (f"10.96.0.1:{port}" for port in (80, 9000, 9001, 9002))
REQUEST = b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi"
CARRIED = [{"tunnel": True, "says": ANSWER}]


def inner(tunnel, path="/", body=b""):
    more = f"content-length: {len(body)}\r\n" if body else ""
    tunnel.send(f"GET {path} HTTP/1.1\r\nhost: a.test\r\n{more}\r\n".encode() + body)
    return tunnel.response()


def asked(name, authority, upstream, logs, *headers, blind=False):
    """A case with one tunnel, whose head is recorded: `talk(t, tunnel)` goes on."""
    def keep(talk):
        @G.case("hbone: " + name, upstream, logs, blind)
        def _(t):
            tunnel = Hbone(t, "connect_terminate").ask(authority, *headers)
            t.note(headers=tunnel.head or [], over=tunnel.over)
            talk(t, tunnel)
    return keep


@asked("inner HTTP, on by HBONE", WEB, CARRIED, 3)
def _(t, tunnel):
    t.note(answer=inner(tunnel))
    tunnel.finish()
    t.note(end=tunnel.ends())


@asked("inner HTTP, on to a plain upstream", WEB, [{}], 2)
def _(t, tunnel):
    t.note(answer=inner(tunnel, "/plain"))
    tunnel.finish()
    t.note(end=tunnel.ends())


@asked("inner HTTP, two requests", WEB, [{}, {"body": b"second"}], 3)
def _(t, tunnel):
    t.note(first=inner(tunnel, "/plain"), second=inner(tunnel, "/plain/2"))
    tunnel.finish()
    t.note(end=tunnel.ends())


@asked("inner HTTP, large bodies", WEB, [{"body": b"y" * 300_000}], 2)
def _(t, tunnel):
    answer = inner(tunnel, "/plain", b"x" * 300_000)
    t.note(line=answer["line"], length=len(answer["body"]))
    tunnel.finish()
    t.note(end=tunnel.ends())


@asked("inner HTTP to a dead upstream", WEB, (), 2)
def _(t, tunnel):
    t.note(answer=inner(tunnel, "/dead"))
    tunnel.finish()
    t.note(end=tunnel.ends())


@asked("inner TCP, on by HBONE", DB, [{"tunnel": True}], 3)
def _(t, tunnel):
    tunnel.send(b"hello")
    t.note(echo=tunnel.read(5))
    tunnel.finish()
    t.note(end=tunnel.ends())


@asked("inner TCP, on by HBONE, much", DB, [{"tunnel": True}], 3)
def _(t, tunnel):
    for _ in range(5):
        tunnel.send(b"x" * 40_000)
        t.note(length=len(tunnel.read(40_000)))
    tunnel.finish()
    t.note(end=tunnel.ends()["tunnel"])


@asked("inner TCP, on to a plain upstream", PLAIN, [{"body": b"plain"}], 2)
def _(t, tunnel):
    tunnel.send(REQUEST)
    t.note(answer=tunnel.response())
    tunnel.finish()
    t.note(end=tunnel.ends())


@asked("a service by its name", "db.test:9000", [{"body": b"plain"}], 2)
def _(t, tunnel):
    tunnel.send(REQUEST)
    t.note(answer=tunnel.response())
    tunnel.finish()
    t.note(end=tunnel.ends())


@asked("the client resets its tunnel", DB, [{"tunnel": True}], 3)
def _(t, tunnel):
    tunnel.send(b"hello")
    t.note(echo=tunnel.read(5))
    tunnel.reset()


# What the upstream sees of a client that has not ended its half by the end of the case is a matter of time.
@asked("the upstream ends its half first", DB, [{"tunnel": True, "says": b"bye", "close_after": True}], 3, blind=True)
def _(t, tunnel):
    tunnel.send(b"hello\r\n\r\n")
    t.note(said=tunnel.read(3), over=bool(tunnel.ends()["tunnel"] != "open"))


def refused(name, authority, upstream=(), logs=2):
    """A tunnel that leads nowhere, where HTTP is looked for once something is said."""
    @asked(name, authority, upstream, logs)
    def _(t, tunnel):
        if not tunnel.over and authority != DB:
            tunnel.send(b"hello\r\n\r\n")
        t.note(end=tunnel.ends())


refused("no chain for the destination", "10.96.0.7:80")
refused("no chain for the port", "10.96.0.1:81")
refused("a name where an address is meant", "a.test:80")
refused("no port", "10.96.0.1")
refused("an upstream that refuses", REFUSES)
refused("a peer that answers 401", DB, [{"status": 401, "body": b"", "early": True}], 3)
refused("a peer that answers 503 with a body", DB, [{"status": 503, "body": b"no", "early": True}], 3)
refused("a peer that resets", DB, [{"reset": 8, "early": True}], 3)


@G.case("hbone: inner HTTP and a peer that answers 401", [{"status": 401, "body": b"", "early": True}], 3)
def _(t):
    tunnel = Hbone(t, "connect_terminate").ask(WEB)
    t.note(answer=inner(tunnel))
    tunnel.finish()
    t.note(end=tunnel.ends())


@G.case("hbone: a pod's address, HTTP", CARRIED, 3)
def _(t):
    tunnel = Hbone(t, "connect_terminate").ask("127.0.0.1:7070")
    t.note(headers=tunnel.head or [], answer=inner(tunnel))
    tunnel.finish()
    t.note(end=tunnel.ends())


@G.case("hbone: a pod's address, bytes", [{"tunnel": True}], 3)
def _(t):
    tunnel = Hbone(t, "connect_terminate").ask("127.0.0.1:7070")
    tunnel.send(b"\0\1\2\3 binary")
    t.note(echo=tunnel.read(11))
    tunnel.finish()
    t.note(end=tunnel.ends())


@G.case("hbone: three tunnels on one connection", [{"body": b"a"}, {"body": b"b"}, {"body": b"c"}], 7)
def _(t):
    hbone = Hbone(t, "connect_terminate")
    tunnels = [hbone.ask(WEB) for _ in range(3)]
    for tunnel in tunnels:
        t.note(body=inner(tunnel, "/plain")["body"])
    tunnels[1].reset()
    t.note(left=inner(tunnels[0], "/plain")["line"])
    for tunnel in (tunnels[0], tunnels[2]):
        tunnel.finish()
        t.note(end=tunnel.ends())


@G.case("hbone: filter state goes as far as it is shared", CARRIED, 3)
def _(t):
    tunnel = Hbone(t, "connect_terminate").ask(WEB, ("x-far", "told"))
    t.note(answer=inner(tunnel)["line"])
    tunnel.finish()
    t.note(end=tunnel.ends())


@G.case("hbone: a request that is no CONNECT", (), 1)
def _(t):
    hbone = Hbone(t, "connect_terminate")
    answer, = hbone.outer.finish([hbone.outer.start([(":method", "GET"), (":scheme", "https"), (":authority", "a.test"), (":path", "/")])])
    t.note(answer=answer)


def stranger(name, **kw):
    @G.case("hbone: " + name, (), 0)
    def _(t):
        hbone = Hbone(t, "connect_terminate", **kw)
        t.note(told={k: hbone.told.get(k) for k in ("handshake", "reason")})
        if hbone.told["handshake"] == "done":
            tunnel = hbone.ask(WEB)
            t.note(headers=tunnel.head or [], over=tunnel.over)


stranger("no certificate", cert=None)
stranger("a certificate of another authority", cert="other")
stranger("a certificate of another trust domain", cert="nameless")


@G.case("hbone: numbers", CARRIED, 3)
def _(t):
    names = r"^(listener\.envoy_internal_\w+\.downstream_cx_total|cluster\.(main_internal|connect_originate|inbound-vip_http)\.upstream_(cx_total|rq_200|rq_2xx))$"
    with t.counted(names):
        tunnel = Hbone(t, "connect_terminate").ask(WEB)
        t.note(answer=inner(tunnel)["line"])
        tunnel.finish()
        t.note(end=tunnel.ends())
        time.sleep(0.1)
