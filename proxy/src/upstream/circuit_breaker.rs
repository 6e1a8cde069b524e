//! Circuit breakers: how much of a cluster may be in use at a time, process-wide and by routing priority.
//!
//! Envoy: "Circuit breaking", `ResourceManagerImpl`. As there, limits are checked and taken without a lock, so
//! workers that race may exceed one by a few.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use envoy_types::pb::google::protobuf as wkt;
use xds_client::error::{At, ConfigError};

use crate::telemetry::stats::{Gauge, Scope};

/// The priority that a route gives its requests (`RoutingPriority`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Priority {
    /// DEFAULT.
    #[default]
    Default,
    /// HIGH.
    High,
}

/// `retry_budget`: retries in flight as a share of the requests in flight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// The share, in percent; 20 by default.
    pub percent: f64,
    /// So many are allowed whatever the share; 3 by default.
    pub min_concurrency: u32,
}

/// One priority's limits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// `max_connections`; 1024 by default.
    pub connections: u32,
    /// `max_pending_requests`; 1024 by default.
    pub pending: u32,
    /// `max_requests`; 1024 by default.
    pub requests: u32,
    /// `max_retries`; 3 by default.
    pub retries: u32,
    /// `max_connection_pools`; no limit by default.
    pub pools: u32,
    /// Takes the place of `retries`.
    pub budget: Option<RetryBudget>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            pending: 1024,
            requests: 1024,
            retries: 3,
            pools: u32::MAX,
            budget: None,
        }
    }
}

impl Limits {
    /// Compiles `circuit_breakers`: the limits of DEFAULT and HIGH. As in Envoy, the first entry of a priority
    /// counts. `track_remaining` has no effect: it only adds gauges.
    ///
    /// # Errors
    /// `per_host_thresholds`, which are not supported; a percentage outside of 0 to 100.
    pub fn compile(proto: Option<&pb::CircuitBreakers>) -> Result<[Self; 2], ConfigError> {
        let mut limits = [Self::default(); 2];
        let Some(proto) = proto else {
            return Ok(limits);
        };
        if !proto.per_host_thresholds.is_empty() {
            return Err(ConfigError::unsupported("per_host_thresholds"));
        }
        for (i, threshold) in proto.thresholds.iter().enumerate().rev() {
            let [default, high] = &mut limits;
            let slot = if threshold.priority == 0 {
                default
            } else {
                high
            };
            *slot = Self::one(threshold).at(format!("thresholds[{i}]"))?;
        }
        Ok(limits)
    }

    fn one(proto: &Thresholds) -> Result<Self, ConfigError> {
        let or = |v: Option<&wkt::UInt32Value>, default| v.map_or(default, |v| v.value);
        let all = Self::default();
        let mut budget = None;
        if let Some(proto) = &proto.retry_budget {
            let percent = proto.budget_percent.as_ref().map_or(20.0, |p| p.value);
            if !(0.0..=100.0).contains(&percent) {
                return Err(ConfigError::new("must be from 0 to 100")
                    .at("budget_percent.value")
                    .at("retry_budget"));
            }
            budget = Some(RetryBudget {
                percent,
                min_concurrency: or(proto.min_retry_concurrency.as_ref(), 3),
            });
        }
        Ok(Self {
            connections: or(proto.max_connections.as_ref(), all.connections),
            pending: or(proto.max_pending_requests.as_ref(), all.pending),
            requests: or(proto.max_requests.as_ref(), all.requests),
            retries: or(proto.max_retries.as_ref(), all.retries),
            pools: or(proto.max_connection_pools.as_ref(), all.pools),
            budget,
        })
    }
}

/// One limit and what is taken of it.
#[derive(Debug, Default)]
pub struct Resource {
    limit: AtomicU32,
    used: AtomicU32,
    /// What the gauge says: [`UNSAID`], [`CLOSED`] or [`OPEN`].
    said: AtomicU8,
}

const UNSAID: u8 = 0;
const CLOSED: u8 = 1;
const OPEN: u8 = 2;

impl Resource {
    fn new(limit: u32) -> Self {
        Self {
            limit: AtomicU32::new(limit),
            ..Self::default()
        }
    }

    /// Whether nothing more can be taken.
    pub fn is_open(&self) -> bool {
        self.used() >= self.limit()
    }

    /// Takes one, limit or not.
    pub(crate) fn take(&self, gauge: &Gauge) {
        self.used.fetch_add(1, Ordering::Relaxed);
        self.note(gauge);
    }

    /// Takes one if the limit allows.
    pub(crate) fn try_take(&self, gauge: &Gauge) -> bool {
        let free = !self.is_open();
        if free {
            self.take(gauge);
        }
        free
    }

    /// Gives one back.
    pub(crate) fn give(&self, gauge: &Gauge) {
        self.used.fetch_sub(1, Ordering::Relaxed);
        self.note(gauge);
    }

