//! Counters, gauges and histograms with Envoy's names, sharded per worker.
//!
//! Handles are cheap to clone; recording touches only memory of the calling thread. A stat exists (and is
//! printed) from the moment its handle is made; `usedonly` prints those that were ever recorded to.

/// A named tree position, ending in a dot (`cluster.foo.`), in which stats are made.
#[derive(Clone)]
pub struct Scope;

/// A number that only grows.
#[derive(Clone)]
pub struct Counter;

/// A number that goes up and down.
#[derive(Clone)]
pub struct Gauge;

/// A distribution.
#[derive(Clone)]
pub struct Histogram;
