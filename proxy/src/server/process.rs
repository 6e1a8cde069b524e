//! The whole process: from the command line to serving, and its end.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use filters::registry::Registry;
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{RunArgs, Server, ShutdownWatch};
use pingora_core::services::background::{BackgroundService, background_service};

use xds_client::error::ConfigError;

use super::admin::{self, AdminListener};
use super::admin_backend::Backend;
use super::drain::{DrainEnd, DrainManager};
use super::lifecycle::Lifecycle;
use super::listener::ListenerContext;
use super::listener_manager::ListenerManager;
use super::socket::BindAddress;
use crate::bootstrap::command_line::{CommandLine, Mode};
use crate::bootstrap::logging::{LogHandle, LogOptions};
use crate::bootstrap::{DEFAULT_BOOTSTRAP, settings::Settings};
use crate::config::chain::ChainCompiler;
use crate::config::context::{AccessLogs, ChainContext};
use crate::config::fields;
use crate::config::resources::Resources;
use crate::config::routes::RouteStore;
use crate::config::runtime;
use crate::config::sources::{self, Sources};
use crate::server::admin::config_dump::ConfigStore;
use crate::telemetry::stats::{Stats, StatsSettings};
use crate::transport::tls::secrets::SecretStore;
use crate::upstream::cluster_config::Stores;
use crate::upstream::grpc::{ClusterGrpc, FindCluster};
use crate::upstream::manager::ClusterManager;

struct Control {
    backend: Arc<Backend>,
    bootstrap: Bootstrap,
    stats: Arc<Stats>,
    echo: bool,
    /// Why the process had to end.
    failure: Arc<Mutex<Option<String>>>,
}

/// Runs the process; returns when it has ended.
///
/// # Errors
/// One line that says why it cannot start.
pub fn run(line: CommandLine) -> Result<(), String> {
    let log = LogHandle::init(&LogOptions {
        level: line.log_level.clone(),
        component_levels: line.component_log_level.clone(),
        format: line.log_format.clone(),
        escaped: line.log_format_escaped,
        path: line.log_path.clone(),
    })?;
    if !line.ignored.is_empty() {
        tracing::info!("without a meaning here: {}", line.ignored.join(", "));
    }
    let tags = line.stats_tags()?;
    let echo = line.config_path.is_none() && line.config_yaml.is_none();
    let yaml = if echo {
        Some(DEFAULT_BOOTSTRAP)
    } else {
        line.config_yaml.as_deref()
    };
    let bootstrap = xds_client::bootstrap::load(xds_client::bootstrap::LoadOptions {
        path: line.config_path.as_deref().map(std::path::Path::new),
        config_yaml: yaml,
        allow_unknown: line.allow_unknown_static_fields,
    })
    .map_err(|e| e.to_string())?;
    // Whatever is wrong in a bootstrap is said with the name of its file.
    let origin = line.config_path.clone();
    let origin = origin.unwrap_or_else(|| "--config-yaml".to_owned());
    let invalid = |e: ConfigError| format!("{origin}: {e}");
    let settings = Settings::new(&line, &bootstrap).map_err(invalid)?;
    sources::check_bootstrap(&bootstrap).map_err(invalid)?;
    fields::check_bootstrap(&bootstrap).map_err(invalid)?;
    let stats = bootstrap.stats_config.as_ref();
    let mut stats = stats.map(StatsSettings::from_proto).unwrap_or_default();
    stats.add_tags(&tags);
    let stats = Stats::with_settings(stats);
    let secrets = Arc::new(SecretStore::default());
    secrets.count_in(stats.scope(""));
    let mut clusters = ClusterManager::new();
    clusters.set_secrets(secrets.clone());
    clusters.set_scope(stats.scope(""));
    let directory = clusters.directory();
    let clusters = Arc::new(Mutex::new(clusters));
    let (slots, known) = (clusters.clone(), clusters.clone());
    let find: FindCluster = Arc::new(move |name: &str| {
        slots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .slot(name)
    });
    let context = Arc::new(ChainContext {
        routes: Arc::new(RouteStore::default()),
        secrets,
        clusters: find.clone(),
        known_cluster: Arc::new(move |name: &str| {
            known
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .has(name)
        }),
        directory,
        stats: stats.clone(),
        registry: Arc::new(Registry::default()),
        filter_names: Mutex::default(),
        grpc: Arc::new(ClusterGrpc::new(find)),
        access_logs: AccessLogs::new(Duration::from_millis(line.file_flush_interval_msec.into())),
        reject_unknown: line.reject_unknown_dynamic_fields,
        reject_fragment: settings.reject_path_with_fragment,
        node: Arc::new(settings.node.clone()),
        runtime: settings.runtime.clone(),
    });
    let drain = Arc::new(DrainManager::new(
        settings.drain_time,
        settings.drain_strategy,
    ));
    let runtime = settings.runtime.clone();
    runtime.count_in(&stats);
    let mut shared = ListenerContext::new(u64::MAX, &stats);
    shared.internal_buffer = settings.internal_buffer;
    let shared = Arc::new(shared);
    let limited = shared.clone();
    let monitored = settings.max_connections;
    runtime.observe(move |runtime| {
        let key = "overload.global_downstream_max_connections";
        let limit = monitored.or_else(|| runtime.integer(key));
        limited.global.set_max(limit.unwrap_or(u64::MAX));
    });
    let listeners = ListenerManager::new(
        settings.concurrency,
        shared,
        drain.clone(),
        Arc::new(ChainCompiler(context.clone())),
        Arc::new(move |key| runtime.integer(key)),
    );
    let config = Arc::new(ConfigStore::default());
    let resources = Resources::new(
        clusters,
        context.clone(),
        config.clone(),
        settings.runtime.clone(),
        listeners,
    );
    if line.mode == Mode::Validate {
        resources.validate(&bootstrap).map_err(invalid)?;
        println!(
            "configuration '{}' OK",
            line.config_path.as_deref().unwrap_or_default()
        );
        return Ok(());
    }
    resources.apply_static(&bootstrap).map_err(invalid)?;
    let (draining, ending) = (drain.clone(), resources.clone());
    let reopening = context.clone();
    let reopen_log = log.clone();
    let lifecycle = Lifecycle::new(
        Arc::new(move || {
            let plan = draining.start(true);
            let drained = ending.with_listeners(|l| l.drain_all(plan, false, DrainEnd::Idle));
            Box::pin(drained.wait())
        }),
        Arc::new(move || {
            reopening.access_logs.reopen();
            let _ = reopen_log.reopen();
        }),
    );
    if line.mode == Mode::InitOnly {
        resources.stop_at_start(lifecycle.quit());
    }
    let access_logs = context.clone();
    let backend = Arc::new(Backend {
        resources,
        context,
        config,
        drain,
        settings,
        line,
        log,
        quit: lifecycle.quit(),
        started: Instant::now(),
        listeners_drain: AtomicBool::new(false),
        stats: super::server_stats::ServerStats::new(&stats),
    });
    let mut server = Server::new_with_opt_and_conf(None, ServerConf::default());
    let failure = Arc::new(Mutex::default());
    let control = Control {
        failure: failure.clone(),
        backend,
        bootstrap,
        stats,
        echo,
    };
    server.add_service(background_service("control", control));
    // This thread has read the static configuration, and only waits from now on.
    allocator::flush_thread_cache();
    server.run(RunArgs {
        shutdown_signal: Box::new(lifecycle),
    });
    // The connections are gone, and their tasks with them; their last lines may still be queued.
    access_logs.access_logs.flush();
    let failure = failure
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    failure.map_or(Ok(()), Err)
}

