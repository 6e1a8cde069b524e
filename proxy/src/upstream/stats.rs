//! A cluster's stats: `cluster.<name>.*`, made when the cluster is first used.
//!
//! A gateway has thousands of clusters and uses few of them, so an unused cluster costs one empty cell
//! (what Envoy calls deferred stat creation, here for all stats of a cluster and not only its traffic).

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::config::update_stats::{unix_millis, version_hash};
use crate::http::h2::LazyHttp2Stats;
use crate::telemetry::stats::{Counter, Gauge, Histogram, Scope};
use crate::upstream::circuit_breaker::{BreakerStats, Priority};
use crate::upstream::code_stats::CodeStats;

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident: $kind:ident $make:ident;)*) => {
        /// Envoy's "cluster statistics", as far as they are kept. Without a scope, nothing is recorded.
        #[derive(Default)]
        pub struct ClusterStats {
            $(
                #[doc = concat!("`", stringify!($name), "`.")]
                $(#[$doc])*
                pub $name: $kind,
            )*
            /// Responses by status.
            pub codes: CodeStats,
            /// The HTTP/2 codec's.
            pub http2: LazyHttp2Stats,
            /// The circuit breakers of priority DEFAULT.
            pub breakers: BreakerStats,
            /// The circuit breakers of priority HIGH.
            pub breakers_high: BreakerStats,
        }

        impl ClusterStats {
            /// Makes the stats in `scope` (`cluster.<name>.`).
            pub fn new(scope: Scope) -> Self {
                Self {
                    $($name: scope.$make(stringify!($name)),)*
                    breakers: BreakerStats::new(&scope, Priority::Default),
                    breakers_high: BreakerStats::new(&scope, Priority::High),
                    http2: LazyHttp2Stats::new(scope.clone()),
                    codes: CodeStats::new(scope),
                }
            }
        }
    };
}

stats! {
    lb_healthy_panic: Counter counter;
    /// The greatest weight of a host.
    max_host_weight: Gauge gauge;
    membership_change: Counter counter;
    membership_degraded: Gauge gauge;
    membership_excluded: Gauge gauge;
    membership_healthy: Gauge gauge;
    membership_total: Gauge gauge;
    /// Destinations of ORIGINAL_DST clusters that were no addresses.
    original_dst_host_invalid: Counter counter;
    retry_or_shadow_abandoned: Counter counter;
    update_attempt: Counter counter;
    update_empty: Counter counter;
    update_failure: Counter counter;
    update_no_rebuild: Counter counter;
    update_rejected: Counter counter;
    update_success: Counter counter;
    /// When endpoints were taken last, in milliseconds of Unix time.
    update_time: Gauge gauge;
    upstream_cx_active: Gauge gauge;
    /// Connections whose server asked for their end.
    upstream_cx_close_notify: Counter counter;
    /// Milliseconds.
    upstream_cx_connect_ms: Histogram histogram;
    /// Connections of TCP proxies that gave up.
    upstream_cx_connect_attempts_exceeded: Counter counter;
    upstream_cx_connect_fail: Counter counter;
    upstream_cx_connect_timeout: Counter counter;
    upstream_cx_destroy: Counter counter;
    upstream_cx_destroy_local: Counter counter;
    upstream_cx_destroy_local_with_active_rq: Counter counter;
    upstream_cx_destroy_remote: Counter counter;
    upstream_cx_destroy_remote_with_active_rq: Counter counter;
    upstream_cx_destroy_with_active_rq: Counter counter;
    upstream_cx_http1_total: Counter counter;
    upstream_cx_http2_total: Counter counter;
    upstream_cx_idle_timeout: Counter counter;
    /// Milliseconds.
    upstream_cx_length_ms: Histogram histogram;
    /// Connections that were too old for another request.
    upstream_cx_max_duration_reached: Counter counter;
    upstream_cx_max_requests: Counter counter;
    upstream_cx_none_healthy: Counter counter;
    upstream_cx_overflow: Counter counter;
    /// Requests that asked for one pool too many of a host.
    upstream_cx_pool_overflow: Counter counter;
    upstream_cx_protocol_error: Counter counter;
    upstream_cx_rx_bytes_total: Counter counter;
    upstream_cx_total: Counter counter;
    upstream_cx_tx_bytes_total: Counter counter;
    upstream_rq_active: Gauge gauge;
    /// Requests that the limit of requests in flight refused.
    upstream_rq_active_overflow: Counter counter;
    upstream_rq_cancelled: Counter counter;
    upstream_rq_max_duration_reached: Counter counter;
    upstream_rq_pending_active: Gauge gauge;
    upstream_rq_pending_failure_eject: Counter counter;
    upstream_rq_pending_overflow: Counter counter;
    upstream_rq_pending_total: Counter counter;
    upstream_rq_per_try_idle_timeout: Counter counter;
    upstream_rq_per_try_timeout: Counter counter;
    upstream_rq_retry: Counter counter;
    upstream_rq_retry_backoff_exponential: Counter counter;
    upstream_rq_retry_backoff_ratelimited: Counter counter;
    upstream_rq_retry_limit_exceeded: Counter counter;
    upstream_rq_retry_overflow: Counter counter;
    upstream_rq_retry_success: Counter counter;
    upstream_rq_rx_reset: Counter counter;
    upstream_rq_timeout: Counter counter;
    upstream_rq_total: Counter counter;
    upstream_rq_tx_reset: Counter counter;
    /// The hash of the version of the endpoints.
    version: Gauge gauge;
}

