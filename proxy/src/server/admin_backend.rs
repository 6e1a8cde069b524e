//! What the admin interface shows and does, over the running process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use envoy_types::pb::envoy::admin::v3::{CommandLineOptions, ServerInfo, server_info};
use serde_json::json;
use xds_client::json::{Pool, PrintOptions};

use super::admin::config_dump::ConfigStore;
use super::admin::{
    AdminBackend, AdminError, ClusterStatus, DrainRequest, DumpRequest, HostStatus, LogChange,
    ServerState,
};
use super::drain::DrainManager;
use super::server_stats::ServerStats;
use crate::bootstrap::command_line::CommandLine;
use crate::bootstrap::logging::{Level, LogHandle};
use crate::bootstrap::settings::Settings;
use crate::config::context::ChainContext;
use crate::config::resources::Resources;
use crate::upstream::cluster::Discovery;
use crate::upstream::host::Health;

/// The process, for the admin interface and the signals.
pub struct Backend {
    /// The resources.
    pub resources: Arc<Resources>,
    /// What chains share.
    pub context: Arc<ChainContext>,
    /// What `/config_dump` shows.
    pub config: Arc<ConfigStore>,
    /// The drain of the server.
    pub drain: Arc<DrainManager>,
    /// The settings.
    pub settings: Settings,
    /// The command line.
    pub line: CommandLine,
    /// The log.
    pub log: LogHandle,
    /// Ends the process at once.
    pub quit: Arc<tokio::sync::Notify>,
    /// When the process started.
    pub started: Instant,
    /// `/healthcheck/fail` was called.
    pub failed: AtomicBool,
    /// `server.*`
    pub stats: ServerStats,
}

impl AdminBackend for Backend {
    fn state(&self) -> ServerState {
        match self.resources.server_state() {
            ServerState::Live
                if self.failed.load(Ordering::Acquire) || self.drain.is_draining() =>
            {
                ServerState::Draining
            }
            state => state,
        }
    }

    fn update_stats(&self) {
        self.stats.update(self);
    }

    fn server_info(&self) -> String {
        let state = match self.state() {
            ServerState::Live => server_info::State::Live,
            ServerState::Draining => server_info::State::Draining,
            ServerState::PreInitializing => server_info::State::PreInitializing,
            ServerState::Initializing => server_info::State::Initializing,
        };
        let up = self.started.elapsed().as_secs().cast_signed();
        let up = envoy_types::pb::google::protobuf::Duration {
            seconds: up,
            nanos: 0,
        };
        let line = &self.line;
        let text = |o: &Option<String>| o.clone().unwrap_or_default();
        let info = ServerInfo {
            version: CommandLine::version_text()
                .trim()
                .trim_start_matches("fairway  version: ")
                .to_owned(),
            state: state.into(),
            uptime_current_epoch: Some(up),
            uptime_all_epochs: Some(up),
            hot_restart_version: "disabled".to_owned(),
            command_line_options: Some(CommandLineOptions {
                concurrency: u32::try_from(self.settings.concurrency).unwrap_or(u32::MAX),
                config_path: text(&line.config_path),
                config_yaml: text(&line.config_yaml),
                log_level: line.log_level.clone(),
                component_log_level: text(&line.component_log_level),
                service_cluster: text(&line.service_cluster),
                service_node: text(&line.service_node),
                service_zone: text(&line.service_zone),
                disable_hot_restart: true,
                ..Default::default()
            }),
            node: Some(self.settings.node.clone()),
            ..Default::default()
        };
        Pool::load().map_or_else(
            |_| "{}".to_owned(),
            |p| p.print_message(&info, PrintOptions::default()).to_string(),
        )
    }

    fn config_dump(&self, request: &DumpRequest) -> Result<String, AdminError> {
        self.config.dump(request)
    }