/// `--admin-address-path`. In one step: a reader never sees half an address.
fn write_address(path: &str, address: &BindAddress) {
    let new = format!("{path}.new");
    let written = std::fs::write(&new, address.to_string());
    if let Err(e) = written.and_then(|()| std::fs::rename(&new, path)) {
        tracing::error!("cannot open admin address output file {path} for writing: {e}");
    }
}

/// How often the control side gives back memory. It works in bursts: a configuration, a dump.
const GIVE_BACK: Duration = Duration::from_secs(3);

/// All tasks of the control side are on one thread, whose memory this is about.
async fn give_back_memory() {
    loop {
        tokio::time::sleep(GIVE_BACK).await;
        allocator::flush_thread_cache();
    }
}

#[async_trait]
impl BackgroundService for Control {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        if let Err(e) = self.serve().await {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            *failure = Some(e);
            self.backend.quit.notify_one();
        }
        let _ = shutdown.changed().await;
    }
}

impl Control {
    async fn serve(&self) -> Result<(), String> {
        let backend = &self.backend;
        if let Some(address) = &backend.settings.admin {
            let (listener, bound) =
                AdminListener::bind(address).map_err(|e| format!("admin.address: {e}"))?;
            if let Some(path) = &backend.line.admin_address_path {
                write_address(path, &bound);
            }
            tokio::spawn(admin::serve(listener, backend.clone(), self.stats.clone()));
        }
        if self.echo {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:10001").await;
            tokio::spawn(super::echo::serve(
                listener.map_err(|e| format!("echo: {e}"))?,
            ));
            println!(
                "fairway listens on 127.0.0.1:10000, admin on 127.0.0.1:9901. Try:\n  \
                 curl http://127.0.0.1:10000/hello\n  \
                 curl http://127.0.0.1:10000/anything\n  \
                 curl http://127.0.0.1:9901/stats"
            );
        }
        let handler = backend.resources.clone();
        let sources = Sources::new(
            &self.bootstrap,
            backend.settings.node.clone(),
            Stores {
                secrets: backend.context.secrets.clone(),
                scope: Some(self.stats.scope("")),
            },
            Box::new(move || handler.handler()),
        );
        let sources = sources.map_err(|e| e.to_string())?;
        let subscribed = backend.resources.subscribe(&self.bootstrap, sources);
        subscribed.map_err(|e| e.to_string())?;
        crate::upstream::dns::spawn(backend.resources.clone());
        tokio::spawn(super::server_stats::flush(self.stats.clone()));
        tokio::spawn(give_back_memory());
        let secrets = backend.context.secrets.clone();
        tokio::spawn(crate::transport::tls::files::watch(secrets));
        tokio::spawn(runtime::watch_disk(backend.settings.runtime.clone()));
        Ok(())
    }
}
