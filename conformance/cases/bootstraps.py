"""Good and bad bootstraps: formats, merging, constraints, references, what is unknown or not supported."""
import json

from harness.config import HCM, TYPE, address, cluster, listener, route
from harness.load import DELETE, Loads, base

L = Loads()
CLUSTER, LISTENER = "static_resources.clusters[0]", "static_resources.listeners[0]"
MANAGER = LISTENER + ".filter_chains[0].filters[0].typed_config"
VHOST = MANAGER + ".route_config.virtual_hosts[0]"


def good(name, content=None, **kw):
    L.load("bootstrap: " + name, content, **kw)


bad = good  # what both do is compared; the two names tell the reader what to expect


def at(path, name, value, says=None, **kw):
    """The base with one field changed; `path` is written as errors write it, and must be in ours."""
    changes = {path.replace("[", ".").replace("]", "").replace(".", "__"): value}
    L.load("bootstrap: " + name, says=path if says is None else says, **changes, **kw)


# Formats
good("JSON")
good("YAML", lambda p: json.dumps(base(p), indent=1), extension="yaml")
good("YAML proper", "node: {id: a, cluster: b}\nadmin:\n  address:\n    socket_address: {address: 127.0.0.1, port_value: 0}\n", extension="yaml")
good("YAML with merge keys and anchors", "x: &x {address: 127.0.0.1, port_value: 0}\nadmin: {address: {socket_address: *x}}\n",
     extension="yaml", args=["--allow-unknown-static-fields"])
good("yml", "node: {id: a, cluster: b}\n", extension="yml")
good("unknown extension is read as YAML", "node: {id: a, cluster: b}\n", extension="conf")
good("binary", b"\x0a\x06\x0a\x01a\x12\x01b", extension="pb")
bad("binary, cut", b"\x0a\x07\x0a\x01a\x12\x01b", extension="pb")
bad("binary, no name", b"\x12\x04\x12\x02\x0a\x00", extension="pb", says="static_resources.clusters[0].name")
good("empty object", "{}")
good("empty YAML", "", extension="yaml")
bad("empty JSON", "")
bad("broken JSON", '{"node": {', says="JSON")
bad("broken YAML", "node: [", extension="yaml", says="YAML")
bad("JSON list", "[]")
bad("JSON text", '"node"')
bad("JSON with a trailing comma", '{"node": {"id": "a"},}')
good("JSON with comments", '{"node": {"id": "a"} /* b */}')
bad("a key twice", '{"node": {"id": "a", "id": "b"}}')
bad("YAML with a key twice", "node: {id: a}\nnode: {id: b}\n", extension="yaml")
bad("both spellings of a field", '{"flags_path": "a", "flagsPath": "b"}')
good("camelCase", lambda p: json.dumps(base(p)).replace("static_resources", "staticResources").replace("load_assignment", "loadAssignment"))
bad("two fields of a oneof", '{"admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}, "pipe": {"path": "/a"}}}}',
    says="admin.address")
good("null field", '{"node": null}')
good("number as text", '{"admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": "0"}}}}')
bad("fraction for a whole number", '{"admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 1.5}}}}', says="port_value")
bad("text for a number", '{"admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": "x"}}}}', says="port_value")
bad("negative for unsigned", '{"admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": -1}}}}', says="port_value")
bad("object for a list", '{"static_resources": {"clusters": {}}}', says="static_resources.clusters")
bad("text for an object", '{"node": "a"}', says="node")
bad("number for text", '{"node": {"id": 5}}', says="node.id")
bad("number for a truth value", '{"enable_dispatcher_stats": 1}', says="enable_dispatcher_stats")
bad("duration without a unit", '{"stats_flush_interval": "5"}', says="stats_flush_interval")
bad("duration as a number", '{"stats_flush_interval": 5}', says="stats_flush_interval")

