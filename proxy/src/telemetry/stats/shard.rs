//! A thread's cells.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use super::histogram::{HistogramCell, HistogramShard};
use super::{Core, lock};

const CHUNK: usize = 1024;
/// 2048 chunks of 1024 cells: two million stats (a chunk is made when one of its cells is first written).
const CHUNKS: usize = 2048;

/// The cells of one thread, written by it alone (except that a cell without handles is zeroed), read by all.
pub(super) struct Shard {
    chunks: Box<[OnceLock<Box<[AtomicU64]>>]>,
}

impl Shard {
    fn new() -> Self {
        Self {
            chunks: (0..CHUNKS).map(|_| OnceLock::new()).collect(),
        }
    }

    fn cell(&self, id: u32) -> Option<&AtomicU64> {
        let id = id as usize;
        self.chunks.get(id / CHUNK)?.get()?.get(id % CHUNK)
    }

    fn add(&self, id: u32, n: u64) -> bool {
        let index = id as usize;
        let Some(chunk) = self.chunks.get(index / CHUNK) else {
            return false;
        };
        let chunk = match chunk.get() {
            Some(chunk) => chunk,
            None => chunk.get_or_init(new_chunk),
        };
        let Some(cell) = chunk.get(index % CHUNK) else {
            return false;
        };
        // One writer, so load and store suffice and no bus lock is taken.
        cell.store(
            cell.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
        true
    }

    pub(super) fn get(&self, id: u32) -> u64 {
        self.cell(id).map_or(0, |cell| cell.load(Ordering::Relaxed))
    }

    pub(super) fn clear(&self, id: u32) {
        if let Some(cell) = self.cell(id) {
            cell.store(0, Ordering::Relaxed);
        }
    }
}

#[cold]
fn new_chunk() -> Box<[AtomicU64]> {
    (0..CHUNK).map(|_| AtomicU64::new(0)).collect()
}

/// What a thread knows of one store.
struct Entry {
    id: u64,
    core: Weak<Core>,
    shard: Arc<Shard>,
    histograms: Vec<Option<(Weak<HistogramCell>, Arc<HistogramShard>)>>,
}

impl Entry {
    fn new(core: &Arc<Core>) -> Self {
        let shard = Arc::new(Shard::new());
        lock(&core.registry).shards.push(shard.clone());
        Self {
            id: core.id,
            core: Arc::downgrade(core),
            shard,
            histograms: Vec::new(),
        }
    }
}

impl Drop for Entry {
    /// The thread ends: what it counted moves into the stats.
    fn drop(&mut self) {
        for (histogram, shard) in self.histograms.drain(..).flatten() {
            if let Some(histogram) = histogram.upgrade() {
                histogram.retire(&shard);
            }
        }
        let Some(core) = self.core.upgrade() else {
            return;
        };
        let mut cells = Vec::new();
        {
            let mut registry = lock(&core.registry);
            cells.extend(
                registry
                    .counters
                    .values()
                    .chain(registry.gauges.values())
                    .filter_map(Weak::upgrade),
            );
            for cell in &cells {
                cell.base
                    .fetch_add(self.shard.get(cell.id), Ordering::Relaxed);
            }
            registry
                .shards
                .retain(|shard| !Arc::ptr_eq(shard, &self.shard));
        }
        // Outside the lock: a cell may have lost its last other handle meanwhile.
        drop(cells);
    }
}

thread_local! {
    // One entry in production: the process has one store.
    static LOCAL: RefCell<Vec<Entry>> = const { RefCell::new(Vec::new()) };
}

fn with_entry<R>(core: &Arc<Core>, f: impl FnOnce(&mut Entry) -> R) -> Option<R> {
    LOCAL
        .try_with(|local| {
            let mut local = local.try_borrow_mut().ok()?;
            let index = match local.iter().position(|entry| entry.id == core.id) {
                Some(index) => index,
                None => {
                    local.push(Entry::new(core));
                    local.len() - 1
                }
            };
            local.get_mut(index).map(f)
        })
        .ok()
        .flatten()
}

/// Adds to this thread's cell; false if it has none.
pub(super) fn add(core: &Arc<Core>, id: u32, n: u64) -> bool {
    with_entry(core, |entry| entry.shard.add(id, n)).unwrap_or(false)
}

/// Records in this thread's part of a histogram; false if it has none.
pub(super) fn record(core: &Arc<Core>, histogram: &Arc<HistogramCell>, value: u64) -> bool {
    with_entry(core, |entry| {
        let index = histogram.id() as usize;
        if entry.histograms.len() <= index {
            entry.histograms.resize_with(index + 1, || None);
        }
        let Some(slot) = entry.histograms.get_mut(index) else {
            return;
        };
        // An id is used again after its histogram is gone; then the part held here is of the former one.
        let shard = match slot {
            Some((of, shard)) if std::ptr::eq(of.as_ptr(), Arc::as_ptr(histogram)) => shard,
            _ => {
                &mut slot
                    .insert((Arc::downgrade(histogram), histogram.attach()))
                    .1
            }
        };
        shard.record(value);
    })
    .is_some()
}
