//! The admin interface: Envoy's paths and texts over HTTP/1.1, on TCP or a Unix socket.
//!
//! It knows the proxy only through [`AdminBackend`]. Runs on the control runtime, never on a worker.

pub mod config_dump;
mod stats;

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use crate::telemetry::stats::Stats;

/// Connections served at once; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 128;
/// The time a client has to send a request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// The server's state as `/ready` and `/server_info` name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerState {
    /// Serving.
    Live,
    /// Health checks are failed, or the server is draining.
    Draining,
    /// Waiting for the first clusters.
    PreInitializing,
    /// Waiting for the first listeners.
    Initializing,
}

impl ServerState {
    /// Envoy's name of the state.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Draining => "DRAINING",
            Self::PreInitializing => "PRE_INITIALIZING",
            Self::Initializing => "INITIALIZING",
        }
    }
}

/// The query of `/config_dump`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DumpRequest {
    /// Only the elements of this repeated field (`dynamic_active_clusters`).
    pub resource: Option<String>,
    /// A field mask.
    pub mask: Option<String>,
    /// Only resources whose name matches.
    pub name_regex: Option<String>,
    /// With endpoints.
    pub include_eds: bool,
}

/// Why the backend refuses a request: the status (400, 404, 503) and the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminError {
    /// The response's status.
    pub status: u16,
    /// The response's text.
    pub message: String,
}

/// The query of `/drain_listeners`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DrainRequest {
    /// Drain for the drain time before the listeners close.
    pub graceful: bool,
    /// Drain connections but keep the listeners.
    pub skip_exit: bool,
    /// Only listeners with `traffic_direction: INBOUND`.
    pub inbound_only: bool,
}

/// One change of `/logging`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogChange {
    /// All loggers.
    All(String),
    /// Loggers by name.
    Named(Vec<(String, String)>),
}

/// A cluster in `/clusters`.
#[derive(Debug, Clone, Default)]
pub struct ClusterStatus {
    /// The name.
    pub name: String,
    /// `alt_stat_name`, or else the name.
    pub observability_name: String,
    /// Limits of default and high priority: connections, pending requests, requests, retries.
    pub limits: [[u32; 4]; 2],
    /// Whether CDS brought it.
    pub added_via_api: bool,
    /// EDS service name, if any.
    pub eds_service_name: String,
    /// The endpoints.
    pub hosts: Vec<HostStatus>,
}

/// An endpoint in `/clusters`.
#[derive(Debug, Clone, Default)]
pub struct HostStatus {
    /// `ip:port` or a path.
    pub address: String,
    /// Name and value, as in `cx_active`, sorted by name.
    pub stats: Vec<(String, u64)>,
    /// Empty if the endpoint has no name.
    pub hostname: String,
    /// `healthy`, or flags such as `/failed_active_hc`.
    pub health_flags: String,
    /// Load balancing weight.
    pub weight: u32,
    /// Region, zone, sub-zone.
    pub locality: [String; 3],
    /// Whether it is a canary.
    pub canary: bool,
    /// 0 is the highest.
    pub priority: u32,
}

