"""Redirected connections: what their listener makes of their original destination, and listeners that are not bound."""
import time

from harness.config import TYPE, address, bootstrap, listener, route
from harness.runner import Group

LISTENER_FILTER = TYPE + "envoy.extensions.filters.listener."
ORIGINAL_DST = {"name": "original_dst", "typed_config": {"@type": LISTENER_FILTER + "original_dst.v3.OriginalDst"}}
PROXY = {"name": "proxy", "typed_config": {"@type": LISTENER_FILTER + "proxy_protocol.v3.ProxyProtocol"}}
HTTP = {"name": "http", "typed_config": {"@type": LISTENER_FILTER + "http_inspector.v3.HttpInspector"}}
REQUEST = b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n"
FORMAT = (" %RESPONSE_CODE% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_DIRECT_LOCAL_ADDRESS% "
          "%DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %FILTER_CHAIN_NAME%\n")


def chain(p, name, match=None):
    """A chain that answers with its name."""
    made = listener(p, [route("/", direct_response={"status": 200, "body": {"inline_string": name}})], "main")["filter_chains"][0]
    log = made["filters"][0]["typed_config"]["access_log"][0]["typed_config"]
    log["log_format"]["text_format_source"]["inline_string"] = name + FORMAT
    return {"name": name, **made, **({"filter_chain_match": match} if match else {})}


def at(p, name, where, port, *chains, bound=True, **fields):
    made = {"name": name, "stat_prefix": "l_" + name.replace(" ", "_"), "address": address(port), "filter_chains": list(chains) or [chain(p, name)], **fields}
    made["address"]["socket_address"]["address"] = where
    if not bound:
        made["bind_to_port"] = False
    return made


def config(p):
    def virtual(name, where, port, *chains, **fields):
        return at(p, name, where, port, *chains, bound=False, **fields)

    def dual(made):
        made["address"]["socket_address"]["ipv4_compat"] = True
        return made
    return bootstrap(p, [
        at(p, "out", "127.0.0.1", p.listener("out"), use_original_dst=True),
        dual(at(p, "out dual", "::", p.listener("dual"), use_original_dst=True)),
        at(p, "looked", "127.0.0.1", p.listener("looked"), use_original_dst=True, listener_filters=[HTTP]),
        at(p, "filter", "127.0.0.1", p.listener("filter"), chain(p, "port 81", {"destination_port": 81}),
           chain(p, "prefix", {"prefix_ranges": [{"address_prefix": "10.1.0.2", "prefix_len": 32}]}), chain(p, "any"),
           listener_filters=[ORIGINAL_DST]),
        virtual("exact", "10.1.0.1", 8080),
        virtual("wild", "0.0.0.0", 8080),
        virtual("only wild", "0.0.0.0", 8081),
        virtual("six", "fd00::1", 8080),
        virtual("six wild", "::", 8081),
        dual(virtual("both wild", "::", 8082)),
        dual(virtual("both, less", "::", 8083)),
        virtual("both, more", "0.0.0.0", 8083),
        virtual("again", "10.1.0.1", 8084, use_original_dst=True),
        virtual("inspects", "10.1.0.1", 8085, chain(p, "http", {"application_protocols": ["http/1.1"]}), chain(p, "other"),
                listener_filters=[HTTP]),
        at(p, "proxied", "127.0.0.1", p.listener("proxied"), use_original_dst=True, listener_filters=[PROXY]),
        virtual("inspects too", "10.1.0.1", 8185, chain(p, "http", {"application_protocols": ["http/1.1"]}), chain(p, "other"),
                listener_filters=[HTTP]),
        virtual("behind", "10.1.0.1", 8280),
        virtual("believes", "10.1.0.1", 8186, chain(p, "seen", {"application_protocols": ["http/1.1"]}), chain(p, "unseen")),
        virtual("no chain", "10.1.0.1", 8087, chain(p, "nobody", {"destination_port": 1})),
        at(p, "bound", "10.1.0.2", p.listener("bound")),
        virtual("more", "10.1.0.1", 8088, additional_addresses=[{"address": {"socket_address": {"address": "10.1.0.1", "port_value": 8089}}}]),
    ])


