//! Counters, gauges and histograms with Envoy's names, sharded per thread.
//!
//! Recording touches only memory of the calling thread: each thread owns a table of cells for a [`Stats`], written
//! with relaxed loads and stores (no lock prefix, one writer), and readers sum over the threads. The cells of an
//! ended thread are folded into the stat. A stat exists (and is printed) from the moment its handle is made until
//! its last handle is dropped; its cell is then zeroed and used again. `usedonly` prints those ever recorded to.

mod config;
mod histogram;
mod shard;
mod tags;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

pub use config::StatsSettings;
pub use histogram::{Distribution, HistogramValue, QUANTILES};
pub use tags::{ExtractedTags, TagExtractor};

use histogram::HistogramCell;
use shard::Shard;

/// A mutex whose poison is ignored: the data is numbers and tables that are valid at every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The store of all stats of the process (one per process in production, one per test in tests).
pub struct Stats {
    core: Arc<Core>,
}

/// What handles and threads share.
struct Core {
    /// Never used again, so a thread's table cannot be mistaken for that of a later store.
    id: u64,
    settings: StatsSettings,
    registry: Mutex<Registry>,
}

#[derive(Default)]
struct Registry {
    counters: HashMap<Arc<str>, Weak<Cell>>,
    gauges: HashMap<Arc<str>, Weak<Cell>>,
    histograms: HashMap<Arc<str>, Weak<HistogramCell>>,
    shards: Vec<Arc<Shard>>,
    free: Vec<u32>,
    next: u32,
    free_histograms: Vec<u32>,
    next_histogram: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
}

/// One counter or gauge.
struct Cell {
    core: Arc<Core>,
    name: Arc<str>,
    kind: Kind,
    id: u32,
    /// What is not in any thread's cell: ended threads, `set`, `reset`. Wrapping.
    base: AtomicU64,
    used: AtomicBool,
}

impl Drop for Cell {
    fn drop(&mut self) {
        let mut registry = lock(&self.core.registry);
        let map = match self.kind {
            Kind::Counter => &mut registry.counters,
            Kind::Gauge => &mut registry.gauges,
        };
        // A new stat of the same name may already stand in our place.
        if map
            .get(&self.name)
            .is_some_and(|cell| cell.strong_count() == 0)
        {
            map.remove(&self.name);
        }
        // No handle is left, so no thread writes to these cells.
        for shard in &registry.shards {
            shard.clear(self.id);
        }
        registry.free.push(self.id);
    }
}

impl Cell {
    fn add(&self, n: u64) {
        // A shared cache line, but one that is written once.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        if !shard::add(&self.core, self.id, n) {
            // The thread is ending, or there are more stats than cells: slower, never wrong.
            self.base.fetch_add(n, Ordering::Relaxed);
        }
    }

    fn value_in(&self, registry: &Registry) -> u64 {
        registry
            .shards
            .iter()
            .fold(self.base.load(Ordering::Relaxed), |sum, shard| {
                sum.wrapping_add(shard.get(self.id))
            })
    }

    fn value(&self) -> u64 {
        self.value_in(&lock(&self.core.registry))
    }

    /// Makes the value `to`, whatever the threads' cells hold.
    fn set(&self, to: u64) {
        let registry = lock(&self.core.registry);
        let delta = to.wrapping_sub(self.value_in(&registry));
        self.base.fetch_add(delta, Ordering::Relaxed);
    }
}

/// A named tree position, ending in a dot (`cluster.foo.`), in which stats are made.
#[derive(Clone)]
pub struct Scope {
    core: Arc<Core>,
    prefix: Arc<str>,
}

/// A number that only grows.
#[derive(Clone, Default)]
pub struct Counter(Option<Arc<Cell>>);

/// A number that goes up and down.
#[derive(Clone, Default)]
pub struct Gauge(Option<Arc<Cell>>);

