//! The place of a cluster, before, while and after the cluster exists.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use arc_swap::ArcSwapOption;
use bytestring::ByteString;

/// A cluster by reference. Routes hold slots; the cluster manager fills and empties them.
#[derive(Debug)]
pub struct ClusterSlot<C> {
    name: ByteString,
    current: ArcSwapOption<C>,
}

impl<C> ClusterSlot<C> {
    /// An empty slot.
    pub fn new(name: ByteString) -> Self {
        Self {
            name,
            current: ArcSwapOption::empty(),
        }
    }

    /// The cluster's name.
    pub fn name(&self) -> &ByteString {
        &self.name
    }

    /// The cluster, if it exists and is warm.
    pub fn get(&self) -> Option<Arc<C>> {
        self.current.load_full()
    }

    /// Publishes a version of the cluster, or its removal.
    pub fn set(&self, cluster: Option<Arc<C>>) {
        self.current.store(cluster);
    }
}

/// Clusters by names that only a request knows (`cluster_header`). All other references are slots.
#[derive(Debug)]
pub struct ClusterDirectory<C>(Arc<RwLock<HashMap<ByteString, Arc<ClusterSlot<C>>>>>);

impl<C> Default for ClusterDirectory<C> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<C> Clone for ClusterDirectory<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<C> ClusterDirectory<C> {
    /// The slot called `name`, if configuration has ever named it: requests make no slots.
    // A lock and a hash on the request path, of the rare routes with `cluster_header` only; it is held
    // for writing just while the control side inserts one entry.
    pub fn find(&self, name: &str) -> Option<Arc<ClusterSlot<C>>> {
        let slots = self.0.read().unwrap_or_else(PoisonError::into_inner);
        slots.get(name).cloned()
    }

    /// Makes a slot findable.
    pub(super) fn insert(&self, slot: Arc<ClusterSlot<C>>) {
        let mut slots = self.0.write().unwrap_or_else(PoisonError::into_inner);
        slots.insert(slot.name().clone(), slot);
    }
}
