"""The table: AuthorizationPolicies, and requests that they judge. What stock Envoy answers is in verdicts.json."""
from .base import NAMESPACE, resource, service

POLICIES, SERVICES, REQUESTS = [], [], []


def policy(name, target, action, *rules, annotations=None):
    """`target`: the name of a Service, or `Gateway/NAME`."""
    kind, _, gateway = target.partition("/")
    reference = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": gateway} if gateway else {
        "group": "", "kind": "Service", "name": kind}
    made = resource("security.istio.io/v1", "AuthorizationPolicy", name, spec={
        "targetRefs": [reference], "action": action, "rules": list(rules)})
    made["metadata"]["annotations"] = annotations or {}
    POLICIES.append(made)


def rule(source=None, operation=None, when=None):
    """A rule of one source, one operation and some conditions."""
    parts = {"from": source and [{"source": source}], "to": operation and [{"operation": operation}], "when": when}
    return {key: value for key, value in parts.items() if value}


def condition(key, *values, no=()):
    return {"key": key, **({"values": list(values)} if values else {}), **({"notValues": list(no)} if no else {})}


def ask(client, url, *headers, method="GET"):
    """A request of the table: `client` asks for `url`, with header lines."""
    REQUESTS.append((client, method, url, headers))


def case(name, action, *rules, asks, waypoint=None, **more):
    """A Service with a policy of its own. `asks`: (client, what follows the service's name in the URL, header lines, method)."""
    SERVICES.append(service(name, waypoint))
    policy(name, name, action, *rules, **more)
    for who, rest, *others in asks:
        method = others.pop() if others and ":" not in others[-1] else "GET"
        ask(who, f"http://{name}.{NAMESPACE}{rest}", *others, method=method)


EVERYBODY = [(who, "/") for who in ("alice", "bob", "mallory")]
ALICE = "cluster.local/ns/shop/sa/alice"

# Who asks.
case("principals", "ALLOW", rule({"principals": [ALICE]}), asks=EVERYBODY)
case("principals-suffix", "ALLOW", rule({"principals": ["*/sa/alice", "*/sa/mallory"]}), asks=EVERYBODY)
case("principals-prefix", "ALLOW", rule({"principals": ["cluster.local/ns/shop/*"]}), asks=EVERYBODY)
case("principals-any", "ALLOW", rule({"principals": ["*"]}), asks=EVERYBODY)
case("not-principals", "DENY", rule({"notPrincipals": [ALICE]}), asks=EVERYBODY)
case("a-header-is-no-principal", "ALLOW", rule({"principals": [ALICE]}), asks=[
    ("bob", "/", f"x-forwarded-client-cert: URI=spiffe://{ALICE}", f"forwarded: for=1.2.3.4;by={ALICE}")])
case("namespaces", "ALLOW", rule({"namespaces": ["shop"]}), asks=EVERYBODY)
case("not-namespaces", "DENY", rule({"notNamespaces": ["shop"]}), asks=EVERYBODY)
case("service-accounts", "ALLOW", rule({"serviceAccounts": ["shop/alice", "bob"]}), asks=EVERYBODY)
case("request-principals", "ALLOW", rule({"requestPrincipals": ["*"]}), asks=[("alice", "/")])
case("ip-blocks", "ALLOW", rule({"ipBlocks": ["10.244.0.0/16"]}), asks=[("alice", "/")])
case("ip-blocks-elsewhere", "ALLOW", rule({"ipBlocks": ["192.0.2.0/24"]}), asks=[
    ("alice", "/"), ("alice", "/", "x-forwarded-for: 192.0.2.1")])
case("not-ip-blocks", "DENY", rule({"notIpBlocks": ["10.244.0.0/16"]}), asks=[("alice", "/")])
case("remote-ip-blocks", "ALLOW", rule({"remoteIpBlocks": ["10.244.0.0/16"]}), asks=[
    ("alice", "/"), ("alice", "/", "x-forwarded-for: 192.0.2.1")])
case("two-sources", "ALLOW", {"from": [{"source": {"namespaces": ["other"]}}, {"source": {"principals": [ALICE]}}]}, asks=EVERYBODY)

# What is asked.
case("methods", "ALLOW", rule(None, {"methods": ["GET", "HEAD"]}), asks=[
    ("alice", "/"), ("alice", "/", "HEAD"), ("alice", "/", "POST"), ("alice", "/", "get")])
