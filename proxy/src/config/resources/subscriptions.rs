//! Which endpoints, routes and secrets are subscribed to: those that clusters and listeners name.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::core::v3::ConfigSource;
use xds_client::error::ConfigError;

use super::{EDS, RDS, Resources, SDS, State, lock};
use crate::config::sources::Sources;
use crate::server::admin::config_dump::Kind;

impl Resources {
    /// Brings the names subscribed to in line with the names wanted.
    pub(super) fn subscriptions(&self, state: &mut State) {
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
        for name in sds
            .keys()
            .filter(|n| !state.sds_subscribed.contains_key(*n))
        {
            self.secret_awaited(name);
        }
        for name in state
            .sds_subscribed
            .keys()
            .filter(|n| !sds.contains_key(*n))
        {
            self.config.removed(Kind::Secret, name);
        }
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
