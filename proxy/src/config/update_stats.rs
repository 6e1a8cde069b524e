//! The numbers of configuration updates. Held by whoever updates: a stat lives as long as its handle.

use crate::telemetry::stats::{Counter, Gauge, Histogram, Stats};

/// A subscription's numbers: `cluster_manager.cds.*`, `listener_manager.lds.*`.
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
    /// The hash of the last version taken.
    pub version: Gauge,
    /// When the last version was taken, in milliseconds of Unix time.
    pub update_time: Gauge,
    /// How long a response took to apply, in milliseconds.
    pub update_duration: Histogram,
}

impl UpdateStats {
    fn new(stats: &Stats, scope: &str) -> Self {
        let scope = stats.scope(scope);
        Self {
            update_attempt: scope.counter("update_attempt"),
            update_success: scope.counter("update_success"),
            update_failure: scope.counter("update_failure"),
            update_rejected: scope.counter("update_rejected"),
            init_fetch_timeout: scope.counter("init_fetch_timeout"),
            version: scope.gauge("version"),
            update_time: scope.gauge("update_time"),
            update_duration: scope.histogram("update_duration"),
        }
    }

    /// A response was taken whole.
    pub fn succeeded(&self, version: &str) {
        self.update_success.inc();
        // The same hash as Envoy's, so that the versions of a fleet can be compared.
        let hash = xxhash_rust::xxh64::xxh64(version.as_bytes(), 0);
        self.version.set(hash.cast_signed());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let ms = now.map_or(0, |d| d.as_millis());
        self.update_time.set(i64::try_from(ms).unwrap_or(i64::MAX));
    }
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
            cds: UpdateStats::new(stats, "cluster_manager.cds."),
            lds: UpdateStats::new(stats, "listener_manager.lds."),
            connected_state: stats.scope("control_plane.").gauge("connected_state"),
            active_clusters: manager.gauge("active_clusters"),
            warming_clusters: manager.gauge("warming_clusters"),
        }
    }
}
