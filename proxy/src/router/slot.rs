//! The place of a route configuration, before, while and after it exists.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use bytestring::ByteString;

use super::table::RouteTable;

/// A route configuration by reference. Connection managers hold slots; RDS, or the listener that
/// carries the configuration inline, fills them.
#[derive(Debug)]
pub struct RouteSlot {
    name: ByteString,
    current: ArcSwapOption<RouteTable>,
}

impl RouteSlot {
    /// An empty slot.
    pub fn new(name: impl Into<ByteString>) -> Self {
        Self {
            name: name.into(),
            current: ArcSwapOption::empty(),
        }
    }

    /// The route configuration's name.
    pub fn name(&self) -> &ByteString {
        &self.name
    }

    /// The table in force, if there is one. A request takes it once and keeps it, so that an update
    /// never changes the rules under a request.
    pub fn get(&self) -> Option<Arc<RouteTable>> {
        self.current.load_full()
    }

    /// Publishes a version of the table, or its removal.
    pub fn set(&self, table: Option<Arc<RouteTable>>) {
        self.current.store(table);
    }
}
