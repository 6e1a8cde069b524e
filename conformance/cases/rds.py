"""Route configurations from RDS, by file: sharing, updates, refusals, names that never come."""
import http.client
import json
import time
from pathlib import Path

from harness.config import TYPE, bootstrap, host, listener, route
from harness.runner import Group

ROUTES = TYPE + "envoy.config.route.v3.RouteConfiguration"


def said(text):
    return route("/", direct_response={"status": 200, "body": {"inline_string": text}})


def table(name, *hosts, **fields):
    return {"@type": ROUTES, "name": name, "virtual_hosts": list(hosts), **fields}


def publish(ports, version, *tables):
    """Puts each table's file in place at once, as the file source demands. A file holds one: so Envoy wants it."""
    for made in tables:
        path = Path(ports.log).parent / f"{made['name']}.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps({"version_info": version, "resources": [made]}))
        fresh.rename(path)


def first(ports):
    publish(ports, "1", table("shared", host([said("first")])), table("other", host([said("other")], ["a.test"])))
    (Path(ports.log).parent / "missing.json").write_text(json.dumps({"version_info": "1", "resources": []}))


def config(p):
    first(p)

    def on(listener_name, name, log=True, **source):
        path = str(Path(p.log).parent / f"{name}.json")
        made = listener(p, [], listener_name, rds={"route_config_name": name, "config_source": {
            "resource_api_version": "V3", "path_config_source": {"path": path}, **source}})
        manager = made["filter_chains"][0]["filters"][0]["typed_config"]
        del manager["route_config"]
        if not log:
            del manager["access_log"]
        return made
    return bootstrap(p, [
        on("main", "shared"), on("twin", "shared"), on("watch", "shared", log=False), on("other", "other"),
        on("missing", "missing", initial_fetch_timeout="0.2s"),
    ])


G = Group(config)


def settle(t, text, within=3.0):
    """Waits until the routes say `text` at the listener that does not log."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        conn = http.client.HTTPConnection("127.0.0.1", t.proxy.ports.listener("watch"), timeout=2)
        conn.request("GET", "/", headers={"host": "a.test"})
        if conn.getresponse().read().decode() == text:
            return
        conn.close()
        time.sleep(0.02)
    t.note(never=text)


@G.case("rds: routes from a file")
def _(t):
    t.get("/")
    t.get("/", listener="other")
    t.get("/", listener="other", host="b.test")


@G.case("rds: a configuration that never comes")
def _(t):
    t.get("/", listener="missing")


@G.case("rds: an update reaches every listener that shares it")
def _(t):
    publish(t.proxy.ports, "2", table("shared", host([said("second")])), table("other", host([said("other")])))
    settle(t, "second")
    t.get("/")
    t.get("/", listener="twin")
    t.get("/", listener="other", host="b.test")


@G.case("rds: an update between two requests of a connection")
def _(t):
    first(t.proxy.ports)
    settle(t, "first")
    conn = t.connect()
    for text in ("first", "third"):
        if text == "third":
            publish(t.proxy.ports, "3", table("shared", host([said(text)])))
            settle(t, text)
        conn.send(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n")
        t.record.append(conn.response())
        t.expect += 1
    # A resource that a file no longer names stays: RDS has no removal.
    t.get("/", listener="other")


@G.case("rds: a refused update leaves the last good one")
def _(t):
    first(t.proxy.ports)
    settle(t, "first")
    publish(t.proxy.ports, "4", table("shared", host([said("bad")], ["a.test"]), host([said("worse")], ["a.test"], "twice")))
    time.sleep(1.2)
    t.get("/")
    publish(t.proxy.ports, "5", table("shared", host([route("/", {"cluster": "nowhere"})]), validate_clusters=True))
    time.sleep(1.2)
    t.get("/")
    publish(t.proxy.ports, "6", table("shared", host([said("good again")])))
    settle(t, "good again")
    t.get("/")


@G.case("rds: a name that comes late")
def _(t):
    publish(t.proxy.ports, "7", table("shared", host([said("late")])), table("missing", host([said("here")])))
    settle(t, "late")
    t.get("/", listener="missing")
