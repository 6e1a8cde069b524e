"""Fractions that the runtime changes while the process runs."""
import time

from harness.config import bootstrap, cluster, listener, route
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
