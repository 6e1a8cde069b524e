"""Virtual host and route choice, weighted clusters, direct responses, redirects and rewrites."""
from harness.config import bootstrap, host, listener, route
from harness.runner import Group


STATUSES = [201, 202, 203, 205, 206, 207, 208, 226, 299, 300, 305, 306, 308, 400, 402, 407, 408, 413, 414, 416, 421, 422, 423,
            424, 425, 426, 428, 429, 431, 451, 499, 500, 505, 506, 507, 508, 509, 510, 511, 599]


def config(p):
    engine = {"regex": "/num/[0-9]+"}
    routes = [
        route({"path": "/exact"}, "up", name="exact"),
        route({"path_separated_prefix": "/sep"}, "up", name="sep"),
        route({"safe_regex": engine}, "up", name="regex"),
        route({"path": "/CASELESS", "case_sensitive": False}, "up", name="caseless"),
        route({"prefix": "/m", "headers": [{"name": ":method", "string_match": {"exact": "PUT"}}]}, "up", name="put"),
        route({"prefix": "/h", "headers": [{"name": "x-a", "string_match": {"exact": "1"}}]}, "up", name="h-exact"),
        route({"prefix": "/h", "headers": [{"name": "x-a", "string_match": {"prefix": "2"}, "invert_match": True},
                                           {"name": "x-b", "present_match": True}]}, "up", name="h-inverted"),
        route({"prefix": "/h", "headers": [{"name": "x-n", "range_match": {"start": 10, "end": 20}}]}, "up", name="h-range"),
        route({"prefix": "/q", "query_parameters": [{"name": "v", "string_match": {"exact": "1"}}]}, "up", name="q-exact"),
        route({"prefix": "/q", "query_parameters": [{"name": "w", "present_match": True}]}, "up", name="q-present"),
        route({"prefix": "/direct"}, direct_response={"status": 418, "body": {"inline_string": "teapot"}}, name="direct"),
        route({"prefix": "/bare"}, direct_response={"status": 204}, name="bare"),
        route({"prefix": "/r/host"}, redirect={"host_redirect": "b.test", "response_code": "FOUND"}),
        route({"prefix": "/r/https"}, redirect={"https_redirect": True}),
        route({"prefix": "/r/path"}, redirect={"path_redirect": "/new?x=1", "response_code": "SEE_OTHER"}),
        route({"prefix": "/r/prefix"}, redirect={"prefix_rewrite": "/p", "strip_query": True,
                                                 "response_code": "TEMPORARY_REDIRECT"}),
        route({"prefix": "/r/port"}, redirect={"port_redirect": 8443, "scheme_redirect": "https",
                                               "response_code": "PERMANENT_REDIRECT"}),
        route({"prefix": "/r/regex"}, redirect={"regex_rewrite": {"pattern": {"regex": "^/r/regex/(.*)$"},
                                                                  "substitution": "/got/\\1"}}),
        route({"prefix": "/w/prefix/"}, {"prefix_rewrite": "/"}),
        route({"prefix": "/w/regex"}, {"regex_rewrite": {"pattern": {"regex": "/(r)(egex)"}, "substitution": "/\\2\\1"}}),
        route({"prefix": "/w/host"}, {"host_rewrite_literal": "literal.test", "append_x_forwarded_host": True}),
        route({"prefix": "/w/header"}, {"host_rewrite_header": "x-host"}),
        route({"prefix": "/w/hostpath"}, {"host_rewrite_path_regex": {"pattern": {"regex": "^/w/hostpath/([^/]+).*$"},
                                                                      "substitution": "\\1.test"}}),
        route({"prefix": "/weighted"}, {"weighted_clusters": {"clusters": [
            {"name": "dead", "weight": 0}, {"name": "up", "weight": 100, "request_headers_to_add": [
                {"header": {"key": "x-chosen", "value": "up"}}]}]}}),
        route({"prefix": "/by-header"}, {"cluster_header": "x-cluster"}),
        route({"prefix": "/gone404"}, {"cluster": "nowhere", "cluster_not_found_response_code": "NOT_FOUND"}),
        route({"prefix": "/gone"}, {"cluster": "nowhere"}),
        *[route({"path": f"/status/{code}"}, direct_response={"status": code}) for code in STATUSES],
        route({"path": "/by-authority"}, {"cluster_header": ":authority"}),
    ]
    hosts = [host(routes, ["a.test", "a.test:*"], "a"),
             host([route("/", direct_response={"status": 200, "body": {"inline_string": "suffix"}})], ["*.wild.test"], "suffix"),
             host([route("/", direct_response={"status": 200, "body": {"inline_string": "longer"}})],
                  ["*.more.wild.test"], "longer"),
             host([route("/", direct_response={"status": 200, "body": {"inline_string": "prefix"}})], ["pre.*"], "prefix"),
             host([route("/", direct_response={"status": 200, "body": {"inline_string": "exact"}})], ["x.wild.test"], "exact"),
             host([route("/", "up")], ["tls.test"], "tls", require_tls="ALL")]
    return bootstrap(p, [listener(p, hosts, route_config={"validate_clusters": False})])


