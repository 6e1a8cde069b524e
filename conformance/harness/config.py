"""Short ways to write a bootstrap. The result is plain Envoy JSON, the same for both proxies except the ports."""

LOG = ("%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %PROTOCOL% %REQ(:METHOD)% "
       "%BYTES_RECEIVED% %BYTES_SENT% %ROUTE_NAME% %UPSTREAM_CLUSTER%\n")
TYPE = "type.googleapis.com/"
HCM = TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


def route(match, action=None, **route_fields):
    """A route: `match` is a prefix or a whole match; `action` a cluster name or a whole route action."""
    made = {"match": {"prefix": match} if isinstance(match, str) else match, **route_fields}
    if isinstance(action, str):
        made["route"] = {"cluster": action}
    elif action is not None:
        made["route"] = {"cluster": "up", **action} if not {"cluster", "weighted_clusters",
                                                             "cluster_header"} & set(action) else action
    return made


def host(routes, domains=("*",), name="all", **fields):
    return {"name": name, "domains": list(domains), "routes": routes, **fields}


def listener(p, routes, name="main", filters=(), route_config=None, **hcm):
    """A listener with one connection manager; `routes` is a list of routes or of whole virtual hosts."""
    hosts = routes if routes and "domains" in routes[0] else [host(routes)]
    manager = {
        "@type": HCM, "stat_prefix": name, "delayed_close_timeout": "0.05s",
        "route_config": {"name": name, "virtual_hosts": hosts, **(route_config or {})},
        "http_filters": [*filters, {"name": "envoy.filters.http.router", "typed_config": {
            "@type": TYPE + "envoy.extensions.filters.http.router.v3.Router"}}],
        "access_log": [{"name": "envoy.access_loggers.file", "typed_config": {
            "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": p.log,
            "log_format": {"text_format_source": {"inline_string": LOG}}}}], **hcm}
    return {"name": name, "address": address(p.listener(name)), "filter_chains": [
        {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}]}


def address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def cluster(name, *ports, h2=False, **fields):
    made = {"name": name, "type": "STATIC", "connect_timeout": "1s", "load_assignment": {
        "cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(q)}} for q in ports]}]},
        **fields}
    if h2:
        made["typed_extension_protocol_options"] = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}}}}
    return made


def bootstrap(p, listeners, extra=()):
    """Clusters every file may use: `up` (HTTP/1), `up2` (h2c), `dead` (refuses), `empty` (no endpoint)."""
    return {"node": {"id": "conformance", "cluster": "conformance"}, "admin": {"address": address(p.admin)},
            "static_resources": {"listeners": listeners, "clusters": [
                cluster("up", p.up), cluster("up2", p.up2, h2=True), cluster("dead", p.dead), cluster("empty"),
                *extra]}}
