//! The control side of clusters: applies resources, keeps hosts over updates, fills the slots.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use bytestring::ByteString;
use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::cluster::v3::cluster::DnsLookupFamily;
use envoy_types::pb::envoy::config::core::v3::ConfigSource;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use tokio::sync::Notify;
use xds_client::error::{At, ConfigError};

use crate::telemetry::stats::Scope;
use crate::transport::tls::secrets::SecretStore;
use crate::upstream::assignment::{Locality, compile_assignment};
use crate::upstream::balance::HostSet;
use crate::upstream::cluster::{Cluster, ClusterConfig, Discovery};
use crate::upstream::cluster_config::Stores;
use crate::upstream::host::Target;
use crate::upstream::membership::{Members, Resolved};
use crate::upstream::slot::{ClusterDirectory, ClusterSlot};
use crate::upstream::stats::{LazyStats, Update};

/// What applying a cluster did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterChange {
    /// It is new, or its settings changed.
    Changed,
    /// It was the same already; nothing was touched.
    Unchanged,
}

struct Entry {
    slot: Arc<ClusterSlot<Cluster>>,
    /// Kept over removal: round robin turns stand at this place on every worker.
    index: usize,
    active: Option<Active>,
}

struct Active {
    version: String,
    cluster: Arc<Cluster>,
    localities: Vec<Locality>,
    overprovisioning: u32,
    known: bool,
}

/// One cluster for the admin interface.
pub struct Snapshot {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// The version that it came with; empty for static clusters.
    pub version: String,
    /// Whether its endpoints are known, so that requests can reach it.
    pub warm: bool,
}

/// Applies cluster and endpoint resources. Lives on the control thread; workers see the slots.
#[derive(Default)]
pub struct ClusterManager {
    entries: HashMap<ByteString, Entry>,
    /// The slots of all entries, for requests that name their cluster.
    directory: ClusterDirectory<Cluster>,
    assignments: HashMap<ByteString, ClusterLoadAssignment>,
    /// Which clusters an EDS resource feeds, so that an update touches no others.
    eds_users: HashMap<ByteString, Vec<ByteString>>,
    resolved: Resolved,
    /// Clusters that wait for secrets; the versions before them serve meanwhile.
    without_secrets: BTreeSet<ByteString>,
    /// Told when the names that are wanted may have changed.
    dns_changed: Arc<Notify>,
    /// The root scope; none: stats record nothing.
    stores: Stores,
    next_index: usize,
}

impl ClusterManager {
    /// A manager without clusters.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where contexts of clusters find their secrets. To be set before the first cluster is applied.
    pub fn set_secrets(&mut self, secrets: Arc<SecretStore>) {
        self.stores.secrets = secrets;
    }

    /// Where clusters make their stats when they are first used: `cluster.<name>.` below `root`, which is the
    /// scope without a prefix. To be set before the first cluster is applied.
    pub fn set_scope(&mut self, root: Scope) {
        self.stores.scope = Some(root);
    }

    /// Notified when [`dns_names_wanted`](Self::dns_names_wanted) may have changed.
    pub fn dns_changed(&self) -> Arc<Notify> {
        self.dns_changed.clone()
    }

    /// All slots by name, now and later.
    pub fn directory(&self) -> ClusterDirectory<Cluster> {
        self.directory.clone()
    }

    fn entry(&mut self, name: &str) -> &mut Entry {
        let name = ByteString::from(name);
        let next = &mut self.next_index;
        let directory = &self.directory;
        self.entries.entry(name.clone()).or_insert_with(|| {
            let index = *next;
            *next += 1;
            let slot = Arc::new(ClusterSlot::new(name));
            directory.insert(slot.clone());
            Entry {
                slot,
                index,
                active: None,
            }
        })
    }

    /// The slot of a cluster, which exists whether or not the cluster does.
    pub fn slot(&mut self, name: &str) -> Arc<ClusterSlot<Cluster>> {
        self.entry(name).slot.clone()
    }

    /// Whether there is a cluster of this name, warm or not.
    pub fn has(&self, name: &str) -> bool {
        self.entries
            .get(name)
            .is_some_and(|entry| entry.active.is_some())
    }