case("not-methods", "DENY", rule(None, {"notMethods": ["GET"]}), asks=[("alice", "/"), ("alice", "/", "DELETE")])
PATHS = ["/exact", "/exact/", "/EXACT", "/exact?q=1", "//exact", "/x/../exact", "/x/%2e%2e/exact", "/ex%61ct", "/exact%2f", "/prefix/x",
         "/prefixed", "/x/suffix", "/a/1/b", "/a//b", "/a/1/2/b", "/c/1", "/c/1/2", "/c/", "/c", "/other", "/exact;x=1", "/prefix#exact"]
case("paths", "ALLOW", rule(None, {"paths": ["/exact", "/prefix*", "*/suffix", "/a/{*}/b", "/c/{**}"]}), asks=[("alice", p) for p in PATHS])
case("paths-denied", "DENY", rule(None, {"paths": ["/exact", "/prefix*", "*/suffix", "/a/{*}/b", "/c/{**}"]}), asks=[("alice", p) for p in PATHS])
case("not-paths", "DENY", rule(None, {"notPaths": ["/open/*"]}), asks=[
    ("alice", "/open/x"), ("alice", "/open"), ("alice", "/open/../shut"), ("alice", "/shut")])
HOSTS = ["a.test", "A.TEST", "a.test:80", "a.test:8080", "x.b.test", "b.test", "c.test", "c.test.", "c.tester"]
case("hosts", "ALLOW", rule(None, {"hosts": ["a.test", "*.b.test", "c.*"]}), asks=[("alice", "/", f"host: {h}") for h in HOSTS])
case("not-hosts", "DENY", rule(None, {"notHosts": ["a.test", "*.b.test"]}), asks=[("alice", "/", f"host: {h}") for h in HOSTS])
case("ports", "ALLOW", rule(None, {"ports": ["80"]}), asks=[("alice", "/"), ("alice", ":8080/")])
case("not-ports", "DENY", rule(None, {"notPorts": ["80"]}), asks=[("alice", "/"), ("alice", ":8080/")])
case("operation-of-two", "ALLOW", rule({"namespaces": ["shop"]}, {"methods": ["GET"], "paths": ["/x"]}), asks=[
    ("alice", "/x"), ("alice", "/x", "POST"), ("alice", "/y"), ("mallory", "/x")])

# Under which conditions.
TOKENS = [("x-token: admin",), ("x-token: prefix-1",), ("x-token: 1-suffix",), ("x-token: guest",), (), ("x-token: guest", "x-token: admin"),
          ("x-token: guest,admin",), ("x-token:",), ("X-Token: admin",), ("x-token: ADMIN",)]
case("header", "ALLOW", rule(when=[condition("request.headers[x-token]", "admin", "prefix*", "*suffix")]), asks=[("alice", "/", *t) for t in TOKENS])
case("header-denied", "DENY", rule(when=[condition("request.headers[x-token]", "admin", "prefix*", "*suffix")]), asks=[("alice", "/", *t) for t in TOKENS])
case("header-not", "ALLOW", rule(when=[condition("request.headers[x-token]", no=["admin"])]), asks=[("alice", "/", *t) for t in TOKENS])
case("header-any", "ALLOW", rule(when=[condition("request.headers[x-token]", "*")]), asks=[("alice", "/", *t) for t in TOKENS])
case("source-ip", "ALLOW", rule(when=[condition("source.ip", "10.244.0.0/16"), condition("source.namespace", "shop")]), asks=EVERYBODY)
case("source-principal", "ALLOW", rule(when=[condition("source.principal", no=[ALICE])]), asks=EVERYBODY)
case("destination-port", "ALLOW", rule(when=[condition("destination.port", "8080")]), asks=[("alice", "/"), ("alice", ":8080/")])

# How actions and policies go together.
case("everything", "ALLOW", {}, asks=EVERYBODY)
case("nothing", "ALLOW", asks=EVERYBODY)
case("denied-to-all", "DENY", {}, asks=EVERYBODY)
case("audited", "AUDIT", rule(None, {"paths": ["/audit"]}), asks=[("alice", "/audit"), ("alice", "/")])
case("deny-before-allow", "ALLOW", rule({"namespaces": ["shop"]}), asks=[*EVERYBODY, ("alice", "/secret")])
policy("deny-before-allow-too", "deny-before-allow", "DENY", rule(None, {"paths": ["/secret"]}))
case("two-allow", "ALLOW", rule({"principals": [ALICE]}), asks=EVERYBODY)
policy("two-allow-too", "two-allow", "ALLOW", rule({"namespaces": ["other"]}))
case("dry-run", "DENY", {}, asks=[("alice", "/")], annotations={"istio.io/dry-run": "true"})

