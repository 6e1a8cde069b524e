"""Everything a route can ask of a request, and everything it can do to one: matches, rewrites, redirects, weights, levels."""
from harness.config import TYPE, bootstrap, host, listener, route
from harness.runner import Group


def exact(value, **fields):
    return {"string_match": {"exact": value}, **fields}


def add(key, value, action=None, **fields):
    made = {"header": {"key": key, "value": value}, **fields}
    return {**made, "append_action": action} if action else made


def said(text, match, **fields):
    return route(match, direct_response={"status": 200, "body": {"inline_string": text}}, **fields)


def under(prefix, *headers, query=(), **fields):
    return {"prefix": prefix, "headers": list(headers), "query_parameters": list(query), **fields}


def h(name, **fields):
    return {"name": name, **fields}


def regex(pattern, substitution):
    return {"pattern": {"regex": pattern}, "substitution": substitution}


MATCHES = [
    said("contains", under("/hm", h("x-a", string_match={"contains": "mid"}))),
    said("suffix", under("/hm", h("x-a", string_match={"suffix": "end"}))),
    said("regex", under("/hm", h("x-a", string_match={"safe_regex": {"regex": "r[0-9]+"}}))),
    said("caseless", under("/hm", h("x-a", string_match={"exact": "CASE", "ignore_case": True}))),
    said("absent", under("/hm", h("x-absent", present_match=True, invert_match=True), h("x-want", **exact("absent")))),
    said("not present", under("/hm", h("x-absent", present_match=False), h("x-want", **exact("not-present")))),
    said("missing as empty", under("/hm", h("x-none", string_match={"safe_regex": {"regex": "x?"}},
                                            treat_missing_header_as_empty=True), h("x-want", **exact("empty")))),
    said("missing as empty, inverted", under("/hm", h("x-none", **exact("v"), invert_match=True,
                                                      treat_missing_header_as_empty=True), h("x-want", **exact("inverted")))),
    said("negative range", under("/hm", h("x-n", range_match={"start": -5, "end": 0}))),
    said("old exact", under("/hm", h("x-old", exact_match="e"))),
    said("old prefix", under("/hm", h("x-old", prefix_match="p"))),
    said("old suffix", under("/hm", h("x-old", suffix_match="s"))),
    said("old contains", under("/hm", h("x-old", contains_match="c"))),
    said("old regex", under("/hm", h("x-old", safe_regex_match={"regex": "[0-9]+"}))),
    said("authority", under("/hm", h(":authority", **exact("special.test")))),
    said("path with query", under("/hm", h(":path", **exact("/hm/full?q=1")))),
    said("scheme", under("/hm", h(":scheme", **exact("https")))),
    said("host name as header", under("/hm", h("host", **exact("hosted.test")))),
    said("q prefix", under("/qm", query=[h("p", string_match={"prefix": "a"})])),
    said("q regex", under("/qm", query=[h("r", string_match={"safe_regex": {"regex": "[0-9]+"}})])),
    said("q absent", under("/qm", query=[h("gone", present_match=False), h("want", **exact("absent"))])),
    said("q encoded", under("/qm", query=[h("e", **exact("a b"))])),
    said("q two", under("/qm", query=[h("x", **exact("1")), h("y", **exact("2"))])),
    said("q bare", under("/qm", query=[{"name": "bare"}])),
    said("grpc", {"prefix": "/gm", "grpc": {}}),
    said("never", {"prefix": "/fraction", "runtime_fraction": {"default_value": {"numerator": 0}}}),
    said("always", {"prefix": "/fraction", "runtime_fraction": {"default_value": {"numerator": 100}}}),
    said("sep", {"path_separated_prefix": "/Sep", "case_sensitive": False}),
    said("prefix caseless", {"prefix": "/PreFix", "case_sensitive": False}),
    said("regex caseless", {"safe_regex": {"regex": "/rx/[A-Z]+"}, "case_sensitive": False}),
    said("regex with query", {"safe_regex": {"regex": "/rq/.*"}}),
]

