"""The router filter's own options, and the clusters that routes may name."""
from harness.config import TYPE, bootstrap, host, listener, route
from harness.runner import Group

STRICT = ["x-envoy-upstream-rq-timeout-ms", "x-envoy-upstream-rq-per-try-timeout-ms", "x-envoy-max-retries", "x-envoy-retry-on",
          "x-envoy-retry-grpc-on"]
INSIDE = {"internal_address_config": {"cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]},
          "use_remote_address": True}


def config(p):
    routes = [route("/rewritten", {"prefix_rewrite": "/new", "host_rewrite_literal": "new.test"}),
              route("/gone", {"cluster": "nowhere"}),
              route("/empty", {"cluster": "empty"}),
              route("/retry", {"retry_policy": {"retry_on": "5xx", "num_retries": 1}}),
              route("/direct", direct_response={"status": 200, "body": {"inline_string": "d"}}),
              route("/slow", {"timeout": "5s"}),
              route("/", "up")]
    hosts = [host(routes, include_request_attempt_count=True, include_attempt_count_in_response=True)]

    def on(name, **options):
        made = listener(p, hosts, name, route_config={"validate_clusters": False}, **INSIDE)
        manager = made["filter_chains"][0]["filters"][0]["typed_config"]
        manager["http_filters"][-1]["typed_config"].update(options)
        return made
    return bootstrap(p, [
        on("main"), on("suppress", suppress_envoy_headers=True), on("strict", strict_check_headers=STRICT),
        on("respect", respect_expected_rq_timeout=True), on("static", dynamic_stats=False, start_child_span=True),
        on("codec", upstream_http_filters=[{"name": "envoy.filters.http.upstream_codec", "typed_config": {
            "@type": TYPE + "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec"}}]),
    ])


G = Group(config)


def get(name, *args, upstream=(), **kw):
    G.case("router: " + name, upstream)(lambda t: t.get(*args, **kw))


for where in ("main", "suppress"):
    for path in ("/", "/rewritten/x", "/gone", "/empty", "/direct", "/retry"):
        get(f"envoy headers of {path} on {where}", path, listener=where, upstream=[{"status": 503}, {}] if path == "/retry" else [
            {"headers": [("x-envoy-overloaded", "true"), ("x-envoy-ratelimited", "1"), ("x-envoy-own", "1")]}])
for where in ("strict", "main"):
    for name in STRICT:
        for value in ("12", "5xx", "gateway-error,reset", "cancelled", "bad", ""):
            get(f"{name}: {value} on {where}", "/", f"{name}: {value}", listener=where)
    for path in ("/direct", "/gone", "/nothing-but-slash"):
        get(f"bad header to {path} on {where}", path, "x-envoy-max-retries: many", listener=where)
get("two bad headers", "/", "x-envoy-retry-on: bad", "x-envoy-max-retries: many", listener="strict")
for where in ("respect", "main"):
    get(f"expected timeout on {where}", "/slow", "x-envoy-expected-rq-timeout-ms: 200", listener=where, upstream=[{"delay": 0.5}])
    get(f"expected and own timeout on {where}", "/slow", "x-envoy-expected-rq-timeout-ms: 200", "x-envoy-upstream-rq-timeout-ms: 900",
        listener=where)
    get(f"expected timeout that is none on {where}", "/slow", "x-envoy-expected-rq-timeout-ms: soon", listener=where)
    get(f"expected per-try timeout on {where}", "/slow", "x-envoy-expected-rq-timeout-ms: 700", "x-envoy-upstream-rq-per-try-timeout-ms: 300",
        listener=where)
get("options without an effect on requests", "/", listener="static")
get("the upstream codec as the only upstream filter", "/", listener="codec")