/// A distribution of integers (milliseconds, bytes).
#[derive(Clone, Default)]
pub struct Histogram(Option<Arc<HistogramCell>>);

/// The value of a counter or gauge at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatValue<T> {
    /// The full name.
    pub name: Arc<str>,
    /// The value.
    pub value: T,
    /// Whether it was ever recorded to.
    pub used: bool,
}

/// All stats at one moment, each list sorted by name.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The counters.
    pub counters: Vec<StatValue<u64>>,
    /// The gauges.
    pub gauges: Vec<StatValue<i64>>,
    /// The histograms.
    pub histograms: Vec<HistogramValue>,
}

impl Stats {
    /// An empty store with Envoy's default settings.
    pub fn new() -> Arc<Self> {
        Self::with_settings(StatsSettings::default())
    }

    /// An empty store with the bootstrap's `stats_config`.
    pub fn with_settings(settings: StatsSettings) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            core: Arc::new(Core {
                id: NEXT.fetch_add(1, Ordering::Relaxed),
                settings,
                registry: Mutex::default(),
            }),
        })
    }

    /// A scope; see [`Scope::scope`] for what becomes of the name.
    pub fn scope(&self, name: &str) -> Scope {
        let root = Scope {
            core: self.core.clone(),
            prefix: "".into(),
        };
        root.scope(name)
    }

    /// The settings.
    pub fn settings(&self) -> &StatsSettings {
        &self.core.settings
    }

    /// All values now. Holds the registry's lock while it sums; recording goes on meanwhile.
    pub fn snapshot(&self) -> Snapshot {
        // Cells are dropped after the lock is: dropping the last handle takes it too.
        let (mut cells, mut histograms) = (Vec::new(), Vec::new());
        let mut out = Snapshot::default();
        {
            let registry = lock(&self.core.registry);
            for cell in registry.counters.values().filter_map(Weak::upgrade) {
                out.counters.push(StatValue {
                    name: cell.name.clone(),
                    value: cell.value_in(&registry),
                    used: cell.used.load(Ordering::Relaxed),
                });
                cells.push(cell);
            }
            for cell in registry.gauges.values().filter_map(Weak::upgrade) {
                out.gauges.push(StatValue {
                    name: cell.name.clone(),
                    value: cell.value_in(&registry).cast_signed(),
                    used: cell.used.load(Ordering::Relaxed),
                });
                cells.push(cell);
            }
            histograms.extend(registry.histograms.values().filter_map(Weak::upgrade));
        }
        out.histograms.extend(histograms.iter().map(|h| h.value()));
        out.counters.sort_by(|a, b| a.name.cmp(&b.name));
        out.gauges.sort_by(|a, b| a.name.cmp(&b.name));
        out.histograms.sort_by(|a, b| a.name.cmp(&b.name));
        out
    }

    /// Ends the interval of every histogram; called every `stats_flush_interval` (Envoy's default: 5 s).
    pub fn flush(&self) {
        for histogram in self.histograms() {
            histogram.flush();
        }
    }

    fn histograms(&self) -> Vec<Arc<HistogramCell>> {
        let registry = lock(&self.core.registry);
        registry
            .histograms
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// Sets every counter to zero (`/reset_counters`). They still count as used, as in Envoy.
    pub fn reset_counters(&self) {
        let cells: Vec<_> = {
            let registry = lock(&self.core.registry);
            registry
                .counters
                .values()
                .filter_map(Weak::upgrade)
                .collect()
        };
        for cell in &cells {
            cell.set(0);
        }
    }
}

impl Scope {
    /// The prefix.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A scope below this one. Of `name`, colons (with slashes that follow) become `_` as in Envoy, so that
    /// addresses can be part of it; a dot at its end may be left out.
    pub fn scope(&self, name: &str) -> Scope {
        let name = name.trim_matches('.');
        let mut prefix = self.prefix.to_string();
        if !name.is_empty() {
            let name = name.replace("://", "_").replace(":/", "_");
            prefix.push_str(&name.replace([':', '\0'], "_"));
            prefix.push('.');
        }
        Scope {
            core: self.core.clone(),
            prefix: prefix.into(),
        }
    }

