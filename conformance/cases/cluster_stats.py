"""What a cluster counts: one cluster for each scenario, so that every number is its own."""
import re
import time

from harness.config import bootstrap, cluster, listener, route
from harness.runner import Group

BREAKERS = {"thresholds": [{"max_requests": 0}]}
SCENARIOS = {}


def config(p):
    retry = {"retry_policy": {"retry_on": "5xx,reset,connect-failure", "num_retries": 1,
                              "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.002s"}}}
    clusters, routes = [], []
    for name, (ports, fields, action, h2) in SCENARIOS.items():
        clusters.append(cluster(name, *[getattr(p, port) for port in ports], h2=h2, **fields))
        action = {**(retry if action.get("retry") else {}), **{k: v for k, v in action.items() if k != "retry"}}
        routes.append(route(f"/{name}", {"cluster": name, **action}))
    return bootstrap(p, [
        listener(p, routes),
        listener(p, routes, "inside", use_remote_address=True, internal_address_config={
            "cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]}),
    ], clusters)


G = Group(config)


def counts(name, cluster, requests=1, ports=("up",), upstream=(), action=None, h2=False, listener="main", **fields):
    SCENARIOS[cluster] = (ports, fields, action or {}, h2)

    @G.case("cluster stats: " + name, upstream)
    def _(t):
        for _ in range(requests):
            t.get(f"/{cluster}", listener=listener)
        time.sleep(0.05)  # connections end after their responses do
        # Not compared: times, bytes (header order and case differ), what Envoy counts inside.
        stats = t.proxy.admin(rf"/stats?usedonly&filter=^cluster\.{cluster}\.")["body"].splitlines()
        t.note(stats=[line for line in stats if not re.search(r"(_ms|_time|_weight|_bytes_\w+|warming_state|total_match_count|high.cx_pool_open|http2.(nghttp2|outbound|pending)\w+):", line)])
        hosts = t.proxy.admin("/clusters")["body"].splitlines()
        t.note(hosts=sorted(line for line in hosts if re.match(rf"{cluster}::.*::(cx|rq)_", line)))


counts("one request", "one")
counts("three on one connection", "three", 3)
counts("404", "missing", upstream=[{"status": 404}])
counts("internal request", "internal", listener="inside")
counts("canary by header", "canary", upstream=[{"headers": [("x-envoy-upstream-canary", "true")]}])
counts("HTTP/2", "two", 2, ("up2",), h2=True)
counts("HTTP/2 reset", "reset2", 1, ("up2",), [{"reset": 2}], h2=True)
counts("connection: close", "close", upstream=[{"headers": [("connection", "close")], "close_after": True}])
counts("connection closed without an answer", "gone", upstream=[{"close": True}])
counts("connection refused", "refused", ports=("dead",))
counts("no endpoints", "none", ports=())
counts("no requests allowed", "full", circuit_breakers=BREAKERS)
counts("no pending requests allowed", "pending", circuit_breakers={"thresholds": [{"max_pending_requests": 0}]})
counts("no connections allowed", "connections", circuit_breakers={"thresholds": [{"max_connections": 0}]})
counts("no pools allowed", "pools", circuit_breakers={"thresholds": [{"max_connection_pools": 0}]})
counts("one pool allowed", "poolone", 2, circuit_breakers={"thresholds": [{"max_connection_pools": 1}]})
counts("one request on a connection", "single", 2, max_requests_per_connection=1)
counts("timeout", "late", upstream=[{"delay": 0.5}], action={"timeout": "0.2s"})
counts("retry succeeds", "again", upstream=[{"status": 503}, {}], action={"retry": True})
counts("retry exhausted", "exhausted", upstream=[{"status": 503}], action={"retry": True})
counts("retry not wanted", "unwanted", action={"retry": True})
counts("retry of a refused connection", "deadretry", ports=("dead",), action={"retry": True})
counts("no retries allowed", "noretry", upstream=[{"status": 503}], action={"retry": True},
       circuit_breakers={"thresholds": [{"max_retries": 0}]})
counts("retry budget of nothing", "nobudget", upstream=[{"status": 503}], action={"retry": True},
       circuit_breakers={"thresholds": [{"retry_budget": {"budget_percent": {"value": 0}, "min_retry_concurrency": 0}}]})
counts("per-try timeout", "pertry", upstream=[{"delay": 0.5}, {}], action={"timeout": "2s", "retry_policy": {
    "retry_on": "5xx", "per_try_timeout": "0.2s", "retry_back_off": {"base_interval": "0.001s"}}})
counts("high priority", "high", action={"priority": "HIGH"}, circuit_breakers={"thresholds": [
    {"priority": "HIGH", "max_requests": 0}]})
