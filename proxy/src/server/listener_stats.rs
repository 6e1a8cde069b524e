//! The numbers that listeners and their manager keep.
//!
//! They change once per connection or per update, not per request, so plain shared atomics do.

use std::sync::atomic::{AtomicU64, Ordering};

/// One number.
#[derive(Debug, Default)]
pub struct Stat(AtomicU64);

impl Stat {
    /// Adds one.
    pub fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes one away.
    pub fn dec(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// Sets it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Reads it.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds one unless that would pass `limit`. The check and the step are one.
    pub fn inc_below(&self, limit: u64) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |v| {
                (v < limit).then_some(v + 1)
            })
            .is_ok()
    }
}

macro_rules! stats {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name { $($(#[$field_doc])* pub $field: Stat),* }

        impl $name {
            /// Every stat by Envoy's name, whether it is a gauge, and its value.
            pub fn each(&self, mut f: impl FnMut(&'static str, bool, u64)) {
                $(f(stringify!($field), stringify!($kind) == "gauge", self.$field.get());)*
            }
        }
    };
}

stats!(
    /// `listener.<address or stat_prefix>.*`
    ListenerStats {
        /// Connections so far.
        downstream_cx_total: counter,
        /// Connections that ended.
        downstream_cx_destroy: counter,
        /// Connections now.
        downstream_cx_active: gauge,
        /// Connections refused at the listener's own limit.
        downstream_cx_overflow: counter,
        /// Connections refused at the process's limit.
        downstream_global_cx_overflow: counter,
        /// Sockets now in listener filters.
        downstream_pre_cx_active: gauge,
        /// Sockets whose listener filters timed out.
        downstream_pre_cx_timeout: counter,
        /// Connections that no chain matched.
        no_filter_chain_match: counter,
    }
);

stats!(
    /// `listener_manager.*`
    ManagerStats {
        /// Listeners added.
        listener_added: counter,
        /// Listeners changed.
        listener_modified: counter,
        /// Listeners removed.
        listener_removed: counter,
        /// Listeners stopped for good.
        listener_stopped: counter,
        /// Listeners handed to the workers.
        listener_create_success: counter,
        /// Listeners that could not be made.
        listener_create_failure: counter,
        /// Updates that kept the sockets and exchanged the chains.
        listener_in_place_updated: counter,
        /// Listeners that serve.
        total_listeners_active: gauge,
        /// Listeners on their way out.
        total_listeners_draining: gauge,
        /// 1 once the workers run.
        workers_started: gauge,
        /// Tasks of connections that ended in a panic. Ours; Envoy has no such number.
        connection_panics: counter,
    }
);
