//! `server.*`: the numbers of the process, brought up to date when somebody asks.

use std::sync::Arc;
use std::time::Duration;

use super::admin::{AdminBackend, ServerState};
use super::admin_backend::{Backend, resident_bytes};
use crate::telemetry::stats::{Gauge, Stats};

/// How often histograms end their interval: Envoy's default `stats_flush_interval`.
const FLUSH_INTERVAL: Duration = Duration::from_secs(5);

/// The numbers.
pub struct ServerStats {
    state: Gauge,
    live: Gauge,
    uptime: Gauge,
    memory_allocated: Gauge,
    memory_heap_size: Gauge,
    total_connections: Gauge,
    concurrency: Gauge,
}

impl ServerStats {
    /// Makes the numbers.
    pub fn new(stats: &Stats) -> Self {
        let scope = stats.scope("server.");
        Self {
            state: scope.gauge("state"),
            live: scope.gauge("live"),
            uptime: scope.gauge("uptime"),
            memory_allocated: scope.gauge("memory_allocated"),
            memory_heap_size: scope.gauge("memory_heap_size"),
            total_connections: scope.gauge("total_connections"),
            concurrency: scope.gauge("concurrency"),
        }
    }

    /// Sets them to what holds now.
    pub fn update(&self, backend: &Backend) {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let state = backend.state();
        self.state.set(state as i64);
        self.live.set(i64::from(state == ServerState::Live));
        self.uptime.set(number(backend.started.elapsed().as_secs()));
        let resident = number(resident_bytes());
        self.memory_allocated.set(resident);
        self.memory_heap_size.set(resident);
        let listeners = &backend.resources;
        let active = listeners.with_listeners(|l| l.context().global.active());
        self.total_connections.set(number(active));
        self.concurrency
            .set(number(backend.settings.concurrency as u64));
    }
}

/// Ends the histograms' intervals, for ever.
pub async fn flush(stats: Arc<Stats>) {
    loop {
        tokio::time::sleep(FLUSH_INTERVAL).await;
        stats.flush();
    }
}