impl ClusterStats {
    /// The circuit breaker gauges of a priority.
    pub fn breakers_of(&self, priority: Priority) -> &BreakerStats {
        match priority {
            Priority::Default => &self.breakers,
            Priority::High => &self.breakers_high,
        }
    }
}

/// What the control thread counts before the stats exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// A DNS look-up or an EDS update begins.
    Attempt,
    /// It gave endpoints.
    Success,
    /// It failed.
    Failure,
    /// It gave no endpoints.
    Empty,
    /// It gave the endpoints of before.
    NoRebuild,
    /// What it gave was refused.
    Rejected,
    /// Hosts came or went.
    MembershipChange,
}

/// Stats that are made on first use; kept over updates of the cluster.
#[derive(Default)]
pub(crate) struct LazyStats {
    scope: Option<Scope>,
    /// Boxed: most of a mesh's clusters are never used, and the counters are the larger part.
    stats: OnceLock<Box<ClusterStats>>,
    /// By [`Update`]; moved into the counters when a cluster is first used.
    updates: [AtomicU64; 7],
    /// The hash of the endpoints' version and when they were taken, for the gauges; time 0 is never.
    version: AtomicI64,
    taken: AtomicI64,
}

impl std::fmt::Debug for LazyStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let used = self.stats.get().is_some();
        f.debug_struct("LazyStats").field("used", &used).finish()
    }
}

impl LazyStats {
    /// For a cluster's scope.
    pub(crate) fn new(scope: Option<Scope>) -> Arc<Self> {
        Arc::new(Self {
            scope,
            ..Self::default()
        })
    }

    /// The stats, and whether this call made them.
    pub(crate) fn get(&self) -> (&ClusterStats, bool) {
        let mut new = false;
        let stats = self.stats.get_or_init(|| {
            new = true;
            Box::new(
                self.scope
                    .clone()
                    .map_or_else(ClusterStats::default, ClusterStats::new),
            )
        });
        if new {
            self.flush(stats);
        }
        (stats, new)
    }

    /// The stats, if they are in use.
    pub(crate) fn existing(&self) -> Option<&ClusterStats> {
        self.stats.get().map(Box::as_ref)
    }

    /// Counts what the control side did.
    pub(crate) fn count(&self, update: Update) {
        if let Some(counter) = self.updates.get(update as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        // A worker that makes the stats just now may have missed ours; taking is atomic, so none counts twice.
        if let Some(stats) = self.stats.get() {
            self.flush(stats);
        }
    }

    /// Notes the version of endpoints that were taken.
    pub(crate) fn taken(&self, version: &str) {
        self.version.store(version_hash(version), Ordering::Relaxed);
        self.taken.store(unix_millis(), Ordering::Release);
        if let Some(stats) = self.stats.get() {
            self.flush(stats);
        }
    }

    fn flush(&self, stats: &ClusterStats) {
        let counters = [
            &stats.update_attempt,
            &stats.update_success,
            &stats.update_failure,
            &stats.update_empty,
            &stats.update_no_rebuild,
            &stats.update_rejected,
            &stats.membership_change,
        ];
        for (counter, count) in counters.into_iter().zip(&self.updates) {
            let count = count.swap(0, Ordering::Relaxed);
            if count > 0 {
                counter.add(count);
            }
        }
        let taken = self.taken.load(Ordering::Acquire);
        if taken != 0 {
            stats.update_time.set(taken);
            stats.version.set(self.version.load(Ordering::Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::stats::Stats;

    #[test]
    fn stats_exist_from_the_first_use_and_have_what_was_counted_before() {
        let store = Stats::new();
        let lazy = LazyStats::new(Some(store.scope("cluster.a.")));
        lazy.count(Update::MembershipChange);
        assert!(store.snapshot().counters.is_empty());
        let (stats, new) = lazy.get();
        assert!(new && !lazy.get().1);
        lazy.count(Update::MembershipChange);
        assert_eq!(stats.membership_change.value(), 2);
    }
}
