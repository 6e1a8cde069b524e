//! A cluster as the router uses it: settings, circuit breakers, hosts and stats.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytestring::ByteString;

use crate::upstream::balance::{HostSet, LbContext, next_turn};
use crate::upstream::circuit_breaker::Breakers;
pub use crate::upstream::cluster_config::{
    ClusterConfig, Discovery, Http2Options, UpstreamProtocol,
};
use crate::upstream::host::{Health, Host};
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
        })
    }

    /// The cluster's name.
    pub fn name(&self) -> &ByteString {
        &self.config.name
    }

    /// The current hosts.
    pub fn hosts(&self) -> Arc<HostSet> {
        self.hosts.load_full()
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
        let hosts = self.hosts.load();
        if hosts.is_panic() {
            self.stats().lb_healthy_panic.inc();
        }
        hosts.choose(self.config.lb, || next_turn(self.index), cx)
    }
}