    fn cell(&self, name: &str, kind: Kind) -> Option<Arc<Cell>> {
        let name: Arc<str> = format!("{}{name}", self.prefix).into();
        if !self.core.settings.admits(&name) {
            return None;
        }
        let mut guard = lock(&self.core.registry);
        let registry = &mut *guard;
        let map = match kind {
            Kind::Counter => &mut registry.counters,
            Kind::Gauge => &mut registry.gauges,
        };
        if let Some(cell) = map.get(&name).and_then(Weak::upgrade) {
            return Some(cell);
        }
        let id = registry.free.pop().unwrap_or_else(|| {
            registry.next = registry.next.saturating_add(1);
            registry.next
        });
        let cell = Arc::new(Cell {
            core: self.core.clone(),
            name: name.clone(),
            kind,
            id,
            base: AtomicU64::new(0),
            used: AtomicBool::new(false),
        });
        map.insert(name, Arc::downgrade(&cell));
        Some(cell)
    }

    /// The counter of this name. One that `stats_matcher` rejects records nothing and is not printed.
    pub fn counter(&self, name: &str) -> Counter {
        Counter(self.cell(name, Kind::Counter))
    }

    /// The gauge of this name.
    pub fn gauge(&self, name: &str) -> Gauge {
        Gauge(self.cell(name, Kind::Gauge))
    }

    /// The histogram of this name.
    pub fn histogram(&self, name: &str) -> Histogram {
        let name: Arc<str> = format!("{}{name}", self.prefix).into();
        if !self.core.settings.admits(&name) {
            return Histogram(None);
        }
        let mut guard = lock(&self.core.registry);
        let registry = &mut *guard;
        if let Some(cell) = registry.histograms.get(&name).and_then(Weak::upgrade) {
            return Histogram(Some(cell));
        }
        let id = registry.free_histograms.pop().unwrap_or_else(|| {
            registry.next_histogram = registry.next_histogram.saturating_add(1);
            registry.next_histogram
        });
        let cell = Arc::new(HistogramCell::new(self.core.clone(), name.clone(), id));
        registry.histograms.insert(name, Arc::downgrade(&cell));
        Histogram(Some(cell))
    }
}

impl std::fmt::Debug for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.prefix)
    }
}

impl std::fmt::Debug for Counter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.value())
    }
}

impl std::fmt::Debug for Gauge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.value())
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Histogram").finish_non_exhaustive()
    }
}

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        if let Some(cell) = &self.0 {
            cell.add(n);
        }
    }

    /// The sum over all threads. Takes a lock; not for the request path.
    pub fn value(&self) -> u64 {
        self.0.as_ref().map_or(0, |cell| cell.value())
    }
}

impl Gauge {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Subtracts one.
    pub fn dec(&self) {
        self.add(-1);
    }

    /// Adds `n`.
    pub fn add(&self, n: i64) {
        if let Some(cell) = &self.0 {
            cell.add(n.cast_unsigned());
        }
    }

    /// Sets the value. Takes a lock; not for the request path.
    pub fn set(&self, value: i64) {
        if let Some(cell) = &self.0 {
            cell.used.store(true, Ordering::Relaxed);
            cell.set(value.cast_unsigned());
        }
    }

    /// The sum over all threads. Takes a lock; not for the request path.
    pub fn value(&self) -> i64 {
        self.0.as_ref().map_or(0, |cell| cell.value().cast_signed())
    }
}

impl Histogram {
    /// Records one value.
    pub fn record(&self, value: u64) {
        if let Some(cell) = &self.0 {
            cell.record(value);
        }
    }
}

#[cfg(test)]
mod tests;
