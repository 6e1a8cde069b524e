"""The generic matcher in the place of filter chain matches: its branches, inputs and ends."""
from harness.config import bootstrap
from harness.matcher import NETWORK, SSL, always, both, domains, either, exact, extension, first, network, one, prefix, ranges
from harness.runner import Group

from .listeners import HTTP, REQUEST, TLS, _tls, ended, hello, matching, stats

IP, PORT, NAME = network("DestinationIPInput"), network("DestinationPortInput"), network("ServerNameInput")
SOURCE, DIRECT = network("SourceIPInput"), network("DirectSourceIPInput")
PROTOCOL, TRANSPORT = network("ApplicationProtocolInput"), network("TransportProtocolInput")
WITHIN = "envoy.extensions.matching.input_matchers.ip.v3.Ip"


def to(name):
    return {"action": extension("google.protobuf.StringValue", value=name)}


NOWHERE = exact(IP, {"192.0.2.1": to("a")})
DEAD = {"nested": NOWHERE, "nested no matcher": {}}


def within(cidr):
    return extension(WITHIN, stat_prefix="s", cidr_ranges=[{"address_prefix": cidr.split("/")[0], "prefix_len": int(cidr.split("/")[1])}])


def trees(p):
    own = str(p.listener("port"))
    made = {
        "always": always(to("b")), "unknown": always(to("nobody")), "default by name": always(to("default")), "nothing": {},
        "ip": exact(IP, {"127.0.0.1": to("a"), "127.0.0.2": to("b")}), "ip else": exact(IP, {"127.0.0.2": to("a")}, to("b")),
        "port": exact(PORT, {own: to("a")}, to("b")), "port zeroes": exact(PORT, {"0" + str(p.listener("port zeroes")): to("a")}, to("b")),
        "prefix": prefix(IP, {"127.": to("a"), "127.0.0.": to("b"), "": to("c")}),
        "ranges": ranges(IP, (["127.0.0.0/8"], to("a"), False), (["127.0.0.2/32", "127.3.0.0/16"], to("b"), False),
                         (["0.0.0.0/0"], to("c"), False)),
        "ranges of equals": ranges(IP, (["127.0.0.9/8"], to("a"), False), (["127.0.0.0/8"], to("b"), False)),
        "ranges beyond": ranges(IP, (["127.0.0.1/40"], to("a"), False), on_no_match=to("b")),
        "no ranges": ranges(IP, on_no_match=to("b")), "no ranges at all": ranges(IP),
        "ranges, exclusive": ranges(IP, (["127.0.0.0/16"], NOWHERE, False), (["127.0.0.0/8"], to("a"), True),
                                    (["0.0.0.0/0"], to("b"), False)),
        "ranges, exclusive first": ranges(IP, (["127.0.0.0/16"], to("a"), True), (["127.0.0.0/8"], to("b"), True)),
        "ranges of a name": ranges(NAME, (["0.0.0.0/0"], to("a"), False), on_no_match=to("b")),
        "source": exact(SOURCE, {"127.0.0.1": to("a")}, to("b")), "direct": exact(DIRECT, {"127.0.0.1": to("a")}, to("b")),
        "source port": exact(network("SourcePortInput"), {str(p.listener("sender")): to("a")}, to("b")),
        "type": exact(network("SourceTypeInput"), {"local": to("a")}, to("b")),
        "state": exact(network("FilterStateInput", key="k"), {"": to("a")}, to("b")),
        "uri": exact(extension(SSL + "UriSanInput"), {"": to("a")}, to("b")),
        "unknown uri": first((either(one(extension(SSL + "UriSanInput"), exact="x"), one(PORT, exact="1")), to("a")), on_no_match=to("b")),
        "uri or": first((either(one(extension(SSL + "UriSanInput"), exact="x"), one(IP, prefix="1")), to("a")), on_no_match=to("b")),
        "uri later": first((one(IP, prefix="1"), to("a")), (one(extension(SSL + "UriSanInput"), exact="x"), to("b"))),
        "variable": exact(extension("envoy.extensions.matching.common_inputs.environment_variable.v3.Config", name="NOT_SET_ANYWHERE"), {"": to("a")}, to("b")),
        "value": first((one(IP, suffix=".1"), to("a")), (one(IP, contains="0.0"), to("b"))),
        "value, regex": first((one(IP, safe_regex={"google_re2": {}, "regex": "127"}), to("a")),
                              (one(IP, safe_regex={"google_re2": {}, "regex": "127.*"}), to("b"))),
        "value, within": first((one(IP, within("127.0.0.2/31")), to("a")), (one(IP, within("127.0.0.0/8")), to("b"))),
        "and": first((both(one(IP, exact="127.0.0.1"), one(PORT, exact="1")), to("a")), (both(one(IP, prefix="1"), one(IP, prefix="12")), to("b"))),
        "or": first((either(one(IP, exact="127.0.0.2"), one(PORT, exact="1")), to("a")), (either(one(PORT, exact="1"), one(IP, prefix="127")), to("b"))),
        "not": first(({"not_matcher": one(IP, prefix="127")}, to("a")), ({"not_matcher": one(PORT, exact="1")}, to("b"))),
        "not of nothing": first(({"not_matcher": one(network("FilterStateInput", key="k"), exact="v")}, to("b"))),
        "first": first((one(IP, prefix="127"), to("a")), (one(IP, prefix="127"), to("b"))),
        "deep": ranges(IP, (["127.0.0.0/8"], exact(PORT, {str(p.listener("deep")): exact(IP, {"127.0.0.1": to("b")})}, to("a")), False)),
    }
    for name, dead in DEAD.items():
        made |= {
            f"exact, {name}": exact(IP, {"127.0.0.1": dead}, to("b")), f"exact only, {name}": exact(IP, {"127.0.0.1": dead}),
            f"prefix, {name}": prefix(IP, {"127.0.": dead, "127.": to("b")}, to("c")),
            f"prefix only, {name}": prefix(IP, {"127.0.": dead}, to("c")),
            f"list, {name}": first((one(IP, prefix="127"), dead), (one(IP, prefix="127"), to("b")), on_no_match=to("c")),
            f"ranges, {name}": ranges(IP, (["127.0.0.1/32"], dead, False), (["127.0.0.0/8"], to("b"), False), on_no_match=to("c")),
            f"else, {name}": always(dead),
        }
    return made


