"""Request mirroring: what copies look like, which requests are copied, and that nobody waits for the answers."""
from harness.config import bootstrap, cluster, host, listener, route
from harness.runner import Group


def config(p):
    def to(*clusters, **more):
        return {"request_mirror_policies": [{"cluster": c, **more} for c in clusters]}

    def share(numerator):
        return {"runtime_fraction": {"default_value": {"numerator": numerator}}}
    hosts = [
        host([route("/one", to("copy")), route("/two", to("copy", "copy2")), route("/h2", to("copy2")),
              route("/header", {"request_mirror_policies": [{"cluster_header": "x-copy"}]}),
              route("/literal", to("copy", host_rewrite_literal="c.test")),
              route("/literal-plain", to("copy", host_rewrite_literal="c.test", disable_shadow_host_suffix_append=True)),
              route("/changed", to("copy", request_headers_mutations=[
                  {"append": {"header": {"key": "x-copy", "value": "%REQ(x-in)% %REQ(:path)%"}}}, {"remove": "x-in"}])),
              route("/plain", to("copy", disable_shadow_host_suffix_append=True)),
              route("/never", to("copy", **share(0))), route("/always", to("copy", **share(100), trace_sampled=False)),
              route("/missing", to("nowhere")), route("/down", to("dead")), route("/none", to("empty")),
              route("/nohost", {"cluster": "empty", **to("copy")}), route("/dead", {"cluster": "dead", **to("copy")}),
              route("/rewrite", {"prefix_rewrite": "/new", "host_rewrite_literal": "b.test", **to("copy")},
                    request_headers_to_add=[{"header": {"key": "x-added", "value": "1"}}]),
              route("/retry", {"retry_policy": {"retry_on": "5xx", "retry_back_off": {"base_interval": "0.001s"}}, **to("copy")}),
              route("/off", {"cluster": "up"})]),
        host([route("/own", to("copy2")), route("/", "up")], ["host.test"], "host", include_request_attempt_count=True, **to("copy")),
    ]
    return bootstrap(p, [
        listener(p, hosts, route_config={"validate_clusters": False}),
        listener(p, [route("/", "up")], "table", route_config=to("copy")),
    ], [cluster("copy", p.up), cluster("copy2", p.up2, h2=True)])


G = Group(config)


def get(name, count, *args, upstream=(), **kw):
    @G.case("mirror: " + name, upstream)
    def _(t):
        t.get(*args, **kw)
        t.upstream(count)


get("one", 2, "/one?x=1")
get("a body", 2, "/one", method="POST", body="some body")
get("to HTTP/2", 2, "/h2", method="POST", body="some body")
get("HEAD", 2, "/one", method="HEAD")
get("two", 3, "/two", method="POST", body="some body")
get("a host with a port", 2, "/one", host="a.test:8080")
get("without suffix", 2, "/plain")
get("cluster by header", 2, "/header", "x-copy: copy")
get("cluster by header, of no such name", 1, "/header", "x-copy: nowhere")
get("cluster by header, without the header", 1, "/header")
get("another host", 2, "/literal")
get("another host, no suffix", 2, "/literal-plain")
get("header mutations", 2, "/changed", "x-in: in")
get("of no request", 1, "/never")
get("of every request", 2, "/always")
get("cluster missing", 1, "/missing")
get("connection refused", 1, "/down")
get("no endpoints", 1, "/none")
get("of a request without a host", 0, "/nohost")
get("of a request that fails", 1, "/dead")
get("after rewrites", 2, "/rewrite/x")
get("not of retries", 3, "/retry", upstream=[{"status": 503}, {"status": 503}, {}])
get("of the virtual host", 2, "/", host="host.test")
get("of the route instead of the virtual host", 2, "/own", host="host.test")
get("of the route configuration", 2, "/", listener="table")
get("nobody waits", 2, "/one", upstream=[{}, {"delay": 1}])


@G.case("mirror: chunked with trailers")
def _(t):
    t.h1("POST /one HTTP/1.1\r\nhost: a.test\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
    t.upstream(2)
