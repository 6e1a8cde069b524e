"""Filter chain match, listener filters, addresses, limits: everything between accept and the connection manager."""
import os
import re
import ssl
import time

from harness.config import TYPE, address, bootstrap, listener, route
from harness.runner import Group

TLS = {"name": "tls", "typed_config": {"@type": TYPE + "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"}}
HTTP = {"name": "http", "typed_config": {"@type": TYPE + "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector"}}
REQUEST = b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n"


def chain(p, name, match=None, codec="AUTO"):
    """A filter chain that answers with its name, and writes it into the log for what is no request."""
    made = listener(p, [route("/", direct_response={"status": 200, "body": {"inline_string": name}})], "main", codec_type=codec)
    made, = made["filter_chains"]
    manager = made["filters"][0]["typed_config"]
    manager["access_log"][0]["typed_config"]["log_format"]["text_format_source"]["inline_string"] = \
        name + " %RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %PROTOCOL% %REQUESTED_SERVER_NAME%\n"
    return {"name": name, **made, **({"filter_chain_match": match} if match else {})}


def matching(p, name, chains, default=None, where="127.0.0.1", codec="AUTO", **fields):
    """A listener whose chains are given as name -> match."""
    made = {"name": name, "address": address(p.listener(name)),
            "filter_chains": [chain(p, n, m, codec) for n, m in chains.items()], **fields}
    made["address"]["socket_address"]["address"] = where
    if default:
        made["default_filter_chain"] = chain(p, default, None, codec)
    return made


def cidr(*texts):
    return [{"address_prefix": t.split("/")[0], "prefix_len": int(t.split("/")[1])} for t in texts]


def config(p):
    own, other = p.listener("ports"), p.listener("unused")
    return bootstrap(p, [
        matching(p, "main", {"only": None}),
        matching(p, "ports", {"own": {"destination_port": own}, "other": {"destination_port": other}, "any": None}),
        matching(p, "noport", {"other": {"destination_port": other}}),
        matching(p, "noport-default", {"other": {"destination_port": other}}, "default"),
        matching(p, "portfirst", {"port+far": {"destination_port": p.listener("portfirst"), "prefix_ranges": cidr("10.0.0.0/8")},
                                  "any": None}),
        matching(p, "prefixes", {"one": {"prefix_ranges": cidr("127.0.0.1/32")}, "eight": {"prefix_ranges": cidr("127.0.0.0/8")},
                                 "two": {"prefix_ranges": cidr("127.2.0.0/16", "127.3.0.0/16")}}, where="0.0.0.0"),
        matching(p, "dual", {"one": {"prefix_ranges": cidr("127.0.0.1/32")}, "six": {"prefix_ranges": cidr("::1/128")},
                             "any": None}, where="::"),
        matching(p, "prefixfirst", {"narrow": {"prefix_ranges": cidr("127.0.0.1/32"), "source_type": "EXTERNAL"},
                                    "wide": {"prefix_ranges": cidr("127.0.0.0/8")}}, "default", where="0.0.0.0"),
        matching(p, "names", {"exact": {"server_names": ["a.test", "A2.test"]}, "wild": {"server_names": ["*.a.test"]},
                              "wilder": {"server_names": ["*.b.a.test"]}, "none": {}}, listener_filters=[TLS]),
        matching(p, "names-only", {"exact": {"server_names": ["a.test"]}}, listener_filters=[TLS]),
        matching(p, "names-default", {"exact": {"server_names": ["a.test"]}}, "default", listener_filters=[TLS]),
        matching(p, "blind", {"exact": {"server_names": ["a.test"]}, "none": {}}),
        matching(p, "transport", {"tls": {"transport_protocol": "tls"}, "raw": {"transport_protocol": "raw_buffer"}},
                 listener_filters=[TLS]),
        matching(p, "transport-any", {"tls": {"transport_protocol": "tls"}, "any": {}}, listener_filters=[TLS]),
        matching(p, "namefirst", {"name+raw": {"server_names": ["a.test"], "transport_protocol": "raw_buffer"},
                                  "tls": {"transport_protocol": "tls"}}, "default", listener_filters=[TLS]),
        matching(p, "alpn", {"h2": {"application_protocols": ["h2"]}, "h1": {"application_protocols": ["http/1.1", "http/1.0"]},
                             "any": {}}, listener_filters=[TLS]),
        matching(p, "inspect", {"h2c": {"application_protocols": ["h2c"]}, "h1": {"application_protocols": ["http/1.1"]},
                                "h0": {"application_protocols": ["http/1.0"]}, "any": {}}, listener_filters=[HTTP]),
        matching(p, "inspect-none", {"h2c": {"application_protocols": ["h2c"]}}, listener_filters=[HTTP]),
        matching(p, "both", {"tls": {"transport_protocol": "tls", "application_protocols": ["h2"]},
                             "h1": {"transport_protocol": "raw_buffer", "application_protocols": ["http/1.1"]},
                             "raw": {"transport_protocol": "raw_buffer"}}, listener_filters=[TLS, HTTP]),
        matching(p, "direct", {"one": {"direct_source_prefix_ranges": cidr("127.0.0.1/32")},
                               "eight": {"direct_source_prefix_ranges": cidr("127.0.0.0/9")}}, where="0.0.0.0"),
        matching(p, "types", {"local": {"source_type": "SAME_IP_OR_LOOPBACK"}, "external": {"source_type": "EXTERNAL"}}),
        matching(p, "types-external", {"external": {"source_type": "EXTERNAL"}, "any": {}}),
        matching(p, "types-local", {"local": {"source_type": "SAME_IP_OR_LOOPBACK", "source_prefix_ranges": cidr("10.0.0.0/8")},
                                    "any": {}}),
        matching(p, "sources", {"one": {"source_prefix_ranges": cidr("127.0.0.1/32")},
                                "nine": {"source_prefix_ranges": cidr("127.0.0.0/9")}}, where="0.0.0.0"),
        matching(p, "source-ports", {"port": {"source_ports": [p.listener("source")]}, "any": {}}),
        matching(p, "source-ports-only", {"port": {"source_ports": [p.listener("source")]}}),
        {"name": "nofilters", "address": address(p.listener("nofilters")), "filter_chains": [{}]},
        matching(p, "h1only", {"h1": None}, codec="HTTP1"),
        matching(p, "disabled", {"tls": {"transport_protocol": "tls"}, "any": {}}, listener_filters=[
            {**TLS, "filter_disabled": {"destination_port_range": {"start": p.listener("disabled"),
                                                                   "end": p.listener("disabled") + 1}}}]),
        matching(p, "quick", {"any": {}}, listener_filters=[TLS], listener_filters_timeout="0.3s"),
        matching(p, "patient", {"any": {}}, listener_filters=[HTTP], listener_filters_timeout="0.3s",
                 continue_on_listener_filters_timeout=True),
    ])


