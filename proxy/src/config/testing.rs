//! What compiling needs of a process, for tests.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use filters::registry::Registry;

use super::context::{AccessLogs, ChainContext};
use super::routes::RouteStore;
use crate::telemetry::stats::Stats;
use crate::upstream::grpc::ClusterGrpc;
use crate::upstream::manager::ClusterManager;

/// A context with these filters, in which every cluster is known.
pub(crate) fn context(registry: Registry, stats: Arc<Stats>) -> Arc<ChainContext> {
    let clusters = ClusterManager::new();
    let directory = clusters.directory();
    let clusters = Mutex::new(clusters);
    let find = Arc::new(move |name: &str| clusters.lock().unwrap().slot(name));
    Arc::new(ChainContext {
        routes: Arc::new(RouteStore::default()),
        secrets: Arc::default(),
        clusters: find.clone(),
        known_cluster: Arc::new(|_: &str| true),
        directory,
        stats,
        registry: Arc::new(registry),
        filter_names: Mutex::default(),
        grpc: Arc::new(ClusterGrpc::new(find)),
        access_logs: AccessLogs::new(Duration::from_secs(1)),
        reject_unknown: false,
        reject_fragment: false,
        node: Arc::default(),
        runtime: Arc::default(),
    })
}