# --config-yaml
good("only --config-yaml", args=["--no-file", "--config-yaml", "node: {id: a, cluster: b}"])
good("--config-yaml in JSON", args=["--no-file", "--config-yaml", '{"node": {"id": "a"}}'])
good("--config-yaml merged", args=["--config-yaml", "node: {id: over}"])
bad("--config-yaml makes it wrong", args=["--config-yaml", "static_resources: {clusters: [{}]}"], says="name")
bad("--config-yaml broken", args=["--config-yaml", "a: ["], says="--config-yaml")
bad("--config-yaml with an unknown field", args=["--config-yaml", "nod: {id: a}"], says=["--config-yaml", "nod"])
bad("file missing", args=["--no-file", "-c", "HOME/none.json"], says="none.json")

# Unknown fields
at("nod", "unknown field", {}, says="nod")
at(CLUSTER + ".nam", "unknown field of a cluster", 1)
at(MANAGER + ".stat_prefi", "unknown field in an Any", "x")
at("nod", "unknown field, allowed", {}, args=["--allow-unknown-static-fields"])
at(MANAGER + ".stat_prefi", "unknown field in an Any, allowed", "x", args=["--allow-unknown-static-fields"])
at(CLUSTER + ".lb_policy", "unknown enum value", "BEST")
at(CLUSTER + ".lb_policy", "unknown enum value, unknown allowed", "BEST", args=["--allow-unknown-static-fields"])
at(MANAGER + ".@type", "unknown type in an Any", TYPE + "no.such.Type", says="no.such.Type")
at(MANAGER + ".@type", "Any without a type", DELETE, says=MANAGER)
for package in ("udpa.type.v1", "xds.type.v3"):
    def struct(p, package=package, **more):
        manager = listener(p, [route("/", "up")])["filter_chains"][0]["filters"][0]["typed_config"]
        value = {k: v for k, v in manager.items() if k != "@type"}
        return {"@type": TYPE + package + ".TypedStruct", "type_url": HCM, "value": {**value, **more}}
    at(MANAGER, "TypedStruct of " + package, struct)
    at(MANAGER, "TypedStruct with a bad field, " + package, lambda p, s=struct: s(p, stat_prefix=[]))
    at(MANAGER, "TypedStruct that breaks a constraint, " + package, lambda p, s=struct: s(p, stat_prefix=""), says="stat_prefix")

# Constraints
at(CLUSTER + ".name", "cluster without a name", DELETE)
at(CLUSTER + ".connect_timeout", "connect timeout zero", "0s")
at(CLUSTER + ".connect_timeout", "connect timeout negative", "-1s")
at(CLUSTER + ".per_connection_buffer_limit_bytes", "buffer limit", 1)
at(CLUSTER + ".load_assignment.cluster_name", "load assignment without a name", DELETE)
at(CLUSTER + ".load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address", "endpoint without an address", "")
at(CLUSTER + ".load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address", "endpoint with a name in STATIC", "localhost",
   says=CLUSTER + ".load_assignment")
at(CLUSTER + ".load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value", "endpoint port too large", 65536)
at(CLUSTER + ".load_assignment.endpoints[0].lb_endpoints[0].load_balancing_weight", "endpoint weight zero", 0)
at(CLUSTER + ".load_assignment.endpoints[0].priority", "priority over the limit", 129)
at(CLUSTER + ".load_assignment.endpoints[0].priority", "priority with a gap", 1, says=CLUSTER)
at(CLUSTER + ".load_assignment", "STATIC without endpoints", DELETE, says=CLUSTER)
at(CLUSTER + ".type", "EDS without a source", "EDS", says=CLUSTER)
at(CLUSTER + ".type", "LOGICAL_DNS with an address", "LOGICAL_DNS", says=CLUSTER)
at(CLUSTER + ".dns_lookup_family", "dns family", "V4_ONLY")
at(CLUSTER + ".dns_refresh_rate", "dns refresh too short", "0.0001s")
at(CLUSTER + ".circuit_breakers", "retry budget over the limit", {"thresholds": [{"retry_budget": {"budget_percent": {"value": 101}}}]},
   says=CLUSTER + ".circuit_breakers.thresholds[0].retry_budget.budget_percent.value")
