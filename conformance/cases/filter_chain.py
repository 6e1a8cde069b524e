"""What routes, virtual hosts and route configurations say about filters; what filters leave for logs."""
from harness.config import TYPE, bootstrap, host, listener, route
from harness.grpc import message
from harness.runner import Group

FILTER = TYPE + "envoy.config.route.v3.FilterConfig"
BUFFER = TYPE + "envoy.extensions.filters.http.buffer.v3."
AUTHZ = TYPE + "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz"


def config(p):
    def limit(size):
        return {"@type": BUFFER + "BufferPerRoute", "buffer": {"max_request_bytes": size}}

    def off(**more):
        return {"@type": FILTER, "disabled": True, **more}
    # Two of one type: `sleeper` is off unless a route wants it, `keeper` is on unless a route does not.
    filters = [{"name": "sleeper", "disabled": True, "typed_config": {"@type": BUFFER + "Buffer", "max_request_bytes": 4}},
               {"name": "keeper", "typed_config": {"@type": BUFFER + "Buffer", "max_request_bytes": 16}}]
    routes = [
        route("/awake", "up", typed_per_filter_config={"sleeper": {"@type": FILTER, "config": {}}}),
        route("/set", "up", typed_per_filter_config={"sleeper": {"@type": FILTER, "config": limit(8)}}),
        route("/bare", "up", typed_per_filter_config={"sleeper": limit(8)}),
        route("/off", "up", typed_per_filter_config={"keeper": off()}),
        route("/own-off", "up", typed_per_filter_config={"keeper": {"@type": BUFFER + "BufferPerRoute", "disabled": True}}),
        route("/larger", "up", typed_per_filter_config={"keeper": limit(32)}),
        route("/optional", "up", typed_per_filter_config={"keeper": {
            "@type": FILTER, "is_optional": True, "config": {"@type": TYPE + "google.protobuf.StringValue", "value": "none of a filter"}}}),
        route("/weighted", {"weighted_clusters": {"clusters": [
            {"name": "up", "weight": 1, "typed_per_filter_config": {"keeper": limit(2)}}]}},
            typed_per_filter_config={"keeper": limit(8)}),
        route("/", "up")]
    log = [{"name": "envoy.access_loggers.file", "typed_config": {
        "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": p.log, "log_format": {
            "text_format_source": {"inline_string": "%DYNAMIC_METADATA(envoy.filters.http.ext_authz:who)% "
                                                    "%DYNAMIC_METADATA(envoy.filters.http.ext_authz:more:deep)% "
                                                    "%DYNAMIC_METADATA(other:none)% %RESPONSE_CODE%\n"}}}}]
    authz = [{"name": "envoy.filters.http.ext_authz", "typed_config": {
        "@type": AUTHZ, "transport_api_version": "V3", "grpc_service": {"envoy_grpc": {"cluster_name": "up2"}, "timeout": "1s"}}}]
    return bootstrap(p, [
        listener(p, routes, filters=filters),
        listener(p, [host([route("/route", "up", typed_per_filter_config={"keeper": limit(32)}), route("/", "up")],
                          typed_per_filter_config={"keeper": limit(2)})],
                 "host", filters=filters, route_config={"typed_per_filter_config": {"keeper": limit(8)}}),
        listener(p, [host([route("/", "up")])], "table", filters=filters,
                 route_config={"typed_per_filter_config": {"keeper": limit(2)}}),
        listener(p, [host([route("/on", "up", typed_per_filter_config={"keeper": {"@type": FILTER, "config": {}}}),
                           route("/", "up")], typed_per_filter_config={"keeper": off()})], "host-off", filters=filters),
        listener(p, [host([route("/", "up")])], "metadata", filters=authz, access_log=log)])


G = Group(config)


def case(name, path, size, name_of_listener="main", **kw):
    G.case("filter chain: " + name, **kw)(
        lambda t: t.get(path, listener=name_of_listener, method="POST", body="x" * size))


for path, sizes in {"/": (5, 16, 17), "/awake": (4, 5), "/set": (8, 9), "/bare": (8, 9), "/off": (17,), "/own-off": (17,),
                    "/larger": (17, 33), "/optional": (17,), "/weighted": (2, 3)}.items():
    for size in sizes:
        case(f"{path} with {size} bytes", path, size)
for path, sizes in {"/": (2, 3), "/route": (3, 33)}.items():
    for size in sizes:
        case(f"virtual host, {path} with {size} bytes", path, size, "host")
for size in (2, 3):
    case(f"route configuration, {size} bytes", "/", size, "table")
for path in ("/", "/on"):
    case(f"virtual host off, {path} with 17 bytes", path, 17, "host-off")


def struct(**fields):
    """A google.protobuf.Struct of strings and structs."""
    return {1: [{1: k, 2: {3: v} if isinstance(v, str) else {5: v}} for k, v in fields.items()]}


G.case("filter chain: dynamic metadata in the log", [
    {"grpc": [message({1: {}, 4: struct(who="me", more=struct(deep="here"))})]}, {}])(lambda t: t.get("/", listener="metadata"))
