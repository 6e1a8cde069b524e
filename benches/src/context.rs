//! A process's stores, empty.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::GrpcService;
use fairway::config::context::{AccessLogs, ChainContext};
use fairway::telemetry::stats::Stats;
use fairway::upstream::manager::ClusterManager;
use filters::grpc::GrpcChannel;
use filters::registry::{GrpcConnector, Registry};

use xds_client::error::ConfigError;

/// Nothing that is measured calls a gRPC service.
struct NoGrpc;

impl GrpcConnector for NoGrpc {
    fn channel(&self, _: &GrpcService) -> Result<GrpcChannel, ConfigError> {
        Err(ConfigError::unsupported("grpc_service"))
    }
}

/// What filter chains and routes compile into. Every cluster that is named gets a slot.
pub fn chain_context() -> Arc<ChainContext> {
    let clusters = ClusterManager::new();
    let directory = clusters.directory();
    let clusters = Mutex::new(clusters);
    Arc::new(ChainContext {
        routes: Arc::default(),
        secrets: Arc::default(),
        clusters: Arc::new(move |name: &str| {
            let mut clusters = clusters.lock().unwrap_or_else(PoisonError::into_inner);
            clusters.slot(name)
        }),
        directory,
        known_cluster: Arc::new(|_: &str| true),
        stats: Stats::new(),
        registry: Arc::new(Registry::default()),
        filter_names: Mutex::default(),
        grpc: Arc::new(NoGrpc),
        access_logs: AccessLogs::new(Duration::from_secs(10)),
        reject_unknown: false,
        reject_fragment: true,
        node: Arc::default(),
        runtime: Arc::default(),
    })
}
