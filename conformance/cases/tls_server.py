"""TLS as a server: versions, cipher suites, curves, ALPN, which certificate, what ends a handshake, resumption."""
import subprocess
import time

from harness.config import bootstrap
from harness.runner import Group
from harness.tls import ask, certificate, client_context, downstream, hello, serving

ECDSA, RSA = "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256"
POLICIES, STAPLES = ("LENIENT_STAPLING", "STRICT_STAPLING", "MUST_STAPLE"), (None, "current", "outdated")
PARAMETERS = {
    "defaults": {},
    "up to 1.2": {"tls_maximum_protocol_version": "TLSv1_2"},
    "from 1.3": {"tls_minimum_protocol_version": "TLSv1_3"},
    "only 1.3": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
    "from 1.0": {"tls_minimum_protocol_version": "TLSv1_0"},
    "one suite": {"tls_maximum_protocol_version": "TLSv1_2", "cipher_suites": ["ECDHE-ECDSA-AES256-GCM-SHA384"]},
    "suites in order": {"tls_maximum_protocol_version": "TLSv1_2", "cipher_suites": [
        "ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256"]},
    "suites in a group": {"tls_maximum_protocol_version": "TLSv1_2", "cipher_suites": [
        "[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]", "ECDHE-ECDSA-AES256-GCM-SHA384"]},
    "suite of RSA": {"tls_maximum_protocol_version": "TLSv1_2", "cipher_suites": [RSA]},
    "one curve": {"ecdh_curves": ["P-384"]},
    "two curves": {"ecdh_curves": ["P-256", "X25519"]},
    "fips": {"compliance_policies": ["FIPS_202205"]},
}


def config(p):
    made = [serving(p, "params: " + name, downstream("server", params=params)) for name, params in PARAMETERS.items()]
    both = ["h2", "http/1.1"]
    made += [
        serving(p, "alpn none", downstream("server")),
        serving(p, "alpn both", downstream("server", alpn=both)),
        serving(p, "alpn h1 first", downstream("server", alpn=both[::-1])),
        serving(p, "alpn h2", downstream("server", alpn=["h2"])),
        serving(p, "alpn h2, codec h1", downstream("server", alpn=["h2"]), codec_type="HTTP1"),
        serving(p, "names", downstream("server", "b", "exact", "common-name", "ip")),
        serving(p, "names, wild first", downstream("b", "exact", "server")),
        serving(p, "names, scanned", downstream("rsa", "server", full_scan_certs_on_sni_mismatch=True)),
        serving(p, "kinds", downstream("rsa", "server")),
        serving(p, "kinds, other order", downstream("server", "rsa")),
        serving(p, "rsa first, no scan", downstream("rsa", "b")),
        serving(p, "sni required", downstream("server", require_sni=True)),
        serving(p, "client's order", downstream("server", params={"tls_maximum_protocol_version": "TLSv1_2"}, prefer_client_ciphers=True)),
        serving(p, "server's order", downstream("server", params={"tls_maximum_protocol_version": "TLSv1_2"})),
        serving(p, "slow", downstream("server")),
        serving(p, "sessions", downstream("server")),
        serving(p, "sessions, stateful", downstream("server", disable_stateless_session_resumption=True)),
        serving(p, "sessions, none", downstream("server", disable_stateless_session_resumption=True, disable_stateful_session_resumption=True)),
        serving(p, "sessions, short", downstream("server", session_timeout="1s")),
        serving(p, "sessions, keys", downstream("server", session_ticket_keys={"keys": [{"inline_bytes": "QUFB" * 26 + "QUE="}, {"inline_bytes": "QkJC" * 26 + "QkI="}]})),
    ]
    for policy in POLICIES:
        for kind in STAPLES:
            if policy != "MUST_STAPLE" or kind:
                made.append(serving(p, f"staple {kind} {policy}", downstream(certificate("server", kind), ocsp_staple_policy=policy)))
    made.append(serving(p, "must-staple outdated", downstream(certificate("must-staple", "outdated"))))
    made.append(serving(p, "must-staple current", downstream(certificate("must-staple", "current"))))
    made.append(serving(p, "staple of the second", downstream(
        certificate("server", "outdated"), certificate("rsa", "current"), ocsp_staple_policy="STRICT_STAPLING")))
    for listener in made:
        if listener["name"] == "slow":
            listener["filter_chains"][0]["transport_socket_connect_timeout"] = "0.4s"
    return bootstrap(p, made)


G = Group(config)
STATS = r"^listener\..*(ssl\.(con|fail|hand|no_|ses|ver|ciph|curv|sig|was)|connect_timeout)"


def case(name, where, **kw):
    def run(t):
        with t.counted(STATS):
            ask(t, where, **kw)
    G.case("tls server: " + name)(run)


for version in ("1.1", "1.2", "1.3"):
    for where in ("defaults", "up to 1.2", "from 1.3", "from 1.0"):
        case(f"{where}: client with {version}", "params: " + where, version=version)
case("only 1.3: client with 1.2", "params: only 1.3", version="1.2")
A, B, CHACHA = "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"
for where, suites in (("defaults", B), ("defaults", f"{B}:{A}"), ("defaults", f"{CHACHA}:{B}"), ("defaults", RSA), ("defaults", "ECDHE-ECDSA-AES128-SHA"),
                      ("one suite", A), ("one suite", f"{A}:{B}"), ("suites in order", f"{A}:{B}:{CHACHA}"), ("suites in order", A),
                      ("suite of RSA", RSA), ("fips", CHACHA), ("fips", f"{CHACHA}:{B}"), ("suites in a group", f"{B}:{CHACHA}"),
                      ("suites in a group", f"{CHACHA}:{A}")):
    case(f"{where}: client with {suites}", "params: " + where, version="1.2", ciphers=suites)