    fn clusters(&self) -> Vec<ClusterStatus> {
        let all = self.resources.with_clusters(|c| c.snapshot());
        all.into_iter()
            .map(|snapshot| {
                let cluster = &snapshot.cluster;
                let mut hosts = Vec::new();
                for locality in cluster.hosts().localities() {
                    for host in &locality.hosts {
                        hosts.push(HostStatus {
                            address: host.address.to_string(),
                            stats: host.stats().map(|(n, v)| (n.to_owned(), v)).into(),
                            hostname: host.hostname.to_string(),
                            health_flags: match host.health() {
                                Health::Healthy => "healthy".to_owned(),
                                Health::Degraded => "/degraded_eds_health".to_owned(),
                                _ => "/failed_eds_health".to_owned(),
                            },
                            weight: host.weight(),
                            priority: locality.priority,
                            ..HostStatus::default()
                        });
                    }
                }
                ClusterStatus {
                    name: cluster.name().to_string(),
                    observability_name: cluster.config.stat_name.to_string(),
                    limits: cluster
                        .config
                        .limits
                        .map(|l| [l.connections, l.pending, l.requests, l.retries]),
                    added_via_api: !snapshot.version.is_empty(),
                    eds_service_name: match &cluster.config.discovery {
                        Discovery::Eds { name, .. } => name.to_string(),
                        _ => String::new(),
                    },
                    hosts,
                }
            })
            .collect()
    }

    fn listeners(&self) -> Vec<(String, Vec<String>)> {
        self.resources.with_listeners(|listeners| {
            let one = |name: &str, bound: &[super::socket::BindAddress]| {
                (
                    name.to_owned(),
                    bound.iter().map(ToString::to_string).collect(),
                )
            };
            listeners
                .listeners()
                .map(|(c, b, _)| one(&c.name, b))
                .collect()
        })
    }

    fn drain_listeners(&self, request: DrainRequest) {
        // The server itself stays LIVE: only its listeners drain.
        let mut plan = self.drain.plan();
        if !request.graceful {
            plan.time = std::time::Duration::ZERO;
        }
        // Nobody waits for the end.
        drop(
            self.resources
                .with_listeners(|listeners| listeners.drain_all(plan, request.inbound_only, false)),
        );
    }

    fn health_check(&self, ok: bool) {
        self.failed.store(!ok, Ordering::Release);
    }

    fn quit(&self) {
        self.quit.notify_one();
    }

    fn loggers(&self) -> Vec<(String, String)> {
        let name = |(n, l): (String, Level)| (n, l.name().to_owned());
        self.log.loggers().into_iter().map(name).collect()
    }

    fn set_log_level(&self, change: &LogChange) -> Result<(), String> {
        let parse =
            |l: &str| Level::parse(l).ok_or_else(|| "error: invalid logger level".to_owned());
        match change {
            LogChange::All(level) => self.log.set_all(parse(level)?),
            LogChange::Named(all) => {
                for (name, level) in all {
                    self.log.set(name, parse(level)?)?;
                }
            }
        }
        Ok(())
    }

    fn memory(&self) -> String {
        let resident = resident_bytes();
        json!({ "allocated": resident.to_string(), "heap_size": resident.to_string() }).to_string()
    }

    fn init_dump(&self) -> String {
        let names = self.resources.warming();
        json!({ "unready_targets_dumps": [{ "name": "init manager Server", "target_names": names }] })
            .to_string()
    }

    fn certs(&self) -> String {
        json!({ "certificates": [] }).to_string()
    }

    fn runtime(&self) -> String {
        let entries: BTreeMap<_, _> = self
            .settings
            .runtime
            .iter()
            .map(|(k, v)| (k, json!({ "layer_values": [v], "final_value": v })))
            .collect();
        json!({ "layers": ["static"], "entries": entries }).to_string()
    }

    fn runtime_modify(&self, _: &[(String, String)]) -> Result<(), AdminError> {
        Err(AdminError {
            status: 503,
            message: "No admin layer specified".to_owned(),
        })
    }

    fn reopen_logs(&self) {
        self.context.access_logs.reopen();
        if let Err(e) = self.log.reopen() {
            tracing::error!("cannot open the log anew: {e}");
        }
    }
}

/// Resident memory in bytes; 0 where `/proc` does not tell.
pub fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
