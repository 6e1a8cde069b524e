//! Applies xDS resources, static and dynamic, in whatever order they arrive, and decides when to serve.
//!
//! All of it is on the control side, behind one lock; workers see slots and compiled listeners.

mod listeners;
mod secrets;
mod subscriptions;
mod updates;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::core::v3::ConfigSource;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use tokio::sync::Notify;
use xds_client::error::{At, ConfigError};
use xds_client::subscription::ResourceHandler;

use super::context::ChainContext;
use super::runtime::Runtime;
use super::sources::Sources;
use super::update_stats::ControlStats;
use crate::server::admin::ServerState;
use crate::server::admin::config_dump::{ConfigStore, Kind};
use crate::server::listener_manager::ListenerManager;
use crate::upstream::manager::ClusterManager;
use listeners::Warming;
use secrets::cluster_secrets;
use updates::Subscriber;

const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const SDS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
const RTDS: &str = "type.googleapis.com/envoy.service.runtime.v3.Runtime";

struct State {
    listeners: ListenerManager,
    sources: Option<Sources>,
    cds: Option<ConfigSource>,
    lds: Option<ConfigSource>,
    statics: HashSet<(Static, String)>,
    warming: BTreeMap<String, Warming>,
    /// Where the route configurations come from that listeners name.
    rds_sources: HashMap<String, ConfigSource>,
    eds_subscribed: BTreeMap<String, ConfigSource>,
    rds_subscribed: BTreeMap<String, ConfigSource>,
    /// Where the secrets come from that contexts name.
    sds_sources: HashMap<String, ConfigSource>,
    sds_subscribed: BTreeMap<String, ConfigSource>,
    /// Runtime layers without an answer yet.
    rtds_awaited: BTreeSet<String>,
    cds_answered: bool,
    lds_subscribed: bool,
    lds_answered: bool,
    started: bool,
    /// Told instead of the workers' start (`--mode init_only`).
    stop_at_start: Option<Arc<Notify>>,
}

/// Whether a static name is a cluster's or a listener's.
#[derive(PartialEq, Eq, Hash)]
enum Static {
    Cluster,
    Listener,
}

/// The resources of the process.
pub struct Resources {
    clusters: Arc<Mutex<ClusterManager>>,
    context: Arc<ChainContext>,
    config: Arc<ConfigStore>,
    runtime: Arc<Runtime>,
    stats: ControlStats,
    state: Mutex<State>,
    /// Progress is about to be made.
    progress_due: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pack(type_url: &str, message: &impl Message) -> Any {
    Any {
        type_url: type_url.to_owned(),
        value: message.encode_to_vec(),
    }
}

fn kind(type_url: &str) -> Option<Kind> {
    Some(match type_url.rsplit('/').next().unwrap_or_default() {
        "envoy.config.cluster.v3.Cluster" => Kind::Cluster,
        "envoy.config.endpoint.v3.ClusterLoadAssignment" => Kind::Endpoint,
        "envoy.config.listener.v3.Listener" => Kind::Listener,
        "envoy.config.route.v3.RouteConfiguration" => Kind::Route,
        "envoy.extensions.transport_sockets.tls.v3.Secret" => Kind::Secret,
        "envoy.config.core.v3.TypedExtensionConfig" => Kind::Ecds,
        _ => return None,
    })
}

impl Resources {
    /// No resources yet. `clusters` is what the context's references come from.
    pub fn new(
        clusters: Arc<Mutex<ClusterManager>>,
        context: Arc<ChainContext>,
        config: Arc<ConfigStore>,
        runtime: Arc<Runtime>,
        listeners: ListenerManager,
    ) -> Arc<Self> {
        Arc::new(Self {
            stats: ControlStats::new(&context.stats),
            clusters,
            context,
            config,
            runtime,
            state: Mutex::new(State {
                listeners,
                sources: None,
                cds: None,
                lds: None,
                statics: HashSet::new(),
                warming: BTreeMap::new(),
                rds_sources: HashMap::new(),
                eds_subscribed: BTreeMap::new(),
                rds_subscribed: BTreeMap::new(),
                sds_sources: HashMap::new(),
                sds_subscribed: BTreeMap::new(),
                rtds_awaited: BTreeSet::new(),
                cds_answered: false,
                lds_subscribed: false,
                lds_answered: false,
                started: false,
                stop_at_start: None,
            }),
            progress_due: AtomicBool::new(false),
        })
    }

