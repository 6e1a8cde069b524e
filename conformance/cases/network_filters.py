"""Network filters before the TCP proxy and the connection manager: access control and connection limits."""
import time

from harness.config import TYPE, bootstrap, cluster as host, listener, route
from harness.runner import Group

EXT = TYPE + "envoy.extensions.filters."
RBAC = EXT + "network.rbac.v3.RBAC"
FORMAT = ("%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% %BYTES_RECEIVED% %BYTES_SENT% "
          "metadata %DYNAMIC_METADATA(envoy.filters.network.rbac)% %DYNAMIC_METADATA(envoy.common)% %UPSTREAM_CLUSTER%\n")
REQUEST = b"GET /some/path HTTP/1.1\r\nhost: a.test\r\n\r\n"
ANY = [{"any": True}]
LOCAL = {"address_prefix": "127.0.0.0", "prefix_len": 8}
OTHER = {"address_prefix": "10.0.0.0", "prefix_len": 8}


def policy(permissions=ANY, principals=ANY):
    return {"permissions": permissions, "principals": principals}


def rules(action, **policies):
    return {"action": action, "policies": policies}


def can(permission):
    return rules("ALLOW", it=policy([permission]))


def who(principal):
    return rules("ALLOW", it=policy(principals=[principal]))


def text(**how):
    return {"url_path": {"path": how}}


def met(value, key="alpn"):
    return {"filter": "envoy.filters.listener.proxy_protocol", "path": [{"key": key}], "value": {"string_match": {"exact": value}}}


# Name: what is configured. Every one stands before a TCP proxy; some before a connection manager, too.
RULES = {
    "allow all": {"rules": rules("ALLOW", everybody=policy())},
    "deny all": {"rules": rules("DENY", everybody=policy())},
    "none": {},
    "empty": {"rules": {}},
    "empty deny": {"rules": rules("DENY")},
    "log": {"rules": rules("LOG", everybody=policy())},
    "log nobody": {"rules": rules("LOG", nobody=policy(principals=[{"remote_ip": OTHER}]))},
    "first by name": {"rules": rules("DENY", **{"b b": policy(), "a\ta c": policy(), "c": policy()})},
    "shadow deny": {"shadow_rules": rules("DENY", everybody=policy())},
    "shadow allow": {"shadow_rules": rules("ALLOW", everybody=policy())},
    "shadow nobody": {"shadow_rules": rules("ALLOW", nobody=policy(principals=[{"remote_ip": OTHER}]))},
    "shadow log": {"shadow_rules": rules("LOG", everybody=policy())},
    "shadow with prefix": {"shadow_rules": rules("DENY", everybody=policy()), "shadow_rules_stat_prefix": "trial_", "rules": rules("ALLOW", everybody=policy())},
    "plain prefix": {"rules": rules("ALLOW", a=policy()), "shadow_rules": rules("ALLOW", a=policy()), "stat_prefix": "plain", "shadow_rules_stat_prefix": "plain"},
    "both deny": {"shadow_rules": rules("DENY", a=policy()), "rules": rules("DENY", b=policy())},
    "delayed": {"rules": rules("DENY", everybody=policy()), "delay_deny": "0.3s"},
    "continuous": {"rules": rules("ALLOW", everybody=policy()), "shadow_rules": rules("DENY", everybody=policy()), "enforcement_type": "CONTINUOUS"},
    "destination here": {"rules": can({"destination_ip": LOCAL})},
    "destination elsewhere": {"rules": can({"destination_ip": OTHER})},
    "port 1": {"rules": can({"destination_port": 1})},
    "port not 1": {"rules": can({"not_rule": {"destination_port": 1}})},
    "port range": {"rules": can({"destination_port_range": {"start": 15000, "end": 31000}})},
    "low port range": {"rules": can({"destination_port_range": {"start": 1, "end": 15000}})},
    "and": {"rules": can({"and_rules": {"rules": [{"any": True}, {"destination_port": 1}]}})},
    "or": {"rules": can({"or_rules": {"rules": [{"any": True}, {"destination_port": 1}]}})},
    "no server name": {"rules": can({"requested_server_name": {"exact": ""}})},
    "server name": {"rules": can({"requested_server_name": {"exact": "a.test"}})},
    "path": {"rules": can(text(prefix="/"))},
    "not path": {"rules": can({"not_rule": text(prefix="/")})},
    "source": {"rules": who({"source_ip": LOCAL})},
    "remote": {"rules": who({"remote_ip": LOCAL})},
    "direct remote": {"rules": who({"direct_remote_ip": LOCAL})},
    "remote elsewhere": {"rules": who({"remote_ip": OTHER})},
    "not remote": {"rules": who({"not_id": {"remote_ip": LOCAL}})},
    "and ids": {"rules": who({"and_ids": {"ids": [{"remote_ip": LOCAL}, {"remote_ip": OTHER}]}})},
    "or ids": {"rules": who({"or_ids": {"ids": [{"remote_ip": LOCAL}, {"remote_ip": OTHER}]}})},
    "authenticated": {"rules": who({"authenticated": {}})},
    "principal path": {"rules": who(text(exact="/some/path"))},
    "metadata": {"rules": who({"metadata": met("h2")})},
    "metadata other": {"rules": who({"metadata": met("h3")})},
    "sourced metadata": {"rules": who({"sourced_metadata": {"metadata_matcher": met("h2")}})},
    "route metadata": {"rules": can({"sourced_metadata": {"metadata_matcher": met("h2"), "metadata_source": "ROUTE"}})},
    "permission metadata": {"rules": can({"metadata": met("h2")})},
    "inverted metadata": {"rules": can({"metadata": {**met("h3"), "invert": True}})},
    "filter state": {"rules": who({"filter_state": {"key": "nothing", "string_match": {"prefix": "a"}}})},
}
OVER_HTTP = ("allow all", "deny all", "delayed", "path", "continuous", "shadow deny")
METADATA = [n for n in RULES if "metadata" in n]