/// What the admin interface shows and does. Methods return quickly; they run on the control runtime.
pub trait AdminBackend: Send + Sync {
    /// The server's state.
    fn state(&self) -> ServerState;
    /// Brings up to date the stats that nothing else keeps (`server.*`).
    fn update_stats(&self);
    /// The JSON of `/server_info`.
    fn server_info(&self) -> String;
    /// The JSON of `/config_dump`.
    ///
    /// # Errors
    /// The request names an unknown resource, or a mask or regex that is not valid.
    fn config_dump(&self, request: &DumpRequest) -> Result<String, AdminError>;
    /// Every cluster.
    fn clusters(&self) -> Vec<ClusterStatus>;
    /// Every listener's name and its addresses.
    fn listeners(&self) -> Vec<(String, Vec<String>)>;
    /// Starts to drain.
    fn drain_listeners(&self, request: DrainRequest);
    /// Fails (false) or passes (true) health checks.
    fn health_check(&self, ok: bool);
    /// Ends the process.
    fn quit(&self);
    /// Loggers and their levels, in the order to print.
    fn loggers(&self) -> Vec<(String, String)>;
    /// Changes log levels; the level is one Envoy knows.
    ///
    /// # Errors
    /// Such as `error: unknown logger name`; nothing was changed.
    fn set_log_level(&self, change: &LogChange) -> Result<(), String>;
    /// The JSON of `/memory`.
    fn memory(&self) -> String;
    /// The JSON of `/init_dump`.
    fn init_dump(&self) -> String;
    /// The JSON of `/certs`.
    fn certs(&self) -> String;
    /// The JSON of `/runtime`.
    fn runtime(&self) -> String;
    /// Sets (or with an empty value removes) runtime keys.
    ///
    /// # Errors
    /// There is no admin layer (503), or a value is not valid (400).
    fn runtime_modify(&self, changes: &[(String, String)]) -> Result<(), AdminError>;
    /// Opens access logs anew.
    fn reopen_logs(&self);
}

/// Where the admin interface listens.
pub enum AdminListener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

/// Serves until dropped.
pub async fn serve(listener: AdminListener, backend: Arc<dyn AdminBackend>, stats: Arc<Stats>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let (backend, stats) = (backend.clone(), stats.clone());
        let accepted = match &listener {
            AdminListener::Tcp(l) => l.accept().await.map(|(io, _)| {
                tokio::spawn(async move {
                    connection(io, backend, stats).await;
                    drop(slot);
                });
            }),
            AdminListener::Unix(l) => l.accept().await.map(|(io, _)| {
                tokio::spawn(async move {
                    connection(io, backend, stats).await;
                    drop(slot);
                });
            }),
        };
        if let Err(error) = accepted {
            // Out of descriptors, or the client is gone: wait a little instead of spinning.
            tracing::warn!(%error, "admin: accept failed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn connection<I>(io: I, backend: Arc<dyn AdminBackend>, stats: Arc<Stats>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let response = respond(request.method(), request.uri(), &*backend, &stats);
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(io), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "admin: connection ended");
    }
}

/// Path, whether it needs POST, and what it does.
const COMMANDS: &[(&str, bool, &str)] = &[
    ("/", false, "this list"),
    ("/certs", false, "loaded certificates"),
    (
        "/clusters",
        false,
        "clusters and endpoints (format: text, json)",
    ),
    (
        "/config_dump",
        false,
        "configuration (resource, mask, name_regex, include_eds)",
    ),
    ("/contention", false, "mutex contention"),
    (
        "/drain_listeners",
        true,
        "drain (graceful, skip_exit, inboundonly)",
    ),
    ("/healthcheck/fail", true, "fail health checks"),
    ("/healthcheck/ok", true, "pass health checks"),
    ("/help", false, "this list"),
    ("/hot_restart_version", false, "hot restart compatibility"),
    ("/init_dump", false, "what start-up waits for"),
    ("/listeners", false, "listeners (format: text, json)"),
    ("/logging", true, "log levels (level, paths, <logger>)"),
    ("/memory", false, "memory in use"),
    ("/quitquitquit", true, "end the process"),
    ("/ready", false, "200 if LIVE, else 503"),
    ("/reopen_logs", true, "open access logs anew"),
    ("/reset_counters", true, "set counters to zero"),
    ("/runtime", false, "runtime values"),
    ("/runtime_modify", true, "set runtime values (key=value)"),
    ("/server_info", false, "version, state, options"),
    ("/stats", false, "stats (usedonly, filter, format, type)"),
    (
        "/stats/prometheus",
        false,
        "stats for Prometheus (usedonly, filter, text_readouts)",
    ),
];

const LEVELS: [&str; 7] = [
    "trace", "debug", "info", "warning", "error", "critical", "off",
];

fn reply(status: u16, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in [
        ("content-type", content_type),
        ("cache-control", "no-cache, max-age=0"),
        ("x-content-type-options", "nosniff"),
        ("server", "envoy"),
    ] {
        response
            .headers_mut()
            .insert(name, http::HeaderValue::from_static(value));
    }
    response
}