at(CLUSTER + ".common_lb_config", "panic threshold", {"healthy_panic_threshold": {"value": 100.1}}, says="healthy_panic_threshold.value")
at(CLUSTER + ".health_checks", "health check without a threshold", [{"timeout": "1s", "interval": "1s", "tcp_health_check": {}}],
   says=CLUSTER + ".health_checks[0].unhealthy_threshold")
at(CLUSTER + ".outlier_detection", "outlier percent", {"max_ejection_percent": 101}, says=CLUSTER + ".outlier_detection.max_ejection_percent")
at(CLUSTER + ".least_request_lb_config", "least request choices", {"choice_count": 1}, says="choice_count")
at(CLUSTER + ".ring_hash_lb_config", "ring size", {"maximum_ring_size": 9000000}, says="maximum_ring_size")
at(LISTENER + ".address", "listener without an address", DELETE)
at(LISTENER + ".filter_chains", "listener without chains", [], says=LISTENER)
at(LISTENER + ".filter_chains[0].filters", "chain without filters", [], says=LISTENER)
at(LISTENER + ".filter_chains[0].filters[0].name", "filter without a name", DELETE)
at(LISTENER + ".filter_chains[0].filters[0].typed_config", "filter without a configuration", DELETE, says=LISTENER)
at(LISTENER + ".address.socket_address.address", "listener address no IP", "example.test")
at(LISTENER + ".address.socket_address.port_value", "listener port too large", 70000)
at(LISTENER + ".address.socket_address.protocol", "listener protocol", "UDP", says=LISTENER)
at(LISTENER + ".connection_balance_config", "balance without a kind", {})
at(LISTENER + ".listener_filters_timeout", "listener filter timeout negative", "-1s")
at(LISTENER + ".max_connections_to_accept_per_socket_event", "accepts per event zero", 0)
at(LISTENER + ".tcp_backlog_size", "backlog", 5)
at(LISTENER + ".socket_options", "socket option without a state", [{"level": 1, "name": 9, "int_value": 1, "state": 9}], says="socket_options[0].state")
at(LISTENER + ".filter_chains[0].filter_chain_match", "match with a suffix", {"address_suffix": "1.2.3.4"}, says=LISTENER)
at(LISTENER + ".filter_chains[0].filter_chain_match", "match port zero", {"destination_port": 0}, says="filter_chain_match.destination_port")
at(LISTENER + ".filter_chains[0].filter_chain_match", "match port too large", {"destination_port": 65536}, says="filter_chain_match.destination_port")
at(LISTENER + ".filter_chains[0].filter_chain_match", "match source port zero", {"source_ports": [0]}, says="filter_chain_match.source_ports[0]")
at(LISTENER + ".filter_chains[0].filter_chain_match", "match bad range", {"prefix_ranges": [{"address_prefix": "1.2.3"}]}, says="prefix_ranges")
at(LISTENER + ".filter_chains[0].filter_chain_match", "match range too long",
   {"prefix_ranges": [{"address_prefix": "1.2.3.4", "prefix_len": 33}]}, says="prefix_ranges")
at(LISTENER + ".filter_chains[0].filter_chain_match", "match wildcard inside", {"server_names": ["a.*.test"]}, says="server_names")
at(LISTENER + ".filter_chains[0].filter_chain_match", "match bare wildcard", {"server_names": ["*"]}, says=LISTENER)
at(LISTENER + ".filter_chains[0].filter_chain_match", "match wildcard label", {"server_names": ["w*.test"]}, says="server_names")
at(LISTENER + ".filter_chains[0].filter_chain_match", "match source type", {"source_type": 7}, says="source_type")
at(LISTENER + ".filter_chains[1]", "two chains with one match", lambda p: listener(p, [route("/", "up")])["filter_chains"][0], says=LISTENER)
at(LISTENER + ".filter_chains[0].transport_socket", "transport socket without a name", {}, says="transport_socket.name")
at(LISTENER + ".listener_filters", "unknown listener filter", [{"name": "no.such"}], says=LISTENER + ".listener_filters[0]")
at(LISTENER + ".listener_filters", "listener filter without a name", [{"typed_config": {
    "@type": TYPE + "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"}}], says=LISTENER + ".listener_filters[0].name")
