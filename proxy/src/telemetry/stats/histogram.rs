//! Log-linear histograms: 90 bins for every power of ten, as Envoy's (circllhist).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::{Core, lock, shard};

/// Bins of a decade: two significant digits, 10 to 99.
const BINS: usize = 90;
/// Decades of a `u64`.
const DECADES: usize = 20;

/// The quantiles Envoy prints.
pub const QUANTILES: [(&str, f64); 10] = [
    ("0", 0.0),
    ("25", 0.25),
    ("50", 0.5),
    ("75", 0.75),
    ("90", 0.9),
    ("95", 0.95),
    ("99", 0.99),
    ("99.5", 0.995),
    ("99.9", 0.999),
    ("100", 1.0),
];

/// Counts by bin, in ascending order of the bins; a bin is (two digits, decade), zero is (0, 0).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Distribution {
    bins: Vec<(u8, u8, u64)>,
}

/// The bin of a value: digits 10..=99 and the decade, so that the value is about digits/10 * 10^decade.
fn bin(value: u64) -> (u8, u8) {
    if value == 0 {
        return (0, 0);
    }
    let decade = value.ilog10();
    let digits = match decade {
        0 => value * 10,
        _ => value / 10u64.saturating_pow(decade - 1),
    };
    (
        u8::try_from(digits).unwrap_or(99),
        u8::try_from(decade).unwrap_or(19),
    )
}

/// Left edge and width.
fn edges(digits: u8, decade: u8) -> (f64, f64) {
    if digits == 0 {
        return (0.0, 0.0);
    }
    let power = 10f64.powi(i32::from(decade));
    (f64::from(digits) / 10.0 * power, power / 10.0)
}

impl Distribution {
    /// How many values.
    pub fn count(&self) -> u64 {
        self.bins.iter().map(|bin| bin.2).sum()
    }

    /// The sum of the values, each taken as the middle (harmonic, as circllhist) of its bin.
    pub fn sum(&self) -> f64 {
        self.bins
            .iter()
            .map(|&(digits, decade, count)| {
                let (left, width) = edges(digits, decade);
                if left == 0.0 {
                    return 0.0;
                }
                2.0 * left * (left + width) / (2.0 * left + width) * count as f64
            })
            .sum()
    }

    /// How many values lie in bins that begin at `bound` or below.
    pub fn count_below(&self, bound: f64) -> u64 {
        self.bins
            .iter()
            .filter(|bin| edges(bin.0, bin.1).0 <= bound)
            .map(|bin| bin.2)
            .sum()
    }

    /// The value at quantile `q` (0 to 1); none of an empty distribution.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let target = q * self.count() as f64;
        let mut below = 0u64;
        for (i, &(digits, decade, count)) in self.bins.iter().enumerate() {
            let upto = below + count;
            if upto as f64 >= target || i + 1 == self.bins.len() {
                let (left, width) = edges(digits, decade);
                // The n values of a bin stand evenly inside it, at 1/(n+1), 2/(n+1), ...
                let rank = (target - below as f64).ceil().clamp(1.0, count as f64);
                return Some(left + width * rank / (count as f64 + 1.0));
            }
            below = upto;
        }
        None
    }

    fn minus(&self, before: &Distribution) -> Distribution {
        let mut bins = self.bins.clone();
        for bin in &mut bins {
            if let Ok(i) = before
                .bins
                .binary_search_by_key(&(bin.1, bin.0), |b| (b.1, b.0))
            {
                bin.2 = bin.2.saturating_sub(before.bins.get(i).map_or(0, |b| b.2));
            }
        }
        bins.retain(|bin| bin.2 > 0);
        Distribution { bins }
    }
}

/// A histogram at one moment.
#[derive(Debug, Clone)]
pub struct HistogramValue {
    /// The full name.
    pub name: Arc<str>,
    /// Everything recorded.
    pub cumulative: Distribution,
    /// What was recorded in the last full flush interval.
    pub interval: Distribution,
    /// Whether anything was ever recorded.
    pub used: bool,
}

/// A thread's part: decades are made when first recorded to.
#[derive(Default)]
pub(super) struct HistogramShard {
    zero: AtomicU64,
    decades: [OnceLock<Box<[AtomicU64; BINS]>>; DECADES],
}