    /// Adds or updates a cluster. Its slot is filled once its endpoints are known.
    ///
    /// # Errors
    /// See [`ClusterConfig::compile`]; the last good version stays.
    pub fn apply_cluster(
        &mut self,
        proto: &pb::Cluster,
        version: &str,
    ) -> Result<ClusterChange, ConfigError> {
        let config = ClusterConfig::compile(proto, &self.stores)?;
        let empty = ClusterLoadAssignment::default();
        let (assignment, known) = match &config.discovery {
            Discovery::Eds { name, .. } => match self.assignments.get(name) {
                Some(assignment) => (assignment, true),
                None => (&empty, false),
            },
            _ => (proto.load_assignment.as_ref().unwrap_or(&empty), true),
        };
        let (localities, overprovisioning) =
            compile_assignment(&config, assignment).at("load_assignment")?;
        let names = || localities.iter().flat_map(|l| &l.endpoints);
        let dns = matches!(
            config.discovery,
            Discovery::StrictDns | Discovery::LogicalDns
        );
        if !dns && names().any(|e| matches!(e.target, Target::Name(..))) {
            return Err(
                ConfigError::new("malformed IP address; only DNS clusters resolve names")
                    .at("load_assignment"),
            );
        }
        if config.discovery == Discovery::LogicalDns && names().count() != 1 {
            return Err(
                ConfigError::new("LOGICAL_DNS clusters must have a single endpoint")
                    .at("load_assignment"),
            );
        }
        let name = config.name.clone();
        let entry = self.entry(&name);
        let index = entry.index;
        let mut old = entry.active.take();
        if let Some(active) = &mut old
            && *active.cluster.config == config
            && (matches!(config.discovery, Discovery::Eds { .. })
                || (&active.localities, active.overprovisioning) == (&localities, overprovisioning))
        {
            active.version = version.to_owned();
            entry.active = old;
            return Ok(ClusterChange::Unchanged);
        }
        // Pools are found by host, so hosts are kept only while their connections would be the same.
        let keep = old.as_ref().is_some_and(|a| {
            let before = &a.cluster.config;
            before.protocol == config.protocol
                && before.http2 == config.http2
                && before.bind == config.bind
                && before.idle_timeout == config.idle_timeout
                && before.max_requests == config.max_requests
                && before.max_connection_age == config.max_connection_age
        });
        let hosts = old.as_ref().map(|a| a.cluster.hosts());
        if let Some(Discovery::Eds { name: eds, .. }) =
            old.as_ref().map(|a| &a.cluster.config.discovery)
            && let Some(users) = self.eds_users.get_mut(eds)
        {
            users.retain(|user| *user != name);
        }
        if let Discovery::Eds { name: eds, .. } = &config.discovery {
            let users = self.eds_users.entry(eds.clone()).or_default();
            users.push(name.clone());
        }
        let breakers = old.as_ref().map(|a| a.cluster.breakers.clone());
        let kept = if keep { hosts.as_deref() } else { None };
        if let Some(active) = &old {
            active.cluster.replaced(keep);
        }
        let set = match kept {
            Some(kept) => HostSet::new(kept.localities().to_vec(), &config.set),
            None => HostSet::default(),
        };
        let stats = old.as_ref().map(|a| &a.cluster);
        let stats = stats.filter(|c| c.config.stat_name == config.stat_name);
        let stats = match stats {
            Some(cluster) => cluster.lazy_stats().clone(),
            None => LazyStats::new(
                self.stores
                    .scope
                    .as_ref()
                    .map(|s| s.scope(&format!("cluster.{}.", config.stat_name))),
            ),
        };
        let cluster = Cluster::new(Arc::new(config), breakers, stats, index, set);
        let was_known = old.is_some_and(|a| a.known);
        self.entry(&name).active = Some(Active {
            version: version.to_owned(),
            cluster,
            localities,
            overprovisioning,
            known: known || was_known,
        });
        self.rebuild(&name);
        if dns {
            self.dns_changed.notify_one();
        }
        Ok(ClusterChange::Changed)
    }

