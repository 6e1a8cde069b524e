"""Filters of access logs: which requests a log tells of."""
import time

from harness.config import TYPE, bootstrap, host, listener, route
from harness.runner import Group


def comparison(op, value, key="nothing"):
    return {"comparison": {"op": op, "value": {"default_value": value, "runtime_key": key}}}


def metadata(**fields):
    return {"metadata_filter": {"matcher": {"filter": "f", "path": [{"key": "k"}], "value": {"string_match": {"exact": "GET"}}}, **fields}}


ALWAYS, NEVER = {"not_health_check_filter": {}}, {"traceable_filter": {}}
FILTERS = {
    "not a health check": ALWAYS,
    "traceable": NEVER,
    "status from the runtime": {"status_code_filter": comparison("EQ", 500, "log.status")},
    "status by default": {"status_code_filter": comparison("NE", 200)},
    "duration": {"duration_filter": comparison("GE", 0)},
    "long duration": {"duration_filter": comparison("GE", 60000)},
    "gRPC status": {"grpc_status_filter": {"statuses": ["OK", "INVALID_ARGUMENT"]}},
    "no such gRPC status": {"grpc_status_filter": {"statuses": ["OK"], "exclude": True}},
    "share from the runtime": {"runtime_filter": {"runtime_key": "log.all"}},
    "share by default": {"runtime_filter": {"runtime_key": "nothing"}},
    "share of all": {"runtime_filter": {"runtime_key": "nothing", "percent_sampled": {"numerator": 100}, "use_independent_randomness": True}},
    # Of the id's first eight digits.
    "share by the request's id": {"runtime_filter": {"runtime_key": "nothing", "percent_sampled": {"numerator": 50}}},
    "metadata": metadata(),
    "metadata that must be there": metadata(match_if_key_not_found=False),
    "neither of two": {"or_filter": {"filters": [NEVER, {"and_filter": {"filters": [ALWAYS, NEVER]}}]}},
}


def config(p):
    def log(name, what):
        return {"name": "envoy.access_loggers.file", "filter": what, "typed_config": {
            "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": p.log,
            "log_format": {"text_format_source": {"inline_string": name + " %RESPONSE_CODE%\n"}}}}
    routes = [host([route("/d", direct_response={"status": 200}), route("/grpc", "up2"), route("/", "up")])]
    end = [log("the end", ALWAYS)]
    made = listener(p, routes, access_log=[log(name, what) for name, what in FILTERS.items()] + end, preserve_external_request_id=True)
    whole = bootstrap(p, [made])
    whole["layered_runtime"] = {"layers": [{"name": "static", "static_layer": {"log": {"status": 503, "all": 100}}}]}
    return whole


G = Group(config)


def told(t):
    """All lines of one request are written together."""
    lines = []
    until = time.monotonic() + 2
    while not any(line.startswith("the end") for line in lines) and time.monotonic() < until:
        lines += t.proxy.lines(1)
    t.note(log=sorted(lines))


def case(name, *asked, upstream=()):
    @G.case("log filters: " + name, list(upstream), logs=0)
    def _(t):
        t.get(*asked)
        told(t)


case("a direct response", "/d", "x-request-id: 00000031-0000-4000-8000-000000000000")
case("another id", "/d", "x-request-id: 00000032-0000-4000-8000-000000000000")
case("a status that the runtime names", "/", "x-request-id: 00000000-0000-4000-8000-000000000000", upstream=[{"status": 503}])


@G.case("log filters: gRPC", [{"body": b"", "trailers": [("grpc-status", "3")]}], logs=0)
def _(t):
    fixed = ("x-request-id", "00000000-0000-4000-8000-000000000000")
    t.h2("/grpc", [("content-type", "application/grpc"), ("te", "trailers"), fixed], b"", method="POST")
    told(t)