# A waypoint's own policies, a service with a waypoint to itself, and bytes that are no HTTP. A policy that denies paths and
# names no port denies all such bytes, as "bytes-by-path" shows.
policy("waypoint", "Gateway/waypoint", "DENY", rule(None, {"paths": ["/waypoint"], "ports": ["80"]}),
       rule({"namespaces": ["other"]}, {"paths": ["/other"], "ports": ["80"]}))
policy("own-waypoint", "Gateway/own-waypoint", "DENY", rule(None, {"paths": ["/own-waypoint"], "ports": ["80"]}))
WAYPOINTS = [("alice", "/waypoint"), ("alice", "/own-waypoint"), ("alice", "/other"), ("mallory", "/other")]
case("on-the-waypoint", "ALLOW", {}, asks=WAYPOINTS)
case("on-its-own-waypoint", "ALLOW", {}, asks=WAYPOINTS, waypoint="own-waypoint")
case("bytes", "ALLOW", rule({"principals": [ALICE]}), asks=[(who, ":9000/") for who in ("alice", "bob", "mallory")])
case("bytes-by-port", "DENY", rule({"namespaces": ["other"]}, {"ports": ["9000"]}), asks=[
    ("alice", ":9000/"), ("mallory", ":9000/"), ("mallory", "/")])
case("bytes-by-path", "DENY", rule(None, {"paths": ["/x"]}), asks=[("alice", ":9000/x"), ("alice", ":9000/"), ("alice", "/x"), ("alice", "/")])
case("bytes-allowed-by-path", "ALLOW", rule(None, {"paths": ["/x"]}), asks=[("alice", ":9000/x"), ("alice", "/x")])

# The ingress: policies of a gateway tell their cases apart by host.
CLIENT = ["10.244.0.0/16"]
policy("ingress-deny", "Gateway/gateway", "DENY",
       rule(None, {"hosts": ["open.deny.test"], "paths": ["/admin*"], "methods": ["GET"]}),
       rule({"ipBlocks": CLIENT}, {"hosts": ["ip.deny.test"]}), rule({"notIpBlocks": CLIENT}, {"hosts": ["not-ip.deny.test"]}),
       rule({"remoteIpBlocks": ["192.0.2.0/24"]}, {"hosts": ["remote.deny.test"]}),
       rule({"notPrincipals": ["*"]}, {"hosts": ["nobody.deny.test"]}),
       rule(None, {"hosts": ["port.deny.test"], "ports": ["80"]}),
       rule(None, {"hosts": ["header.deny.test"]}, [condition("request.headers[x-token]", "bad")]))
policy("ingress-allow", "Gateway/gateway", "ALLOW",
       rule(None, {"hosts": ["*.deny.test", "canary.test"]}), rule({"ipBlocks": CLIENT}, {"hosts": ["ip.test"]}),
       rule({"remoteIpBlocks": ["192.0.2.0/24"]}, {"hosts": ["remote.test"]}),
       rule({"principals": ["*"]}, {"hosts": ["principal.test"]}), rule({"namespaces": ["plain"]}, {"hosts": ["namespace.test"]}),
       rule(None, {"hosts": ["method.test"], "methods": ["POST"]}),
       rule(None, {"hosts": ["path.test"], "paths": ["/x", "/y/*"]}),
       rule(None, {"hosts": ["header.test"]}, [condition("request.headers[x-token]", "good*")]))
policy("ingress-audit", "Gateway/gateway", "AUDIT", {})


def outside(host, path="/", *headers, **more):
    ask("outside", "http://gateway-istio." + NAMESPACE + path, f"host: {host}", *headers, **more)


for path in "/", "/admin", "/admin/x", "/x/../admin", "//admin", "/%61dmin":
    outside("open.deny.test", path)
outside("open.deny.test", "/admin", method="POST")
for host in "ip.deny.test", "not-ip.deny.test", "nobody.deny.test", "port.deny.test", "ip.test", "principal.test", "namespace.test", "unnamed.test":
    outside(host)
for host in "remote.deny.test", "remote.test":
    outside(host)
    outside(host, "/", "x-forwarded-for: 192.0.2.1")
for host in "header.deny.test", "header.test":
    for line in ("x-token: bad", "x-token: good", "x-token: good-too", "x-token: good,bad"):
        outside(host, "/", line)
    outside(host)
    outside(host, "/", "x-token: good", "x-token: bad")
for method in "GET", "POST":
    outside("method.test", method=method)
for path in "/x", "/y", "/y/", "/y/z", "/x?y", "/z":
    outside("path.test", path)

# Last, so that whoever obeys it obeys all.
CANARY = "/canary"
for name in "waypoint", "own-waypoint", "gateway":
    policy(f"canary-{name}", f"Gateway/{name}", "DENY", rule(None, {"paths": [CANARY], "ports": ["80"]}))