for suites in (f"{B}:{A}", f"{CHACHA}:{A}"):
    for where in ("client's order", "server's order"):
        case(f"{where}: {suites}", where, version="1.2", ciphers=suites)
for curve in ("prime256v1", "secp384r1", "secp521r1", "X25519"):
    for where in ("defaults", "one curve", "two curves", "fips"):
        case(f"{where}: client with {curve}", "params: " + where, curve=curve)
case("one curve: client with another, 1.2", "params: one curve", curve="prime256v1", version="1.2")
for offer in ((), ("h2",), ("http/1.1",), ("h2", "http/1.1"), ("http/1.1", "h2"), ("other",), ("other", "http/1.1")):
    for where in ("alpn none", "alpn both", "alpn h1 first", "alpn h2"):
        case(f"{where}: {' '.join(offer) or 'no'} offered", where, alpn=offer, ask="h2" not in offer)
case("alpn both: h2 spoken", "alpn both", alpn=["h2"], h2=True)
case("alpn both: h1 spoken though h2 was agreed on", "alpn both", alpn=["h2"])
case("alpn both: h2 spoken though h1 was agreed on", "alpn both", alpn=["http/1.1"], h2=True)
case("alpn h2, codec h1: request", "alpn h2, codec h1", alpn=["h2"])
for name in ("a.test", "A.TEST", "b.test", "x.b.test", "y.b.test", "z.y.b.test", "cn.test", "localhost", "none.test", None):
    for where in ("names", "names, wild first"):
        case(f"{where}: {name}", where, sni=name)
for where in ("kinds", "kinds, other order", "names, scanned", "rsa first, no scan"):
    for suites in (ECDSA, RSA, f"{ECDSA}:{RSA}"):
        for name in ("a.test", "none.test", None):
            case(f"{where}: {name} with {suites}", where, sni=name, version="1.2", ciphers=suites)
for where in ("kinds", "kinds, other order", "names, scanned"):
    for name in ("rsa.test", "none.test"):
        case(f"{where}: {name}", where, sni=name)
case("sni required: with", "sni required")
case("sni required: without", "sni required", sni=None)
case("client trusts another authority, 1.3", "params: defaults", ca="other-ca", verify=True)
case("client trusts another authority, 1.2", "params: defaults", ca="other-ca", verify=True, version="1.2")


def odd(name, data, where="slow", wait=3.0, close=False):
    """Bytes that are no handshake, or half of one."""
    @G.case("tls server: " + name, logs=1)
    def _(t):
        with t.counted(STATS):
            conn = t.connect(where)
            conn.send(data)
            if close:
                time.sleep(0.05)
                conn.sock.close()
            else:
                t.note(**{k: v for k, v in conn.end(wait).items() if k != "bytes"})  # alerts are told by the log


odd("plain text", b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n")
odd("plain text, HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
odd("nothing", b"")
odd("half a ClientHello", hello()[:100])
odd("closed at once", b"", close=True)
odd("closed after half a ClientHello", hello()[:100], close=True)
odd("closed after a ClientHello", hello(), close=True)
odd("garbage", b"\x16\x03\x01\x00\x05hello")
odd("a record that is too long", b"\x16\x03\x01\xff\xff" + b"x" * 100)
odd("an alert first", b"\x15\x03\x01\x00\x02\x02\x28")
odd("application data first", b"\x17\x03\x03\x00\x05hello")
odd("an empty record", b"\x16\x03\x01\x00\x00")
odd("ClientHello of SSL 3", b"\x16\x03\x00\x00\x2f\x01\x00\x00\x2b\x03\x00" + b"r" * 32 + b"\x00\x00\x04\x00\x35\x00\x2f\x01\x00")


def resumed(name, where, version, wait=0.0):
    """Two connections; the second one offers the session of the first."""
    @G.case(f"tls server: resumption: {name}, {version}")
    def _(t):
        context, session = client_context(version=version), None
        with t.counted(r"^listener\..*ssl\.(handshake|session)"):
            for _ in range(2):
                conn = ask(t, where, context=context, session=session, keep=True)
                session = getattr(conn.sock, "session", None)
                t.note(ticket=bool(session and session.has_ticket),
                       lifetime=session.ticket_lifetime_hint if session and version == "1.2" else None)
                conn.close()
                time.sleep(wait)


for kind in ("sessions", "sessions, stateful", "sessions, none", "sessions, keys"):
    for version in ("1.2", "1.3"):
        resumed(kind, kind, version)
resumed("short, at once", "sessions, short", "1.2")
resumed("short, at once", "sessions, short", "1.3")
resumed("short, late", "sessions, short", "1.2", 2.1)
resumed("short, late", "sessions, short", "1.3", 2.1)


def stapled(where):
    """What a client that asks for a staple gets."""
    @G.case("tls server: " + where, logs=1)
    def _(t):
        done = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{t.proxy.ports.listener(where)}", "-servername", "a.test", "-status"],
                              input=b"", capture_output=True, timeout=10)
        said = done.stdout.decode("latin-1")
        t.note(staple="successful" if "OCSP Response Status: successful" in said else "none", certificate="BEGIN CERTIFICATE" in said)


for policy in POLICIES:
    for kind in STAPLES:
        if policy != "MUST_STAPLE" or kind:
            stapled(f"staple {kind} {policy}")
for where in ("must-staple outdated", "must-staple current", "staple of the second"):
    stapled(where)
