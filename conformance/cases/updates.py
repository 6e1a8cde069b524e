"""Configuration that changes while the proxy runs: what is taken, what is refused, what goes on meanwhile."""
import copy
import json
import os
import socket
import time
from pathlib import Path

from harness.config import TYPE, address, bootstrap, cluster, listener, route
from harness.runner import Group

URL = {"lds": "envoy.config.listener.v3.Listener", "cds": "envoy.config.cluster.v3.Cluster",
       "rds": "envoy.config.route.v3.RouteConfiguration", "eds": "envoy.config.endpoint.v3.ClusterLoadAssignment"}
STATS = {"lds": "listener_manager.lds.", "cds": "cluster_manager.cds."}


def says(text, **fields):
    return route("/", direct_response={"status": 200, "body": {"inline_string": text}}, **fields)


def source(p, kind):
    return {"path_config_source": {"path": f"{p.home}/{kind}.json"}}


def one(p, name="main", text="first", **fields):
    return {**listener(p, [says(text)], name), **fields}


def by_rds(p):
    made = listener(p, [says("")], "rds")
    manager = made["filter_chains"][0]["filters"][0]["typed_config"]
    del manager["route_config"]
    manager["rds"] = {"route_config_name": "routes", "config_source": source(p, "rds")}
    return made


def dynamic(p):
    made = cluster("dyn", type="EDS", eds_cluster_config={"eds_config": source(p, "eds")})
    del made["load_assignment"]
    return made


def routes(text="routed", **fields):
    return {"name": "routes", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
        route("/dyn", "dyn"), says(text)]}], **fields}


def endpoints(*ports):
    return {"cluster_name": "dyn", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(q)}} for q in ports]}]}


def good(p):
    return {"lds": [one(p), by_rds(p)], "cds": [dynamic(p)], "rds": [routes()], "eds": [endpoints(p.up)]}


def write(p, kind, resources, version="1"):
    """Replaces a file, as both proxies see it: by renaming."""
    if not isinstance(resources, str):
        resources = json.dumps({"version_info": version, "resources": [{"@type": TYPE + URL[kind], **r} for r in resources]})
    fresh = Path(p.home) / f".{kind}"
    fresh.write_text(resources)
    os.replace(fresh, Path(p.home) / f"{kind}.json")


def config(p):
    for kind, resources in good(p).items():
        write(p, kind, resources, "start")
    made = bootstrap(p, [])
    made["dynamic_resources"] = {"cds_config": source(p, "cds"), "lds_config": source(p, "lds")}
    return made


G = Group(config)
COUNTERS = ("update_success", "update_rejected", "update_failure")


def counters(t, kind):
    body = t.proxy.admin("/stats?filter=" + STATS[kind].replace(".", r"\.") + "update_")["body"]
    found = dict(line.split(": ") for line in body.splitlines() if ": " in line)
    return {c: int(found.get(STATS[kind] + c, 0)) for c in COUNTERS}


def update(t, kind, resources, version, note=True):
    """Writes a file and waits until it has been looked at; notes what it counted as, where that is counted."""
    if kind not in STATS:
        write(t.proxy.ports, kind, resources, version)
        time.sleep(0.6)  # ours looks every quarter of a second
        return
    before, until = counters(t, kind), time.monotonic() + 4
    write(t.proxy.ports, kind, resources, version)
    while counters(t, kind) == before and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.1)
    after = counters(t, kind)
    if note:
        t.note(**{kind: {c: after[c] - before[c] for c in COUNTERS}})


def errors(t):
    """The listeners that the dump shows an error of; the words are each proxy's own, and Envoy keeps none of clusters."""
    dump, found = json.loads(t.proxy.admin("/config_dump?resource=dynamic_listeners")["body"]), set()
    for one in dump.get("configs", []):
        state = one.get("error_state", {})
        if state.get("details"):
            found.add(state.get("failed_configuration", {}).get("name", ""))
    t.note(errors=sorted(found))


def answer(t, where="main", path="/"):
    try:
        conn = t.connect(where)
    except ConnectionRefusedError:
        t.note(refused=where)
        return
    conn.send(f"GET {path} HTTP/1.1\r\nhost: a.test\r\n\r\n".encode())
    got = conn.response()
    t.note(line=got.get("line"), body=got.get("body"))