def log(p):
    return [{"name": "envoy.access_loggers.file", "typed_config": {
        "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": p.log,
        "log_format": {"text_format_source": {"inline_string": FORMAT}}}}]


def tcp(p, name, *before, cluster="up", **fields):
    made = {**listener(p, [route("/", cluster)], name), "stat_prefix": name.replace(" ", "_")}
    made["filter_chains"] = [{"filters": [*before, {"name": "tcp", "typed_config": {
        "@type": EXT + "network.tcp_proxy.v3.TcpProxy", "stat_prefix": "t", "cluster": cluster, "access_log": log(p), **fields}}]}]
    return made


def rbac(name, config):
    return {"name": "rbac", "typed_config": {"@type": RBAC, "stat_prefix": name.replace(" ", "_") + ".", **config}}


def config(p):
    proxied = {"name": "proxy", "typed_config": {"@type": EXT + "listener.proxy_protocol.v3.ProxyProtocol", "rules": [
        {"tlv_type": 1, "on_tlv_present": {"key": "alpn"}}]}}
    made = []
    for name, options in RULES.items():
        one = tcp(p, name, rbac(name, options))
        if name in METADATA:
            one["listener_filters"] = [proxied]
        made.append(one)
    for name in OVER_HTTP:
        one = listener(p, [route("/", "up")], "http " + name, access_log=log(p))
        one["filter_chains"][0]["filters"].insert(0, rbac("http_" + name, RULES[name]))
        made.append(one)
    made.append(tcp(p, "two", rbac("two_a", RULES["allow all"]), rbac("two_b", RULES["deny all"])))
    made.append(tcp(p, "two shadows", rbac("s_a", {**RULES["shadow deny"], "shadow_rules_stat_prefix": "a."}), rbac("s_b", RULES["shadow allow"])))
    made.append({**tcp(p, "proxied", rbac("proxied", {"rules": who({"and_ids": {"ids": [{"remote_ip": OTHER}, {"direct_remote_ip": LOCAL}]}})})), "listener_filters": [proxied]})
    speaking = p.raw("speaking", speaks)
    made.append(tcp(p, "server first, delayed", rbac("speaking", {**RULES["delayed"], "delay_deny": "0.7s"}), cluster="speaking"))
    limit = {"@type": EXT + "network.connection_limit.v3.ConnectionLimit"}
    for name, options in LIMITS.items():
        made.append(tcp(p, name, {"name": "limit", "typed_config": {**limit, "stat_prefix": name.replace(" ", "_"), **options}}))
    one = listener(p, [route("/", "up")], "http limit")
    one["filter_chains"][0]["filters"].insert(0, {"name": "limit", "typed_config": {**limit, "stat_prefix": "http", "max_connections": 1}})
    made.append(one)
    made.append(tcp(p, "limit behind", rbac("limit_behind", RULES["allow all"]),
                    {"name": "limit", "typed_config": {**limit, "stat_prefix": "behind", "max_connections": 1}}))
    for name, options in RATES.items():
        made.append(tcp(p, name, {"name": "rate", "typed_config": {
            "@type": EXT + "network.local_ratelimit.v3.LocalRateLimit", "stat_prefix": name.replace(" ", "_"), **options}}))
    one = listener(p, [route("/", "up")], "http rate")
    one["filter_chains"][0]["filters"].insert(0, {"name": "rate", "typed_config": {
        "@type": EXT + "network.local_ratelimit.v3.LocalRateLimit", "stat_prefix": "http_rate", "token_bucket": bucket(1)}})
    made.append(one)
    layers = [{"name": "static", "static_layer": {"rate": {
        "on": True, "off": False, "word": "FALSE", "number": 0}}}, {"name": "admin", "admin_layer": {}}]
    return {**bootstrap(p, made, [host("speaking", speaking)]), "layered_runtime": {"layers": layers}}


