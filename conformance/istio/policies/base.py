"""What the table's policies are about: clients, servers, waypoints and a gateway. Resources as Python values."""

NAMESPACE = "shop"
# Each client: its namespace and service account. The last is not in the mesh, and has no identity.
CLIENTS = {"alice": "shop", "bob": "shop", "mallory": "other", "outside": "plain"}


def resource(api, kind, name, namespace=NAMESPACE, labels=None, **rest):
    metadata = {"name": name, **({"namespace": namespace} if namespace else {}), **({"labels": labels} if labels else {})}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **rest}


def deployment(name, namespace, app, image, account, env=()):
    container = {"name": "main", "image": image, "env": list(env)}
    spec = {"serviceAccountName": account, "containers": [container]}
    return resource("apps/v1", "Deployment", name, namespace, spec={
        "selector": {"matchLabels": {"app": app}}, "template": {"metadata": {"labels": {"app": app}}, "spec": spec}})


def service(name, waypoint=None):
    """One of many names of the same servers. With a waypoint of its own, or behind the namespace's."""
    ports = [{"name": "http", "port": 80, "targetPort": 3000}, {"name": "http-other", "port": 8080, "targetPort": 3000},
             {"name": "tcp", "port": 9000, "targetPort": 3000, "appProtocol": "tcp"}]
    return resource("v1", "Service", name, labels={"istio.io/use-waypoint": waypoint} if waypoint else None,
                    spec={"selector": {"app": "web"}, "ports": ports})


def gateway(name, cls, *listeners):
    return resource("gateway.networking.k8s.io/v1", "Gateway", name, spec={"gatewayClassName": cls, "listeners": list(listeners)})


def removal(filter):
    """Takes out a filter that only istio's build of Envoy has (see the lab's profile stock-envoy-ambient)."""
    sub = {"name": "envoy.filters.network.http_connection_manager", "subFilter": {"name": filter}}
    return {"applyTo": "HTTP_FILTER", "match": {"listener": {"filterChain": {"filter": sub}}}, "patch": {"operation": "REMOVE"}}


def base():
    field = lambda path: {"valueFrom": {"fieldRef": {"fieldPath": path}}}
    env = [{"name": "POD_NAME", **field("metadata.name")}, {"name": "NAMESPACE", **field("metadata.namespace")}]
    ambient = {"istio.io/dataplane-mode": "ambient"}
    hbone = {"name": "mesh", "port": 15008, "protocol": "HBONE"}
    every = {"namespaces": {"from": "All"}}
    waypoints = [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": name} for name in ("waypoint", "own-waypoint")]
    filters = ["istio.alpn", "waypoint_downstream_peer_metadata", "waypoint_upstream_peer_metadata"]
    clients = [item for name, home in CLIENTS.items() for item in (
        resource("v1", "ServiceAccount", name, home), deployment(name, home, name, "pause", name))]
    return [
        resource("v1", "Namespace", "shop", None, {**ambient, "istio.io/use-waypoint": "waypoint"}),
        resource("v1", "Namespace", "other", None, ambient),
        resource("v1", "Namespace", "plain", None),
        resource("networking.istio.io/v1alpha3", "EnvoyFilter", "stock-envoy",
                 spec={"targetRefs": waypoints, "configPatches": [removal(name) for name in filters]}),
        gateway("waypoint", "istio-waypoint", hbone), gateway("own-waypoint", "istio-waypoint", hbone),
        gateway("gateway", "istio", {"name": "http", "port": 80, "protocol": "HTTP", "allowedRoutes": every}),
        resource("v1", "ServiceAccount", "web"),
        deployment("web", NAMESPACE, "web", "gcr.io/k8s-staging-gateway-api/echo-basic:lab", "web", env),
        *clients,
        service("ingress"),
        resource("gateway.networking.k8s.io/v1", "HTTPRoute", "ingress", spec={
            "parentRefs": [{"name": "gateway"}], "rules": [{"backendRefs": [{"name": "ingress", "port": 80}]}]}),
    ]
