//! A cluster's stats: `cluster.<name>.*`, made when the cluster is first used.
//!
//! A gateway has thousands of clusters and uses few of them, so an unused cluster costs one empty cell
//! (what Envoy calls deferred stat creation, here for all stats of a cluster and not only its traffic).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::telemetry::stats::{Counter, Gauge, Histogram, Scope};

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
            scope: Option<Scope>,
            /// `upstream_rq_<code>` by class and code, made when a code is first seen.
            codes: [OnceLock<Box<[OnceLock<Counter>; 100]>>; 5],
        }

        impl ClusterStats {
            /// Makes the stats in `scope` (`cluster.<name>.`).
            pub fn new(scope: Scope) -> Self {
                Self {
                    $($name: scope.$make(stringify!($name)),)*
                    scope: Some(scope),
                    codes: Default::default(),
                }
            }
        }
    };
}

stats! {
    upstream_cx_total: Counter counter;
    upstream_cx_active: Gauge gauge;
    upstream_cx_http1_total: Counter counter;
    upstream_cx_http2_total: Counter counter;
    upstream_cx_connect_fail: Counter counter;
    upstream_cx_connect_timeout: Counter counter;
    upstream_cx_connect_attempts_exceeded: Counter counter;
    upstream_cx_overflow: Counter counter;
    upstream_cx_destroy: Counter counter;
    upstream_cx_destroy_local: Counter counter;
    upstream_cx_destroy_remote: Counter counter;
    upstream_cx_destroy_with_active_rq: Counter counter;
    upstream_cx_max_requests: Counter counter;
    upstream_cx_idle_timeout: Counter counter;
    upstream_cx_protocol_error: Counter counter;
    upstream_cx_none_healthy: Counter counter;
    upstream_cx_rx_bytes_total: Counter counter;
    upstream_cx_tx_bytes_total: Counter counter;
    /// Milliseconds.
    upstream_cx_connect_ms: Histogram histogram;
    /// Milliseconds.
    upstream_cx_length_ms: Histogram histogram;
    upstream_rq_total: Counter counter;
    upstream_rq_active: Gauge gauge;
    upstream_rq_pending_total: Counter counter;
    upstream_rq_pending_active: Gauge gauge;
    upstream_rq_pending_overflow: Counter counter;
    upstream_rq_pending_failure_eject: Counter counter;
    upstream_rq_completed: Counter counter;
    upstream_rq_1xx: Counter counter;
    upstream_rq_2xx: Counter counter;
    upstream_rq_3xx: Counter counter;
    upstream_rq_4xx: Counter counter;
    upstream_rq_5xx: Counter counter;
    /// Milliseconds.
    upstream_rq_time: Histogram histogram;
    upstream_rq_timeout: Counter counter;
    upstream_rq_per_try_timeout: Counter counter;
    upstream_rq_per_try_idle_timeout: Counter counter;
    upstream_rq_max_duration_reached: Counter counter;
    upstream_rq_retry: Counter counter;
    upstream_rq_retry_success: Counter counter;
    upstream_rq_retry_overflow: Counter counter;
    upstream_rq_retry_limit_exceeded: Counter counter;
    upstream_rq_retry_backoff_exponential: Counter counter;
    upstream_rq_retry_backoff_ratelimited: Counter counter;
    upstream_rq_rx_reset: Counter counter;
    upstream_rq_tx_reset: Counter counter;
    upstream_rq_cancelled: Counter counter;
    upstream_rq_maintenance_mode: Counter counter;
    membership_total: Gauge gauge;
    membership_healthy: Gauge gauge;
    membership_degraded: Gauge gauge;
    membership_change: Counter counter;
    update_attempt: Counter counter;
    update_success: Counter counter;
    update_failure: Counter counter;
    update_empty: Counter counter;
    update_no_rebuild: Counter counter;
    lb_healthy_panic: Counter counter;
    bind_errors: Counter counter;
}

impl ClusterStats {
    /// Counts a response that reached its end: its status, and the milliseconds since the request's start.
    pub fn on_response(&self, status: u16, ms: u64) {
        self.on_status(status);
        self.upstream_rq_time.record(ms);
    }

    /// Counts a response's status alone, as for an attempt that is retried.
    pub fn on_status(&self, status: u16) {
        self.upstream_rq_completed.inc();
        match status / 100 {
            1 => self.upstream_rq_1xx.inc(),
            2 => self.upstream_rq_2xx.inc(),
            3 => self.upstream_rq_3xx.inc(),
            4 => self.upstream_rq_4xx.inc(),
            5 => self.upstream_rq_5xx.inc(),
            _ => {}
        }
        if let Some(counter) = self.code(status) {
            counter.inc();
        }
    }

    /// The counter of one code; codes outside 100 to 599 have none, which bounds their number.
    fn code(&self, status: u16) -> Option<&Counter> {
        let scope = self.scope.as_ref()?;
        let class = usize::from(status / 100).checked_sub(1)?;
        let class = self.codes.get(class)?;
        let class = class.get_or_init(|| Box::new([const { OnceLock::new() }; 100]));
        let code = class.get(usize::from(status % 100))?;
        // The name is made once; afterwards this is two loads.
        Some(code.get_or_init(|| scope.counter(&format!("upstream_rq_{status}"))))
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
    updates: [AtomicU64; 6],
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

    fn flush(&self, stats: &ClusterStats) {
        let counters = [
            &stats.update_attempt,
            &stats.update_success,
            &stats.update_failure,
            &stats.update_empty,
            &stats.update_no_rebuild,
            &stats.membership_change,
        ];
        for (counter, count) in counters.into_iter().zip(&self.updates) {
            let count = count.swap(0, Ordering::Relaxed);
            if count > 0 {
                counter.add(count);
            }
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

    #[test]
    fn responses_count_by_class_and_by_code_within_bounds() {
        let store = Stats::new();
        let stats = ClusterStats::new(store.scope("cluster.a."));
        for status in [200, 200, 503, 599, 0, 99, 600, 999, u16::MAX] {
            stats.on_response(status, 3);
        }
        let counters = store.snapshot().counters;
        let value = |name: &str| {
            let name = format!("cluster.a.{name}");
            counters.iter().find(|c| *c.name == *name).map(|c| c.value)
        };
        assert_eq!(value("upstream_rq_200"), Some(2));
        assert_eq!(value("upstream_rq_503"), Some(1));
        assert_eq!(value("upstream_rq_2xx"), Some(2));
        assert_eq!(value("upstream_rq_5xx"), Some(2));
        assert_eq!(value("upstream_rq_completed"), Some(9));
        assert_eq!(value("upstream_rq_600"), None);
        assert_eq!(value("upstream_rq_201"), None);
    }
}
