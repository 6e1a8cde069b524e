"""Access logs of listeners: connections that no filter chain takes."""
import time

from harness.config import TYPE, bootstrap, listener, route
from harness.runner import Group

FORMAT = ("connection %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %PROTOCOL% %REQ(:METHOD)% %BYTES_RECEIVED% %BYTES_SENT% "
          "%DOWNSTREAM_LOCAL_ADDRESS% %UPSTREAM_CLUSTER% %ROUTE_NAME%\n")


def config(p):
    def log(**fields):
        return {"name": "envoy.access_loggers.file", "typed_config": {
            "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": p.log,
            "log_format": {"text_format_source": {"inline_string": FORMAT}}}, **fields}

    def on(name, match=None, **fields):
        made = listener(p, [route("/", "up")], name)
        made["access_log"] = [log(**fields)]
        if match:
            made["filter_chains"][0]["filter_chain_match"] = match
        return made
    elsewhere = {"source_prefix_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]}
    none = {"filter": {"response_flag_filter": {"flags": ["NR"]}}}
    return bootstrap(p, [on("nowhere", elsewhere), on("only", None, **none), on("onlynowhere", elsewhere, **none)])


G = Group(config)


@G.case("listener log: no filter chain", logs=1)
def _(t):
    t.h1("GET / HTTP/1.1\r\nhost: a.test\r\n\r\n", "nowhere")


@G.case("listener log: filtered, with a filter chain", logs=1)
def _(t):
    t.get("/", listener="only")
    time.sleep(0.2)


@G.case("listener log: filtered, without a filter chain", logs=1)
def _(t):
    t.h1("GET / HTTP/1.1\r\nhost: a.test\r\n\r\n", "onlynowhere")