G = Group(config)


def get(name, *args, **kw):
    G.case("routing: " + name)(lambda t: t.get(*args, **kw))


get("exact path", "/exact")
get("exact path keeps the query", "/exact?a=b&c=%20d")
get("exact path does not match longer", "/exact/more")
get("separated prefix itself", "/sep")
get("separated prefix below", "/sep/below?x")
get("separated prefix needs a boundary", "/separate")
get("regex matches the whole path", "/num/123")
get("regex does not match a part", "/num/123/x")
get("regex ignores the query", "/num/1?z=y")
get("case-insensitive path", "/caseLESS")
get("method match", "/m", method="PUT", body="data")
get("method mismatch", "/m")
get("header exact", "/h", "x-a: 1")
get("header inverted and present", "/h", "x-a: 1x", "x-b: any")
get("header inverted on a missing header", "/h", "x-b: any")
get("header range", "/h", "x-a: 2", "x-n: 19")
get("header range end is excluded", "/h", "x-a: 2", "x-n: 20")
get("repeated header is joined for matching", "/h", "x-a: 1", "x-a: 1")
get("repeated header with one match", "/h", "x-a: 9", "x-a: 1")
get("repeated header inverted, one match", "/h", "x-a: 9", "x-a: 2", "x-b: any")
get("repeated header in a range", "/h", "x-a: 2", "x-n: 1", "x-n: 12")
get("query exact", "/q?v=1")
get("query present without value", "/q?a=b&w")
get("query mismatch", "/q?v=2")
get("direct response with body", "/direct")
get("direct response without body", "/bare")
get("direct response to HEAD", "/direct", method="HEAD")
get("host: exact before wildcard", "/", host="x.wild.test")
get("host: suffix wildcard", "/", host="y.wild.test")
get("host: longest suffix wins", "/", host="z.more.wild.test")
get("host: prefix wildcard", "/", host="pre.any")
get("host: case-insensitive", "/exact", host="A.TEST")
get("host: with a port", "/exact", host="a.test:8080")
get("host: unknown", "/", host="nobody.test")
get("host: bare wildcard suffix does not match", "/", host="wild.test")
get("virtual host requires TLS", "/x?y", host="tls.test")
get("redirect host", "/r/host/x?y=1")
get("redirect host keeps the port", "/r/host/x", host="a.test:8080")
get("redirect https", "/r/https/x?y=1")
get("redirect path with its own query", "/r/path?z=1")
get("redirect prefix, query stripped", "/r/prefix/x?y=1")
get("redirect port and scheme", "/r/port/x")
get("redirect regex", "/r/regex/a/b?c")
get("rewrite prefix", "/w/prefix/a?b=c")
get("rewrite regex", "/w/regex/x/regex?keep=regex")
get("rewrite host literal", "/w/host")
get("rewrite host from a header", "/w/header", "x-host: from.header")
get("rewrite host from a missing header", "/w/header")
get("rewrite host from the path", "/w/hostpath/name/rest")
get("weighted cluster with weight zero", "/weighted")
get("cluster from a header", "/by-header", "x-cluster: up")
get("cluster from the first of two headers", "/by-header", "x-cluster: up", "x-cluster: none")
get("cluster from a pseudo-header", "/by-authority")
get("cluster header missing", "/by-header")
get("cluster header names none", "/by-header", "x-cluster: none")
get("cluster not found", "/gone")
get("cluster not found as 404", "/gone404")
get("no route", "/nothing")
for code in STATUSES:
    get(f"reason phrase of {code}", f"/status/{code}")
