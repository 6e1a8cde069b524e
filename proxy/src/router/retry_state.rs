//! The retries of one request: whether there is another, and after how long.
//!
//! Envoy: `RetryStateImpl`.

use std::sync::Arc;
use std::time::Duration;

use filters::body::ResetReason;
use filters::head::RequestHead;
use http::{HeaderMap, StatusCode};

use super::retry_policy::RetryPolicy;
use super::route::Route;
use crate::upstream::circuit_breaker::Priority;
use crate::upstream::cluster::Cluster;

/// How often and when a request may be tried again.
pub(super) struct RetryState {
    policy: Option<Arc<RetryPolicy>>,
    left: u32,
    /// Retries so far.
    made: u32,
    priority: Priority,
    held: Option<Held>,
    /// What the upstream asked to wait, for the next retry only.
    asked: Option<Duration>,
}

/// What becomes of an attempt that failed or that was answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Try again.
    Retry,
    /// It stands.
    No,
    /// It stands, because all retries are used up.
    LimitExceeded,
    /// It stands, because of the circuit breaker.
    Overflow,
}

/// A retry's share of the circuit breaker: held until its attempt has been judged.
struct Held {
    cluster: Arc<Cluster>,
    priority: Priority,
}

impl Drop for Held {
    fn drop(&mut self) {
        let gauges = self.cluster.stats().breakers_of(self.priority);
        let breaker = self.cluster.breakers.of(self.priority);
        breaker.retries.give(&gauges.rq_retry_open);
    }
}

impl RetryState {
    /// From the route and the request's `x-envoy-retry-*` headers, which are taken off. (External senders'
    /// were taken off before.)
    pub(super) fn new(route: &Route, head: &mut RequestHead) -> Self {
        let policy = RetryPolicy::for_request(route.retry_policy(), head);
        Self {
            left: policy.as_ref().map_or(0, |policy| policy.num_retries),
            policy,
            made: 0,
            priority: route.priority(),
            held: None,
            asked: None,
        }
    }

    /// Whether anything may ever be retried.
    pub(super) fn is_enabled(&self) -> bool {
        self.policy.is_some() && self.left > 0
    }

    /// The policy, for the host choice of a retry.
    pub(super) fn policy_of_retry(&self) -> Option<&RetryPolicy> {
        self.policy.as_deref().filter(|_| self.made > 0)
    }

    /// Judges a response.
    pub(super) fn on_response(
        &mut self,
        cluster: &Arc<Cluster>,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Verdict {
        let Some(policy) = &self.policy else {
            return Verdict::No;
        };
        let wanted = policy.wants_retry_response(status, headers);
        self.asked = policy.asked_wait(headers).filter(|_| wanted);
        self.decide(cluster, wanted)
    }

    /// Judges an attempt without a response.
    pub(super) fn on_reset(
        &mut self,
        cluster: &Arc<Cluster>,
        reason: ResetReason,
        request_sent: bool,
    ) -> Verdict {
        let Some(policy) = &self.policy else {
            return Verdict::No;
        };
        let wanted = policy.wants_retry_reset(reason, request_sent);
        self.decide(cluster, wanted)
    }

    /// Takes one retry if `wanted`; says why not otherwise.
    fn decide(&mut self, cluster: &Arc<Cluster>, wanted: bool) -> Verdict {
        let stats = cluster.stats();
        if self.held.take().is_some() && !wanted {
            stats.upstream_rq_retry_success.inc();
        }
        if !wanted {
            return Verdict::No;
        }
        if self.left == 0 {
            stats.upstream_rq_retry_limit_exceeded.inc();
            return Verdict::LimitExceeded;
        }
        self.left -= 1;
        let gauges = stats.breakers_of(self.priority);
        let breaker = cluster.breakers.of(self.priority);
        let budget = cluster.config.limits_of(self.priority).budget;
        if !breaker.try_take_retry(budget.as_ref(), &gauges.rq_retry_open) {
            stats.upstream_rq_retry_overflow.inc();
            return Verdict::Overflow;
        }
        self.held = Some(Held {
            cluster: cluster.clone(),
            priority: self.priority,
        });
        stats.upstream_rq_retry.inc();
        self.made += 1;
        Verdict::Retry
    }

    /// How long to wait before the retry that was decided on.
    pub(super) fn back_off(&mut self, cluster: &Cluster, random: u64) -> Duration {
        let stats = cluster.stats();
        if let Some(asked) = self.asked.take() {
            stats.upstream_rq_retry_backoff_ratelimited.inc();
            // Up to half as long again, so that not everybody comes back at once.
            let spread = u64::try_from(asked.as_millis() / 2)
                .unwrap_or(u64::MAX)
                .max(1);
            return asked + Duration::from_millis(random % spread);
        }
        stats.upstream_rq_retry_backoff_exponential.inc();
        let policy = self.policy.as_ref();
        policy.map_or(Duration::ZERO, |p| p.back_off_delay(self.made, random))
    }
}