fn text(status: u16, body: impl Into<String>) -> Response<Full<Bytes>> {
    reply(status, "text/plain; charset=UTF-8", body.into())
}

fn json(body: String) -> Response<Full<Bytes>> {
    reply(200, "application/json", body)
}

fn query(uri: &http::Uri) -> Vec<(String, String)> {
    let decode = |s: &str| {
        percent_encoding::percent_decode_str(s)
            .decode_utf8_lossy()
            .into_owned()
    };
    uri.query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect()
}

fn get<'a>(query: &'a [(String, String)], name: &str) -> Option<&'a str> {
    query
        .iter()
        .find(|(n, _)| n == name)
        .map(|(_, v)| v.as_str())
}

fn respond(
    method: &Method,
    uri: &http::Uri,
    backend: &dyn AdminBackend,
    stats: &Stats,
) -> Response<Full<Bytes>> {
    // pilot-agent and people write `//ready`: leading slashes count once.
    let path = format!("/{}", uri.path().trim_start_matches('/'));
    let query = query(uri);
    let Some((_, post, _)) = COMMANDS.iter().find(|(p, _, _)| *p == path) else {
        return text(404, format!("invalid path. {}", help()));
    };
    if *post && method != Method::POST {
        return text(405, format!("Method {method} not allowed, POST required."));
    }
    match path.as_str() {
        "/" | "/help" => text(200, help()),
        "/ready" => {
            let state = backend.state();
            let status = if state == ServerState::Live { 200 } else { 503 };
            text(status, format!("{}\n", state.name()))
        }
        "/server_info" => json(backend.server_info()),
        "/stats" => stats_page(backend, stats, &query, false),
        "/stats/prometheus" => stats_page(backend, stats, &query, true),
        "/config_dump" => {
            let own = |name| get(&query, name).map(str::to_owned);
            let request = DumpRequest {
                resource: own("resource"),
                mask: own("mask"),
                name_regex: own("name_regex"),
                include_eds: get(&query, "include_eds").is_some(),
            };
            match backend.config_dump(&request) {
                Ok(body) => json(body),
                Err(error) => reply(error.status, "text/plain", error.message),
            }
        }
        "/clusters" if get(&query, "format") == Some("json") => {
            json(clusters_json(&backend.clusters()))
        }
        "/clusters" => text(200, clusters_text(&backend.clusters())),
        "/listeners" => listeners(&backend.listeners(), get(&query, "format") == Some("json")),
        "/logging" => logging(backend, &query),
        "/drain_listeners" => {
            backend.drain_listeners(DrainRequest {
                graceful: get(&query, "graceful").is_some(),
                skip_exit: get(&query, "skip_exit").is_some(),
                inbound_only: get(&query, "inboundonly").is_some(),
            });
            text(200, "OK\n")
        }
        "/healthcheck/fail" | "/healthcheck/ok" => {
            backend.health_check(path.ends_with("ok"));
            text(200, "OK\n")
        }
        "/quitquitquit" => {
            backend.quit();
            text(200, "OK\n")
        }
        "/reset_counters" => {
            stats.reset_counters();
            text(200, "OK\n")
        }
        "/reopen_logs" => {
            backend.reopen_logs();
            text(200, "OK\n")
        }
        "/memory" => json(backend.memory()),
        "/init_dump" => json(backend.init_dump()),
        "/certs" => json(backend.certs()),
        "/runtime" => json(backend.runtime()),
        "/runtime_modify" if query.is_empty() => {
            text(400, "usage: /runtime_modify?key1=value1&key2=value2\n")
        }
        "/runtime_modify" => match backend.runtime_modify(&query) {
            Ok(()) => text(200, "OK\n"),
            Err(error) => text(error.status, error.message),
        },
        "/hot_restart_version" => text(200, "disabled"),
        _ => text(200, "Mutex contention tracing is not enabled."),
    }
}