def case(name):
    """A case that leaves the good state behind. The log is other areas' business."""
    def keep(function):
        def run(t):
            try:
                function(t)
            finally:
                for kind, resources in good(t.proxy.ports).items():
                    if '"start"' not in (Path(t.proxy.ports.home) / f"{kind}.json").read_text():
                        update(t, kind, resources, "start", note=False)
                t.proxy.read = os.path.getsize(t.proxy.log) if t.proxy.log.exists() else 0
        G.case("updates: " + name, logs=0, blind=True)(run)
        return function
    return keep


@case("as started")
def _(t):
    answer(t)
    answer(t, "rds")
    answer(t, "rds", "/dyn")
    errors(t)


@case("a listener is added and removed")
def _(t):
    p = t.proxy.ports
    update(t, "lds", [*good(p)["lds"], one(p, "more", "more")], "2")
    answer(t, "more")
    update(t, "lds", good(p)["lds"], "3")
    answer(t, "more")
    answer(t)


@case("a bad listener beside good ones")
def _(t):
    p = t.proxy.ports
    bad = one(p, "bad", "bad")
    bad["filter_chains"][0]["filters"][0]["typed_config"]["stat_prefix"] = ""
    update(t, "lds", [*good(p)["lds"], bad, one(p, "more", "more")], "2")
    answer(t)
    answer(t, "bad")
    answer(t, "more")
    errors(t)


@case("a bad version of a listener")
def _(t):
    p = t.proxy.ports
    bad = one(p, text="second")
    bad["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"] = [{"name": "no.such"}]
    update(t, "lds", [bad, by_rds(p)], "2")
    answer(t)
    errors(t)


@case("an error goes when it is mended")
def _(t):
    p = t.proxy.ports
    bad = one(p, text="second")
    bad["filter_chains"] = []
    update(t, "lds", [bad, by_rds(p)], "2")
    errors(t)
    update(t, "lds", [one(p, text="second"), by_rds(p)], "3")
    answer(t)
    errors(t)


@case("a listener with routes to a missing cluster")
def _(t):
    p = t.proxy.ports
    update(t, "lds", [one(p), by_rds(p), listener(p, [route("/", "nowhere")], "more")], "2")
    answer(t, "more")


@case("a file that is no JSON")
def _(t):
    update(t, "lds", "{", "2", note=False)
    answer(t)


@case("a resource of another type")
def _(t):
    p = t.proxy.ports
    text = json.dumps({"version_info": "2", "resources": [{"@type": TYPE + URL["cds"], **dynamic(p)}]})
    update(t, "lds", text, "2")
    answer(t)


@case("two listeners of a name")
def _(t):
    p = t.proxy.ports
    update(t, "lds", [one(p), one(p, text="other"), by_rds(p)], "2")
    answer(t)


@case("two listeners of an address")
def _(t):
    p = t.proxy.ports
    update(t, "lds", [one(p), by_rds(p), {**one(p), "name": "other"}], "2")
    answer(t)
    errors(t)


@case("another address")
def _(t):
    p = t.proxy.ports
    update(t, "lds", [{**one(p), "address": address(p.listener("moved"))}, by_rds(p)], "2")
    answer(t, "moved")
    answer(t)


@case("an address in use")
def _(t):
    p = t.proxy.ports
    with socket.create_server(("127.0.0.1", p.listener("taken"))):
        update(t, "lds", [{**one(p), "address": address(p.listener("taken"))}, by_rds(p)], "2")
        answer(t)
        errors(t)


def chains(p, first, second):
    """A listener of two chains: by the client's port, and for the rest."""
    made = one(p, "chains", first)
    made["filter_chains"] = [{**made["filter_chains"][0], "filter_chain_match": {"source_ports": [p.listener("source")]}, "name": "a"},
                             {**one(p, "chains", second)["filter_chains"][0], "name": "b"}]
    return made


