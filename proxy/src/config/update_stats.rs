//! The numbers of configuration updates. Held by whoever updates: a stat lives as long as its handle.

use crate::telemetry::stats::{Counter, Gauge, Histogram, Scope, Stats};

/// A subscription's numbers: `cluster_manager.cds.*`, `listener_manager.lds.*`, `http.<prefix>.rds.<name>.*`.
pub struct UpdateStats {
    /// Responses that came.
    pub update_attempt: Counter,
    /// Responses taken.
    pub update_success: Counter,
    /// Streams that failed.
    pub update_failure: Counter,
    /// Responses refused, wholly or in part.
    pub update_rejected: Counter,
    /// First answers that did not come in time.
    pub init_fetch_timeout: Counter,
    /// Responses that changed something.
    pub config_reload: Counter,
    /// When something changed last, in milliseconds of Unix time.
    pub config_reload_time_ms: Gauge,
    /// The hash of the last version taken.
    pub version: Gauge,
    /// When the last version was taken, in milliseconds of Unix time.
    pub update_time: Gauge,
    /// How long a response took to apply, in milliseconds.
    pub update_duration: Histogram,
}

impl UpdateStats {
    /// Makes the numbers in `scope`.
    pub fn new(scope: &Scope) -> Self {
        Self {
            update_attempt: scope.counter("update_attempt"),
            update_success: scope.counter("update_success"),
            update_failure: scope.counter("update_failure"),
            update_rejected: scope.counter("update_rejected"),
            init_fetch_timeout: scope.counter("init_fetch_timeout"),
            config_reload: Counter::default(),
            config_reload_time_ms: Gauge::default(),
            version: scope.gauge("version"),
            update_time: scope.gauge("update_time"),
            update_duration: scope.histogram("update_duration"),
        }
    }

    /// The same with those of reloads.
    pub fn reloading(scope: &Scope) -> Self {
        Self {
            config_reload: scope.counter("config_reload"),
            config_reload_time_ms: scope.gauge("config_reload_time_ms"),
            ..Self::new(scope)
        }
    }

    /// A response was taken whole.
    pub fn succeeded(&self, version: &str) {
        self.update_success.inc();
        self.version.set(version_hash(version));
        self.update_time.set(unix_millis());
    }

    /// What a response said is in force.
    pub fn reloaded(&self) {
        self.config_reload.inc();
        self.config_reload_time_ms.set(unix_millis());
    }
}

/// A version as a number; the same hash as Envoy's, so that the versions of a fleet can be compared.
pub fn version_hash(version: &str) -> i64 {
    xxhash_rust::xxh64::xxh64(version.as_bytes(), 0).cast_signed()
}

/// The time, in milliseconds since 1970.
pub fn unix_millis() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// The numbers of the control plane's side.
pub struct ControlStats {
    /// Clusters.
    pub cds: UpdateStats,
    /// Listeners.
    pub lds: UpdateStats,
    /// 1 while the stream to the control plane stands.
    pub connected_state: Gauge,
    /// Clusters in force.
    pub active_clusters: Gauge,
    /// Clusters that wait for their endpoints.
    pub warming_clusters: Gauge,
}

impl ControlStats {
    /// Makes the numbers.
    pub fn new(stats: &Stats) -> Self {
        let manager = stats.scope("cluster_manager.");
        Self {
            cds: UpdateStats::reloading(&stats.scope("cluster_manager.cds.")),
            lds: UpdateStats::new(&stats.scope("listener_manager.lds.")),
            connected_state: stats.scope("control_plane.").gauge("connected_state"),
            active_clusters: manager.gauge("active_clusters"),
            warming_clusters: manager.gauge("warming_clusters"),
        }
    }
}
