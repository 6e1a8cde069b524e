//! Counters, gauges and histograms with Envoy's names: the interface that the upstream code is written
//! against. (The real registry replaces this file at merge.)

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// The registry.
#[derive(Debug, Default)]
pub struct Stats;

impl Stats {
    /// An empty registry.
    pub fn new() -> Arc<Self> {
        Arc::new(Self)
    }

    /// A place for stats under `prefix`.
    pub fn scope(self: &Arc<Self>, _prefix: &str) -> Scope {
        Scope
    }
}

/// A named tree position, ending in a dot (`cluster.foo.`), in which stats are made.
#[derive(Clone, Debug)]
pub struct Scope;

impl Scope {
    /// A counter.
    pub fn counter(&self, _name: &str) -> Counter {
        Counter::default()
    }
    /// A gauge.
    pub fn gauge(&self, _name: &str) -> Gauge {
        Gauge::default()
    }
    /// A histogram.
    pub fn histogram(&self, _name: &str) -> Histogram {
        Histogram
    }
}

/// A number that only grows.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
}

/// A number that goes up and down.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicI64>);

impl Gauge {
    /// Adds one.
    pub fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    /// Takes one away.
    pub fn dec(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
    /// Sets it.
    pub fn set(&self, n: u64) {
        self.0
            .store(i64::try_from(n).unwrap_or(i64::MAX), Ordering::Relaxed);
    }
}

/// A distribution.
#[derive(Clone, Debug)]
pub struct Histogram;

impl Histogram {
    /// Records a value in milliseconds.
    pub fn record(&self, _ms: u64) {}
}
