//! Applies xDS resources, static and dynamic, in whatever order they arrive, and decides when to serve.
//!
//! All of it is on the control side, behind one lock; workers see slots and compiled listeners.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::core::v3::{ConfigSource, DataSource};
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type as SecretType;
use envoy_types::pb::google::protobuf::Any;
use hcm::http_connection_manager::RouteSpecifier;
use prost::Message;
use tokio::sync::Notify;
use xds_client::error::{At, ConfigError};
use xds_client::subscription::{Event, Rejected, Resource, ResourceHandler};

use super::context::ChainContext;
use super::sources::Sources;
use super::update_stats::{ControlStats, UpdateStats};
use crate::router::RouteSlot;
use crate::server::admin::ServerState;
use crate::server::admin::config_dump::{self, ConfigStore, Kind};
use crate::server::listener_manager::ListenerManager;
use crate::transport::downstream::tls_context;
use crate::transport::tls::context::references;
use crate::transport::tls::secrets::{SecretSlot, SecretValue};
use crate::upstream::cluster::Discovery;
use crate::upstream::dns::{self, DnsClient};
use crate::upstream::manager::ClusterManager;

const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const SDS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

/// A listener that waits for its routes and secrets. The slots keep the names wanted.
struct Warming {
    listener: Listener,
    version: String,
    any: Arc<Any>,
    slots: Vec<Arc<RouteSlot>>,
    secrets: Vec<Arc<SecretSlot>>,
}

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
    cds_answered: bool,
    lds_subscribed: bool,
    lds_answered: bool,
    started: bool,
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
    stats: ControlStats,
    state: Mutex<State>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn packed(any: &Any) -> config_dump::Resource {
    config_dump::Resource {
        type_url: any.type_url.clone(),
        value: Bytes::copy_from_slice(&any.value),
    }
}

fn pack(type_url: &str, message: &impl Message) -> Any {
    Any {
        type_url: type_url.to_owned(),
        value: message.encode_to_vec(),
    }
}

fn decode<M: Message + Default>(any: &Any) -> Result<M, ConfigError> {
    M::decode(any.value.as_slice()).map_err(|e| ConfigError::new(e.to_string()))
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

/// The route configurations that the HTTP connection managers of a listener take from RDS.
fn rds_names(listener: &Listener) -> Vec<(String, ConfigSource)> {
    let chains = listener
        .filter_chains
        .iter()
        .chain(&listener.default_filter_chain);
    let mut names = Vec::new();
    for filter in chains.flat_map(|c| &c.filters) {
        let Some(ConfigType::TypedConfig(any)) = &filter.config_type else {
            continue;
        };
        // What is no connection manager, or a broken one, is the compiler's to judge.
        let Ok(config) = xds_client::any::unpack::<hcm::HttpConnectionManager>(any) else {
            continue;
        };
        if let Some(RouteSpecifier::Rds(rds)) = config.route_specifier {
            names.push((rds.route_config_name, rds.config_source.unwrap_or_default()));
        }
    }
    names
}

/// The secrets that the filter chains of a listener take from SDS.
fn secret_names(listener: &Listener) -> Vec<(String, ConfigSource)> {
    let chains = listener
        .filter_chains
        .iter()
        .chain(&listener.default_filter_chain);
    chains
        .filter_map(tls_context)
        .filter_map(|context| context.common_tls_context)
        .flat_map(|common| references(&common))
        .collect()
}

/// A secret as the configuration store may keep it: without its keys.
fn redacted(secret: &Secret) -> Any {
    let mut shown = secret.clone();
    let mark = || DataSource {
        specifier: Some(Specifier::InlineBytes(b"[redacted]".to_vec())),
        ..Default::default()
    };
    match &mut shown.r#type {
        Some(SecretType::TlsCertificate(certificate)) => {
            for source in [
                &mut certificate.private_key,
                &mut certificate.password,
                &mut certificate.pkcs12,
            ] {
                *source = source.take().map(|_| mark());
            }
        }
        Some(SecretType::SessionTicketKeys(keys)) => {
            keys.keys.iter_mut().for_each(|key| *key = mark());
        }
        Some(SecretType::GenericSecret(generic)) => {
            generic.secret = Some(mark());
            generic
                .secrets
                .values_mut()
                .for_each(|secret| *secret = mark());
        }
        Some(SecretType::ValidationContext(_)) | None => {}
    }
    pack(SDS, &shown)
}

