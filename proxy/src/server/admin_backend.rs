//! What the admin interface shows and does, over the running process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use super::admin::config_dump::ConfigStore;
use super::admin::{
    AdminBackend, AdminError, ClusterStatus, DrainRequest, DumpRequest, HostStatus, ListenerStatus,
    LogChange, ServerState,
};
use super::compiled::internal_address;
use super::drain::{DrainEnd, DrainManager};
use super::listener_manager::ListenerManager;
use super::server_stats::ServerStats;
use crate::bootstrap::command_line::CommandLine;
use crate::bootstrap::logging::{Level, LogHandle};
use crate::bootstrap::settings::Settings;
use crate::config::context::ChainContext;
use crate::config::resources::Resources;
use crate::config::runtime::NoAdminLayer;
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
    /// A graceful `/drain_listeners` has begun.
    pub listeners_drain: AtomicBool,
    /// `server.*`
    pub stats: ServerStats,
}

impl Backend {
    /// The flag that connections see while health checks are failed.
    fn unhealthy(&self) -> Arc<AtomicBool> {
        let unhealthy = |l: &mut ListenerManager| l.context().unhealthy.clone();
        self.resources.with_listeners(unhealthy)
    }
}

impl AdminBackend for Backend {
    fn state(&self) -> ServerState {
        match self.resources.server_state() {
            ServerState::Live
                if self.unhealthy().load(Ordering::Relaxed) || self.drain.is_draining() =>
            {
                ServerState::Draining
            }
            state => state,
        }
    }

    fn update_stats(&self) {
        self.stats.update(self);
    }

    fn server_info(&self) -> Value {
        super::server_info::server_info(self)
    }

    fn config_dump(&self, request: &DumpRequest) -> Result<Value, AdminError> {
        self.config.dump(request)
    }

    fn clusters(&self) -> Vec<ClusterStatus> {
        let all = self.resources.with_clusters(|c| c.snapshot());
        all.into_iter()
            .map(|snapshot| {
                let cluster = &snapshot.cluster;
                let mut hosts = Vec::new();
                for (priority, host) in cluster.known_hosts() {
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
                        priority,
                        ..HostStatus::default()
                    });
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

    fn listeners(&self) -> Vec<ListenerStatus> {
        self.resources.with_listeners(|listeners| {
            let all = listeners.listeners();
            all.map(|(config, bound, _)| ListenerStatus {
                name: config.name.to_string(),
                addresses: match config.internal {
                    true => vec![internal_address(&config.name)],
                    false => bound.iter().map(ToString::to_string).collect(),
                },
            })
            .collect()
        })
    }

    fn drain_listeners(&self, request: DrainRequest) {
        // The server itself stays LIVE: only its listeners drain.
        let inbound_only = request.inbound_only;
        if !request.graceful && !request.skip_exit {
            self.resources.with_listeners(|l| l.stop_all(inbound_only));
            return;
        }
        if self.listeners_drain.swap(true, Ordering::Relaxed) {
            return;
        }
        let end = match request.skip_exit {
            true => DrainEnd::Never,
            false => DrainEnd::Deadline,
        };
        let plan = self.drain.plan();
        let listeners = &self.resources;
        // Nobody waits for the end.
        drop(listeners.with_listeners(|l| l.drain_all(plan, inbound_only, end)));
    }

    fn health_check(&self, ok: bool) {
        self.unhealthy().store(!ok, Ordering::Relaxed);
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

    fn memory(&self) -> Value {
        // The allocator has no numbers of its own: what the process has in memory stands for its heap.
        let resident = resident_bytes().to_string();
        json!({
            "allocated": resident, "heap_size": resident, "pageheap_unmapped": "0",
            "pageheap_free": "0", "total_thread_cache": "0", "total_physical_bytes": resident,
        })
    }

    fn init_dump(&self) -> Value {
        let names = self.resources.warming();
        if names.is_empty() {
            return json!({});
        }
        json!({ "unready_targets_dumps": [{ "name": "init manager Server", "target_names": names }] })
    }

    fn certs(&self) -> Value {
        json!({ "certificates": [] })
    }

    fn runtime(&self) -> Value {
        self.settings.runtime.dump()
    }

    fn runtime_modify(&self, changes: &[(String, String)]) -> Result<(), AdminError> {
        let modified = self.settings.runtime.modify(changes);
        modified.map_err(|NoAdminLayer| AdminError {
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
