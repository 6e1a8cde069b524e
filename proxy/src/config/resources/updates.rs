//! What control planes and DNS say, applied.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::service::runtime::v3 as rtds;
use tokio::sync::Notify;
use xds_client::any::unpack;
use xds_client::error::ConfigError;
use xds_client::json::Pool;
use xds_client::subscription::{Event, Rejected, Resource, ResourceHandler};

use super::secrets::{cluster_secrets, redacted};
use super::{RTDS, Resources, State, Static, kind, lock};
use crate::config::fields;
use crate::config::update_stats::UpdateStats;
use crate::server::admin::config_dump::Kind;
use crate::upstream::cluster::Discovery;
use crate::upstream::dns::{self, DnsClient};

impl Resources {
    /// Takes a resource. One that is refused is not waited for any longer.
    fn take(&self, state: &mut State, kind: Kind, resource: &Resource) -> Result<(), ConfigError> {
        let checked = fields::check(&resource.any);
        let taken = checked.and_then(|()| self.take_checked(state, kind, resource));
        let (name, version) = (&resource.name, &resource.version);
        match (&taken, kind) {
            (Ok(()), Kind::Endpoint) => lock(&self.clusters).endpoints_taken(name, version),
            (Err(_), Kind::Endpoint) => {
                lock(&self.clusters).endpoints_refused(name);
                self.stop_waiting_for_endpoints(name);
            }
            (Ok(()), Kind::Route) => self.context.routes.count(name, |stats| {
                stats.update_attempt.inc();
                stats.succeeded(version);
                stats.reloaded();
            }),
            (Err(_), Kind::Route) => {
                self.context.routes.count(name, |stats| {
                    stats.update_attempt.inc();
                    stats.update_rejected.inc();
                });
                self.context.routes.give_up(name);
            }
            (taken, Kind::Secret) => self.context.secrets.count(name, |stats| {
                stats.update_attempt.inc();
                match taken {
                    Ok(()) => stats.succeeded(version),
                    Err(_) => stats.update_rejected.inc(),
                }
            }),
            _ => {}
        }
        taken
    }

    fn take_checked(
        &self,
        state: &mut State,
        kind: Kind,
        resource: &Resource,
    ) -> Result<(), ConfigError> {
        let (any, version) = (&resource.any, resource.version.as_str());
        if self.context.reject_unknown
            && let Some(path) = Pool::load()?.unknown_field(&any.type_url, &any.value)
        {
            return Err(ConfigError::new("unknown field").at(path));
        }
        match kind {
            Kind::Cluster => {
                let cluster: Cluster = unpack(any)?;
                if state
                    .statics
                    .contains(&(Static::Cluster, resource.name.clone()))
                {
                    tracing::debug!("cds: {} is static and stays", resource.name);
                    return Ok(());
                }
                lock(&self.clusters).apply_cluster(&cluster, version)?;
                state.sds_sources.extend(cluster_secrets(&cluster));
            }
            Kind::Endpoint => {
                let assignment: ClusterLoadAssignment = unpack(any)?;
                lock(&self.clusters).apply_endpoints(&assignment)?;
            }
            Kind::Listener => {
                let listener: Listener = unpack(any)?;
                // It tells the configuration store itself, which depends on whether it is warm.
                return self.listener(state, listener, version, any);
            }
            Kind::Route => {
                let routes: RouteConfiguration = unpack(any)?;
                let table = self.context.compile_routes(&routes, false)?;
                self.context.routes.apply(&resource.name, table);
            }
            Kind::Secret => return self.secret(resource),
            _ => {}
        }
        self.config
            .accepted(kind, &resource.name, version, any.clone(), false);
        Ok(())
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

    /// Fills runtime layers.
    fn take_runtime(&self, added: Vec<Resource>, removed: Vec<String>) -> Vec<Rejected> {
        for name in removed {
            // Nothing in an empty layer can be refused.
            let _ = self.runtime.apply_rtds(&name, None);
        }
        let mut rejected = Vec::new();
        for resource in added {
            let taken = unpack::<rtds::Runtime>(&resource.any)
                .and_then(|r| self.runtime.apply_rtds(&resource.name, r.layer.as_ref()));
            let name = resource.name;
            rejected.extend(taken.err().map(|error| Rejected { name, error }));
        }
        rejected
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
        let mut layers_answered = false;
        match event {
            Event::Connected => connected.set(1),
            Event::Disconnected(why) => {
                tracing::warn!("control plane stream closed: {why}");
                connected.set(0);
                // As in Envoy, every subscription of the stream has failed to update.
                self.stats.cds.update_failure.inc();
                self.stats.lds.update_failure.inc();
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
                layers_answered = type_url == RTDS;
            }
            Event::UpdateRejected { type_url, error } => {
                tracing::warn!("{type_url} rejected: {error}");
                if let Some(stats) = self.updates(&type_url) {
                    stats.update_rejected.inc();
                }
                answered = kind(&type_url);
                layers_answered = type_url == RTDS;
            }
            Event::FetchTimeout { type_url, name } => {
                tracing::warn!("initial fetch of {type_url} {name} timed out");
                if let Some(stats) = self.updates(&type_url) {
                    stats.init_fetch_timeout.inc();
                }
                layers_answered = type_url == RTDS;
                match kind(&type_url) {
                    Some(Kind::Endpoint) => self.stop_waiting_for_endpoints(&name),
                    Some(Kind::Route) => {
                        let routes = &self.context.routes;
                        routes.count(&name, |stats| stats.init_fetch_timeout.inc());
                        routes.give_up(&name);
                    }
                    Some(Kind::Secret) => {
                        let secrets = &self.context.secrets;
                        secrets.count(&name, |stats| stats.init_fetch_timeout.inc());
                        secrets.give_up(&name);
                    }
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
        if layers_answered {
            state.rtds_awaited.clear();
        }
    }

    /// Makes progress once the events of this moment have all been heard: thousands of names may be given up in one.
    fn progress_soon(self: &Arc<Self>) {
        if !self.progress_due.swap(true, Ordering::AcqRel) {
            let this = self.clone();
            tokio::spawn(async move {
                this.progress_due.store(false, Ordering::Release);
                this.progress(&mut lock(&this.state));
            });
        }
    }
}

pub(super) struct Subscriber(pub(super) Arc<Resources>);

impl ResourceHandler for Subscriber {
    fn apply(
        &mut self,
        type_url: &str,
        added: Vec<Resource>,
        removed: Vec<String>,
        _sotw_full: bool,
    ) -> Vec<Rejected> {
        let this = &*self.0;
        if type_url == RTDS {
            return this.take_runtime(added, removed);
        }
        let Some(kind) = kind(type_url) else {
            return Vec::new();
        };
        if kind == Kind::Cluster && !(added.is_empty() && removed.is_empty()) {
            this.stats.cds.reloaded();
        }
        let state = &mut *lock(&this.state);
        let mut rejected = Vec::new();
        // Removals first: a new listener may have the address of one that goes.
        for name in removed {
            this.drop_resource(state, kind, &name);
        }
        for resource in added {
            if let Err(error) = this.take(state, kind, &resource) {
                let any = match kind {
                    Kind::Secret => {
                        let secret = unpack(&resource.any);
                        Arc::new(secret.map(|s| redacted(&s)).unwrap_or_default())
                    }
                    _ => resource.any.clone(),
                };
                let details = error.to_string();
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
        let given_up = matches!(event, Event::FetchTimeout { .. });
        self.0.event(event);
        match given_up {
            true => self.0.progress_soon(),
            false => self.0.progress(&mut lock(&self.0.state)),
        }
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