    /// Removes a cluster; whether it existed. Its slot stays, empty.
    pub fn remove_cluster(&mut self, name: &str) -> bool {
        let Some(entry) = self.entries.get_mut(name) else {
            return false;
        };
        let Some(active) = entry.active.take() else {
            return false;
        };
        entry.slot.set(None);
        self.without_secrets.remove(name);
        active.cluster.retire();
        if let Discovery::Eds { name: eds, .. } = &active.cluster.config.discovery
            && let Some(users) = self.eds_users.get_mut(eds)
        {
            users.retain(|user| &**user != name);
            if users.is_empty() {
                self.eds_users.remove(eds);
                self.assignments.remove(eds);
            }
        }
        self.dns_changed.notify_one();
        true
    }

    /// Applies an EDS resource to the clusters that use it.
    ///
    /// # Errors
    /// The path of the invalid field; the endpoints of before stay.
    pub fn apply_endpoints(&mut self, proto: &ClusterLoadAssignment) -> Result<(), ConfigError> {
        if proto.cluster_name.is_empty() {
            return Err(ConfigError::new("must not be empty").at("cluster_name"));
        }
        let name = ByteString::from(proto.cluster_name.as_str());
        let users = self.eds_users.get(&name).cloned().unwrap_or_default();
        let mut compiled = Vec::with_capacity(users.len());
        for user in users {
            let active = self.entries.get(&user).and_then(|e| e.active.as_ref());
            let Some(active) = active else { continue };
            let (localities, factor) = compile_assignment(&active.cluster.config, proto)?;
            let mut all = localities.iter().flat_map(|l| &l.endpoints);
            if all.any(|e| matches!(e.target, Target::Name(..))) {
                return Err(ConfigError::new("malformed IP address").at("endpoints"));
            }
            compiled.push((user, localities, factor));
        }
        self.assignments.insert(name, proto.clone());
        for (user, localities, factor) in compiled {
            if let Some(active) = self.entries.get_mut(&user).and_then(|e| e.active.as_mut()) {
                active.localities = localities;
                active.overprovisioning = factor;
                active.known = true;
            }
            self.rebuild(&user);
        }
        Ok(())
    }

    /// Counts an EDS resource that was taken.
    pub fn endpoints_taken(&self, name: &str, version: &str) {
        let users = self.eds_users.get(name).into_iter().flatten();
        for active in users.filter_map(|user| self.entries.get(user)?.active.as_ref()) {
            let stats = active.cluster.lazy_stats();
            stats.count(Update::Attempt);
            stats.count(Update::Success);
            stats.taken(version);
        }
    }

    /// Counts an EDS resource that was refused.
    pub fn endpoints_refused(&self, name: &str) {
        for user in self.eds_users.get(name).into_iter().flatten() {
            self.count(user, Update::Attempt);
            self.count(user, Update::Rejected);
        }
    }

    /// Secrets came, or were given up: fills the slots of the clusters that waited for them.
    pub fn secrets_answered(&mut self) {
        let waiting: Vec<_> = self.without_secrets.iter().cloned().collect();
        for name in waiting {
            self.rebuild(&name);
        }
    }

    /// No endpoints came in time, or the resource was removed: the clusters go on with none.
    pub fn endpoints_missing(&mut self, name: &str) {
        self.assignments.remove(name);
        for user in self.eds_users.get(name).cloned().unwrap_or_default() {
            if let Some(active) = self.entries.get_mut(&user).and_then(|e| e.active.as_mut()) {
                active.localities.clear();
                active.known = true;
            }
            self.rebuild(&user);
        }
    }

    /// The EDS resources that clusters need, with the source each asks for.
    pub fn eds_names_wanted(&self) -> Vec<(ByteString, ConfigSource)> {
        let mut wanted: Vec<_> = self
            .entries
            .values()
            .filter_map(|e| match &e.active.as_ref()?.cluster.config.discovery {
                Discovery::Eds { name, source } => Some((name.clone(), (**source).clone())),
                _ => None,
            })
            .collect();
        wanted.sort_by(|a, b| a.0.cmp(&b.0));
        wanted.dedup_by(|a, b| a.0 == b.0);
        wanted
    }