impl HistogramShard {
    fn slot(&self, value: u64) -> Option<&AtomicU64> {
        let (digits, decade) = bin(value);
        if digits == 0 {
            return Some(&self.zero);
        }
        self.decades
            .get(usize::from(decade))?
            .get_or_init(|| Box::new([const { AtomicU64::new(0) }; BINS]))
            .get(usize::from(digits.saturating_sub(10)))
    }

    /// By the owning thread only.
    pub(super) fn record(&self, value: u64) {
        if let Some(slot) = self.slot(value) {
            slot.store(
                slot.load(Ordering::Relaxed).wrapping_add(1),
                Ordering::Relaxed,
            );
        }
    }

    fn add_to(&self, sums: &mut Sums) {
        sums.zero += self.zero.load(Ordering::Relaxed);
        for (decade, sum) in self.decades.iter().zip(&mut sums.decades) {
            if let Some(bins) = decade.get() {
                let sum = sum.get_or_insert_with(|| Box::new([0; BINS]));
                for (bin, sum) in bins.iter().zip(sum.iter_mut()) {
                    *sum += bin.load(Ordering::Relaxed);
                }
            }
        }
    }
}

#[derive(Default, Clone)]
struct Sums {
    zero: u64,
    decades: [Option<Box<[u64; BINS]>>; DECADES],
}

impl Sums {
    fn distribution(&self) -> Distribution {
        let mut bins = Vec::new();
        if self.zero > 0 {
            bins.push((0, 0, self.zero));
        }
        for (decade, counts) in (0u8..).zip(&self.decades) {
            for (digits, &count) in (10u8..).zip(counts.iter().flat_map(|c| c.iter())) {
                if count > 0 {
                    bins.push((digits, decade, count));
                }
            }
        }
        Distribution { bins }
    }
}

#[derive(Default)]
struct State {
    shards: Vec<Arc<HistogramShard>>,
    /// Of ended threads.
    retired: Sums,
    flushed: Distribution,
    interval: Distribution,
}

/// One histogram.
pub(super) struct HistogramCell {
    core: Arc<Core>,
    name: Arc<str>,
    id: u32,
    used: AtomicBool,
    state: Mutex<State>,
}

impl Drop for HistogramCell {
    fn drop(&mut self) {
        let mut registry = lock(&self.core.registry);
        if registry
            .histograms
            .get(&self.name)
            .is_some_and(|h| h.strong_count() == 0)
        {
            registry.histograms.remove(&self.name);
        }
        registry.free_histograms.push(self.id);
    }
}

impl HistogramCell {
    pub(super) fn new(core: Arc<Core>, name: Arc<str>, id: u32) -> Self {
        Self {
            core,
            name,
            id,
            used: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    pub(super) fn id(&self) -> u32 {
        self.id
    }

    pub(super) fn record(self: &Arc<Self>, value: u64) {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        if !shard::record(&self.core, self, value) {
            // The thread is ending.
            let shard = HistogramShard::default();
            shard.record(value);
            shard.add_to(&mut lock(&self.state).retired);
        }
    }

    /// A part for the calling thread.
    pub(super) fn attach(&self) -> Arc<HistogramShard> {
        let shard = Arc::new(HistogramShard::default());
        lock(&self.state).shards.push(shard.clone());
        shard
    }

    /// The part's thread has ended.
    pub(super) fn retire(&self, shard: &Arc<HistogramShard>) {
        let mut state = lock(&self.state);
        shard.add_to(&mut state.retired);
        state.shards.retain(|s| !Arc::ptr_eq(s, shard));
    }

    fn cumulative(state: &State) -> Distribution {
        let mut sums = state.retired.clone();
        for shard in &state.shards {
            shard.add_to(&mut sums);
        }
        sums.distribution()
    }

    pub(super) fn flush(&self) {
        let mut state = lock(&self.state);
        let now = Self::cumulative(&state);
        state.interval = now.minus(&state.flushed);
        state.flushed = now;
    }

    pub(super) fn value(&self) -> HistogramValue {
        let state = lock(&self.state);
        HistogramValue {
            name: self.name.clone(),
            cumulative: Self::cumulative(&state),
            interval: state.interval.clone(),
            used: self.used.load(Ordering::Relaxed),
        }
    }
}