def bucket(max, per_fill=1, interval="3600s"):
    return {"max_tokens": max, "tokens_per_fill": per_fill, "fill_interval": interval}


def rated(key, default=True, max=1):
    return {"token_bucket": bucket(max), "runtime_enabled": {"default_value": default, "runtime_key": key}}


RATES = {
    "rate": {"token_bucket": bucket(2)},
    "rate filled": {"token_bucket": bucket(1, 1, "0.4s")},
    "rate off": rated("rate.off"),
    "rate off by default": rated("no.such.key", False),
    "rate on": rated("rate.on", False),
    "rate off by a word": rated("rate.word"),
    "rate off by a number": rated("rate.number"),
    "rate changed": rated("admin.rate", True, 2),
    "rate shared": {"token_bucket": bucket(2), "share_key": "a"},
    "rate shared too": {"token_bucket": bucket(2), "share_key": "a"},
    "rate not shared": {"token_bucket": bucket(3), "share_key": "a"},
}
LIMITS = {
    "limit": {"max_connections": 2},
    "limit delayed": {"max_connections": 1, "delay": "0.3s"},
    "limit off": {"max_connections": 1, "runtime_enabled": {"default_value": False, "runtime_key": "no.such.key"}},
    "limit on": {"max_connections": 1, "runtime_enabled": {"default_value": True, "runtime_key": "no.such.key"}},
}
G = Group(config)
HEADER = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x11" + bytes([10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2]) + b"\1\0\2h2"


def talk(name, where=None, data=REQUEST, logs=1, wait=1.0, http=False, **kw):
    where = where or name

    @G.case("network rbac: " + name, logs=logs, **kw)
    def _(t):
        with t.counted(r"rbac|tcp\.t\.|up\.upstream_cx_total"):
            conn = t.connect(where)
            began = time.monotonic()
            conn.send(data)
            if http:
                t.record.append(conn.response())
            end = conn.end(wait)
            t.note(**end, slow=time.monotonic() - began > 0.25 if end["connection"] != "open" else None)
            conn.close()
            time.sleep(0.1)


for name in RULES:
    talk(name, data=HEADER + REQUEST if name in METADATA else REQUEST, wait=0.3 if name != "delayed" else 1)
for name in OVER_HTTP:
    talk("http " + name, logs=0 if name in ("deny all", "delayed", "path") else 1, wait=0.3, http=True)
talk("two filters", "two")
talk("two shadow filters", "two shadows", wait=0.3)
talk("behind the PROXY protocol", "proxied", HEADER + REQUEST, wait=0.3)


@G.case("network rbac: nothing is said", logs=1)
def _(t):
    with t.counted(r"rbac|tcp\.t\.|up\.upstream_cx_total"):
        conn = t.connect("deny all")
        t.note(**conn.end(0.3))
        conn.close()
        time.sleep(0.1)


