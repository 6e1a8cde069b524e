"""Names and chains as no honest authority signs them: NULs, wildcards in every place, chains without end."""
from harness.config import bootstrap, cluster, listener, route
from harness.certificates import ODD
from harness.runner import Group
from harness.tls import ask, downstream, file_log, serving, trusting, upstream

LINE = "%RESPONSE_CODE% %RESPONSE_FLAGS% %UPSTREAM_TRANSPORT_FAILURE_REASON% %UPSTREAM_PEER_DNS_SAN% %UPSTREAM_PEER_URI_SAN% %UPSTREAM_PEER_IP_SAN%\n"
FACTS = ("facts dns=%DOWNSTREAM_PEER_DNS_SAN% uri=%DOWNSTREAM_PEER_URI_SAN% ip=%DOWNSTREAM_PEER_IP_SAN% email=%DOWNSTREAM_PEER_EMAIL_SAN% other=%DOWNSTREAM_PEER_OTHERNAME_SAN% "
         "issuer=%DOWNSTREAM_PEER_ISSUER%\n")
CHAINS = ("eighth", "fortieth", "padded", "heavy")
UPN = "1.3.6.1.4.1.311.20.2.3"


def san(kind, **fields):
    oid = fields.pop("oid", None)
    return trusting(match_typed_subject_alt_names=[{"san_type": kind, "matcher": fields, **({"oid": oid} if oid else {})}])


# What a client's certificate must have.
WANTED = {
    "dns a.test": san("DNS", exact="a.test"), "dns suffix": san("DNS", suffix=".test"), "dns evil": san("DNS", suffix=".evil.test"),
    "dns x.w.test": san("DNS", exact="x.w.test"), "dns star": san("DNS", exact="*.w.test"), "dns any": san("DNS", safe_regex={"regex": ".*"}),
    "uri": san("URI", exact="spiffe://td/one"), "uri prefix": san("URI", prefix="spiffe://td/"),
    "email": san("EMAIL", exact="me@a.test"), "email suffix": san("EMAIL", suffix="@evil.test"),
    "ip": san("IP_ADDRESS", exact="127.0.0.1"), "ip6": san("IP_ADDRESS", exact="::1"),
    "other name": san("OTHER_NAME", exact="me@td.test", oid=UPN), "other name of another kind": san("OTHER_NAME", exact="me@td.test", oid="1.2.3"),
    "other name prefix": san("OTHER_NAME", prefix="me@", oid=UPN),
}
# The names that are asked for from servers whose certificate must cover them.
def asked_of(server):
    return ("a.test", "w.test", "x.w.test", "y.x.w.test", "test") if server.startswith("star") else ("a.test",)


def config(p):
    made = [serving(p, "chains", downstream("server", validation=trusting(), require_client_certificate=True),
                    access_log=[file_log(p, FACTS)], forward_client_cert_details="SANITIZE_SET",
                    set_current_client_cert_details={"dns": True, "uri": True, "subject": True})]
    made += [serving(p, name, downstream("server", validation=wanted, require_client_certificate=True)) for name, wanted in WANTED.items()]
    made += [serving(p, "own " + name, downstream(name, "server"))
             for name in ("star", "star-tld", "star-name", "star-part", "star-inside", "star-two", "nul-dns", "dot", "upper", "fortieth")]
    params = {"tls_maximum_protocol_version": "TLSv1_3"}
    clusters, routes = [], []
    for server in PLAIN:
        port = p.secure(server.upper(), cert=server)
        for asked in asked_of(server):
            name = f"{server}.{asked}"
            clusters.append(cluster(name, port, transport_socket=upstream(
                validation=trusting(), sni=asked, auto_sni_san_validation=True, params=params)))
            routes.append(route({"path": "/" + name}, name))
    made.append(listener(p, routes, access_log=[file_log(p, LINE)]))
    return bootstrap(p, made, clusters)


G = Group(config)


def shown(name, where, who):
    @G.case(f"tls names: {name}: {who}")
    def _(t):
        with t.counted(r"^listener\..*ssl\.(con|fail|hand|no_)"):
            ask(t, where, cert=who)


STARS = [name for name in ODD if name.startswith("star")]
ADDRESSES, OTHERS = ("address", "address-as-dns", "short-address", "address6"), ("other-name", "other-name-ascii", "upper")
# Of those whose log lines differ by the names that are no names, one for each matcher.
BAD = ("nul-first", "nul-uri", "nul-email", "line-end", "not-utf8")
PLAIN = [name for name in (*ODD, *CHAINS) if name not in BAD]
TRIED = {
    "dns a.test": PLAIN, "dns suffix": ("nul-dns", "nul-beside", "spaces", "dot", "upper"), "dns evil": ("nul-dns", "nul-beside"),
    "dns x.w.test": STARS, "dns star": STARS, "dns any": ("nul-beside", "line-end", "not-ascii", "not-utf8", "empty-dns", "address"),
    "uri": ("nul-uri", "star-uri"), "uri prefix": ("nul-uri", "star-uri"), "email": ("nul-email",), "email suffix": ("nul-email",),
    "ip": ADDRESSES, "ip6": ADDRESSES, "other name": OTHERS, "other name of another kind": OTHERS, "other name prefix": OTHERS}
for who in (*ODD, *CHAINS):
    shown("told", "chains", who)
for wanted, tried in TRIED.items():
    for who in tried:
        shown(wanted, wanted, who)
for where in ("star", "star-tld", "star-name", "star-part", "star-inside", "star-two", "nul-dns", "dot", "upper", "fortieth"):
    for sni in ("a.test", "x.w.test", "xy.w.test", "test", "y.x.w.test", "a.w.test"):
        @G.case(f"tls names: own {where}: {sni}")
        def _(t, where=where, sni=sni):
            ask(t, "own " + where, sni=sni)
for server in PLAIN:
    for asked in asked_of(server):
        @G.case(f"tls names: server {server}: {asked}")
        def _(t, server=server, asked=asked):
            path = f"{server}.{asked}"
            with t.counted(rf"^cluster\.{path.replace('.', '.')}\.(ssl\.(con|fail|hand)|upstream_cx_connect_fail)"):
                t.get("/" + path)
