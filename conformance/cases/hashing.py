"""Consistent hashing: the same request goes to the same host. The hosts refuse connections; the log tells them."""
import re

from harness.config import TYPE, bootstrap, cluster, host, listener, route
from harness.runner import Group

LBS = TYPE + "envoy.extensions.load_balancing_policies."
WEIGHTS = [1, 1, 2, 1, 5, 1, 3]


def typed(kind, **fields):
    name, message = kind.split(".")
    return {"policies": [{"typed_extension_config": {"name": name, "typed_config": {
        "@type": f"{LBS}{name}.v3.{message}", **fields}}}]}


def endpoint(number, weight=1, **fields):
    address = {"socket_address": {"address": f"127.0.0.{number}", "port_value": 9}}
    return {"endpoint": {"address": address, "hostname": f"host{number}"}, "load_balancing_weight": weight, **fields}


def hashed(name, localities=None, **fields):
    made = cluster(name, **fields)
    made["load_assignment"]["endpoints"] = localities or [{"lb_endpoints": [endpoint(n, w) for n, w in enumerate(WEIGHTS, 2)]}]
    return made


def sick(*numbers):
    return [endpoint(n, health_status="UNHEALTHY" if n in numbers else "HEALTHY") for n in range(2, 8)]


LABELLED = [endpoint(n, metadata={"filter_metadata": {"envoy.lb": {"hash_key": f"key{n}"}}}) for n in range(2, 8)]
LOCALITIES = [{"locality": {"region": r}, "lb_endpoints": [endpoint(n) for n in numbers], **weight} for r, weight, numbers in (
    ("a", {"load_balancing_weight": 1}, (2, 3, 4)), ("b", {"load_balancing_weight": 3}, (5, 6)), ("c", {}, (7,)))]
PRIORITIES = [{"priority": 0, "lb_endpoints": sick(2, 3, 4, 5)},
              {"priority": 1, "locality": {"region": "b"}, "lb_endpoints": [endpoint(n) for n in (12, 13, 14)]}]
RING = {"lb_policy": "RING_HASH"}
MAGLEV = {"lb_policy": "MAGLEV"}
CLUSTERS = {
    "ring": RING, "maglev": MAGLEV,
    "small": {**RING, "ring_hash_lb_config": {"minimum_ring_size": 8, "maximum_ring_size": 64}},
    "murmur": {**RING, "ring_hash_lb_config": {"hash_function": "MURMUR_HASH_2"}},
    "prime": {**MAGLEV, "maglev_lb_config": {"table_size": 101}},
    "typedring": {"load_balancing_policy": typed("ring_hash.RingHash", minimum_ring_size=100)},
    "typedmaglev": {"load_balancing_policy": typed("maglev.Maglev", table_size=211)},
    "hostnames": {**RING, "type": "STRICT_DNS", "common_lb_config": {"consistent_hashing_lb_config": {"use_hostname_for_hashing": True}}},
    "hostmaglev": {**MAGLEV, "type": "STRICT_DNS", "common_lb_config": {"consistent_hashing_lb_config": {"use_hostname_for_hashing": True}}},
    "labels": {**RING, "localities": [{"lb_endpoints": LABELLED}]},
    "localring": {**RING, "localities": LOCALITIES, "common_lb_config": {"locality_weighted_lb_config": {}}},
    "localmaglev": {**MAGLEV, "localities": LOCALITIES, "common_lb_config": {"locality_weighted_lb_config": {}}},
    "priorities": {**RING, "localities": PRIORITIES},
    "panic": {**MAGLEV, "localities": [{"lb_endpoints": sick(2, 3, 4, 5)}]},
    "sick": {**MAGLEV, "localities": [{"lb_endpoints": sick(2, 3)}]},
}


