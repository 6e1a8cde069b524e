"""Fractions that the runtime changes while the process runs."""
import time

from harness.config import TYPE, bootstrap, cluster, listener, route
from harness.runner import Group


def config(p):
    def share(key, numerator, denominator="HUNDRED"):
        return {"runtime_key": key, "default_value": {"numerator": numerator, "denominator": denominator}}

    def said(path, key, *default):
        return route({"prefix": path, "runtime_fraction": share(key, *default)},
                     direct_response={"status": 200, "body": {"inline_string": "matched"}})
    routes = [
        said("/static", "static.off", 100), said("/fraction", "static.all", 0), said("/large", "static.large", 0),
        said("/word", "static.word", 100), said("/changed", "admin.key", 100), said("/unknown", "no.key", 100),
        route("/mirror", {"request_mirror_policies": [{"cluster": "copy", "runtime_fraction": share("admin.mirror", 0)}]}),
        route("/", direct_response={"status": 200, "body": {"inline_string": "other"}})]
    return {**bootstrap(p, [listener(p, routes)], [cluster("copy", p.up)]), "layered_runtime": {"layers": [
        {"name": "static", "static_layer": {"static": {"off": 0, "large": 1000, "word": "many", "all": {
            "numerator": 1000000, "denominator": "MILLION"}}}},
        {"name": "admin", "admin_layer": {}}]}}


G = Group(config)
EXT = TYPE + "envoy.extensions.filters.http."


def filters(p):
    percent = {"numerator": 0}
    origins = {"allow_origin_string_match": [{"exact": "http://good.test"}]}

    def flag(key, numerator):
        return {"runtime_key": key, "default_value": {"numerator": numerator}}

    def policy(name, **fields):
        return route("/" + name, "up", typed_per_filter_config={"cors": {"@type": EXT + "cors.v3.CorsPolicy", **origins, **fields}})

    def fault(name, **fields):
        return route("/" + name, "up", typed_per_filter_config={"fault": {"@type": EXT + "fault.v3.HTTPFault", **fields}})
    abort = {"http_status": 418, "percentage": {"numerator": 100}}
    routes = [
        policy("cors", filter_enabled=flag("cors.on", 100)), policy("shadow", filter_enabled=flag("no.key", 0), shadow_enabled=flag("cors.shadow", 100)),
        fault("abort", abort={"http_status": 418, "percentage": percent}),
        fault("status", abort=abort, abort_http_status_runtime="own.status"),
        fault("grpc", abort={"grpc_status": 5, "percentage": {"numerator": 100}}),
        fault("own", abort={"http_status": 418, "percentage": percent}, abort_percent_runtime="own.percent"),
        fault("delay", delay={"fixed_delay": "0.001s", "percentage": percent}),
        fault("limit", abort=abort, max_active_faults_runtime="own.max"),
        fault("none", abort=abort, max_active_faults=0),
        fault("headers", abort=abort, headers=[{"name": "x-fault", "string_match": {"exact": "1"}}]),
        route("/", "up")]
    chain = [{"name": "cors", "typed_config": {"@type": EXT + "cors.v3.Cors"}}, {"name": "fault", "typed_config": {"@type": EXT + "fault.v3.HTTPFault"}}]
    return {**bootstrap(p, [listener(p, routes, filters=chain)]), "layered_runtime": {"layers": [{"name": "admin", "admin_layer": {}}]}}


F = Group(filters)
for path in ("/static", "/fraction", "/large", "/word", "/unknown"):
    G.case(f"runtime key: {path}")(lambda t, path=path: t.get(path))


@G.case("runtime key: changed by the admin interface")
def _(t):
    for value in (None, "0", "100", "", "7x"):
        if value is not None:
            t.proxy.admin(f"/runtime_modify?admin.key={value}", "POST")
            time.sleep(0.1)
        t.get("/changed")


@G.case("runtime key: of a mirror")
def _(t):
    t.get("/mirror")
    t.upstream(1)
    t.proxy.admin("/runtime_modify?admin.mirror=100", "POST")
    time.sleep(0.1)
    t.get("/mirror")
    t.upstream(3)


def keyed(name, path, *settings, headers=()):
    """The answer before and after each setting; in the end all are taken back."""
    @F.case("filters' runtime: " + name)
    def _(t):
        with t.counted(r"^http\.\w+\.(fault|cors)\."):
            t.get(path, *headers)
            for setting in settings:
                t.proxy.admin("/runtime_modify?" + setting, "POST")
                time.sleep(0.1)
                t.get(path, *headers)
            t.proxy.admin("/runtime_modify?" + "&".join(s.split("=")[0] + "=" for s in settings), "POST")
            time.sleep(0.1)


GOOD, BAD = ("origin: http://good.test",), ("origin: http://bad.test",)
keyed("cors off and on", "/cors", "cors.on=0", "cors.on=100", headers=GOOD)
keyed("cors, another origin", "/cors", "cors.on=0", headers=BAD)
keyed("cors in the shadow", "/shadow", "cors.shadow=0", headers=GOOD)
keyed("cors in the shadow, another origin", "/shadow", "cors.shadow=0", headers=BAD)
keyed("abort", "/abort", "fault.http.abort.abort_percent=100", "fault.http.abort.abort_percent=0")
keyed("abort of a fraction", "/abort", "fault.http.abort.abort_percent=x")
keyed("abort by its own key", "/own", "fault.http.abort.abort_percent=100", "own.percent=100")
keyed("status", "/status", "own.status=503", "own.status=x")
keyed("the usual key of a status with another", "/status", "fault.http.abort.http_status=503")
keyed("gRPC status", "/grpc", "fault.http.abort.grpc_status=7", headers=("content-type: application/grpc",))
keyed("delay", "/delay", "fault.http.delay.fixed_delay_percent=100", "fault.http.delay.fixed_duration_ms=0")
keyed("faults at a time", "/limit", "own.max=0", "own.max=1")
keyed("no fault at a time", "/none")
keyed("fault by header", "/headers", headers=("x-fault: 1",))
keyed("fault by another header", "/headers", headers=("x-fault: 2",))
