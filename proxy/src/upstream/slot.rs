//! The place of a cluster, before, while and after the cluster exists.

use std::sync::Arc;

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