fn help() -> String {
    let mut out = String::from("admin commands are:\n");
    for (path, post, what) in COMMANDS {
        let _ = writeln!(
            out,
            "  {path}{}: {what}",
            if *post { " (POST)" } else { "" }
        );
    }
    out
}

fn stats_page(
    backend: &dyn AdminBackend,
    stats: &Stats,
    query: &[(String, String)],
    prometheus: bool,
) -> Response<Full<Bytes>> {
    let mut selection = stats::Selection {
        used_only: get(query, "usedonly").is_some(),
        invert: get(query, "invert_filter").is_some(),
        ..Default::default()
    };
    if let Some(filter) = get(query, "filter").filter(|f| !f.is_empty()) {
        match regex::Regex::new(filter) {
            Ok(regex) => selection.filter = Some(regex),
            Err(error) => return text(400, format!("Invalid re2 regex: {error}")),
        }
    }
    selection.kind = match get(query, "type") {
        None | Some("" | "All") => None,
        Some("Counters") => Some(stats::Kind::Counters),
        Some("Gauges") => Some(stats::Kind::Gauges),
        Some("Histograms") => Some(stats::Kind::Histograms),
        Some("TextReadouts") => Some(stats::Kind::TextReadouts),
        Some(_) => return text(400, "invalid &type= param"),
    };
    backend.update_stats();
    match get(query, "format") {
        _ if prometheus => text(200, stats::prometheus(stats, &selection)),
        Some("prometheus") => text(200, stats::prometheus(stats, &selection)),
        Some("json") => json(stats::json(stats, &selection)),
        None | Some("" | "text") => text(200, stats::text(stats, &selection)),
        Some(_) => text(400, "usage: /stats?format=(json|prometheus|text)\n\n"),
    }
}

fn listeners(list: &[(String, Vec<String>)], as_json: bool) -> Response<Full<Bytes>> {
    if !as_json {
        let mut out = String::new();
        for (name, addresses) in list {
            for address in addresses {
                let _ = writeln!(out, "{name}::{address}");
            }
        }
        return text(200, out);
    }
    let statuses: Vec<_> = list
        .iter()
        .map(|(name, addresses)| {
            let mut all = addresses.iter().map(|a| address(a));
            let mut status = serde_json::json!({"name": name, "local_address": all.next()});
            let more: Vec<_> = all.collect();
            if let (false, Some(status)) = (more.is_empty(), status.as_object_mut()) {
                status.insert("additional_local_addresses".to_owned(), more.into());
            }
            status
        })
        .collect();
    json(serde_json::json!({"listener_statuses": statuses}).to_string())
}

fn address(address: &str) -> serde_json::Value {
    match address.parse::<std::net::SocketAddr>() {
        Ok(ip) => {
            serde_json::json!({"socket_address": {"address": ip.ip().to_string(), "port_value": ip.port()}})
        }
        Err(_) => serde_json::json!({"pipe": {"path": address}}),
    }
}

fn clusters_text(list: &[ClusterStatus]) -> String {
    let mut out = String::new();
    for c in list {
        let n = &c.name;
        let _ = writeln!(out, "{n}::observability_name::{}", c.observability_name);
        for (priority, limits) in ["default", "high"].iter().zip(&c.limits) {
            for (name, limit) in ["connections", "pending_requests", "requests", "retries"]
                .iter()
                .zip(limits)
            {
                let _ = writeln!(out, "{n}::{priority}_priority::max_{name}::{limit}");
            }
        }
        let _ = writeln!(out, "{n}::added_via_api::{}", c.added_via_api);
        if !c.eds_service_name.is_empty() {
            let _ = writeln!(out, "{n}::eds_service_name::{}", c.eds_service_name);
        }
        for h in &c.hosts {
            let at = format!("{n}::{}", h.address);
            for (name, value) in &h.stats {
                let _ = writeln!(out, "{at}::{name}::{value}");
            }
            let [region, zone, sub_zone] = &h.locality;
            let _ = write!(
                out,
                "{at}::hostname::{}\n{at}::health_flags::{}\n{at}::weight::{}\n{at}::region::{region}\n\
                 {at}::zone::{zone}\n{at}::sub_zone::{sub_zone}\n{at}::canary::{}\n{at}::priority::{}\n\
                 {at}::success_rate::-1\n{at}::local_origin_success_rate::-1\n",
                h.hostname, h.health_flags, h.weight, h.canary, h.priority
            );
        }
    }
    out
}

