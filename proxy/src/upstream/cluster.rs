//! A cluster as the router uses it: settings, circuit breakers, hosts and stats.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;
use bytestring::ByteString;

use crate::upstream::balance::{HostSet, LbContext, next_turn};
pub use crate::upstream::cluster_config::{
    ClusterConfig, Discovery, Http2Options, UpstreamProtocol,
};
use crate::upstream::host::{Health, Host};
use crate::upstream::stats::{ClusterStats, LazyStats};

/// One priority's circuit breaker: limits and what is in use, process-wide.
#[derive(Debug)]
pub struct Breaker {
    /// Connections.
    pub connections: Resource,
    /// Requests that wait for a connection.
    pub pending: Resource,
    /// Requests in flight.
    pub requests: Resource,
    /// Retries in flight.
    pub retries: Resource,
}

/// One limit of a circuit breaker.
#[derive(Debug)]
pub struct Resource {
    limit: AtomicU32,
    used: AtomicU32,
}

impl Resource {
    fn new(limit: u32) -> Self {
        Self {
            limit: AtomicU32::new(limit),
            used: AtomicU32::new(0),
        }
    }

    /// Takes one if the limit allows.
    pub fn try_take(&self) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                (used < limit).then_some(used + 1)
            })
            .is_ok()
    }

    /// Gives one back that [`try_take`](Self::try_take) took.
    pub fn give(&self) {
        self.used.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many are taken.
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    /// The limit.
    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }
}

impl Breaker {
    fn new(limits: [u32; 4]) -> Self {
        let [connections, pending, requests, retries] = limits.map(Resource::new);
        Self {
            connections,
            pending,
            requests,
            retries,
        }
    }

    fn set(&self, limits: [u32; 4]) {
        let all = [
            &self.connections,
            &self.pending,
            &self.requests,
            &self.retries,
        ];
        for (resource, limit) in all.into_iter().zip(limits) {
            resource.limit.store(limit, Ordering::Relaxed);
        }
    }
}

/// Circuit breakers of a cluster; they survive its updates.
#[derive(Debug)]
pub struct Breakers {
    /// For ordinary requests.
    pub default: Breaker,
    /// For routes of high priority.
    pub high: Breaker,
}

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
        let [default, high] = config.limits;
        let breakers = match breakers {
            Some(kept) => {
                kept.default.set(default);
                kept.high.set(high);
                kept
            }
            None => Arc::new(Breakers {
                default: Breaker::new(default),
                high: Breaker::new(high),
            }),
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
        stats.membership_total.set(count(hosts.total()));
        stats.membership_healthy.set(count(hosts.healthy()));
    }

    /// Chooses a host; `None` means "no healthy upstream".
    pub fn choose_host(&self, cx: &LbContext<'_>) -> Option<Arc<Host>> {
        let hosts = self.hosts.load();
        hosts.choose(self.config.lb, || next_turn(self.index), cx)
    }
}