G = Group(config)


def hello(name=None, alpn=()):
    """The first flight of a TLS client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    sent = ssl.MemoryBIO()
    try:
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name).do_handshake()
    except ssl.SSLWantReadError:
        pass
    return sent.read()


def goes(name, where, data=REQUEST, to=None, source=None, logs=1, pieces=1):
    """What answers on this listener, if anything: a response (with the chain's name), or how the connection ends."""
    def run(t):
        try:
            conn = t.connect(where, to, ("127.0.0.1", t.proxy.ports.listener(source)) if source == "source" else source)
        except ConnectionRefusedError:
            return t.note(refused=where)
        step = -(-len(data) // pieces)
        for at in range(0, len(data), step):
            conn.send(data[at:at + step])
            if pieces > 1:
                time.sleep(0.02)
        t.record.append(conn.response())
    G.case("listeners: " + name, logs=logs)(run)


def tls(name, where, server=None, alpn=(), logs=1, **kw):
    """The same for a ClientHello: the chain has no TLS, and says so in its log line."""
    G.case("listeners: " + name, logs=logs)(lambda t: _tls(t, where, hello(server, alpn), **kw))


def _tls(t, where, data, pieces=1):
    conn = t.connect(where)
    step = -(-len(data) // pieces)
    for at in range(0, len(data), step):
        conn.send(data[at:at + step])
        if pieces > 1:
            time.sleep(0.02)
    ended(t, conn, 1.0)


def ended(t, conn, within=2.0):
    """How the connection ends; of a response only the first line, as the order of headers is nobody's business."""
    end = conn.end(within)
    if end["bytes"].startswith("HTTP/"):
        end["bytes"] = end["bytes"].split("\r\n")[0]
    t.record.append(end)


def stats(t, pattern, only=None, but="^$"):
    """The stats that match, by name; `only`: a port their name must have; `but`: what their line must not have. What a
    histogram holds depends on the moment."""
    body = t.proxy.admin("/stats?filter=" + pattern)["body"]
    lines = [line for line in body.splitlines() if (not only or str(only) in line) and not re.search(but + "|No recorded|P0", line)]
    t.note(stats=sorted(line.replace(str(only), "PORT") for line in lines))


def h2c(name, where, logs=1):
    G.case("listeners: " + name, logs=logs)(lambda t: t.h2("/", listener=where))


goes("no match given", "main")
goes("destination port", "ports")
goes("destination port of another", "noport", logs=0)
goes("destination port of another, default chain", "noport-default")
goes("destination port decides before the prefix", "portfirst", logs=0)
goes("destination prefix, whole address", "prefixes")
goes("destination prefix, range", "prefixes", to="127.0.0.2")
goes("destination prefix, longest of several", "prefixes", to="127.3.0.1")
goes("destination prefix, IPv4 where the socket is IPv6 only", "dual", logs=0)
goes("destination prefix decides before the source type", "prefixfirst")
goes("destination prefix, the wider one", "prefixfirst", to="127.0.0.9")
tls("server name exact", "names", "a.test")
tls("server name in upper case", "names", "A.TEST")
tls("server name, upper case in the configuration", "names", "a2.test")
tls("server name wildcard", "names", "x.a.test")
tls("server name, longest wildcard", "names", "x.b.a.test")
tls("server name, wildcard over two labels", "names", "x.y.a.test")
tls("server name without a match", "names", "b.test")
tls("no server name", "names")
tls("server name, hello in pieces", "names", "a.test", pieces=5)
tls("server name unknown, no other chain", "names-only", "b.test", logs=0)
tls("no server name, no other chain", "names-only", logs=0)
tls("server name unknown, default chain", "names-default", "b.test")
goes("server names, plain text", "names")
goes("server names, plain text, no other chain", "names-only", logs=0)
tls("server names without an inspector", "blind", "a.test")
tls("transport protocol tls", "transport", "a.test")
goes("transport protocol raw_buffer", "transport")
goes("transport protocol, none given", "transport-any")
tls("server name decides before the transport", "namefirst", "a.test")
tls("no server name, transport tls", "namefirst")
goes("plain text, default chain", "namefirst")
tls("alpn h2", "alpn", "a.test", ["h2", "http/1.1"])
tls("alpn in the client's order", "alpn", "a.test", ["http/1.1", "h2"])
tls("alpn unknown", "alpn", "a.test", ["x"])
tls("no alpn", "alpn", "a.test")
h2c("http inspector h2c", "inspect")
goes("http inspector HTTP/1.1", "inspect")
goes("http inspector HTTP/1.1 in pieces", "inspect", pieces=7)
goes("http inspector HTTP/1.0", "inspect", b"GET / HTTP/1.0\r\nhost: a.test\r\n\r\n")
goes("http inspector, not HTTP", "inspect", b"\x00\x01\x02\x03\r\n\r\n")
goes("http inspector, empty line first", "inspect", b"\r\nGET / HTTP/1.1\r\nhost: a.test\r\n\r\n")
goes("http inspector, no chain", "inspect-none", logs=0)
h2c("http inspector h2c, only chain", "inspect-none")
goes("both inspectors, HTTP/1.1", "both")
tls("both inspectors, tls with h2", "both", "a.test", ["h2"])
tls("both inspectors, tls without h2", "both", "a.test", logs=0)
goes("both inspectors, something else", "both", b"\x01\x02\x03\x04\r\n\r\n")
goes("direct source", "direct")
goes("direct source, range", "direct", source="127.0.0.5")
goes("direct source, none", "direct", source="127.200.0.5", logs=0)
goes("source type loopback", "types")
goes("source type, another loopback address", "types", source="127.0.0.2")
goes("source type external does not match loopback", "types-external")
goes("source type decides before the source prefix", "types-local", logs=0)
goes("source prefix", "sources")
goes("source prefix, range", "sources", source="127.1.0.1")
goes("source prefix, none", "sources", source="127.129.0.1", logs=0)
goes("source port", "source-ports", source="source")
goes("source port, any", "source-ports")
goes("source port, none", "source-ports-only", logs=0)
goes("chain without filters", "nofilters", logs=0)
h2c("h2c on an HTTP/1 codec", "h1only")
h2c("h2c on an automatic codec", "main")
tls("listener filter disabled by port", "disabled", "a.test")


@G.case("listeners: listener filters time out", logs=0)
def _(t):
    conn = t.connect("quick")
    ended(t, conn, 1.5)
    stats(t, "downstream_pre_cx_timeout", t.proxy.ports.listener("quick"))


@G.case("listeners: listener filters time out and the connection goes on", logs=1)
def _(t):
    conn = t.connect("patient")
    conn.send(b"GET / HT")
    time.sleep(0.6)
    conn.send(b"TP/1.1\r\nhost: a.test\r\n\r\n")
    t.record.append(conn.response())


@G.case("listeners: no chain matches: stats", logs=0)
def _(t):
    conn = t.connect("noport")
    ended(t, conn)
    time.sleep(0.1)
    stats(t, r"^listener\..*(no_filter_chain_match|downstream_cx_(total|active|destroy))$", t.proxy.ports.listener("noport"))


@G.case("listeners: client closes before a byte", logs=0)
def _(t):
    conn = t.connect("main")
    conn.sock.shutdown(1)
    ended(t, conn)


@G.case("listeners: client closes amid the hello", logs=0)
def _(t):
    conn = t.connect("names")
    conn.send(hello("a.test")[:20])
    conn.sock.shutdown(1)
    ended(t, conn)


@G.case("listeners: stats of the inspectors")
def _(t):
    stats(t, "^(tls|http)_inspector")


def sockets(p):
    made = [
        {**matching(p, "main", {"main": None}), "additional_addresses": [{"address": address(p.listener("more"))},
                                                                         {"address": {"pipe": {"path": p.home + "/more.sock"}}}]},
        {**matching(p, "pipe", {"pipe": None}), "address": {"pipe": {"path": p.home + "/pipe.sock", "mode": 0o640}}},
        {**matching(p, "abstract", {"abstract": None}), "address": {"pipe": {"path": "@" + p.home + "/abstract"}}},
        matching(p, "limited", {"limited": None}),
        matching(p, "shared", {"shared": None}, enable_reuse_port=False, tcp_backlog_size=16, traffic_direction="INBOUND",
                 per_connection_buffer_limit_bytes=32768, freebind=True, max_connections_to_accept_per_socket_event=1),
    ]
    return {**bootstrap(p, made), "layered_runtime": {"layers": [{"name": "static", "static_layer": {
        "envoy": {"resource_limits": {"listener": {"limited": {"connection_limit": 2}}}}}}]}}


S = Group(sockets)


def answers(name, where="main", to=None):
    def run(t):
        conn = t.connect(where, to)
        conn.send(REQUEST)
        t.record.append(conn.response())
    S.case("listeners: " + name, logs=1)(run)


answers("main address")
answers("additional address", "more")
answers("additional address, Unix socket", to="/more.sock")
answers("shared socket with a backlog", "shared")
answers("Unix socket", to="/pipe.sock")


@S.case("listeners: Unix socket, mode")
def _(t):
    t.note(mode=oct(os.stat(t.proxy.ports.home + "/pipe.sock").st_mode & 0o777))


@S.case("listeners: abstract Unix socket", logs=1)
def _(t):
    conn = t.connect(to="@" + t.proxy.ports.home + "/abstract")
    conn.send(REQUEST)
    t.record.append(conn.response())


@S.case("listeners: connection limit of a listener", logs=2)
def _(t):
    held = [t.connect("limited") for _ in range(2)]
    for conn in held:
        conn.send(REQUEST)
        t.record.append(conn.response())
    ended(t, t.connect("limited"))
    stats(t, "downstream_cx_overflow", t.proxy.ports.listener("limited"))


@S.case("listeners: connection limit frees", logs=1)
def _(t):
    time.sleep(0.2)
    conn = t.connect("limited")
    conn.send(REQUEST)
    t.record.append(conn.response())


@S.case("listeners: names of the listeners")
def _(t):
    t.note(listeners=t.proxy.admin("/listeners")["body"].splitlines())


@S.case("listeners: stats of a listener")
def _(t):
    stats(t, r"^listener\.", t.proxy.ports.listener("shared"), r"\.http\.|_missing|transport_socket|overload_reject")


@S.case("listeners: stats of the listener manager")
def _(t):
    stats(t, r"^listener_manager\.", but=r"\.lds\.")


def overloaded(p):
    monitor = {"name": "envoy.resource_monitors.global_downstream_max_connections", "typed_config": {
        "@type": TYPE + "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        "max_active_downstream_connections": 2}}
    return {**bootstrap(p, [matching(p, "main", {"main": None}),
                            matching(p, "free", {"free": None}, ignore_global_conn_limit=True)]),
            "overload_manager": {"resource_monitors": [monitor]}}


O = Group(overloaded)


@O.case("listeners: connection limit of the process", logs=3)
def _(t):
    held = [t.connect("main") for _ in range(2)]
    for conn in held:
        conn.send(REQUEST)
        t.record.append(conn.response())
    ended(t, t.connect("main"))
    conn = t.connect("free")
    conn.send(REQUEST)
    t.record.append(conn.response())
    stats(t, "downstream_global_cx_overflow", t.proxy.ports.listener("main"))


F = Group(lambda p: bootstrap(p, [matching(p, "main", {"main": None})]), files=100)


@F.case("listeners: out of descriptors", logs=2)
def _(t):
    held = [t.connect() for _ in range(130)]
    time.sleep(0.5)
    held[0].send(REQUEST)
    t.note(line=held[0].response().get("line"))
    for conn in held:
        conn.close()
    time.sleep(1.5)
    conn = t.connect()
    conn.send(REQUEST)
    t.note(line=conn.response().get("line"))