REWRITES = [
    route({"path": "/w/exact"}, {"prefix_rewrite": "/changed"}),
    route({"path_separated_prefix": "/w/sep"}, {"prefix_rewrite": "/s"}),
    route({"path_separated_prefix": "/w/sepslash"}, {"prefix_rewrite": "/"}),
    route({"prefix": "/w/CASE", "case_sensitive": False}, {"prefix_rewrite": "/low"}),
    route({"safe_regex": {"regex": "/w/rx/.*"}}, {"prefix_rewrite": "/all"}),
    route("/w/noslash", {"prefix_rewrite": "/to"}),
    route("/w/query", {"prefix_rewrite": "/q?a=b"}),
    route("/w/regexall", {"regex_rewrite": regex("a", "b")}),
    route("/w/groups", {"regex_rewrite": regex("^/w/groups/([^/]+)/(.*)$", "/\\2/of/\\1\\0")}),
    route("/w/nomatch", {"regex_rewrite": regex("zzz", "y")}),
    route("/w/hostport", {"host_rewrite_literal": "other.test:99", "append_x_forwarded_host": True}),
    route("/w/both", {"host_rewrite_literal": "both.test", "prefix_rewrite": "/x"}),
    route("/w/hostheader", {"host_rewrite_header": "x-host", "append_x_forwarded_host": True}),
    route("/w/auto", {"auto_host_rewrite": True, "cluster": "named", "append_x_forwarded_host": True}),
    route("/w/pathhost", {"host_rewrite_path_regex": regex("^/w/pathhost/(.+)/.*$", "\\1.test")}),
    route("/w/add", {"prefix_rewrite": "/p"}, request_headers_to_add=[
        add("x-path", "%REQ(:path)%"), add("x-original", "%REQ(x-envoy-original-path?:path)%"), add("x-authority", "%REQ(:authority)%")]),
]

REDIRECTS = [
    route("/r/all", redirect={"host_redirect": "to.test", "scheme_redirect": "https", "port_redirect": 8443,
                              "path_redirect": "/there", "response_code": "PERMANENT_REDIRECT"},
          response_headers_to_add=[add("x-redirected", "yes")], response_headers_to_remove=["server"]),
    route("/r/hostport", redirect={"host_redirect": "to.test:1234"}),
    route("/r/https", redirect={"https_redirect": True}),
    route("/r/http", redirect={"scheme_redirect": "http"}),
    route("/r/port", redirect={"port_redirect": 9}),
    route("/r/fragment", redirect={"path_redirect": "/new?x=1#frag"}),
    route("/r/query", redirect={"path_redirect": "/new"}),
    route("/r/strip", redirect={"path_redirect": "/new", "strip_query": True}),
    route({"path": "/r/exact"}, redirect={"prefix_rewrite": "/px"}),
    route({"safe_regex": {"regex": "/r/rx/.*"}}, redirect={"prefix_rewrite": "/rx"}),
    route({"path_separated_prefix": "/r/sep"}, redirect={"prefix_rewrite": "/"}),
    route("/r/regex", redirect={"regex_rewrite": regex("^/r/regex/(\\d+)$", "/n/\\1"), "host_redirect": "n.test"}),
    route("/r/nothing", redirect={}),
]

WEIGHTED = [
    route("/weighted/ops", {"weighted_clusters": {"clusters": [{"name": "up", "weight": 5, "request_headers_to_add": [
        add("x-cluster", "%UPSTREAM_CLUSTER%"), add("x-level", "weight")], "request_headers_to_remove": ["x-gone"],
        "response_headers_to_add": [add("x-answer", "weight")], "response_headers_to_remove": ["x-hide"],
        "host_rewrite_literal": "weight.test"}]}, "host_rewrite_literal": "route.test"},
        request_headers_to_add=[add("x-level", "route")], response_headers_to_add=[add("x-answer", "route")]),
    route("/weighted/total", {"weighted_clusters": {"total_weight": 10, "clusters": [{"name": "up", "weight": 10}]}}),
    route("/weighted/byheader", {"weighted_clusters": {"header_name": "x-random", "clusters": [
        {"name": "up", "weight": 30}, {"name": "nowhere", "weight": 70}]}}),
    route("/weighted/header", {"weighted_clusters": {"clusters": [{"cluster_header": "x-to", "weight": 1}]}}),
]

