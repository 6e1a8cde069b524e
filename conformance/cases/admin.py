"""What pilot-agent and istioctl read from the admin interface."""
from harness.config import bootstrap, listener, route
from harness.runner import Group


def config(p):
    return bootstrap(p, [listener(p, [route("/", "up")])])


G = Group(config)


@G.case("admin: ready")
def _(t):
    t.admin("/ready")


@G.case("admin: readiness gauges")
def _(t):
    t.admin("/stats?usedonly&filter=" + "^(server\\.state|listener_manager\\.workers_started)$")


@G.case("admin: request counters")
def _(t):
    t.get("/")
    t.admin("/stats?filter=" + r"^(http\.main\.downstream_rq_(total|2xx|completed)|cluster\.up\.upstream_rq_(total|2xx|200|completed))$")


@G.case("admin: prometheus counters")
def _(t):
    t.admin("/stats/prometheus?filter=" + r"^http\.main\.downstream_rq_total$")


@G.case("admin: stats as JSON")
def _(t):
    t.admin("/stats?format=json&filter=" + r"^http\.main\.downstream_rq_total$")


@G.case("admin: clusters of `up`")
def _(t):
    t.admin("/clusters", keep=r"^up::(default_priority|added_via_api|127.0.0.1:\d+::(health_flags|weight|priority|canary|zone|region))")


@G.case("admin: listeners")
def _(t):
    t.admin("/listeners")


@G.case("admin: unknown path")
def _(t):
    t.admin("/nothing", keep="^invalid path")


@G.case("admin: mutation by GET")
def _(t):
    t.admin("/healthcheck/fail")


@G.case("admin: health check fail and ok")
def _(t):
    t.admin("/healthcheck/fail", "POST")
    t.admin("/ready")
    t.get("/")
    t.admin("/healthcheck/ok", "POST")
    t.admin("/ready")


@G.case("admin: logging")
def _(t):
    t.admin("/logging?level=warning", "POST", keep="^active loggers")


@G.case("admin: reset counters")
def _(t):
    t.admin("/reset_counters", "POST")
    t.admin("/stats?filter=" + r"^http\.main\.downstream_rq_total$")


@G.case("admin: config dump's kinds")
def _(t):
    t.admin("/config_dump", keep=r'^   "@type"')


@G.case("admin: drain listeners")
def _(t):
    t.admin("/drain_listeners", "POST")