def config(p):
    def by(*policies, cluster="ring", **more):
        return {"cluster": cluster, "hash_policy": list(policies), **more}
    key = {"header": {"header_name": "x-key"}}
    cookie = {"name": "session", "ttl": "60s", "path": "/p", "attributes": [{"name": "SameSite", "value": "Strict"}, {"name": "Secure"}]}
    retry = {"retry_on": "connect-failure", "num_retries": 3, "retry_back_off": {"base_interval": "0.001s"},
             "host_selection_retry_max_attempts": 3, "retry_host_predicate": [
                 {"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {
                     "@type": TYPE + "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}]}
    routes = [route(f"/{name}", by(key, cluster=name)) for name in CLUSTERS] + [
        route("/lines", by({"header": {"header_name": "x-line"}}, key)),
        route("/method", by({"header": {"header_name": ":path"}})),
        route("/rewrite", by({"header": {"header_name": "x-key", "regex_rewrite": {
            "pattern": {"regex": "[0-9]"}, "substitution": "n"}}})),
        route("/cookie", by({"cookie": {"name": "session"}}, key)),
        route("/made", by({"cookie": cookie})),
        route("/ofsession", by({"cookie": {"name": "session", "ttl": "0s"}})),
        route("/answered", {"cluster": "up", "hash_policy": [{"cookie": cookie}]}),
        route("/alive", {"cluster": "alive", "hash_policy": [{"cookie": cookie}]}),
        route("/alivesession", {"cluster": "alive", "hash_policy": [{"cookie": {"name": "session", "ttl": "0s"}}]}),
        route("/ip", by({"connection_properties": {"source_ip": True}})),
        route("/query", by({"query_parameter": {"name": "k"}})),
        route("/both", by(key, {"query_parameter": {"name": "k"}})),
        route("/twice", by(key, key)),
        route("/terminal", by({**key, "terminal": True}, {"query_parameter": {"name": "k"}})),
        route("/retryring", by(key, retry_policy=retry)),
        route("/retrymaglev", by(key, cluster="maglev", retry_policy=retry)),
    ]
    log = [{"name": "envoy.access_loggers.file", "typed_config": {
        "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": p.log,
        "log_format": {"text_format_source": {"inline_string": "%REQ(x-key)% %REQ(:path)% %UPSTREAM_HOST%\n"}}}}]
    clusters = [hashed(name, **fields) for name, fields in CLUSTERS.items()]
    return bootstrap(p, [listener(p, [host(routes)], access_log=log)],
                     [*clusters, cluster("alive", p.up, lb_policy="RING_HASH")])


G = Group(config)


def spread(name, path, count=24, *headers):
    """Requests that differ in one header; the log, sorted, says where each went."""
    @G.case("hashing: " + name, logs=count)
    def _(t):
        for number in range(count):
            t.get(path, f"x-key: {number}", *headers)


def one(name, path, *headers):
    G.case("hashing: " + name, logs=1)(lambda t: t.get(path, *headers))


for NAME in CLUSTERS:
    spread(f"by header, {NAME}", f"/{NAME}")
spread("retries on other hosts of a ring", "/retryring", 12)
spread("retries on other hosts of Maglev", "/retrymaglev", 12)
spread("two policies that are equal", "/twice", 12)
spread("header and query", "/both?k=v", 12)
spread("terminal", "/terminal?k=v", 12)
spread("rewritten header", "/rewrite", 12)
spread("source IP", "/ip", 4)
spread("header in two lines", "/lines", 12, "x-line: b", "x-line: a")
spread("header in two lines, the other way round", "/lines", 12, "x-line: a", "x-line: b")
one("path", "/method/a")
one("terminal without a hash", "/terminal?k=v")
one("query", "/query?a=1&k=value&k=other")
one("query, escaped", "/query?k=a%20b")
one("cookie", "/cookie", "cookie: a=1; session=abc")
one("cookie, quoted", "/cookie", 'cookie: session="abc"')
one("cookie in the second line", "/cookie", "cookie: a=1", "cookie: session=abc")
one("no cookie, but a header", "/cookie", "x-key: 1")


@G.case("hashing: no cookie is made where nothing is hashed")
def _(t):
    t.get("/answered")


def made(name, path, *headers):
    @G.case("hashing: " + name)
    def _(t):
        t.get(path, *headers)
        # The value depends on the client's port; its form is compared.
        for header in t.record[-1]["headers"]:
            header[-1] = re.sub("[0-9a-f]{16}", lambda m: "<16 hex digits>", header[-1])


made("a cookie is made for a client without one", "/alive")
made("a session cookie is made", "/alivesession")
made("no cookie is made for a client with one", "/alive", "cookie: session=x")


@G.case("hashing: a client's own cookie is kept")
def _(t):
    t.get("/made", "cookie: session=mine")