    /// Keeps the gauge, which is written only when the answer changes.
    fn note(&self, gauge: &Gauge) {
        let now = if self.is_open() { OPEN } else { CLOSED };
        if self.said.load(Ordering::Relaxed) == now {
            return;
        }
        match (self.said.swap(now, Ordering::Relaxed), now) {
            (OPEN, CLOSED) => gauge.dec(),
            (UNSAID | CLOSED, OPEN) => gauge.inc(),
            // From here on it counts as used.
            _ => gauge.add(0),
        }
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

/// One priority's circuit breaker.
#[derive(Debug)]
pub struct Breaker {
    /// Connections.
    pub connections: Resource,
    /// Requests that wait for a connection.
    pub pending: Resource,
    /// Requests in flight.
    pub requests: Resource,
    /// Retries that are waited for or in flight.
    pub retries: Resource,
    /// Connection pools, which are those of one worker, host and purpose.
    pub pools: Resource,
}

impl Breaker {
    fn new(limits: &Limits) -> Self {
        Self {
            connections: Resource::new(limits.connections),
            pending: Resource::new(limits.pending),
            requests: Resource::new(limits.requests),
            retries: Resource::new(limits.retries),
            pools: Resource::new(limits.pools),
        }
    }

    fn set(&self, limits: &Limits) {
        for (resource, limit) in [
            (&self.connections, limits.connections),
            (&self.pending, limits.pending),
            (&self.requests, limits.requests),
            (&self.retries, limits.retries),
            (&self.pools, limits.pools),
        ] {
            resource.limit.store(limit, Ordering::Relaxed);
        }
    }

    /// Takes a retry if the limit, or the budget in its place, allows.
    pub(crate) fn try_take_retry(&self, budget: Option<&RetryBudget>, gauge: &Gauge) -> bool {
        if let Some(budget) = budget {
            let busy = f64::from(self.requests.used()) + f64::from(self.pending.used());
            // Never negative, and far below 2^32.
            let share = (busy * budget.percent / 100.0) as u32;
            let limit = share.max(budget.min_concurrency);
            self.retries.limit.store(limit, Ordering::Relaxed);
        }
        self.retries.try_take(gauge)
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

impl Breakers {
    pub(crate) fn new([default, high]: &[Limits; 2]) -> Self {
        Self {
            default: Breaker::new(default),
            high: Breaker::new(high),
        }
    }

    pub(crate) fn set(&self, [default, high]: &[Limits; 2]) {
        self.default.set(default);
        self.high.set(high);
    }

    /// The breaker of a priority.
    pub fn of(&self, priority: Priority) -> &Breaker {
        match priority {
            Priority::Default => &self.default,
            Priority::High => &self.high,
        }
    }
}

/// `circuit_breakers.<priority>.*`: 1 while nothing more can be taken.
#[derive(Default)]
pub struct BreakerStats {
    /// `cx_open`.
    pub cx_open: Gauge,
    /// `cx_pool_open`.
    pub cx_pool_open: Gauge,
    /// `rq_pending_open`.
    pub rq_pending_open: Gauge,
    /// `rq_open`.
    pub rq_open: Gauge,
    /// `rq_retry_open`.
    pub rq_retry_open: Gauge,
}

impl BreakerStats {
    /// The gauges of a priority below the cluster's scope.
    pub(crate) fn new(cluster: &Scope, priority: Priority) -> Self {
        let scope = cluster.scope(match priority {
            Priority::Default => "circuit_breakers.default.",
            Priority::High => "circuit_breakers.high.",
        });
        Self {
            cx_open: scope.gauge("cx_open"),
            cx_pool_open: scope.gauge("cx_pool_open"),
            rq_pending_open: scope.gauge("rq_pending_open"),
            rq_open: scope.gauge("rq_open"),
            rq_retry_open: scope.gauge("rq_retry_open"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::stats::Stats;
    use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::thresholds as t;
    use envoy_types::pb::envoy::r#type::v3::Percent;

    fn threshold(max: u32, priority: i32) -> Thresholds {
        Thresholds {
            priority,
            max_requests: Some(wkt::UInt32Value { value: max }),
            ..Default::default()
        }
    }

    #[test]
    fn the_first_threshold_of_a_priority_counts_and_the_rest_is_default() {
        let mut proto = pb::CircuitBreakers {
            thresholds: vec![threshold(1, 0), threshold(2, 1), threshold(3, 0)],
            ..Default::default()
        };
        let [default, high] = Limits::compile(Some(&proto)).unwrap();
        assert_eq!((default.requests, high.requests), (1, 2));
        assert_eq!((default.retries, default.pending), (3, 1024));
        proto.thresholds[1].retry_budget = Some(t::RetryBudget {
            budget_percent: Some(Percent { value: 101.0 }),
            ..Default::default()
        });
        let error = Limits::compile(Some(&proto)).unwrap_err().to_string();
        assert!(
            error.contains("thresholds[1].retry_budget.budget_percent"),
            "{error}"
        );
    }

    #[test]
    fn the_gauge_says_whether_anything_can_be_taken() {
        let store = Stats::new();
        let gauge = store.scope("").gauge("open");
        let resource = Resource::new(2);
        assert!(resource.try_take(&gauge));
        assert_eq!(gauge.value(), 0);
        assert!(resource.try_take(&gauge) && !resource.try_take(&gauge));
        assert_eq!(gauge.value(), 1);
        resource.take(&gauge);
        resource.give(&gauge);
        assert_eq!((gauge.value(), resource.used()), (1, 2));
        resource.give(&gauge);
        assert_eq!(gauge.value(), 0);
    }

    #[test]
    fn a_retry_budget_grows_with_the_requests_and_has_a_floor() {
        let breaker = Breaker::new(&Limits::default());
        let gauge = Gauge::default();
        let budget = RetryBudget {
            percent: 50.0,
            min_concurrency: 1,
        };
        assert!(breaker.try_take_retry(Some(&budget), &gauge));
        assert!(!breaker.try_take_retry(Some(&budget), &gauge));
        for _ in 0..4 {
            breaker.requests.take(&gauge);
        }
        assert!(breaker.try_take_retry(Some(&budget), &gauge));
        assert!(!breaker.try_take_retry(Some(&budget), &gauge));
    }
}
