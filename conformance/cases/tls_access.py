"""Who a client is by its certificate, as access control sees it; TLS behind listener filters: PROXY headers, half a ClientHello."""
import time

from harness.config import TYPE, bootstrap, listener, route
from harness.runner import Group
from harness.tls import CONNECTION, ask, downstream, file_log, hello, serving, trusting

EXT = TYPE + "envoy.extensions.filters."
INSPECTOR = {"name": "tls", "typed_config": {"@type": EXT + "listener.tls_inspector.v3.TlsInspector"}}
PROXY = {"name": "proxy", "typed_config": {"@type": EXT + "listener.proxy_protocol.v3.ProxyProtocol"}}
PASSED = "passed %RESPONSE_FLAGS% %CONNECTION_TERMINATION_DETAILS% %DOWNSTREAM_PEER_URI_SAN%\n"
ENDS = CONNECTION.rstrip("\n") + " %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%\n"
FINGER = "ja4=%TLS_JA4_FINGERPRINT% ja3=%TLS_JA3_FINGERPRINT% %DOWNSTREAM_TLS_GROUP%\n"
PRINCIPALS = {
    "anybody": {}, "uri": {"principal_name": {"exact": "spiffe://td/ns/one/sa/client"}}, "uri prefix": {"principal_name": {"prefix": "spiffe://td/"}},
    "second uri": {"principal_name": {"exact": "spiffe://td/two"}}, "dns": {"principal_name": {"exact": "client.test"}},
    "wildcard": {"principal_name": {"exact": "x.wild.test"}}, "subject": {"principal_name": {"exact": "CN=nameless"}},
    "subject of one with names": {"principal_name": {"prefix": "CN=client"}}, "empty": {"principal_name": {"exact": ""}},
    "every name": {"principal_name": {"safe_regex": {"regex": ".*"}}}}
ACTIONS = {"": "ALLOW", "not ": "DENY"}


def rules(action, principal):
    return {"rules": {"action": action, "policies": {"it": {"permissions": [{"any": True}], "principals": [{"authenticated": principal}]}}}}


def config(p):
    trusted, untrusted = downstream("server", validation=trusting()), downstream(
        "server", validation=trusting(trust_chain_verification="ACCEPT_UNTRUSTED"))
    made = []
    for name, principal in PRINCIPALS.items():
        for word, action in ACTIONS.items():
            both = rules(action, principal)
            http = {"name": "rbac", "typed_config": {"@type": EXT + "http.rbac.v3.RBAC", **both}}
            made.append(serving(p, f"http {word}{name}", trusted, filters=[http]))
            one = serving(p, f"network {word}{name}", trusted)
            one["filter_chains"][0]["filters"] = [
                {"name": "rbac", "typed_config": {"@type": EXT + "network.rbac.v3.RBAC", "stat_prefix": "n", **both}},
                {"name": "tcp", "typed_config": {"@type": EXT + "network.tcp_proxy.v3.TcpProxy", "stat_prefix": "t", "cluster": "up",
                                                 "access_log": [file_log(p, PASSED)]}}]
            made.append(one)
        http = {"name": "rbac", "typed_config": {"@type": EXT + "http.rbac.v3.RBAC", **rules("ALLOW", principal)}}
        made.append(serving(p, "untrusted " + name, untrusted, filters=[http]))
        made.append(listener(p, [route("/", "up")], "plain " + name, [http]))

    def filtered(name, *filters, **fields):
        one = {**serving(p, name, downstream("server")), "listener_filters": list(filters), "listener_filters_timeout": "0.3s",
               "access_log": [file_log(p, ENDS)], **fields}
        return one
    made += [filtered("proxied", PROXY, INSPECTOR), filtered("inspected", INSPECTOR),
             filtered("inspected, goes on", INSPECTOR, continue_on_listener_filters_timeout=True)]
    finger = {"enable_ja4_fingerprinting": True}
    for name, options in {"fingerprint": finger, "only TLS": {"close_connection_on_client_hello_parsing_errors": True}}.items():
        inspector = {"name": "tls", "typed_config": {**INSPECTOR["typed_config"], **options}}
        made.append(filtered(name, inspector, access_log=[file_log(p, FINGER)]))
    named = filtered("inspected, by name", INSPECTOR, continue_on_listener_filters_timeout=True)
    named["filter_chains"][0]["filter_chain_match"] = {"server_names": ["a.test"]}
    return bootstrap(p, [*made, named])