def matched(p, name, matcher, default=None, **fields):
    return matching(p, name, {"a": None, "b": {"destination_port": 1}, "c": None}, default, where="0.0.0.0", filter_chain_matcher=matcher, **fields)


def sniffed():
    names = domains(NAME, (["a.test", "*.wild.test"], to("a")), (["*.b.wild.test"], to("b")), (["*"], to("c")))
    return {
        "name": (exact(NAME, {"a.test": to("a"), "A2.test": to("c")}, to("b")), [TLS]),
        "domains": (names, [TLS]),
        "domains, dead": (domains(NAME, (["a.test", "*.a.test"], NOWHERE), (["*.test"], to("b")), on_no_match=to("c")), [TLS]),
        "transport": (exact(TRANSPORT, {"tls": to("a"), "raw_buffer": to("c")}, to("b")), [TLS]),
        "protocol": (exact(PROTOCOL, {"'h2'": to("a"), "'http/1.1'": to("b"), "'h2','http/1.1'": to("c")}), [TLS]),
        "inspected": (exact(PROTOCOL, {"'h2c'": to("a"), "'http/1.1'": to("b"), "'http/1.0'": to("c")}), [HTTP]),
        "inspected prefix": (prefix(PROTOCOL, {"'http/": to("b"), "http": to("a")}, to("c")), [HTTP]),
    }


def config(p):
    made = [matched(p, name, tree) for name, tree in trees(p).items()]
    made += [matched(p, name + " default", trees(p)[name], "default") for name in ("uri", "nothing", "unknown", "default by name", "exact only, nested", "no ranges at all")]
    made += [matched(p, name, tree, listener_filters=filters) for name, (tree, filters) in sniffed().items()]
    return bootstrap(p, [*made, matching(p, "main", {"only": None})])


G = Group(config)


def goes(name, where, data=REQUEST, to=None, source=None, logs=1):
    @G.case("chain matcher: " + name, logs=logs)
    def _(t):
        conn = t.connect(where, to, ("127.0.0.1", t.proxy.ports.listener(source)) if source == "sender" else source)
        conn.send(data)
        t.record.append(conn.response())


def tls(where, server=None, alpn=(), logs=1):
    G.case(f"chain matcher: {where}, {server} {' '.join(alpn)}", logs=logs)(lambda t: _tls(t, where, hello(server, alpn)))


class Ports:
    """For the names of the listeners alone."""
    def listener(self, _):
        return 0


NONE = {"uri", "unknown uri", "unknown", "default by name", "nothing", "no ranges at all"}
for where in trees(Ports()):
    lost = where in NONE or where.startswith(("exact only", "else")) 
    goes(where, where, logs=0 if lost else 1)
for where in ("uri", "nothing", "unknown", "default by name", "exact only, nested", "no ranges at all"):
    goes(where + ", with a default chain", where + " default", logs=0 if where in ("unknown", "default by name") else 1)
for where in ("ip", "ip else", "prefix", "ranges", "ranges beyond", "value", "value, within", "or"):
    goes(where + ", another address", where, to="127.0.0.2")
goes("ip, no chain", "ip", to="127.0.0.3", logs=0)
goes("ranges, second of a branch", "ranges", to="127.3.9.9")
for where in ("source", "direct", "type"):
    goes(where + ", another address", where, source="127.0.0.2")
goes("source port, that one", "source port", source="sender")
for server in ("a.test", "A.TEST", "a2.test", "b.test", None):
    tls("name", server)
for server in ("a.test", "x.wild.test", "x.b.wild.test", "wild.test", "other", None):
    tls("domains", server, logs=0 if server is None else 1)
for server in ("a.test", "x.a.test", "b.test", "b.com", None):
    tls("domains, dead", server)
tls("transport", "a.test")
goes("transport, plain", "transport")
for alpn in (["h2"], ["http/1.1"], ["h2", "http/1.1"]):
    tls("protocol", "a.test", alpn)
tls("protocol", "a.test", ["http/1.1", "h2"], logs=0)
tls("protocol", "a.test", logs=0)
G.case("chain matcher: inspected, h2c", logs=1)(lambda t: t.h2("/", listener="inspected"))
goes("inspected, HTTP/1.1", "inspected")
goes("inspected, HTTP/1.0", "inspected", b"GET / HTTP/1.0\r\nhost: a.test\r\n\r\n")
goes("inspected, something else", "inspected", b"\x00\x01\x02\x03\r\n\r\n", logs=0)
goes("inspected prefix, HTTP/1.1", "inspected prefix")
goes("inspected prefix, something else", "inspected prefix", b"\x00\x01\x02\x03\r\n\r\n")


@G.case("chain matcher: no chain: stats", logs=0)
def _(t):
    ended(t, t.connect("nothing"))
    stats(t, r"^listener\..*no_filter_chain_match$", t.proxy.ports.listener("nothing"))
