//! `runtime.*`

use crate::telemetry::stats::{Counter, Gauge, Stats};

/// The numbers.
pub(super) struct RuntimeStats {
    load_success: Counter,
    load_error: Counter,
    num_keys: Gauge,
    num_layers: Gauge,
    admin_overrides_active: Gauge,
}

impl RuntimeStats {
    pub(super) fn new(stats: &Stats) -> Self {
        let scope = stats.scope("runtime.");
        Self {
            load_success: scope.counter("load_success"),
            load_error: scope.counter("load_error"),
            num_keys: scope.gauge("num_keys"),
            num_layers: scope.gauge("num_layers"),
            admin_overrides_active: scope.gauge("admin_overrides_active"),
        }
    }

    /// Values changed; so many there are now.
    pub(super) fn loaded(&self, keys: usize, layers: usize, overrides: usize) {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.load_success.inc();
        self.num_keys.set(number(keys));
        self.num_layers.set(number(layers));
        self.admin_overrides_active.set(i64::from(overrides > 0));
    }

    /// Values were refused.
    pub(super) fn refused(&self) {
        self.load_error.inc();
    }
}