    /// The DNS names that clusters need, with the cluster that needs each.
    pub fn dns_names_wanted(&self) -> Vec<(ByteString, Arc<Cluster>)> {
        let mut wanted = Vec::new();
        for active in self.entries.values().filter_map(|e| e.active.as_ref()) {
            for endpoint in active.localities.iter().flat_map(|l| &l.endpoints) {
                if let Target::Name(name, _) = &endpoint.target {
                    wanted.push((name.clone(), active.cluster.clone()));
                }
            }
        }
        wanted
    }

    /// Applies a DNS answer, which may be empty: the name has no addresses (any more).
    pub fn apply_resolved(&mut self, name: &str, family: DnsLookupFamily, found: Vec<IpAddr>) {
        let users = self.dns_users(name, family);
        let outcome = if found.is_empty() {
            Update::Empty
        } else {
            Update::Success
        };
        self.resolved.insert((name.into(), family), found);
        for user in users {
            self.count(&user, Update::Attempt);
            self.count(&user, outcome);
            self.rebuild(&user);
        }
    }

    /// A look-up failed: the addresses of before stay. Clusters that waited for the first answer go on
    /// without hosts, as Envoy's do, so that their requests fail instead of waiting.
    pub fn resolve_failed(&mut self, name: &str, family: DnsLookupFamily) {
        let users = self.dns_users(name, family);
        let key = (name.into(), family);
        let first = !self.resolved.contains_key(&key);
        if first {
            self.resolved.insert(key, Vec::new());
        }
        for user in users {
            self.count(&user, Update::Attempt);
            self.count(&user, Update::Failure);
            if first {
                self.rebuild(&user);
            }
        }
    }

    /// Forgets the answer for a name that no cluster wants any more.
    pub fn forget_resolved(&mut self, name: &str, family: DnsLookupFamily) {
        if self.dns_users(name, family).is_empty() {
            self.resolved.remove(&(name.into(), family));
        }
    }

    fn dns_users(&self, name: &str, family: DnsLookupFamily) -> Vec<ByteString> {
        let mut users: Vec<_> = self
            .dns_names_wanted()
            .into_iter()
            .filter(|(wanted, c)| &**wanted == name && c.config.dns_family == family)
            .map(|(_, cluster)| cluster.name().clone())
            .collect();
        users.sort();
        users.dedup();
        users
    }

    fn count(&self, cluster: &str, update: Update) {
        if let Some(active) = self.entries.get(cluster).and_then(|e| e.active.as_ref()) {
            active.cluster.lazy_stats().count(update);
        }
    }

    /// All clusters, by name.
    pub fn snapshot(&self) -> Vec<Snapshot> {
        let mut all: Vec<_> = self
            .entries
            .values()
            .filter_map(|e| e.active.as_ref().map(|a| (e, a)))
            .map(|(entry, active)| Snapshot {
                cluster: active.cluster.clone(),
                version: active.version.clone(),
                warm: entry.slot.get().is_some(),
            })
            .collect();
        all.sort_by(|a, b| a.cluster.name().cmp(b.cluster.name()));
        all
    }

    /// Builds the hosts anew and fills the slot once they are known.
    fn rebuild(&mut self, name: &str) {
        let Some(entry) = self.entries.get(name) else {
            return;
        };
        let Some(active) = &entry.active else { return };
        let cluster = &active.cluster;
        let members = Members::build(
            &cluster.config,
            &active.localities,
            active.overprovisioning,
            &cluster.hosts(),
            &self.resolved,
        );
        cluster.set_hosts(members.set);
        if members.changed {
            cluster.lazy_stats().count(Update::MembershipChange);
        }
        let secrets = cluster.config.has_secrets(&self.stores.secrets);
        if active.known && members.resolved && secrets {
            entry.slot.set(Some(cluster.clone()));
        }
        if secrets {
            self.without_secrets.remove(name);
        } else {
            self.without_secrets.insert(name.into());
        }
    }
}

#[cfg(test)]
#[path = "manager_tests.rs"]
mod tests;