impl Resources {
    /// No resources yet. `clusters` is what the context's references come from.
    pub fn new(
        clusters: Arc<Mutex<ClusterManager>>,
        context: Arc<ChainContext>,
        config: Arc<ConfigStore>,
        listeners: ListenerManager,
    ) -> Arc<Self> {
        Arc::new(Self {
            stats: ControlStats::new(&context.stats),
            clusters,
            context,
            config,
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
                cds_answered: false,
                lds_subscribed: false,
                lds_answered: false,
                started: false,
            }),
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
            let any = packed(&pack(CDS, cluster));
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

    fn static_secrets(&self, secrets: &[Secret]) -> Result<(), ConfigError> {
        for (i, secret) in secrets.iter().enumerate() {
            let value =
                SecretValue::compile(secret).at(format!("static_resources.secrets[{i}]"))?;
            self.context.secrets.apply_static(&secret.name, value);
            let any = packed(&redacted(secret));
            self.config
                .accepted(Kind::Secret, &secret.name, "", any, true);
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
        match dynamic.cds_config {
            Some(source) => {
                sources
                    .subscribe(&source, CDS, Vec::new())
                    .at("dynamic_resources.cds_config")?;
                state.cds = Some(source);
            }
            None => state.cds_answered = true,
        }
        state.lds = dynamic.lds_config;
        state.sources = Some(sources);
        self.progress(state);
        Ok(())
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
        let mut names: Vec<_> = lock(&self.state).warming.keys().cloned().collect();
        let clusters = self.with_clusters(|c| c.snapshot());
        let cold = clusters.iter().filter(|c| !c.warm);
        names.extend(cold.map(|c| c.cluster.name().to_string()));
        names
    }

    /// Takes a listener: at once if its routes and secrets are known, else when they are.
    fn listener(
        &self,
        state: &mut State,
        listener: Listener,
        version: &str,
        any: &Arc<Any>,
    ) -> Result<(), ConfigError> {
        let wanted = rds_names(&listener);
        let slots: Vec<_> = wanted
            .iter()
            .map(|(name, _)| self.context.routes.slot(name))
            .collect();
        let secrets_wanted = secret_names(&listener);
        let secrets: Vec<_> = secrets_wanted
            .iter()
            .map(|(name, _)| self.context.secrets.slot(name))
            .collect();
        let routes_known = wanted
            .iter()
            .all(|(n, _)| self.context.routes.is_answered(n));
        let secrets_known = secrets
            .iter()
            .all(|s| self.context.secrets.is_answered(s.name()));
        state.sds_sources.extend(secrets_wanted);
        if routes_known && secrets_known {
            state.warming.remove(&listener.name);
            state.rds_sources.extend(wanted);
            return self.activate(state, &listener, version, any);
        }
        // Only compiling tells whether it must be refused; it is compiled again when its routes are there.
        state.listeners.validate(&listener)?;
        state.rds_sources.extend(wanted);
        self.config
            .warming(Kind::Listener, &listener.name, version, packed(any));
        state.warming.insert(
            listener.name.clone(),
            Warming {
                listener,
                version: version.to_owned(),
                any: any.clone(),
                slots,
                secrets,
            },
        );
        Ok(())
    }

    fn activate(
        &self,
        state: &mut State,
        listener: &Listener,
        version: &str,
        any: &Any,
    ) -> Result<(), ConfigError> {
        state.listeners.apply(listener, version)?;
        let name = (Static::Listener, listener.name.clone());
        let is_static = version.is_empty() && state.statics.contains(&name);
        self.config.accepted(
            Kind::Listener,
            &listener.name,
            version,
            packed(any),
            is_static,
        );
        Ok(())
    }

    /// Does what has become possible: subscriptions, warm listeners, the next phase of the start.
    fn progress(&self, state: &mut State) {
        self.subscriptions(state);
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
                    .rejected(Kind::Listener, &name, &w.version, packed(&w.any), &details);
            }
        }
        self.cluster_numbers();
        let warming = i64::try_from(state.warming.len()).unwrap_or(i64::MAX);
        let stats = &state.listeners.context().stats;
        stats.total_listeners_warming.set(warming);
        if state.started || !state.cds_answered {
            return;
        }
        if !state.lds_subscribed {
            if self.with_clusters(|c| c.snapshot()).iter().any(|c| !c.warm) {
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
            match state.listeners.start_workers() {
                Ok(()) => tracing::info!("all dependencies initialized; workers started"),
                Err(e) => tracing::error!("cannot start the workers: {e}"),
            }
        }
    }

    /// Brings the names subscribed to in line with the names wanted.
    fn subscriptions(&self, state: &mut State) {
        let eds: BTreeMap<String, ConfigSource> = lock(&self.clusters)
            .eds_names_wanted()
            .into_iter()
            .map(|(name, source)| (name.to_string(), source))
            .collect();
        let mut rds = BTreeMap::new();
        for name in self.context.routes.wanted() {
            if let Some(source) = state.rds_sources.get(&name) {
                rds.insert(name, source.clone());
            }
        }
        state.rds_sources.retain(|name, _| rds.contains_key(name));
        let mut sds = BTreeMap::new();
        for name in self.context.secrets.wanted() {
            if let Some(source) = state.sds_sources.get(&name) {
                sds.insert(name, source.clone());
            }
        }
        state.sds_sources.retain(|name, _| sds.contains_key(name));
        let Some(sources) = &mut state.sources else {
            return;
        };
        for (name, error) in reconcile(sources, EDS, &mut state.eds_subscribed, eds) {
            tracing::error!("endpoints of {name}: {error}");
            lock(&self.clusters).endpoints_missing(&name);
        }
        for (name, error) in reconcile(sources, RDS, &mut state.rds_subscribed, rds) {
            tracing::error!("route configuration {name}: {error}");
            self.context.routes.give_up(&name);
        }
        for (name, error) in reconcile(sources, SDS, &mut state.sds_subscribed, sds) {
            tracing::error!("secret {name}: {error}");
            self.context.secrets.give_up(&name);
        }
    }

    fn cluster_numbers(&self) {
        let clusters = lock(&self.clusters).snapshot();
        let cold = clusters.iter().filter(|c| !c.warm).count();
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let stats = &self.stats;
        stats.active_clusters.set(number(clusters.len() - cold));
        stats.warming_clusters.set(number(cold));
    }

    /// Takes a resource. One that is refused is not waited for any longer.
    fn take(&self, state: &mut State, kind: Kind, resource: &Resource) -> Result<(), ConfigError> {
        let taken = self.try_take(state, kind, resource);
        match (&taken, kind) {
            (Err(_), Kind::Endpoint) => self.stop_waiting_for_endpoints(&resource.name),
            (Err(_), Kind::Route) => self.context.routes.give_up(&resource.name),
            _ => {}
        }
        taken
    }

    fn try_take(
        &self,
        state: &mut State,
        kind: Kind,
        resource: &Resource,
    ) -> Result<(), ConfigError> {
        let (any, version) = (&resource.any, resource.version.as_str());
        super::fields::check(any)?;
        match kind {
            Kind::Cluster => {
                let cluster: Cluster = decode(any)?;
                if state
                    .statics
                    .contains(&(Static::Cluster, resource.name.clone()))
                {
                    tracing::debug!("cds: {} is static and stays", resource.name);
                    return Ok(());
                }
                lock(&self.clusters).apply_cluster(&cluster, version)?;
            }
            Kind::Endpoint => {
                let assignment: ClusterLoadAssignment = decode(any)?;
                lock(&self.clusters).apply_endpoints(&assignment)?;
            }
            Kind::Listener => {
                let listener: Listener = decode(any)?;
                // It tells the configuration store itself, which depends on whether it is warm.
                return self.listener(state, listener, version, any);
            }
            Kind::Route => {
                let routes: RouteConfiguration = decode(any)?;
                let table = self.context.compile_routes(&routes, false)?;
                self.context.routes.apply(&resource.name, table);
            }
            Kind::Secret => return self.secret(resource),
            _ => {}
        }
        self.config
            .accepted(kind, &resource.name, version, packed(any), false);
        Ok(())
    }

    fn secret(&self, resource: &Resource) -> Result<(), ConfigError> {
        let secret: Secret = decode(&resource.any)?;
        match SecretValue::compile(&secret) {
            Ok(value) => {
                self.context.secrets.apply(&resource.name, value);
                let any = packed(&redacted(&secret));
                self.config
                    .accepted(Kind::Secret, &resource.name, &resource.version, any, false);
                Ok(())
            }
            Err(e) => {
                // The last good one serves on; contexts that never had one stay closed.
                self.context.secrets.give_up(&resource.name);
                Err(e)
            }
        }
    }

    /// Endpoints that were refused or did not come: clusters that have none yet go on without.
    fn stop_waiting_for_endpoints(&self, name: &str) {
        let mut clusters = lock(&self.clusters);
        let waits = clusters.snapshot().iter().any(|c| {
            let eds = &c.cluster.config.discovery;
            !c.warm && matches!(eds, Discovery::Eds { name: n, .. } if **n == *name)
        });
        if waits {
            clusters.endpoints_missing(name);
        }
    }

    fn drop_resource(&self, state: &mut State, kind: Kind, name: &str) {
        match kind {
            Kind::Cluster if state.statics.contains(&(Static::Cluster, name.to_owned())) => return,
            Kind::Listener if state.statics.contains(&(Static::Listener, name.to_owned())) => {
                return;
            }
            Kind::Cluster => {
                lock(&self.clusters).remove_cluster(name);
            }
            // Envoy keeps the endpoints; only a cluster that never had any goes on without.
            Kind::Endpoint => self.stop_waiting_for_endpoints(name),
            Kind::Listener => {
                state.warming.remove(name);
                state.listeners.remove(name);
            }
            Kind::Route => self.context.routes.remove(name),
            _ => {}
        }
        self.config.removed(kind, name);
    }

    /// The numbers of a type's updates.
    fn updates(&self, type_url: &str) -> Option<&UpdateStats> {
        match kind(type_url)? {
            Kind::Cluster => Some(&self.stats.cds),
            Kind::Listener => Some(&self.stats.lds),
            _ => None,
        }
    }

    fn event(&self, event: Event) {
        let connected = &self.stats.connected_state;
        let mut answered = None;
        match event {
            Event::Connected => connected.set(1),
            Event::Disconnected(why) => {
                tracing::warn!("control plane stream closed: {why}");
                connected.set(0);
            }
            Event::UpdateAttempt(type_url) => {
                if let Some(stats) = self.updates(&type_url) {
                    stats.update_attempt.inc();
                }
            }
            Event::UpdateSuccess { type_url, version } => {
                if let Some(stats) = self.updates(&type_url) {
                    stats.succeeded(&version);
                }
                answered = kind(&type_url);
            }
            Event::UpdateRejected { type_url, error } => {
                tracing::warn!("{type_url} rejected: {error}");
                if let Some(stats) = self.updates(&type_url) {
                    stats.update_rejected.inc();
                }
                answered = kind(&type_url);
            }
            Event::FetchTimeout { type_url, name } => {
                tracing::warn!("initial fetch of {type_url} {name} timed out");
                if let Some(stats) = self.updates(&type_url) {
                    stats.init_fetch_timeout.inc();
                }
                match kind(&type_url) {
                    Some(Kind::Endpoint) => self.stop_waiting_for_endpoints(&name),
                    Some(Kind::Route) => self.context.routes.give_up(&name),
                    Some(Kind::Secret) => self.context.secrets.give_up(&name),
                    other => answered = other,
                }
            }
            Event::UnknownType(type_url) => tracing::debug!("ignored a response of {type_url}"),
        }
        let state = &mut *lock(&self.state);
        match answered {
            Some(Kind::Cluster) => state.cds_answered = true,
            Some(Kind::Listener) => state.lds_answered = true,
            _ => {}
        }
        self.progress(state);
    }
}

/// Subscribes to what is newly wanted and gives up the rest; gives what cannot be subscribed to.
fn reconcile(
    sources: &mut Sources,
    type_url: &str,
    subscribed: &mut BTreeMap<String, ConfigSource>,
    wanted: BTreeMap<String, ConfigSource>,
) -> Vec<(String, ConfigError)> {
    let mut failed = Vec::new();
    let gone: BTreeSet<_> = subscribed
        .iter()
        .filter(|(name, source)| wanted.get(*name) != Some(source))
        .map(|(name, _)| name.clone())
        .collect();
    for name in gone {
        if let Some(source) = subscribed.remove(&name) {
            sources.unsubscribe(&source, type_url, vec![name]);
        }
    }
    // One message for all new names of a source, not one for each.
    let mut groups: Vec<(ConfigSource, Vec<String>)> = Vec::new();
    for (name, source) in wanted {
        if subscribed.contains_key(&name) {
            continue;
        }
        subscribed.insert(name.clone(), source.clone());
        match groups.iter_mut().find(|(s, _)| *s == source) {
            Some((_, names)) => names.push(name),
            None => groups.push((source, vec![name])),
        }
    }
    for (source, names) in groups {
        if let Err(e) = sources.subscribe(&source, type_url, names.clone()) {
            failed.extend(names.into_iter().map(|n| (n, e.clone())));
        }
    }
    failed
}

struct Subscriber(Arc<Resources>);

impl ResourceHandler for Subscriber {
    fn apply(
        &mut self,
        type_url: &str,
        added: Vec<Resource>,
        removed: Vec<String>,
        _sotw_full: bool,
    ) -> Vec<Rejected> {
        let Some(kind) = kind(type_url) else {
            return Vec::new();
        };
        let this = &*self.0;
        let state = &mut *lock(&this.state);
        let mut rejected = Vec::new();
        // Removals first: a new listener may have the address of one that goes.
        for name in removed {
            this.drop_resource(state, kind, &name);
        }
        for resource in added {
            if let Err(error) = this.take(state, kind, &resource) {
                let any = match kind {
                    Kind::Secret => decode(&resource.any)
                        .map(|s| redacted(&s))
                        .unwrap_or_default(),
                    _ => (*resource.any).clone(),
                };
                let (any, details) = (packed(&any), error.to_string());
                this.config
                    .rejected(kind, &resource.name, &resource.version, any, &details);
                rejected.push(Rejected {
                    name: resource.name,
                    error,
                });
            }
        }
        this.progress(state);
        rejected
    }

    fn on_event(&mut self, event: Event) {
        self.0.event(event);
    }
}

/// DNS answers go to the clusters, and may be what listeners wait for.
impl DnsClient for Resources {
    fn wanted(&self) -> HashMap<dns::Key, dns::Schedule> {
        self.clusters.wanted()
    }

    fn changed(&self) -> Arc<Notify> {
        self.clusters.changed()
    }

    fn resolved(&self, key: &dns::Key, answer: Result<Vec<IpAddr>, String>) {
        self.clusters.resolved(key, answer);
        self.progress(&mut lock(&self.state));
    }

    fn forgotten(&self, key: &dns::Key) {
        self.clusters.forgotten(key);
    }
}