at(MANAGER + ".stat_prefix", "manager without a stat prefix", "")
at(MANAGER + ".codec_type", "codec type by number", 9)
at(MANAGER + ".route_config", "manager without routes", DELETE, says=MANAGER)
at(MANAGER + ".rds", "manager with routes twice", {"route_config_name": "r", "config_source": {"ads": {}}}, says=MANAGER)
at(MANAGER + ".http_filters", "manager without a router", [], says=MANAGER)
at(MANAGER + ".http_filters", "router twice", [{"name": "r", "typed_config": {"@type": TYPE + "envoy.extensions.filters.http.router.v3.Router"}}] * 2,
   says=MANAGER + ".http_filters")
at(MANAGER + ".http_filters[0].name", "HTTP filter without a name", "")
at(MANAGER + ".http_filters[0].typed_config", "HTTP filter of an unknown type", {"@type": TYPE + "no.such.Filter"}, says=MANAGER)
at(MANAGER + ".max_request_headers_kb", "header limit zero", 0)
at(MANAGER + ".max_request_headers_kb", "header limit too large", 9000)
at(MANAGER + ".request_timeout", "request timeout", "1s")
at(MANAGER + ".access_log[0].typed_config.path", "access log without a path", "")
at(MANAGER + ".access_log[0].typed_config.log_format.text_format_source.inline_string", "access log with a bad operator", "%NO_SUCH%", says="access_log[0]")
at(MANAGER + ".access_log[0].typed_config.log_format.text_format_source.inline_string", "access log with an open operator", "%REQ(", says="access_log[0]")
at(MANAGER + ".tracing", "tracing sampling", {"random_sampling": {"value": 101}}, says="random_sampling.value")
at(MANAGER + ".http2_protocol_options", "HTTP/2 window", {"initial_stream_window_size": 65534}, says="initial_stream_window_size")
at(MANAGER + ".upgrade_configs", "upgrade twice", [{"upgrade_type": "websocket"}, {"upgrade_type": "WebSocket"}], says=MANAGER)
at(MANAGER + ".server_name", "server name with a line feed", "a\nb")
at(MANAGER + ".via", "via with a line feed", "a\nb")
at(MANAGER + ".xff_num_trusted_hops", "trusted hops", 3)
at(VHOST + ".name", "virtual host without a name", "")
at(VHOST + ".domains", "virtual host without domains", [])
at(VHOST + ".domains", "virtual host with an empty domain", [""], says=VHOST)
at(VHOST + ".domains", "virtual host with a domain twice", ["a", "a"], says=VHOST.rsplit("[", 1)[0])
at(VHOST + ".domains", "virtual host with a wildcard inside", ["a.*.b"], says=VHOST.rsplit("[", 1)[0])
at(MANAGER + ".route_config.virtual_hosts[1]", "two virtual hosts for a domain", {"name": "b", "domains": ["*"]}, says="virtual_hosts")
at(MANAGER + ".route_config.virtual_hosts[1]", "two virtual hosts of a name", {"name": "all", "domains": ["b"]}, says="virtual_hosts")
at(VHOST + ".routes[0].match", "route without a match", DELETE)
at(VHOST + ".routes[0].match", "route with an empty match", {}, says=VHOST + ".routes[0].match")
at(VHOST + ".routes[0].route", "route without an action", DELETE, says=VHOST + ".routes[0]")
at(VHOST + ".routes[0].match", "route with a bad regex", {"safe_regex": {"regex": "("}}, says=VHOST + ".routes[0].match")
at(VHOST + ".routes[0].match", "route with an empty regex", {"safe_regex": {"regex": ""}}, says="safe_regex.regex")
at(VHOST + ".routes[0].match", "route with look-ahead", {"safe_regex": {"regex": "a(?!b)"}}, says=VHOST + ".routes[0].match")
at(VHOST + ".routes[0].match", "separated prefix with a slash", {"path_separated_prefix": "/a/"}, says="path_separated_prefix")
at(VHOST + ".routes[0].match.headers", "header match without a name", [{"present_match": True}], says="headers[0].name")
at(VHOST + ".routes[0].match.headers", "header match with a bad name", [{"name": "a\n", "present_match": True}], says="headers[0].name")
at(VHOST + ".routes[0].match.headers", "header match, range", [{"name": "a", "range_match": {"start": 5, "end": 1}}])
at(VHOST + ".routes[0].match.query_parameters", "query match with a long name", [{"name": "a" * 1025}], says="query_parameters[0].name")
at(VHOST + ".routes[0].route.cluster", "cluster missing", "nowhere", says=VHOST)
at(VHOST + ".routes[0].route.cluster", "cluster name empty", "")
at(VHOST + ".routes[0].route", "weighted clusters without clusters", {"weighted_clusters": {"clusters": []}}, says="weighted_clusters.clusters")
at(VHOST + ".routes[0].route", "weighted clusters without weight", {"weighted_clusters": {"clusters": [{"name": "up", "weight": 0}]}}, says=VHOST)
at(VHOST + ".routes[0].route", "weighted cluster missing", {"weighted_clusters": {"clusters": [{"name": "nowhere", "weight": 1}]}}, says=VHOST)
at(VHOST + ".routes[0].route", "cluster header empty", {"cluster_header": ""}, says="cluster_header")
at(VHOST + ".routes[0].route.timeout", "route timeout negative", "-1s", says=VHOST + ".routes[0].route.timeout")
at(VHOST + ".routes[0].route.prefix_rewrite", "prefix rewrite", "/x")
at(VHOST + ".routes[0].route.prefix_rewrite", "prefix rewrite with a line feed", "/x\n")
at(VHOST + ".routes[0].route.retry_policy", "retry back-off zero", {"retry_back_off": {"base_interval": "0s"}}, says="retry_back_off.base_interval")
at(VHOST + ".routes[0].route.retry_policy", "retry back-off upside down", {"retry_back_off": {"base_interval": "2s", "max_interval": "1s"}}, says=VHOST)
at(VHOST + ".routes[0].route.retry_policy", "retry on nonsense", {"retry_on": "whatever"})
at(VHOST + ".routes[0].route.hash_policy", "hash policy empty", [{}], says="hash_policy[0]")
at(VHOST + ".routes[0].route.upgrade_configs", "route upgrade twice", [{"upgrade_type": "a"}, {"upgrade_type": "A"}], says=VHOST)
at(VHOST + ".request_headers_to_add", "header to add without a header", [{"append": True}], says="request_headers_to_add[0].header")
at(VHOST + ".request_headers_to_add", "header to add with a bad name", [{"header": {"key": "a\n", "value": "v"}}], says="request_headers_to_add[0].header.key")
at(VHOST + ".request_headers_to_add", "header to add with an open operator", [{"header": {"key": "a", "value": "%REQ("}}], says="request_headers_to_add")
at(VHOST + ".request_headers_to_add", "header to add: :path", [{"header": {"key": ":path", "value": "v"}}], says="request_headers_to_add")
at(VHOST + ".request_headers_to_add", "header to add: host", [{"header": {"key": "host", "value": "v"}}], says="request_headers_to_add")
at(VHOST + ".request_headers_to_remove", "header to remove: host", ["host"], says="request_headers_to_remove")
at(VHOST + ".request_headers_to_remove", "header to remove: :path", [":path"], says="request_headers_to_remove")
at(VHOST + ".routes[0]", "direct response with a bad status", {"match": {"prefix": "/"}, "direct_response": {"status": 700}}, says="direct_response.status")
at(VHOST + ".routes[0]", "direct response from a missing file", {"match": {"prefix": "/"}, "direct_response": {
    "status": 200, "body": {"filename": "/no/such"}}}, says=VHOST)
