"""What is told of TLS: x-forwarded-client-cert, format operators, redirects to https, chains by server name."""
from harness.config import TYPE, bootstrap, cluster, host, listener, route
from harness.runner import Group
from harness.tls import ask, downstream, file_log, serving, trusting

MODES = ("SANITIZE", "FORWARD_ONLY", "APPEND_FORWARD", "SANITIZE_SET", "ALWAYS_FORWARD_ONLY")
DETAILS = {"none": {}, "subject": {"subject": True}, "cert": {"cert": True}, "chain": {"chain": True}, "dns": {"dns": True}, "uri": {"uri": True},
           "all": {"subject": True, "cert": True, "chain": True, "dns": True, "uri": True}}
OPERATORS = ("TLS_VERSION TLS_CIPHER TLS_GROUP PEER_SUBJECT PEER_ISSUER PEER_SERIAL PEER_FINGERPRINT_256 PEER_FINGERPRINT_1 PEER_CERT_V_START PEER_CERT_V_END "
             "PEER_CERT_V_START(%Y-%m-%d) PEER_URI_SAN PEER_DNS_SAN PEER_IP_SAN PEER_EMAIL_SAN PEER_CERT PEER_CHAIN_FINGERPRINTS_256 "
             "PEER_CHAIN_FINGERPRINTS_1 PEER_CHAIN_SERIALS LOCAL_SUBJECT LOCAL_URI_SAN LOCAL_DNS_SAN LOCAL_IP_SAN LOCAL_EMAIL_SAN LOCAL_OTHERNAME_SAN PEER_OTHERNAME_SAN "
             "TRANSPORT_FAILURE_REASON").split()
INSPECTOR = {"name": "tls", "typed_config": {"@type": TYPE + "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"}}


def config(p):
    socket = downstream("server", validation=trusting())
    both = downstream("server", "b", alpn=["h2", "http/1.1"])
    lines = "facts %REQUESTED_SERVER_NAME%" + "".join(f" {o.split('(')[0]}=%DOWNSTREAM_{o}%" for o in OPERATORS) + "\n"
    secured = [host([route("/", "up")], ["ext.test"], "ext", require_tls="EXTERNAL_ONLY"),
               host([route("/", "up")], ["all.test"], "all", require_tls="ALL"),
               host([route({"prefix": "/"}, redirect={"https_redirect": True})], ["https.test"], "https"),
               host([route("/", "up")], ["*"], "none")]
    made = [serving(p, "mode " + mode, socket, forward_client_cert_details=mode) for mode in MODES]
    made += [serving(p, "details " + name, socket, forward_client_cert_details="SANITIZE_SET", set_current_client_cert_details=details)
             for name, details in DETAILS.items()]
    made += [
        serving(p, "append all", socket, forward_client_cert_details="APPEND_FORWARD", set_current_client_cert_details=DETAILS["all"]),
        serving(p, "untrusted set", downstream("server", validation=trusting(trust_chain_verification="ACCEPT_UNTRUSTED")),
                forward_client_cert_details="SANITIZE_SET", set_current_client_cert_details={"uri": True}),
        serving(p, "operators", socket, access_log=[file_log(p, lines)]),
        serving(p, "rsa operators", downstream("rsa", validation=trusting()), access_log=[file_log(p, lines)]),
        serving(p, "secured", downstream("server"), routes=secured),
        serving(p, "secured outside", downstream("server"), routes=secured, use_remote_address=True),
        listener(p, secured, "plain"), listener(p, secured, "plain outside", use_remote_address=True),
    ]
    shown = [route({"prefix": "/", "tls_context": wanted}, direct_response={"status": 200, "body": {"inline_string": text}}) for text, wanted in (
        ("validated", {"presented": True, "validated": True}), ("presented", {"presented": True}), ("neither", {"presented": False, "validated": False}))]
    made += [serving(p, "shown", socket, routes=shown), listener(p, shown, "plain shown"),
             serving(p, "shown unasked", downstream("server"), routes=shown)]
    # One port: terminated by name, passed through by name, plain text, and what the default takes.
    mixed = listener(p, [route("/", "up")], "mixed")
    terminated = mixed["filter_chains"][0]

    def passing(cluster):
        return [{"name": "tcp", "typed_config": {
            "@type": TYPE + "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "tcp", "cluster": cluster,
            "access_log": [file_log(p, "passed %REQUESTED_SERVER_NAME% %UPSTREAM_CLUSTER% %RESPONSE_FLAGS%\n")]}}]
    mixed["listener_filters"] = [INSPECTOR]
    mixed["filter_chains"] = [
        {**terminated, "name": "terminated", "filter_chain_match": {"server_names": ["a.test", "*.b.test"]}, "transport_socket": both},
        {"name": "passed", "filter_chain_match": {"server_names": ["pass.test", "*.pass.test"]}, "filters": passing("pass")},
        {"name": "dead", "filter_chain_match": {"server_names": ["dead.test"]}, "filters": passing("dead")},
        {**terminated, "name": "plain", "filter_chain_match": {"transport_protocol": "raw_buffer"}},
    ]
    mixed["default_filter_chain"] = {"name": "rest", "filters": passing("rest")}
    # 421 as control planes ask for it: a virtual host of its own for what the chain's names do not cover.
    misdirected = serving(p, "misdirected", downstream("b"), routes=[
        host([route("/", "up")], ["x.b.test"], "mine"), host([route({"prefix": "/"}, direct_response={"status": 421})], ["*"], "others")])
    made += [mixed, misdirected]
    return bootstrap(p, made, [cluster("pass", p.secure("PASS", cert="rsa")), cluster("rest", p.secure("REST", cert="ip"))])


