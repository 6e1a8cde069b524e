//! The paths, and which page answers each.

use std::fmt::Write as _;

use http::{Method, Uri};

use super::backend::{AdminBackend, DrainRequest, DumpRequest, ServerState};
use super::page::{Page, Query, pretty};
use super::{clusters, listeners, logging, stats};
use crate::telemetry::stats::Stats;

/// Path, whether it needs POST, and what it does.
const COMMANDS: &[(&str, bool, &str)] = &[
    ("/", false, "this list"),
    ("/certs", false, "loaded certificates"),
    (
        "/clusters",
        false,
        "clusters and endpoints (filter; format: text, json)",
    ),
    (
        "/config_dump",
        false,
        "configuration (resource, mask, name_regex, include_eds)",
    ),
    ("/contention", false, "mutex contention"),
    ("/cpuprofiler", true, "CPU profiler, which is not built in"),
    (
        "/drain_listeners",
        true,
        "drain (graceful, skip_exit, inboundonly)",
    ),
    ("/healthcheck/fail", true, "fail health checks"),
    ("/healthcheck/ok", true, "pass health checks"),
    (
        "/heapprofiler",
        true,
        "heap profiler, which is not built in",
    ),
    ("/help", false, "this list"),
    ("/hot_restart_version", false, "hot restart compatibility"),
    ("/init_dump", false, "what start-up waits for"),
    ("/listeners", false, "listeners (format: text, json)"),
    (
        "/logging",
        true,
        "log levels (level, paths, group, <logger>)",
    ),
    ("/memory", false, "memory in use"),
    ("/quitquitquit", true, "end the process"),
    ("/ready", false, "200 if LIVE, else 503"),
    ("/reopen_logs", true, "open access logs anew"),
    ("/reset_counters", true, "set counters to zero"),
    ("/runtime", false, "runtime values"),
    ("/runtime_modify", true, "set runtime values (key=value)"),
    ("/server_info", false, "version, state, options"),
    (
        "/stats",
        false,
        "stats (usedonly, filter, invert_filter, format, type, histogram_buckets)",
    ),
    (
        "/stats/prometheus",
        false,
        "stats for Prometheus (usedonly, filter, invert_filter, histogram_buckets)",
    ),
];

pub(super) fn respond(
    method: &Method,
    uri: &Uri,
    backend: &dyn AdminBackend,
    stats: &Stats,
) -> Page {
    // pilot-agent and people write `//ready`: leading slashes count once.
    let path = format!("/{}", uri.path().trim_start_matches('/'));
    let query = Query::parse(uri.query());
    let Some((_, post, _)) = COMMANDS.iter().find(|(p, _, _)| *p == path) else {
        return Page::error(404, format!("invalid path. {}", help()));
    };
    if *post && method != Method::POST {
        return Page::error(405, format!("Method {method} not allowed, POST required."));
    }
    match path.as_str() {
        "/" | "/help" => Page::text(help()),
        "/ready" => {
            let state = backend.state();
            let status = if state == ServerState::Live { 200 } else { 503 };
            Page::error(status, format!("{}\n", state.name()))
        }
        "/server_info" => Page::json(pretty(&backend.server_info())),
        "/stats" => stats::page(backend, stats, &query, false),
        "/stats/prometheus" => stats::page(backend, stats, &query, true),
        "/config_dump" => config_dump(backend, &query),
        "/clusters" => clusters::page(backend.clusters(), &query),
        "/listeners" => listeners::page(&backend.listeners(), &query),
        "/logging" => logging::page(backend, &query),
        "/drain_listeners" => {
            backend.drain_listeners(DrainRequest {
                graceful: query.has("graceful"),
                skip_exit: query.has("skip_exit"),
                inbound_only: query.has("inboundonly"),
            });
            ok()
        }
        "/healthcheck/fail" | "/healthcheck/ok" => {
            backend.health_check(path.ends_with("ok"));
            ok()
        }
        "/quitquitquit" => Page::last("OK\n"),
        "/reset_counters" => {
            stats.reset_counters();
            ok()
        }
        "/reopen_logs" => {
            backend.reopen_logs();
            ok()
        }
        "/memory" => Page::json(pretty(&backend.memory())),
        "/init_dump" => Page::json(pretty(&backend.init_dump())),
        "/certs" => Page::json(pretty(&backend.certs())),
        "/runtime" => Page::json(pretty(&backend.runtime())),
        "/runtime_modify" => runtime_modify(backend, &query),
        "/hot_restart_version" => Page::text("disabled"),
        "/cpuprofiler" => match query.get("enable") {
            Some("y") => Page::error(500, "failure to start the profiler"),
            Some("n") => ok(),
            _ => Page::error(400, "?enable=<y|n>\n"),
        },
        "/heapprofiler" => Page::error(501, "The current build does not support heap profiler"),
        _ => Page::text("Mutex contention tracing is not enabled."),
    }
}

fn ok() -> Page {
    Page::text("OK\n")
}

fn help() -> String {
    let mut out = String::from("admin commands are:\n");
    for (path, post, what) in COMMANDS {
        let post = if *post { " (POST)" } else { "" };
        let _ = writeln!(out, "  {path}{post}: {what}");
    }
    out
}

fn config_dump(backend: &dyn AdminBackend, query: &Query) -> Page {
    let own = |name| query.get(name).map(str::to_owned);
    let request = DumpRequest {
        resource: own("resource"),
        mask: own("mask"),
        name_regex: own("name_regex"),
        include_eds: query.has("include_eds"),
    };
    match backend.config_dump(&request) {
        Ok(dump) => Page::json(pretty(&dump)),
        Err(error) => Page::bare_error(error.status, error.message),
    }
}

fn runtime_modify(backend: &dyn AdminBackend, query: &Query) -> Page {
    if query.0.is_empty() {
        return Page::error(
            400,
            "usage: /runtime_modify?key1=value1&key2=value2&keyN=valueN\n\
             use an empty value to remove a previously added override\n",
        );
    }
    match backend.runtime_modify(&query.0) {
        Ok(()) => ok(),
        Err(error) => Page::error(error.status, error.message),
    }
}