OTHERS = [
    said("with headers", "/d/headers", response_headers_to_add=[add("x-own", "1"), add("content-type", "application/json",
                                                                                      "OVERWRITE_IF_EXISTS_OR_ADD")]),
    route("/d/created", direct_response={"status": 201, "body": {"inline_bytes": "Ynl0ZXM="}}),
    route("/d/nobody", direct_response={"status": 503}, name="named"),
    route("/d/format", direct_response={"status": 200, "body": {"inline_string": "%REQ(x-a)%"}}),
    route("/m/keep", "up", request_headers_to_add=[add("x-empty", "%REQ(x-none)%", keep_empty_value=True), add("x-drop", ""),
                                                   add("x-kept", "", keep_empty_value=True)]),
    route("/m/old", "up", request_headers_to_add=[{"header": {"key": "x-a", "value": "new"}, "append": False},
                                                  {"header": {"key": "x-b", "value": "new"}, "append": True}]),
    route("/m/reflect", "up", response_headers_to_add=[
        add("x-req", "%REQ(x-in)%"), add("x-resp", "%RESP(x-up)%"), add("x-method", "%REQ(:method)%"),
        add("x-path", "%REQ(:path)%"), add("x-proto", "%UPSTREAM_PROTOCOL%"), add("x-status", "%RESPONSE_CODE%"),
        add("x-attempts", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"), add("x-name", "%ROUTE_NAME%"), add("x-cluster", "%UPSTREAM_CLUSTER_RAW%")],
        name="reflected"),
    route("/m/contenttype", "up", response_headers_to_add=[add("content-type", "x/y", "OVERWRITE_IF_EXISTS")],
          response_headers_to_remove=["x-up"]),
    route("/m/length", "up", response_headers_to_remove=["content-length", "date", "server"]),
    route("/m/remove", "up", request_headers_to_remove=["user-agent", "x-forwarded-proto", "x-request-id"]),
]

LEVELS = ["APPEND_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT", "OVERWRITE_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS"]


def level(name):
    """The same headers at every level, one for each action."""
    both = [add("x-" + action.lower().replace("_", "-"), name, action) for action in LEVELS]
    return {"request_headers_to_add": both, "response_headers_to_add": both, "request_headers_to_remove": [f"x-no-{name}"]}


def config(p):
    main = [*MATCHES, *REWRITES, *REDIRECTS, *WEIGHTED, *OTHERS]
    levels = [host([route("/", "up", **level("route"))], **level("host"))]
    counted = {"include_request_attempt_count": True, "include_attempt_count_in_response": True}
    ports = [host([said("ported", "/")], ["a.test:8080"], "ported"), host([said("bare", "/")], ["a.test"], "bare"),
             host([said("wild", "/")], ["*.w.test"], "wild")]
    params = [host([said("exact", {"path": "/p"}), said("prefix", {"prefix": "/pre/fix"}),
                    said("separated", {"path_separated_prefix": "/s/s"}), said("regex", {"safe_regex": {"regex": "/r/[a-z]+"}}),
                    route("/w/", {"prefix_rewrite": "/"})])]
    tls = [host([route("/", "up")], ["ext.test"], "ext", require_tls="EXTERNAL_ONLY"),
           host([route("/", "up")], ["all.test"], "all", require_tls="ALL")]
    byheader = [host([said("one", "/")], ["one"], "one"), host([said("other", "/")], ["*"], "other")]
    fault = {"name": "fault", "typed_config": {"@type": TYPE + "envoy.extensions.filters.http.fault.v3.HTTPFault", "abort": {
        "http_status": 418, "percentage": {"numerator": 100}}}}
    off = {"@type": TYPE + "envoy.config.route.v3.FilterConfig", "disabled": True}
    other = {"@type": TYPE + "envoy.extensions.filters.http.fault.v3.HTTPFault", "abort": {
        "http_status": 451, "percentage": {"numerator": 100}}}
    perfilter = [host([route("/off", "up", typed_per_filter_config={"fault": off}),
                       route("/other", "up", typed_per_filter_config={"fault": other}),
                       route("/weighted", {"weighted_clusters": {"clusters": [{
                           "name": "up", "weight": 1, "typed_per_filter_config": {"fault": off}}]}}),
                       route("/", "up")]),
                 host([route("/other", "up", typed_per_filter_config={"fault": other}), route("/", "up")], ["off.test"], "off",
                      typed_per_filter_config={"fault": off})]
    inside = {"internal_address_config": {"cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]},
              "use_remote_address": True}
    long = "x" * 5000
    return bootstrap(p, [
        listener(p, [host(main, **counted)], route_config={"validate_clusters": False}),
        listener(p, levels, "levels", route_config=level("config")),
        listener(p, levels, "specific", route_config={**level("config"), "most_specific_header_mutations_wins": True}),
        listener(p, ports, "ports", route_config={"ignore_port_in_host_matching": True}),
        listener(p, ports, "noports"),
        listener(p, params, "params", route_config={"ignore_path_parameters_in_path_matching": True}),
        listener(p, params, "noparams"),
        listener(p, tls, "tls", **inside),
        listener(p, tls, "tlsout", use_remote_address=True, xff_num_trusted_hops=1),
        listener(p, byheader, "vhost", route_config={"vhost_header": "x-vhost"}),
        listener(p, perfilter, "perfilter", [fault]),
        listener(p, [said(long, "/")], "long", route_config={"max_direct_response_body_size_bytes": 5000}),
    ], [{"name": "named", "type": "STATIC", "connect_timeout": "1s", "load_assignment": {"cluster_name": "named", "endpoints": [
        {"lb_endpoints": [{"endpoint": {"hostname": "named.test", "address": {"socket_address": {
            "address": "127.0.0.1", "port_value": p.up}}}}]}]}}])


G = Group(config)


def get(name, *args, upstream=(), **kw):
    G.case("routes: " + name, upstream)(lambda t: t.get(*args, **kw))


for value in ("amidst", "theend", "r12", "r12x", "case", "nothing"):
    get(f"header value {value}", "/hm", f"x-a: {value}", "x-absent: 1")
for want in ("absent", "not-present", "empty", "inverted"):
    get(f"header wanted {want}", "/hm", f"x-want: {want}")
    get(f"header wanted {want} but others there", "/hm", f"x-want: {want}", "x-absent: 1", "x-none: v")
for value in ("-5", "-6", "0", "-1", "+1", "1x", ""):
    get(f"header number {value!r}", "/hm", f"x-n: {value}", "x-absent: 1")
for value in ("e", "pre", "ends", "acb", "123", "12a"):
    get(f"old header matcher {value}", "/hm", f"x-old: {value}", "x-absent: 1")
get("match on :authority", "/hm", host="special.test")
get("match on host", "/hm", host="hosted.test")
get("match on :path", "/hm/full?q=1")
get("match on :path without the query", "/hm/full")
get("match on :scheme", "/hm", "x-forwarded-proto: https")
for query in ("p=abc", "p=b", "r=12", "r=1a", "want=absent", "want=absent&gone", "e=a%20b", "e=a+b", "x=1&y=2", "x=1", "x=2&x=1&y=2",
              "bare", "bare=1", "%70=abc", "P=abc", "p=a%62c", "&&p=a", "p", "r=&r=1"):
    get(f"query {query}", f"/qm?{query}")
get("gRPC content type", "/gm", "content-type: application/grpc+proto")
get("no gRPC content type", "/gm", "content-type: application/grpc-web")
get("fraction", "/fraction")
for path in ("/Sep", "/sEP/x", "/separate", "/prefix/x", "/PREFIXES", "/rx/abc", "/rx/ABC", "/rq/a?b", "/hm%2f"):
    get(f"path {path}", path)
for path in ("/w/exact?a", "/w/sep", "/w/sep/x?y=/w/sep", "/w/sepslash", "/w/sepslash/x", "/w/case/rest", "/w/CASEcase", "/w/rx/a/b?c",
             "/w/noslashes", "/w/query/x?c=d", "/w/regexall/banana?a", "/w/groups/one/two?three", "/w/nomatch?x", "/w/hostport",
             "/w/both?q", "/w/hostheader", "/w/auto", "/w/pathhost/name/rest", "/w/pathhost", "/w/add/x?y"):
    get(f"rewrite {path}", path)
get("rewrite host from a header", "/w/hostheader", "x-host: from.header", "x-forwarded-host: before.test")
get("rewrite host from an empty header", "/w/hostheader", "x-host;", "x-host: ")
get("rewrite host, forwarded host repeated", "/w/hostport", "x-forwarded-host: a.test")
for path in ("/r/all/x?y", "/r/hostport/x?y", "/r/https?q", "/r/http", "/r/port/x", "/r/fragment?z", "/r/query?a=b", "/r/strip?a=b",
             "/r/exact?q=1", "/r/rx/a/b?c", "/r/sep", "/r/sep/x?y", "/r/regex/12?q", "/r/regex/x?q", "/r/nothing?a"):
    get(f"redirect {path}", path)
for name in ("[::1]", "[::1]:8080", "a.test:80", "a.test:443"):
    for path in ("/r/https", "/r/http", "/r/port", "/r/hostport"):
        get(f"redirect {path} of {name}", path, host=name)
get("redirect https of a client on https", "/r/http/x", "x-forwarded-proto: https", host="a.test:443")
get("redirect keeps the client's scheme", "/r/query", "x-forwarded-proto: https")
get("weighted cluster's own operations", "/weighted/ops", "x-gone: 1", upstream=[{"headers": [("x-hide", "1"), ("x-answer", "up")]}])
get("weighted clusters with a total", "/weighted/total")
for value in ("0", "29", "30", "99", "129"):
    get(f"weighted clusters by header {value}", "/weighted/byheader", f"x-random: {value}")
get("weighted cluster named by a header", "/weighted/header", "x-to: up")
get("weighted cluster named by no header", "/weighted/header")
get("direct response with headers", "/d/headers")
get("direct response 201", "/d/created")
get("direct response 503 without body", "/d/nobody")
get("direct response is no format", "/d/format", "x-a: b")
get("direct response to a request with a body", "/d/headers", method="POST", body="data")
get("direct response to gRPC", "/d/nobody", "content-type: application/grpc", method="POST", body="x")
get("direct response to gRPC with a body", "/d/headers", "content-type: application/grpc", method="POST", body="x")
get("long direct response", "/", listener="long")
get("empty values kept", "/m/keep")
get("append flags", "/m/old", "x-a: old", "x-b: old")
get("formatters on the response", "/m/reflect?q", "x-in: i", upstream=[{"headers": [("x-up", "u")]}])
get("content type overwritten", "/m/contenttype", upstream=[{"headers": [("x-up", "u")]}])
get("standard response headers removed", "/m/length")
get("standard request headers removed", "/m/remove", "user-agent: me")
SENT = ["x-" + action.lower().replace("_", "-") for action in LEVELS]
for where in ("levels", "specific"):
    get(f"header levels on {where}", "/", *[f"{s}: client" for s in SENT[1::2]], "x-no-route: 1", "x-no-config: 1", listener=where,
        upstream=[{"headers": [(s, "upstream") for s in SENT[1:]]}])
    get(f"header levels on {where} without any", "/", listener=where)
for name in ("a.test:8080", "a.test", "a.test:1", "x.w.test:5", "[::1]:4"):
    get(f"host {name}, ports ignored", "/", listener="ports", host=name)
    get(f"host {name}, ports count", "/", listener="noports", host=name)
for path in ("/p;a=b", "/pre/fix;a/b", "/pre;x/fix", "/s/s;x", "/s/s/t;x", "/r/abc;d", "/w/x;y/z;w?q;r", "/p"):
    get(f"parameters in {path} ignored", path, listener="params")
    get(f"parameters in {path} count", path, listener="noparams")
for where in ("tls", "tlsout"):
    for name in ("ext.test", "all.test"):
        get(f"TLS required by {name} on {where}", "/x?y", listener=where, host=name)
        get(f"TLS required by {name} on {where}, client on https", "/x?y", "x-forwarded-proto: https", listener=where, host=name)
get("TLS required, POST", "/", listener="tls", host="all.test:8080", method="POST", body="x")
get("virtual host by header", "/", "x-vhost: one", listener="vhost")
get("virtual host by another header", "/", "x-vhost: two", listener="vhost")
get("virtual host by no header", "/", listener="vhost", host="one")
for name in ("a.test", "off.test"):
    for path in ("/off", "/other", "/weighted", "/"):
        get(f"filter configuration of {path} at {name}", path, listener="perfilter", host=name)