def speaks(conn, record):
    """A server that speaks first, and once more."""
    conn.sendall(b"hello")
    time.sleep(0.2)
    conn.sendall(b"again")
    while data := conn.recv(65536):
        record["bytes"] += data.decode("latin-1")


@G.case("network rbac: what the server says while a denial is delayed", logs=1)
def _(t):
    with t.counted(r"rbac|tcp\.t\."):
        conn = t.connect("server first, delayed")
        t.note(before=conn.read(5))
        conn.send(REQUEST)
        t.note(**conn.end(1.5))
        conn.close()
        time.sleep(0.1)


@G.case("network rbac: continuous, twice", logs=1)
def _(t):
    with t.counted(r"rbac|tcp\.t\.|up\.upstream_cx_total"):
        conn = t.connect("continuous")
        for _ in range(2):
            conn.send(REQUEST)
            t.record.append(conn.response())
        conn.close()
        time.sleep(0.1)


def limited(name, where, count, logs, wait=0.2, speak=1, late=False, prefix="connection limit: ", http=False):
    """The first `speak` say something; what is said by those who are refused may come too late, unless that is late."""
    @G.case(prefix + name, logs=logs)
    def _(t):
        def told(conn, speaks):
            t.record.append(conn.response() if http and speaks else conn.end(wait))

        with t.counted("^connection_limit|^local_rate_limit|tcp.t.downstream_cx_total"):
            conns = []
            for i in range(count):
                conns.append(t.connect(where))
                if i < speak:
                    conns[-1].send(REQUEST)
                time.sleep(0.05)
            for i, conn in enumerate(conns):
                told(conn, i < speak)
            for conn in conns:
                conn.close()
            time.sleep(0.1)
        if late:
            with t.counted("^connection_limit|^local_rate_limit"):
                conn = t.connect(where)
                conn.send(REQUEST)
                told(conn, True)
                conn.close()
                time.sleep(0.1)


limited("two of three", "limit", 3, 4, speak=2, late=True)
limited("without a word", "limit", 3, 4, speak=0, late=True)
limited("delayed", "limit delayed", 2, 3, wait=0.6, late=True)
limited("delayed, with a word", "limit delayed", 2, 2, speak=2, wait=0.6)
limited("delayed, gone before", "limit delayed", 3, 4, speak=3, wait=0.05, late=True)
limited("off", "limit off", 2, 3, speak=2, late=True)
limited("on", "limit on", 2, 3, late=True)
limited("before a connection manager", "http limit", 2, 2, late=True, http=True)
limited("behind access control", "limit behind", 2, 3, late=True)
limited("two of four", "rate", 4, 4, speak=2, prefix="network rate limit: ")
limited("off", "rate off", 2, 2, speak=2, prefix="network rate limit: ")
limited("off by default", "rate off by default", 2, 2, speak=2, prefix="network rate limit: ")
limited("on", "rate on", 2, 2, prefix="network rate limit: ")
limited("off by a word", "rate off by a word", 2, 2, prefix="network rate limit: ", speak=2)
limited("off by a number", "rate off by a number", 2, 2, speak=2, prefix="network rate limit: ")
limited("before a connection manager", "http rate", 2, 1, prefix="network rate limit: ", http=True)


@G.case("network rate limit: filled in time", logs=3)
def _(t):
    with t.counted("^local_rate_limit"):
        for wait in (0, 0, 0.6):
            time.sleep(wait)
            conn = t.connect("rate filled")
            t.note(**conn.end(0.1))
            conn.close()
        time.sleep(0.1)


@G.case("network rate limit: switched off and on", logs=5)
def _(t):
    with t.counted("^local_rate_limit"):
        for value in ("", "", "", "false", "true"):
            t.proxy.admin(f"/runtime_modify?admin.rate={value}", "POST")
            time.sleep(0.1)
            conn = t.connect("rate changed")
            t.note(**conn.end(0.1))
            conn.close()
        time.sleep(0.1)


@G.case("network rate limit: shared", logs=8)
def _(t):
    with t.counted("^local_rate_limit"):
        for where in ("rate shared", "rate shared too", "rate shared", "rate shared too", *["rate not shared"] * 4):
            conn = t.connect(where)
            t.note(**conn.end(0.1))
            conn.close()
            time.sleep(0.05)
        time.sleep(0.1)
