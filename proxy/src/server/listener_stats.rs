//! The numbers that listeners and their manager keep, and the counts that limits are checked against.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::telemetry::stats::{Counter, Gauge, Histogram, Scope};

/// A count with a limit. Stats are sharded by thread, so a limit cannot be checked against them; this one cache
/// line is touched once per connection, not per request.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Takes one away.
    pub fn dec(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ident $make:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name { $($(#[$field_doc])* pub $field: $kind),* }

        impl $name {
            /// Makes the stats in `scope`.
            pub fn new(scope: &Scope) -> Self {
                Self { $($field: scope.$make(stringify!($field))),* }
            }
        }
    };
}

pub(super) use stats;

stats!(
    /// `listener.<address or stat_prefix>.*`
    ListenerStats {
        /// Connections so far.
        downstream_cx_total: Counter counter,
        /// Connections that ended.
        downstream_cx_destroy: Counter counter,
        /// Connections now.
        downstream_cx_active: Gauge gauge,
        /// Connections refused at the listener's own limit.
        downstream_cx_overflow: Counter counter,
        /// Connections refused at the process's limit.
        downstream_global_cx_overflow: Counter counter,
        /// Sockets now in listener filters.
        downstream_pre_cx_active: Gauge gauge,
        /// Sockets whose listener filters timed out.
        downstream_pre_cx_timeout: Counter counter,
        /// Sockets whose listener filters failed.
        downstream_listener_filter_error: Counter counter,
        /// Sockets that the client closed while listener filters ran.
        downstream_listener_filter_remote_close: Counter counter,
        /// Connections that no chain matched.
        no_filter_chain_match: Counter counter,
        /// How long connections lasted, in milliseconds.
        downstream_cx_length_ms: Histogram histogram,
        /// How many connections were taken at a time.
        connections_accepted_per_socket_event: Histogram histogram,
    }
);

stats!(
    /// `listener.<address or stat_prefix>.worker_<n>.*`
    WorkerStats {
        /// Connections so far.
        downstream_cx_total: Counter counter,
        /// Connections now.
        downstream_cx_active: Gauge gauge,
    }
);

stats!(
    /// `listener_manager.*`
    ManagerStats {
        /// Listeners added.
        listener_added: Counter counter,
        /// Listeners changed.
        listener_modified: Counter counter,
        /// Listeners removed.
        listener_removed: Counter counter,
        /// Listeners stopped for good.
        listener_stopped: Counter counter,
        /// Listeners handed to the workers.
        listener_create_success: Counter counter,
        /// Listeners that could not be made.
        listener_create_failure: Counter counter,
        /// Updates that kept the sockets and exchanged the chains.
        listener_in_place_updated: Counter counter,
        /// Listeners that serve.
        total_listeners_active: Gauge gauge,
        /// Listeners on their way out.
        total_listeners_draining: Gauge gauge,
        /// Listeners that wait for their routes.
        total_listeners_warming: Gauge gauge,
        /// Filter chains on their way out of listeners that stay.
        total_filter_chains_draining: Gauge gauge,
        /// 1 once the workers run.
        workers_started: Gauge gauge,
        /// Workers bound to one processor: none, ever.
        workers_pinned: Gauge gauge,
    }
);