fn clusters_json(list: &[ClusterStatus]) -> String {
    let statuses: Vec<_> = list
        .iter()
        .map(|c| {
            let hosts: Vec<_> = c
                .hosts
                .iter()
                .map(|h| {
                    let stats: Vec<_> = h
                        .stats
                        .iter()
                        .map(|(name, value)| match name.ends_with("_active") {
                            true => serde_json::json!({"type": "GAUGE", "value": value.to_string(), "name": name}),
                            false => serde_json::json!({"value": value.to_string(), "name": name}),
                        })
                        .collect();
                    let health = if h.health_flags == "healthy" { "HEALTHY" } else { "UNHEALTHY" };
                    let [region, zone, sub_zone] = &h.locality;
                    serde_json::json!({
                        "address": address(&h.address), "stats": stats,
                        "health_status": {"eds_health_status": health},
                        "weight": h.weight, "hostname": h.hostname, "priority": h.priority,
                        "locality": {"region": region, "zone": zone, "sub_zone": sub_zone},
                    })
                })
                .collect();
            let thresholds: Vec<_> = ["DEFAULT", "HIGH"]
                .iter()
                .zip(&c.limits)
                .map(|(priority, [connections, pending, requests, retries])| {
                    serde_json::json!({
                        "priority": priority, "max_connections": connections, "max_pending_requests": pending,
                        "max_requests": requests, "max_retries": retries,
                    })
                })
                .collect();
            serde_json::json!({
                "name": c.name, "added_via_api": c.added_via_api, "host_statuses": hosts,
                "circuit_breakers": {"thresholds": thresholds},
                "observability_name": c.observability_name, "eds_service_name": c.eds_service_name,
            })
        })
        .collect();
    serde_json::json!({"cluster_statuses": statuses}).to_string()
}

/// Reads the query of `/logging`; none if it changes nothing.
fn log_change(query: &[(String, String)]) -> Result<Option<LogChange>, &'static str> {
    let (name, value) = match query {
        [] => return Ok(None),
        [one] => one,
        _ => return Err("error: invalid number of parameters"),
    };
    let known = |level: &str| match LEVELS.contains(&level) {
        true => Ok(level.to_owned()),
        false => Err("error: unknown logger level"),
    };
    match name.as_str() {
        "level" | "paths" if value.is_empty() => Ok(None),
        "level" => Ok(Some(LogChange::All(known(value)?))),
        "paths" => {
            let mut list = Vec::new();
            for pair in value.split(',') {
                let (name, level) = pair.split_once(':').ok_or("error: invalid path")?;
                list.push((name.to_owned(), known(level)?));
            }
            Ok(Some(LogChange::Named(list)))
        }
        _ => Ok(Some(LogChange::Named(vec![(name.clone(), known(value)?)]))),
    }
}

fn logging(backend: &dyn AdminBackend, query: &[(String, String)]) -> Response<Full<Bytes>> {
    let changed = log_change(query)
        .map_err(str::to_owned)
        .and_then(|change| match change {
            Some(change) => backend.set_log_level(&change),
            None => Ok(()),
        });
    let (status, mut out) = match changed {
        Ok(()) => (200, String::new()),
        Err(error) => (
            400,
            format!(
                "{error}\n\nusage: /logging?<name>=<level>\nusage: /logging?paths=name1:level1,name2:level2,...\n\
                 usage: /logging?level=<level>\nlevels: {}\n",
                LEVELS.join(" ")
            ),
        ),
    };
    out.push_str("active loggers:\n");
    for (name, level) in backend.loggers() {
        let _ = writeln!(out, "  {name}: {level}");
    }
    out.push('\n');
    text(status, out)
}

#[cfg(test)]
mod tests;