def redirects(p):
    """Ports 80 to 8089 of 10.1.0.1, 10.1.0.2 and fd00::1, by their last digits: to the plain listener, or to others by tens."""
    out, six = p.listener("out"), p.listener("dual")
    return [f"ip daddr 10.1.0.1 tcp dport 8080-8099 redirect to :{out}", f"ip6 daddr fd00::1 tcp dport 8080-8099 redirect to :{six}",
            f"ip daddr 10.1.0.2 tcp dport {{ 8080-8099, {p.listener('bound')} }} redirect to :{out}",
            f"ip daddr 10.1.0.1 tcp dport 8180-8199 redirect to :{p.listener('looked')}",
            f"ip daddr 10.1.0.1 tcp dport 80-89 redirect to :{p.listener('filter')}",
            f"ip daddr 10.1.0.2 tcp dport 80-89 redirect to :{p.listener('filter')}",
            f"ip daddr 10.1.0.1 tcp dport 8280-8299 redirect to :{p.listener('proxied')}",
            f"ip daddr 10.1.0.2 tcp dport 8180-8199 redirect to :{six}"]


G = Group(config, redirects=redirects)


def goes(name, where, port, logs=1, data=REQUEST):
    """A request to this address, which somebody redirects; what answers says its name."""
    @G.case("original dst: " + name, logs=logs)
    def _(t):
        with t.counted(r"^listener\.l_.*(_cx_total|_destroy|_overflow|no_filter_chain_match|timeout|error|_close)$|^http_inspector"):
            to = t.proxy.ports.listener(port) if isinstance(port, str) else port
            conn = t.reach((where, to))
            conn.send(data)
            answer = conn.response()
            t.note(body=answer.get("body", "none"))
            conn.close()
            time.sleep(0.1)


goes("the listener of this address", "10.1.0.1", 8080)
goes("the listener of any address", "10.1.0.2", 8080)
goes("the listener of any address, alone", "10.1.0.1", 8081)
goes("nobody's: it stays", "10.1.0.1", 8090)
goes("IPv6, the listener of this address", "fd00::1", 8080)
goes("IPv6, the listener of any address", "fd00::1", 8081)
goes("IPv6, nobody's", "fd00::1", 8090)
goes("IPv4, the listener of any IPv6 address", "10.1.0.1", 8081)
goes("IPv4, a listener for both", "10.1.0.1", 8082)
goes("IPv6, a listener for both", "fd00::1", 8082)
goes("IPv4, a listener for both beside one for IPv4", "10.1.0.1", 8083)
goes("IPv6, a listener for both beside one for IPv4", "fd00::1", 8083)
goes("handed over once", "10.1.0.1", 8084)
goes("filters of the second listener", "10.1.0.1", 8085)
goes("filters of both listeners", "10.1.0.1", 8185)
goes("what the first listener's filters found", "10.1.0.1", 8186)
goes("filters, nobody's", "10.1.0.1", 8187)
goes("not redirected, filters", "127.0.0.1", "looked")
goes("no chain in the second listener", "10.1.0.1", 8087, logs=0)
goes("a bound listener", "10.1.0.2", "bound")
goes("additional address", "10.1.0.1", 8089)
goes("not redirected", "127.0.0.1", "out")
goes("not redirected, dual", "127.0.0.1", "dual")
goes("filter: port", "10.1.0.1", 81)
goes("filter: prefix", "10.1.0.2", 82)
goes("filter: neither", "10.1.0.1", 82)
goes("filter: not redirected", "127.0.0.1", "filter")
goes("IPv4 redirected to a dual socket", "10.1.0.2", 8180)
goes("redirected, and a PROXY header", "10.1.0.1", 8280, data=b"PROXY TCP4 192.0.2.1 10.1.0.1 1 8085\r\n" + REQUEST)


@G.case("original dst: listeners that are not bound")
def _(t):
    t.note(listeners=t.proxy.admin("/listeners")["body"].splitlines())
    t.note(manager=t.stats("^listener_manager.(total|listener)"))


@G.case("original dst: not bound, not reached")
def _(t):
    try:
        t.reach(("10.1.0.1", 8380))
        t.note(reached=True)
    except OSError as error:
        t.note(error=type(error).__name__)


def headed(p):
    """Without a redirect, of which the kernel would tell, the PROXY header's destination counts."""
    return bootstrap(p, [
        at(p, "proxied", "127.0.0.1", p.listener("proxied"), use_original_dst=True, listener_filters=[PROXY]),
        at(p, "owner", "10.1.0.1", 8085, bound=False), at(p, "owner two", "0.0.0.0", 8086, bound=False)])


H = Group(headed)


@H.case("original dst: the PROXY header's", logs=3)
def _(t):
    for to in "10.1.0.1 1 8085", "10.1.0.1 1 8086", "10.1.0.1 1 8087":
        conn = t.connect("proxied")
        conn.send(b"PROXY TCP4 192.0.2.1 " + to.encode() + b"\r\n" + REQUEST)
        t.note(body=conn.response().get("body", "none"))
        conn.close()
