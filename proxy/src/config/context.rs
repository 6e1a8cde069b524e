//! What compiling filter chains and route configurations takes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::google::protobuf::Any;
use filters::registry::{
    FactoryContext, FilterCounter, FilterGauge, FilterNames, FilterStats, GrpcConnector, Registry,
};
use filters::stream::{FilterId, RouteFilterConfig};
use xds_client::error::ConfigError;

use super::routes::RouteStore;
use super::runtime::Runtime;
use crate::router::RouteTable;
use crate::router::context::CompileContext;
use crate::telemetry::access_log::AccessLogFile;
use crate::telemetry::grpc_log::GrpcLogContext;
use crate::telemetry::http_log::AccessLogContext;
use crate::telemetry::stats::{Counter, Gauge, Scope, Stats};
use crate::transport::tls::secrets::SecretStore;
use crate::upstream::cluster::Cluster;
use crate::upstream::slot::{ClusterDirectory, ClusterSlot};

/// A cluster by reference.
pub type ClusterRef = Arc<ClusterSlot<Cluster>>;

/// The process's stores, as compilers see them. Control side only.
pub struct ChainContext {
    /// Route configurations by name.
    pub routes: Arc<RouteStore>,
    /// Secrets by name.
    pub secrets: Arc<SecretStore>,
    /// Finds the slot of a cluster.
    pub clusters: Arc<dyn Fn(&str) -> ClusterRef + Send + Sync>,
    /// Whether a cluster exists, warm or not.
    pub known_cluster: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    /// The clusters that requests may name.
    pub directory: ClusterDirectory<Cluster>,
    /// The numbers of the process.
    pub stats: Arc<Stats>,
    /// The HTTP filters there are.
    pub registry: Arc<Registry>,
    /// The numbers of filter names.
    pub filter_names: Mutex<FilterNames>,
    /// The way of filters to gRPC services.
    pub grpc: Arc<dyn GrpcConnector>,
    /// Access log files by path, open as long as one listener writes to them.
    pub access_logs: AccessLogs,
    /// Refuse resources with fields that are not known (`--reject-unknown-dynamic-fields`).
    pub reject_unknown: bool,
    /// Answer 400 to a fragment in the path instead of cutting it off.
    pub reject_fragment: bool,
    /// This process as control planes know it.
    pub node: Arc<Node>,
    /// The runtime's values.
    pub runtime: Arc<Runtime>,
}

impl ChainContext {
    /// Compiles a route configuration. Routes of an inline one may only name clusters that exist, unless it
    /// says otherwise (`validate_clusters`).
    ///
    /// # Errors
    /// The path of the invalid field.
    pub fn compile_routes(
        &self,
        routes: &RouteConfiguration,
        inline: bool,
    ) -> Result<RouteTable, ConfigError> {
        let validate = routes.validate_clusters.map_or(inline, |v| v.value);
        let filter_config =
            |name: &str, any: &Any| -> Result<Option<(FilterId, RouteFilterConfig)>, ConfigError> {
                // Routes have no numbers of their own.
                let context = self.factory_context(name, &self.stats.scope(""));
                let config = self.registry.compile_route(any, &context)?;
                Ok(config.map(|c| (context.id, c)))
            };
        RouteTable::compile(
            routes,
            &CompileContext {
                cluster: &*self.clusters,
                known: validate.then_some(&*self.known_cluster),
                directory: &self.directory,
                filter_config: &filter_config,
                runtime: &*self.runtime,
            },
        )
    }

    /// What compiling access logs takes.
    pub fn logs<'a>(
        &'a self,
        open: &'a dyn Fn(&str) -> Result<Arc<AccessLogFile>, ConfigError>,
    ) -> AccessLogContext<'a> {
        AccessLogContext {
            runtime: &*self.runtime,
            open,
            grpc: GrpcLogContext {
                grpc: &*self.grpc,
                node: &self.node,
                stats: &self.stats,
            },
        }
    }

    /// What the factory of the filter called `name` gets, which counts below `scope`.
    pub fn factory_context(&self, name: &str, scope: &Scope) -> FactoryContext {
        let mut names = self
            .filter_names
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        FactoryContext {
            id: names.intern(name),
            grpc: self.grpc.clone(),
            stats: Arc::new(ScopedStats(scope.clone())),
            runtime: self.runtime.clone(),
        }
    }
}

/// The stats of a filter.
struct ScopedStats(Scope);

impl FilterStats for ScopedStats {
    fn counter(&self, name: &str) -> Arc<dyn FilterCounter> {
        Arc::new(Counted(self.0.counter(name)))
    }

    fn gauge(&self, name: &str) -> Arc<dyn FilterGauge> {
        Arc::new(Gauged(self.0.gauge(name)))
    }
}

/// A counter of a filter.
struct Counted(Counter);

impl FilterCounter for Counted {
    fn inc(&self) {
        self.0.inc();
    }
}

/// A gauge of a filter.
struct Gauged(Gauge);

impl FilterGauge for Gauged {
    fn inc(&self) {
        self.0.inc();
    }

    fn dec(&self) {
        self.0.dec();
    }
}

/// Access log files, shared by path.
pub struct AccessLogs {
    flush_interval: Duration,
    files: Mutex<HashMap<String, std::sync::Weak<AccessLogFile>>>,
}

impl AccessLogs {
    /// No files yet; lines wait at most `flush_interval` (`--file-flush-interval-msec`).
    pub fn new(flush_interval: Duration) -> Self {
        Self {
            flush_interval,
            files: Mutex::default(),
        }
    }

    /// The file at `path`, opened if it is not.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(&self, path: &str) -> Result<Arc<AccessLogFile>, ConfigError> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(path).and_then(std::sync::Weak::upgrade) {
            return Ok(file);
        }
        let file = AccessLogFile::open(path, self.flush_interval)
            .map_err(|e| ConfigError::new(format!("unable to open file '{path}': {e}")))?;
        let file = Arc::new(file);
        files.retain(|_, f| f.strong_count() > 0);
        files.insert(path.to_owned(), Arc::downgrade(&file));
        Ok(file)
    }

    /// Writes out what every file has queued; takes at most a second for each.
    pub fn flush(&self) {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        for file in files.values().filter_map(std::sync::Weak::upgrade) {
            file.flush(Duration::from_secs(1));
        }
    }

    /// Opens every file anew before its next line (SIGUSR1, `/reopen_logs`).
    pub fn reopen(&self) {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        for file in files.values().filter_map(std::sync::Weak::upgrade) {
            file.reopen();
        }
    }
}
