//! Route configurations by name, for whoever refers to one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::update_stats::UpdateStats;
use crate::router::{RouteSlot, RouteTable};
use crate::telemetry::stats::Scope;

struct Entry {
    slot: Arc<RouteSlot>,
    /// `http.<prefix>.rds.<name>.*`, with the prefix of who asked first, as in Envoy.
    stats: Option<UpdateStats>,
    /// The control plane has answered for this name, if only that there is nothing.
    answered: bool,
}

/// The route slots that RDS fills. A slot held outside is what makes its name wanted.
#[derive(Default)]
pub struct RouteStore(Mutex<BTreeMap<String, Entry>>);

impl RouteStore {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        // Only the control side locks it; connection managers hold slots.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slot of a name, which exists before the route configuration does. Asking is interest, which ends
    /// when the slot is dropped.
    pub fn slot(&self, name: &str) -> Arc<RouteSlot> {
        self.lock()
            .entry(name.to_owned())
            .or_insert_with(|| Entry {
                slot: Arc::new(RouteSlot::new(name)),
                stats: None,
                answered: false,
            })
            .slot
            .clone()
    }

    /// The same for a connection manager whose stats are in `scope`.
    pub fn watched(&self, name: &str, scope: &Scope) -> Arc<RouteSlot> {
        let slot = self.slot(name);
        if let Some(entry) = self.lock().get_mut(name) {
            let made = || UpdateStats::reloading(&scope.scope(&format!("rds.{name}.")));
            entry.stats.get_or_insert_with(made);
        }
        slot
    }

    /// Counts for a name, if somebody watches it.
    pub fn count(&self, name: &str, count: impl FnOnce(&UpdateStats)) {
        if let Some(stats) = self.lock().get(name).and_then(|e| e.stats.as_ref()) {
            count(stats);
        }
    }

    /// Publishes a table. Names that nobody wants are passed over.
    pub fn apply(&self, name: &str, table: RouteTable) {
        if let Some(entry) = self.lock().get_mut(name) {
            entry.slot.set(Some(Arc::new(table)));
            entry.answered = true;
        }
    }

    /// The resource is gone: requests find no route from now on.
    pub fn remove(&self, name: &str) {
        if let Some(entry) = self.lock().get_mut(name) {
            entry.slot.set(None);
            entry.answered = true;
        }
    }

    /// No answer came in time, or one that was refused: nobody waits for this name any longer.
    pub fn give_up(&self, name: &str) {
        if let Some(entry) = self.lock().get_mut(name) {
            entry.answered = true;
        }
    }

    /// Whether the control plane has answered for the name.
    pub fn is_answered(&self, name: &str) -> bool {
        self.lock().get(name).is_some_and(|e| e.answered)
    }

    /// Forgets the slots that nobody holds any longer, and gives the names of the others.
    pub fn wanted(&self) -> Vec<String> {
        let mut entries = self.lock();
        entries.retain(|_, e| Arc::strong_count(&e.slot) > 1);
        entries.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_wanted_as_long_as_its_slot_is_held() {
        let store = RouteStore::default();
        let (a, b) = (store.slot("a"), store.slot("b"));
        assert!(Arc::ptr_eq(&a, &store.slot("a")));
        assert_eq!(store.wanted(), ["a", "b"]);
        store.give_up("a");
        assert!(store.is_answered("a") && !store.is_answered("b"));
        drop(b);
        assert_eq!(store.wanted(), ["a"]);
        drop(a);
        assert!(store.wanted().is_empty());
        assert!(
            !store.is_answered("a"),
            "an answer is not kept over lost interest"
        );
    }
}