G = Group(config)



def judged(where, who):
    @G.case(f"tls access: {where}: {who or 'no certificate'}")
    def _(t):
        with t.counted(r"rbac\."):
            conn = ask(t, where, cert=who)
        if where.startswith("network") and conn.told["handshake"] == "done" and "reason" not in conn.told:
            t.expect += 1 - ("headers" in t.record[1])


for name in PRINCIPALS:
    # Every matcher for certificates with names and without; two of them for all others.
    for place in ("http ", "network "):
        for who in (None, "client", "nameless"):
            judged(place + name, who)
    if name in ("anybody", "uri prefix"):
        for who in ("client", "two-uris", "nameless", "other", "expired"):
            judged("http not " + name, who)
            judged("network not " + name, who)
            judged("untrusted " + name, who)

    @G.case(f"tls access: plain {name}")
    def _(t, name=name):
        t.get("/", listener="plain " + name)

for place in ("http ", "network not ", "untrusted "):
    judged(place + "uri prefix", "nul-uri")
STATS = r"^(listener\..*(ssl\.(con|fail|hand)|pre_cx|no_filter_chain|filter_)|tls_inspector\.|proxy_proto\.)"
HEADERS = {
    "v1": b"PROXY TCP4 10.1.2.3 10.4.5.6 1000 2000\r\n", "v1, IPv6": b"PROXY TCP6 fd00::1 fd00::2 1000 2000\r\n", "v1, unknown": b"PROXY UNKNOWN\r\n",
    "v2": b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes([10, 1, 2, 3, 10, 4, 5, 6, 3, 232, 7, 208]),
    "v2 with a name": b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x15" + bytes([10, 1, 2, 3, 10, 4, 5, 6, 3, 232, 7, 208]) + b"\2\0\6b.test",
    "v2, local": b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", "none": b"", "twice": b"PROXY TCP4 10.1.2.3 10.4.5.6 1000 2000\r\n" * 2,
    "v1, not well-formed": b"PROXY TCP4 10.1.2.3 1000 2000\r\n", "v2, not well-formed": b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c" + bytes(12)}
for name, header in HEADERS.items():
    @G.case(f"tls access: PROXY header: {name}", logs=1 + (name in ("v1", "v1, IPv6", "v1, unknown", "v2", "v2 with a name", "v2, local")))
    def _(t, header=header):
        with t.counted(STATS):
            conn = t.tls(listener="proxied", first=header)
            conn.told.pop("reason", None)  # a reset or a close
            conn.close()


@G.case("tls access: PROXY header: inside of TLS")
def _(t):
    with t.counted(STATS):
        conn = t.tls(listener="proxied", first=HEADERS["v1"], ask=False)
        conn.send(HEADERS["v1"] + b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n")
        t.note(**conn.response())
        t.expect += 2
        conn.close()


def half(name, where, *parts, wait=0.0, close=False):
    @G.case(f"tls access: {where}: {name}", logs=1)
    def _(t):
        with t.counted(STATS):
            conn = t.connect(where)
            for part in parts:
                conn.send(part)
                time.sleep(wait)
            if close:
                time.sleep(0.05)
                conn.sock.close()
                time.sleep(0.05)
                return
            how = conn.end(1.0)
            t.note(connection="open" if how["connection"] == "open" else "ended", bytes=len(how["bytes"]) > 7)
            conn.close()


# What a client of its own would do next is not waited for: the server's answer alone is told.
HELLO = hello(version="1.2", ciphers="ECDHE-ECDSA-AES128-GCM-SHA256")
for where in ("inspected", "inspected, goes on", "inspected, by name"):
    half("nothing", where)
    half("one byte", where, HELLO[:1])
    half("half a ClientHello", where, HELLO[:100])
    half("all but one byte", where, HELLO[:-1])
    half("a ClientHello in pieces", where, *[HELLO[i:i + 64] for i in range(0, len(HELLO), 64)], wait=0.01)
    half("a record's head alone", where, b"\x16\x03\x01\x40\x00")
    half("a ClientHello that is too long", where, b"\x16\x03\x01\x40\x00\x01\x00\xff\x00" + b"x" * 16380)
    half("closed at once", where, close=True)
    half("closed after half a ClientHello", where, HELLO[:100], close=True)


def client_hello(suites, *extensions):
    """A ClientHello of parts: numbers of suites; number and body of each extension."""
    def vector(size, body):
        return len(body).to_bytes(size, "big") + body

    def numbers(all):
        return b"".join(n.to_bytes(2, "big") for n in all)
    body = b"\3\3" + b"r" * 32 + vector(1, b"") + vector(2, numbers(suites)) + vector(1, b"\0")
    body += vector(2, b"".join(numbers([kind]) + vector(2, content) for kind, content in extensions))
    message = b"\1" + vector(3, body)
    return b"\x16\3\1" + vector(2, message)


NAME, GREASE = (0, b"\0\x09\0\0\6a.test"), (0x1a1a, b"")
VERSIONS, SIGNATURES = (43, b"\6\x3a\x3a\3\4\3\3"), (13, b"\0\4\4\3\x08\4")


def alpn(name):
    return 16, (len(name) + 1).to_bytes(2, "big") + len(name).to_bytes(1, "big") + name


HELLOS = {
    "TLS 1.3": client_hello([0x1301, 0xc02b], NAME, VERSIONS, SIGNATURES), "GREASE": client_hello([0x2a2a, 0x1301], GREASE, NAME, VERSIONS, SIGNATURES),
    "no name": client_hello([0x1301], VERSIONS, SIGNATURES), "no signature algorithms": client_hello([0x1301], NAME, VERSIONS),
    "no extensions but a name": client_hello([0xc02b], NAME), "h2": client_hello([0x1301], NAME, VERSIONS, alpn(b"h2")),
    "one letter of ALPN": client_hello([0x1301], NAME, VERSIONS, alpn(b"x")), "odd ALPN": client_hello([0x1301], NAME, VERSIONS, alpn(b"\xab\xcd")),
    "ALPN ending odd": client_hello([0x1301], NAME, VERSIONS, alpn(b"h2-")), "ECH": client_hello([0x1301], NAME, VERSIONS, SIGNATURES, (0xfe0d, b"\0\0\1\0\1\5\0\x20" + b"k" * 32 + b"\0\x64" + b"p" * 100)),
    "many suites": client_hello(range(0x100, 0x200), NAME, VERSIONS), "TLS 1.1": client_hello([0xc013], NAME, (43, b"\2\3\2"))}
for name, data in HELLOS.items():
    @G.case(f"tls access: fingerprint: {name}", logs=1)
    def _(t, data=data):
        conn = t.connect("fingerprint")
        conn.send(data)
        conn.end(0.1)
        conn.close()
for name, kw in {"a client of OpenSSL": {}, "TLS 1.2": {"version": "1.2"}, "h2 and http/1.1": {"alpn": ["h2", "http/1.1"]}, "P-384": {"curve": "secp384r1"}}.items():
    @G.case(f"tls access: fingerprint: {name}")
    def _(t, kw=kw):
        ask(t, "fingerprint", **kw)
half("plain text", "only TLS", b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n")
half("half a ClientHello", "only TLS", HELLO[:100])
half("a ClientHello that cannot be read", "only TLS", HELLO[:43] + b"\xff" + HELLO[44:])