G = Group(config)


def case(name, where, *headers, logs=None, **kw):
    def run(t):
        if where.startswith("plain"):
            t.get("/x?y", *headers, listener=where, host=kw.get("host", "a.test"))
        else:
            ask(t, where, "/x?y", *headers, **kw)
    G.case("tls facts: " + name, logs=logs)(run)


THEIRS = 'x-forwarded-client-cert: By=spiffe://other;Hash=ab;Subject="CN=x,O=y";URI=spiffe://z'
for mode in MODES:
    for who in (None, "client"):
        for header in ((), (THEIRS,), (THEIRS, "x-forwarded-client-cert: Hash=cd")):
            case(f"{mode}: {who or 'no certificate'}, {len(header)} headers", "mode " + mode, *header, cert=who)
for name in DETAILS:
    for who in ("client", "two-uris", "nameless", "deep"):
        case(f"details {name}: {who}", "details " + name, cert=who)
case("append all", "append all", THEIRS, cert="client")
for who in (None, "client", "other"):
    case(f"untrusted set: {who or 'no certificate'}", "untrusted set", THEIRS, cert=who)
for who in (None, "client", "two-uris", "nameless", "deep"):
    for version in ("1.2", "1.3"):
        case(f"operators: {who or 'no certificate'}, {version}", "operators", cert=who, version=version)
case("operators: local RSA", "rsa operators", cert="client")
for where in ("secured", "secured outside", "plain", "plain outside"):
    for name in ("ext.test", "all.test", "https.test", "other.test"):
        case(f"require_tls: {name} on {where}", where, host=name)
    case(f"require_tls: all.test on {where}, client says http", where, "x-forwarded-proto: http", host="all.test")
    case(f"require_tls: all.test on {where}, client says https", where, "x-forwarded-proto: https", host="all.test")
for who in (None, "client"):
    for where in ("shown", "plain shown", "shown unasked"):
        case(f"routed by certificate: {who or 'none'} to {where}", where, cert=who)
for name in ("x.b.test", "y.b.test", "a.test"):
    case(f"misdirected: {name}", "misdirected", host=name, sni="x.b.test")


def mixed(name, sni, logs=1, **kw):
    @G.case(f"tls facts: one port: {name}", logs=logs)
    def _(t):
        conn = t.tls(listener="mixed", sni=sni, host="pass.test", **kw)
        conn.told.pop("reason", None)  # a reset or a close
        conn.close()


for name in ("a.test", "A.test", "x.b.test", "pass.test", "x.pass.test", "none.test", None):
    mixed(f"{name}", name)
mixed("a.test, h2", "a.test", alpn=["h2"], h2=True)
mixed("pass.test, offering h2", "pass.test", alpn=["h2", "http/1.1"])
mixed("dead.test", "dead.test")


@G.case("tls facts: one port: plain text")
def _(t):
    t.get("/", listener="mixed")


@G.case("tls facts: one port: b.test, renamed inside", logs=1)
def _(t):
    """The name of the request decides the route, not the chain: no second choice is made."""
    t.tls(listener="mixed", sni="x.b.test", host="a.test").close()
