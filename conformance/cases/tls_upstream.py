"""TLS as a client: what an upstream's certificate must be, what it sees, and how failures are told."""
from harness.certificates import certificates
from harness.config import bootstrap, cluster, listener, route
from harness.runner import Group
from harness.tls import file_log, trusting, upstream

LINE = "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %UPSTREAM_TRANSPORT_FAILURE_REASON%\n"
BOTH = {"tls_maximum_protocol_version": "TLSv1_3"}


def san(kind, **matcher):
    return {"san_type": kind, "matcher": matcher}


def config(p):
    c = certificates()
    servers = {name: p.secure(name.upper(), cert=name) for name in
               ("server", "rsa", "expired", "not-yet", "other", "self-signed", "deep", "client-only", "revoked", "nameless")}
    old = p.secure("OLD", cert="server", version="1.2")
    mutual = p.secure("MUTUAL", cert="server", ca="ca", version="1.2")
    h2 = p.secure("H2TLS", cert="server", alpn=["h2"])
    plain = {"trusted": trusting(), "none": None, "other": trusting("other-ca"), "untrusted": trusting("other-ca", trust_chain_verification="ACCEPT_UNTRUSTED"),
             "crl": trusting(crl={"filename": c.path("ca", "crl")}), "depth 1": trusting(max_verify_depth=1), "expired too": trusting(allow_expired_certificate=True)}
    made = {f"{name} {kind}": (port, upstream(validation=validation, sni="a.test"))
            for name, port in servers.items() for kind, validation in plain.items()}
    names = {
        "dns": san("DNS", exact="a.test"), "other dns": san("DNS", exact="b.test"), "uri": san("URI", exact="spiffe://td/server"),
        "other uri": san("URI", prefix="spiffe://other/"), "suffix": san("DNS", suffix=".test"), "ip": san("IP_ADDRESS", exact="127.0.0.1")}
    for name, matcher in names.items():
        made["names " + name] = (servers["server"], upstream(validation=trusting(match_typed_subject_alt_names=[matcher]), sni="a.test"))
    made.update({
        "no sni": (servers["server"], upstream(validation=trusting())),
        "sni": (servers["server"], upstream(validation=trusting(), sni="named.test")),
        "auto validation": (servers["server"], upstream(validation=trusting(), sni="a.test", auto_sni_san_validation=True)),
        "auto validation of another": (servers["server"], upstream(validation=trusting(), sni="b.test", auto_sni_san_validation=True)),
        "hash": (servers["server"], upstream(validation=trusting(verify_certificate_hash=[c.hash("server")]))),
        "other hash": (servers["server"], upstream(validation=trusting(verify_certificate_hash=[c.hash("rsa")]))),
        "key": (servers["server"], upstream(validation={"verify_certificate_spki": [c.spki("server")]})),
        "other key": (servers["server"], upstream(validation={"verify_certificate_spki": [c.spki("rsa")]})),
        "old": (old, upstream(validation=trusting())),
        "old but 1.3": (old, upstream(validation=trusting(), params={"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"})),
        "mutual": (mutual, upstream("client", validation=trusting())),
        "mutual without": (mutual, upstream(validation=trusting())),
        "mutual with another": (mutual, upstream("other", validation=trusting())),
        "to plain text": (p.up, upstream(validation=trusting())),
        "to nobody": (p.dead, upstream(validation=trusting())),
    })
    for name, (_, socket) in made.items():
        # Alerts about our certificate come within the handshake only before TLS 1.3.
        socket["typed_config"]["common_tls_context"].setdefault("tls_params", {} if name.startswith("mutual") else BOTH)
    made["defaults"] = (servers["server"], upstream(validation=trusting()))
    clusters = [cluster(name.replace(" ", "-"), port, transport_socket=socket, connect_timeout="1s") for name, (port, socket) in made.items()]
    clusters.append(cluster("h2", h2, h2=True, transport_socket=upstream(validation=trusting(), alpn=["h2"], params=BOTH)))
    routes = [route({"path": "/" + c["name"]}, c["name"]) for c in clusters]
    return bootstrap(p, [listener(p, routes, access_log=[file_log(p, LINE)])], clusters)


G = Group(config)


def case(name):
    path = name.replace(" ", "-")

    @G.case("tls upstream: " + name, blind=name == "to plain text")
    def _(t):
        with t.counted(rf"^cluster\.{path}\.(ssl\.(con|fail|hand|no_)|upstream_cx_connect_fail|upstream_cx_total|upstream_cx_none)"):
            t.get("/" + path)


for server in ("server", "rsa", "expired", "not-yet", "other", "self-signed", "deep", "client-only", "revoked", "nameless"):
    for kind in ("trusted", "none"):
        case(f"{server} {kind}")
for server in ("server", "expired", "other"):
    for kind in ("other", "untrusted", "expired too"):
        case(f"{server} {kind}")
for kind in ("crl", "depth 1"):
    for server in ("server", "revoked", "deep"):
        case(f"{server} {kind}")
for name in ("names dns", "names other dns", "names uri", "names other uri", "names suffix", "names ip", "no sni", "sni", "auto validation",
             "auto validation of another", "hash", "other hash", "key", "other key", "old", "old but 1.3", "mutual", "mutual without",
             "mutual with another", "to plain text", "to nobody", "h2", "defaults"):
    case(name)