    /// Applies the bootstrap's static resources; nothing is served yet.
    ///
    /// # Errors
    /// The first one that is not valid, by its path in the bootstrap.
    pub fn apply_static(&self, bootstrap: &Bootstrap) -> Result<(), ConfigError> {
        self.config
            .set_bootstrap(Bytes::from(bootstrap.encode_to_vec()));
        let Some(resources) = &bootstrap.static_resources else {
            return Ok(());
        };
        let state = &mut *lock(&self.state);
        self.static_secrets(&resources.secrets)?;
        for (i, cluster) in resources.clusters.iter().enumerate() {
            let path = format!("static_resources.clusters[{i}]");
            lock(&self.clusters).apply_cluster(cluster, "").at(path)?;
            state.sds_sources.extend(cluster_secrets(cluster));
            let any = Arc::new(pack(CDS, cluster));
            self.config
                .accepted(Kind::Cluster, &cluster.name, "", any, true);
            state
                .statics
                .insert((Static::Cluster, cluster.name.clone()));
        }
        self.cluster_numbers();
        for (i, listener) in resources.listeners.iter().enumerate() {
            let path = format!("static_resources.listeners[{i}]");
            let any = Arc::new(pack(LDS, listener));
            state
                .statics
                .insert((Static::Listener, listener.name.clone()));
            self.listener(state, listener.clone(), "", &any).at(path)?;
        }
        Ok(())
    }

    /// Compiles the bootstrap's static resources without binding anything (`--mode validate`).
    ///
    /// # Errors
    /// As [`apply_static`](Self::apply_static).
    pub fn validate(&self, bootstrap: &Bootstrap) -> Result<(), ConfigError> {
        let Some(resources) = &bootstrap.static_resources else {
            return Ok(());
        };
        self.static_secrets(&resources.secrets)?;
        for (i, cluster) in resources.clusters.iter().enumerate() {
            let path = format!("static_resources.clusters[{i}]");
            lock(&self.clusters).apply_cluster(cluster, "").at(path)?;
        }
        let state = lock(&self.state);
        for (i, listener) in resources.listeners.iter().enumerate() {
            let path = format!("static_resources.listeners[{i}]");
            state.listeners.validate(listener).at(path)?;
        }
        Ok(())
    }

    /// Subscribes to what `dynamic_resources` names. Must run on the control runtime.
    ///
    /// # Errors
    /// An unsupported source.
    pub fn subscribe(
        self: &Arc<Self>,
        bootstrap: &Bootstrap,
        mut sources: Sources,
    ) -> Result<(), ConfigError> {
        let dynamic = bootstrap.dynamic_resources.clone().unwrap_or_default();
        let state = &mut *lock(&self.state);
        for (name, source) in self.runtime.rtds() {
            sources
                .subscribe(&source, RTDS, vec![name.clone()])
                .at(format!("layered_runtime: rtds_layer {name}: rtds_config"))?;
            state.rtds_awaited.insert(name);
        }
        match dynamic.cds_config {
            Some(source) => {
                sources
                    .subscribe(&source, CDS, Vec::new())
                    .at("dynamic_resources.cds_config")?;
                state.cds = Some(source);
            }
            None => state.cds_answered = true,
        }
        if let Some(source) = &dynamic.lds_config {
            // It is subscribed to when the clusters are there; that it cannot be is to be said now.
            sources.check(source).at("dynamic_resources.lds_config")?;
        }
        state.lds = dynamic.lds_config;
        state.sources = Some(sources);
        self.progress(state);
        Ok(())
    }

    /// Tells `stop` when everything is there that is waited for, instead of serving (`--mode init_only`).
    pub fn stop_at_start(&self, stop: Arc<Notify>) {
        lock(&self.state).stop_at_start = Some(stop);
    }

    /// The handler for a stream's or file's updates.
    pub fn handler(self: &Arc<Self>) -> Box<dyn ResourceHandler> {
        Box::new(Subscriber(self.clone()))
    }

