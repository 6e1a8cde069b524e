//! A cluster as the router uses it: settings, circuit breakers, hosts and stats.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytestring::ByteString;
use filters::head::RequestHead;
use filters::stream::StreamInfo;

use crate::upstream::balance::{HostSet, LbContext, next_turn};
use crate::upstream::circuit_breaker::Breakers;
pub use crate::upstream::cluster_config::{
    ClusterConfig, Discovery, Http2Options, UpstreamProtocol,
};
use crate::upstream::host::{Health, Host};
use crate::upstream::original_dst::{Destination, OriginalHosts};
use crate::upstream::stats::{ClusterStats, LazyStats};

/// A cluster as the router uses it.
#[derive(Debug)]
pub struct Cluster {
    /// Its settings.
    pub config: Arc<ClusterConfig>,
    /// Its circuit breakers.
    pub breakers: Arc<Breakers>,
    stats: Arc<LazyStats>,
    index: usize,
    hosts: ArcSwap<HostSet>,
    /// Those of ORIGINAL_DST.
    original: OriginalHosts,
}

impl Cluster {
    pub(crate) fn new(
        config: Arc<ClusterConfig>,
        breakers: Option<Arc<Breakers>>,
        stats: Arc<LazyStats>,
        index: usize,
        hosts: HostSet,
    ) -> Arc<Self> {
        let breakers = match breakers {
            Some(kept) => {
                kept.set(&config.limits);
                kept
            }
            None => Arc::new(Breakers::new(&config.limits)),
        };
        Arc::new(Self {
            config,
            breakers,
            stats,
            index,
            hosts: ArcSwap::from_pointee(hosts),
            original: OriginalHosts::default(),
        })
    }

    /// The cluster's name.
    pub fn name(&self) -> &ByteString {
        &self.config.name
    }

    /// Notes that a stream goes to it.
    pub fn note(&self, info: &mut StreamInfo) {
        let (config, upstream) = (&self.config, &mut info.upstream);
        upstream.cluster = Some(config.name.clone());
        let other = config.stat_name != config.name;
        upstream.cluster_stat_name = other.then(|| config.stat_name.clone());
        upstream.cluster_metadata = config.metadata.clone();
    }

    /// The current hosts.
    pub fn hosts(&self) -> Arc<HostSet> {
        self.hosts.load_full()
    }

    /// All hosts with their priorities, for the admin interface.
    pub fn known_hosts(&self) -> Vec<(u32, Arc<Host>)> {
        let hosts = self.hosts.load();
        let localities = hosts.localities().iter();
        let given = localities.flat_map(|l| l.hosts.iter().map(|h| (l.priority, h.clone())));
        let original = self.original.all().into_iter().map(|host| (0, host));
        given.chain(original).collect()
    }

    /// The cluster is gone.
    pub(crate) fn retire(&self) {
        self.replaced(false);
    }

    /// Another has taken its place, and may have kept its hosts, except those that are made when they are asked for.
    pub(crate) fn replaced(&self, kept: bool) {
        if !kept {
            self.hosts.load().hosts().for_each(|h| h.set_removed());
        }
        self.original.retire();
    }

    /// Forgets hosts that nobody uses.
    pub(crate) fn clean_up(&self) {
        if let Discovery::OriginalDst(settings) = &self.config.discovery {
            let gone = self.original.sweep(settings);
            self.count_members(-i64::try_from(gone).unwrap_or(i64::MAX));
        }
    }

    fn count_members(&self, change: i64) {
        if change != 0 {
            let stats = self.stats();
            stats.membership_change.inc();
            stats.membership_total.add(change);
            stats.membership_healthy.add(change);
        }
    }

    /// Where a request with `head`, or a connection, is to go if the cluster is of type ORIGINAL_DST.
    pub fn destination(&self, head: Option<&RequestHead>, info: &StreamInfo) -> Option<SocketAddr> {
        let Discovery::OriginalDst(settings) = &self.config.discovery else {
            return None;
        };
        match settings.destination(head, info) {
            Destination::To(address) => Some(address),
            Destination::Invalid => {
                self.stats().original_dst_host_invalid.inc();
                None
            }
            Destination::Unknown => None,
        }
    }

    pub(crate) fn set_hosts(&self, hosts: HostSet) {
        self.hosts.store(Arc::new(hosts));
        if let Some(stats) = self.stats.existing() {
            self.set_membership(stats);
        }
    }

    /// The stats. The first call of a cluster's life makes them (it allocates and locks); the router and the
    /// pools call this only for clusters that get requests.
    pub fn stats(&self) -> &ClusterStats {
        let (stats, new) = self.stats.get();
        if new {
            self.set_membership(stats);
        }
        stats
    }

    pub(crate) fn lazy_stats(&self) -> &Arc<LazyStats> {
        &self.stats
    }

    fn set_membership(&self, stats: &ClusterStats) {
        let hosts = self.hosts.load();
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let degraded = hosts.hosts().filter(|h| h.health() == Health::Degraded);
        stats.membership_degraded.set(count(degraded.count()));
        let weight = hosts.hosts().map(|h| h.weight()).max().unwrap_or(0);
        stats.max_host_weight.set(weight.into());
        // Nothing excludes hosts: that is for health checks that have not come in yet.
        stats.membership_excluded.set(0);
        stats.membership_total.set(count(hosts.total()));
        stats.membership_healthy.set(count(hosts.healthy()));
    }

    /// Chooses a host; `None` means "no healthy upstream".
    pub fn choose_host(&self, cx: &LbContext<'_>) -> Option<Arc<Host>> {
        if matches!(self.config.discovery, Discovery::OriginalDst(_)) {
            self.clean_up();
            let (host, new) = self.original.at(cx.destination?, &self.config)?;
            self.count_members(i64::from(new));
            return Some(host);
        }
        let hosts = self.hosts.load();
        if hosts.is_panic() {
            self.stats().lb_healthy_panic.inc();
        }
        hosts.choose(self.config.lb, || next_turn(self.index), cx)
    }
}