at(VHOST + ".routes[0]", "direct response too large", {"match": {"prefix": "/"}, "direct_response": {
    "status": 200, "body": {"inline_string": "x" * 5000}}}, says=VHOST)
at(VHOST + ".routes[0]", "redirect and regex with prefix", {"match": {"prefix": "/"}, "redirect": {
    "path_redirect": "/a", "prefix_rewrite": "/b"}}, says=VHOST)
at(VHOST + ".typed_per_filter_config", "per-filter configuration of an unknown filter", {"no.such": {"@type": TYPE + "no.such.Type"}}, says=VHOST)
at(VHOST + ".typed_per_filter_config", "per-filter configuration, optional", {"no.such": {
    "@type": TYPE + "envoy.config.route.v3.FilterConfig", "is_optional": True, "config": {"@type": TYPE + "no.such.Type"}}})

# References and names
at("static_resources.clusters[4]", "two clusters of a name", lambda p: cluster("up", p.up), says="clusters[4]")
at("static_resources.listeners[1]", "two listeners of a name", lambda p: {**listener(p, [route("/", "up")]), "address": address(1)}, says="listeners[1]")
at("static_resources.listeners[1]", "two listeners of an address", lambda p: {**listener(p, [route("/", "up")]), "name": "other"}, says="listeners[1]")
at("dynamic_resources", "cds over a missing cluster", {"cds_config": {"api_config_source": {
    "api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "nowhere"}}]}}}, says="dynamic_resources")
at("dynamic_resources", "ads over a missing cluster", {"ads_config": {
    "api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "nowhere"}}]}}, says="dynamic_resources")
at("dynamic_resources", "ads without a service", {"ads_config": {"api_type": "GRPC", "transport_api_version": "V3"}}, says="dynamic_resources.ads_config")
at("dynamic_resources", "cds from ads without ads", {"cds_config": {"ads": {}}}, says="dynamic_resources")
at("dynamic_resources", "lds from a missing file", {"lds_config": {"path_config_source": {"path": "/no/such"}}}, says="dynamic_resources.lds_config")
at("dynamic_resources", "lds without a source", {"lds_config": {}}, says="dynamic_resources.lds_config")
at("dynamic_resources", "lds of the version 2", {"lds_config": {"api_config_source": {
    "api_type": "GRPC", "grpc_services": [{"envoy_grpc": {"cluster_name": "up"}}]}}}, says="dynamic_resources")

# Sections
at("layered_runtime", "runtime", {"layers": [{"name": "a", "static_layer": {"x": {"y": 1, "z": "t"}, "b": True}}, {"name": "b", "admin_layer": {}}]})
at("layered_runtime", "runtime layers of one name", {"layers": [{"name": "a", "static_layer": {}}, {"name": "a", "admin_layer": {}}]}, says="layered_runtime")
at("layered_runtime", "runtime with two admin layers", {"layers": [{"name": "a", "admin_layer": {}}, {"name": "b", "admin_layer": {}}]}, says="layered_runtime")
at("layered_runtime", "runtime layer without a name", {"layers": [{"static_layer": {}}]}, says="layered_runtime.layers[0].name")
at("layered_runtime", "runtime layer without a kind", {"layers": [{"name": "a"}]}, says="layered_runtime.layers[0]")
at("layered_runtime", "runtime with a list", {"layers": [{"name": "a", "static_layer": {"x": [1]}}]}, says="layered_runtime.layers[0]")
at("layered_runtime", "runtime with null", {"layers": [{"name": "a", "static_layer": {"x": None}}]}, says="layered_runtime.layers[0]")
at("stats_config", "istio's stats tags", {"stats_tags": [{"tag_name": "cluster_name", "regex": "^cluster\\.((.+?(\\..+?\\.svc\\.cluster\\.local)?)\\.)"}],
                                          "use_all_default_tags": False,
                                          "stats_matcher": {"inclusion_list": {"patterns": [{"prefix": "reporter="}, {"suffix": "rbac"},
                                                                                            {"safe_regex": {"regex": "vhost.*"}}]}}})
at("stats_config", "stats tag with a bad regex", {"stats_tags": [{"tag_name": "a", "regex": "("}]}, says="stats_config")
at("stats_config", "stats tag with look-ahead", {"stats_tags": [{"tag_name": "a", "regex": "^a(?=.)(b)"}]})
at("stats_config", "stats tag without a group", {"stats_tags": [{"tag_name": "a", "regex": "abc"}]})
at("stats_config", "stats tag without a name", {"stats_tags": [{"regex": "(a)"}]})
at("stats_config", "stats tag with a long regex", {"stats_tags": [{"tag_name": "a", "regex": "a" * 1025}]}, says="stats_config.stats_tags[0].regex")
at("stats_config", "stats tag twice", {"stats_tags": [{"tag_name": "a", "fixed_value": "1"}, {"tag_name": "a", "fixed_value": "2"}]}, says="stats_config")
at("stats_config", "stats matcher with a bad regex", {"stats_matcher": {"inclusion_list": {"patterns": [{"safe_regex": {"regex": "("}}]}}}, says="stats_config")
at("stats_config", "stats matcher without a kind", {"stats_matcher": {}}, says="stats_config.stats_matcher")
at("stats_config", "histogram buckets", {"histogram_bucket_settings": [{"match": {"prefix": "x"}, "buckets": [1, 5]}]})
at("stats_config", "histogram bucket zero", {"histogram_bucket_settings": [{"match": {"prefix": "x"}, "buckets": [0]}]}, says="buckets[0]")
at("stats_flush_interval", "flush interval too short", "0.0001s")
at("stats_flush_interval", "flush interval", "1s")
at("stats_sinks", "unknown stats sink", [{"name": "no.such"}], says="stats_sinks[0]")
at("admin", "admin without an address", {})
at("admin", "admin on a name", {"address": {"socket_address": {"address": "localhost", "port_value": 0}}}, says="admin.address")
at("admin", "admin on a pipe", {"address": {"pipe": {"path": "@conformance"}}})
at("admin", "admin pipe mode", {"address": {"pipe": {"path": "@conformance", "mode": 512}}}, says="admin.address.pipe.mode")
at("admin", "admin with a profile path", lambda p: {"address": address(p.admin), "profile_path": "/tmp/x", "access_log_path": "/dev/null"})
at("overload_manager", "overload monitor unknown", {"resource_monitors": [{"name": "no.such"}]}, says="overload_manager.resource_monitors[0]")
at("overload_manager", "overload limit zero", {"resource_monitors": [{
    "name": "envoy.resource_monitors.global_downstream_max_connections", "typed_config": {
        "@type": TYPE + "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        "max_active_downstream_connections": 0}}]}, says="max_active_downstream_connections")
at("cluster_manager", "cluster manager", {"local_cluster_name": "up", "outlier_detection": {"event_log_path": "/dev/null"}})
at("cluster_manager", "local cluster missing", {"local_cluster_name": "nowhere"}, says="cluster_manager")
at("bootstrap_extensions", "unknown bootstrap extension", [{"name": "no.such", "typed_config": {"@type": TYPE + "no.such.Type"}}], says="bootstrap_extensions[0]")
at("bootstrap_extensions", "internal listener extension", [{"name": "envoy.bootstrap.internal_listener", "typed_config": {
    "@type": TYPE + "envoy.extensions.bootstrap.internal_listener.v3.InternalListener"}}])
at("node", "node with metadata", {"id": "a", "cluster": "b", "metadata": {"A": [1, {"b": None}]}, "locality": {"zone": "z"}})
at("flags_path", "flags path", "/tmp")
at("tracing", "tracer unknown", {"http": {"name": "no.such"}}, says="tracing")
at("watchdogs", "watchdogs", {"main_thread_watchdog": {"miss_timeout": "1s"}})
at("watchdog", "deprecated watchdog", {"miss_timeout": "1s"})
at("typed_dns_resolver_config", "dns resolver", {"name": "envoy.network.dns_resolver.cares", "typed_config": {
    "@type": TYPE + "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig"}})
at("default_regex_engine", "regex engine", {"name": "envoy.regex_engines.google_re2", "typed_config": {
    "@type": TYPE + "envoy.extensions.regex_engines.v3.GoogleRE2"}})