@case("in place: a connection of an unchanged chain stays, one of a changed chain ends")
def _(t):
    p = t.proxy.ports
    update(t, "lds", [*good(p)["lds"], chains(p, "a1", "b1")], "2")
    kept = t.connect("chains", source=("127.0.0.1", p.listener("source")))
    other = t.connect("chains")
    for conn in (kept, other):
        conn.send(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n")
        t.note(body=conn.response().get("body"))
    update(t, "lds", [*good(p)["lds"], chains(p, "a1", "b2")], "3")
    answer(t, "chains")
    for conn in (kept, other):
        conn.send(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n")
        t.note(body=conn.response().get("body"))


@case("a removed listener: what is open goes on, nothing new")
def _(t):
    p = t.proxy.ports
    conn = t.connect()
    conn.send(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n")
    t.note(body=conn.response().get("body"))
    update(t, "lds", [by_rds(p)], "2")
    answer(t)
    conn.send(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n")
    t.note(body=conn.response().get("body"))


@case("routes: a new version")
def _(t):
    update(t, "rds", [routes("rerouted")], "2")
    answer(t, "rds")


@case("routes: a bad version")
def _(t):
    bad = copy.deepcopy(routes())
    bad["virtual_hosts"][0]["routes"][0]["match"] = {"safe_regex": {"regex": "("}}
    update(t, "rds", [bad], "2")
    answer(t, "rds")
    answer(t, "rds", "/dyn")


@case("routes: a constraint broken")
def _(t):
    update(t, "rds", [{**routes(), "virtual_hosts": [{"name": "", "domains": ["*"]}]}], "2")
    answer(t, "rds")


@case("routes: another name")
def _(t):
    update(t, "rds", [{**routes("other"), "name": "other"}], "2")
    answer(t, "rds")


@case("routes: none")
def _(t):
    update(t, "rds", [], "2")
    answer(t, "rds")


@case("clusters: a bad one beside the good")
def _(t):
    p = t.proxy.ports
    update(t, "cds", [dynamic(p), cluster("bad", p.up, connect_timeout="0s")], "2")
    answer(t, "rds", "/dyn")


@case("clusters: a bad version")
def _(t):
    p = t.proxy.ports
    update(t, "cds", [{**dynamic(p), "lb_policy": "LOAD_BALANCING_POLICY_CONFIG"}], "2")
    answer(t, "rds", "/dyn")


@case("clusters: two of a name")
def _(t):
    p = t.proxy.ports
    update(t, "cds", [dynamic(p), dynamic(p)], "2")
    answer(t, "rds", "/dyn")


@case("clusters: one of a static name")
def _(t):
    p = t.proxy.ports
    update(t, "cds", [dynamic(p), cluster("up", p.dead)], "2")
    answer(t, "rds", "/dyn")
    t.note(up="UP" if f"up::127.0.0.1:{p.up}" in t.proxy.admin("/clusters")["body"] else "changed")


@case("clusters: removed and back")
def _(t):
    update(t, "cds", [], "2")
    answer(t, "rds", "/dyn")
    update(t, "cds", [dynamic(t.proxy.ports)], "3")
    answer(t, "rds", "/dyn")


@case("endpoints: a bad version")
def _(t):
    p = t.proxy.ports
    bad = endpoints(p.up)
    bad["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["port_value"] = 70000
    update(t, "eds", [bad], "2")
    answer(t, "rds", "/dyn")


@case("endpoints: a name for an address")
def _(t):
    p = t.proxy.ports
    bad = endpoints(p.up)
    bad["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["address"] = "localhost"
    update(t, "eds", [bad], "2")
    answer(t, "rds", "/dyn")


@case("endpoints: another cluster's")
def _(t):
    p = t.proxy.ports
    update(t, "eds", [{**endpoints(p.dead), "cluster_name": "other"}], "2")
    answer(t, "rds", "/dyn")


@case("endpoints: none left")
def _(t):
    update(t, "eds", [endpoints()], "2")
    answer(t, "rds", "/dyn")


@case("endpoints: priorities with a gap")
def _(t):
    p = t.proxy.ports
    gap = endpoints(p.up)
    gap["endpoints"][0]["priority"] = 2
    update(t, "eds", [gap], "2")
    answer(t, "rds", "/dyn")


@case("endpoints: the same twice")
def _(t):
    p = t.proxy.ports
    update(t, "eds", [endpoints(p.up, p.up)], "2")
    answer(t, "rds", "/dyn")