    /// The initialization as the admin interface names it; draining is not known here.
    pub fn server_state(&self) -> ServerState {
        let state = lock(&self.state);
        match (state.started, state.lds_subscribed) {
            (true, _) => ServerState::Live,
            (false, true) => ServerState::Initializing,
            (false, false) => ServerState::PreInitializing,
        }
    }

    /// Works with the clusters.
    pub fn with_clusters<R>(&self, f: impl FnOnce(&mut ClusterManager) -> R) -> R {
        f(&mut lock(&self.clusters))
    }

    /// Works with the listeners.
    pub fn with_listeners<R>(&self, f: impl FnOnce(&mut ListenerManager) -> R) -> R {
        f(&mut lock(&self.state).listeners)
    }

    /// What is waited for, by name (`/init_dump`).
    pub fn warming(&self) -> Vec<String> {
        let mut names: Vec<_> = {
            let state = lock(&self.state);
            let listeners = state.warming.keys().cloned();
            let layers = state.rtds_awaited.iter().map(|l| format!("RTDS {l}"));
            listeners.chain(layers).collect()
        };
        let clusters = self.with_clusters(|c| c.snapshot());
        let cold = clusters.iter().filter(|c| !c.warm);
        names.extend(cold.map(|c| c.cluster.name().to_string()));
        names
    }

    fn cluster_numbers(&self) {
        let clusters = lock(&self.clusters).snapshot();
        let cold = clusters.iter().filter(|c| !c.warm).count();
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let stats = &self.stats;
        stats.active_clusters.set(number(clusters.len() - cold));
        stats.warming_clusters.set(number(cold));
    }

    /// Does what has become possible: subscriptions, warm listeners, the next phase of the start.
    fn progress(&self, state: &mut State) {
        self.subscriptions(state);
        self.with_clusters(ClusterManager::secrets_answered);
        let (routes, secrets) = (&self.context.routes, &self.context.secrets);
        let ready: Vec<String> = state
            .warming
            .iter()
            .filter(|(_, w)| w.slots.iter().all(|s| routes.is_answered(s.name())))
            .filter(|(_, w)| w.secrets.iter().all(|s| secrets.is_answered(s.name())))
            .map(|(name, _)| name.clone())
            .collect();
        for name in ready {
            let Some(w) = state.warming.remove(&name) else {
                continue;
            };
            if let Err(e) = self.activate(state, &w.listener, &w.version, &w.any) {
                tracing::warn!("listener {name}: {e}");
                let details = e.to_string();
                self.config
                    .rejected(Kind::Listener, &name, &w.version, w.any.clone(), &details);
            }
        }
        self.cluster_numbers();
        let warming = i64::try_from(state.warming.len()).unwrap_or(i64::MAX);
        let stats = &state.listeners.context().stats;
        stats.total_listeners_warming.set(warming);
        if state.started || !state.cds_answered || !state.rtds_awaited.is_empty() {
            return;
        }
        if !state.lds_subscribed {
            if self.with_clusters(|c| c.snapshot()).iter().any(|c| !c.warm) {
                return;
            }
            // Those that clusters need; listeners are not known yet, but for static ones.
            let secrets = &self.context.secrets;
            if secrets
                .wanted()
                .iter()
                .any(|name| !secrets.is_answered(name))
            {
                return;
            }
            state.lds_subscribed = true;
            match (state.lds.clone(), state.sources.as_mut()) {
                (Some(source), Some(sources)) => {
                    if let Err(e) = sources.subscribe(&source, LDS, Vec::new()) {
                        tracing::error!("dynamic_resources.lds_config: {e}");
                        state.lds_answered = true;
                    }
                }
                _ => state.lds_answered = true,
            }
        }
        if state.lds_answered && state.warming.is_empty() {
            state.started = true;
            if let Some(stop) = &state.stop_at_start {
                stop.notify_one();
                return;
            }
            match state.listeners.start_workers() {
                Ok(()) => tracing::info!("all dependencies initialized; workers started"),
                Err(e) => tracing::error!("cannot start the workers: {e}"),
            }
        }
    }
}
