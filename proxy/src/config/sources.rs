//! Where dynamic resources come from: `ConfigSource`s turned into subscriptions.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::api_config_source::ApiType;
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::grpc_service::TargetSpecifier;
use envoy_types::pb::envoy::config::core::v3::{ApiConfigSource, ConfigSource, Node};
use filters::stream::Address;
use xds_client::ads::{self, Config, Handle, Protocol, Transport};
use xds_client::error::{At, ConfigError};
use xds_client::subscription::ResourceHandler;

use crate::upstream::host::Target;

/// Envoy's default `initial_fetch_timeout`.
const FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// Makes the handler of one more subscription.
pub type HandlerFactory = Box<dyn Fn() -> Box<dyn ResourceHandler> + Send + Sync>;

/// The open streams and watched files of the process. Must be used on the control runtime.
pub struct Sources {
    node: Node,
    transports: HashMap<String, Transport>,
    handler: HandlerFactory,
    ads: Option<Handle>,
    /// Streams of `api_config_source`, by type and cluster.
    streams: HashMap<(String, String), Handle>,
    /// Watched files, by type and path.
    files: HashMap<(String, String), WatchedFile>,
}

/// A file, and the names that are wanted of it (none: all).
struct WatchedFile {
    task: tokio::task::JoinHandle<()>,
    names: BTreeSet<String>,
}

impl Drop for WatchedFile {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// `initial_fetch_timeout` of a source; zero is for ever.
pub fn fetch_timeout(source: &ConfigSource) -> Duration {
    let timeout = source.initial_fetch_timeout.as_ref();
    timeout.map_or(FETCH_TIMEOUT, |t| {
        match (u64::try_from(t.seconds), u32::try_from(t.nanos)) {
            (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Duration::new(seconds, nanos),
            _ => FETCH_TIMEOUT,
        }
    })
}

/// Refuses `dynamic_resources` that cannot be subscribed to, before anything is started.
///
/// # Errors
/// The path of what is not supported, or of the name of a cluster that is not there.
pub fn check(bootstrap: &Bootstrap) -> Result<(), ConfigError> {
    let Some(dynamic) = &bootstrap.dynamic_resources else {
        return Ok(());
    };
    let transports = transports(bootstrap);
    if let Some(ads) = &dynamic.ads_config {
        target(ads, &transports).at("dynamic_resources.ads_config")?;
    }
    let named = [
        ("cds_config", &dynamic.cds_config),
        ("lds_config", &dynamic.lds_config),
    ];
    for (field, source) in named {
        let checked = match source.as_ref().map(|s| &s.config_source_specifier) {
            Some(Some(ConfigSourceSpecifier::ApiConfigSource(api))) => {
                target(api, &transports).map(drop).at("api_config_source")
            }
            Some(Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)))
                if dynamic.ads_config.is_none() =>
            {
                Err(without_ads())
            }
            Some(None) => Err(ConfigError::new("no configuration source is set")),
            _ => Ok(()),
        };
        checked.at(field).at("dynamic_resources")?;
    }
    Ok(())
}

fn without_ads() -> ConfigError {
    ConfigError::new("there is no dynamic_resources.ads_config").at("ads")
}

/// The settings of a gRPC stream, the name of its cluster, and the way there.
fn target(
    api: &ApiConfigSource,
    transports: &HashMap<String, Transport>,
) -> Result<(String, Config, Transport), ConfigError> {
    let (cluster, config) = stream_config(api)?;
    let transport = transports.get(&cluster).ok_or_else(|| {
        ConfigError::new(format!(
            "'{cluster}' is not a static cluster with one endpoint"
        ))
        .at("grpc_services[0].envoy_grpc.cluster_name")
    })?;
    Ok((cluster, config, transport.clone()))
}

impl Sources {
    /// The sources of a bootstrap. Opens the ADS stream if there is an `ads_config`.
    ///
    /// # Errors
    /// An unsupported `ads_config`, or one whose cluster is not static.
    pub fn new(
        bootstrap: &Bootstrap,
        node: Node,
        handler: HandlerFactory,
    ) -> Result<Self, ConfigError> {
        let mut sources = Self {
            node,
            transports: transports(bootstrap),
            handler,
            ads: None,
            streams: HashMap::new(),
            files: HashMap::new(),
        };
        let dynamic = bootstrap.dynamic_resources.as_ref();
        if let Some(ads) = dynamic.and_then(|d| d.ads_config.as_ref()) {
            let handle = sources.open(ads, None).at("dynamic_resources.ads_config")?;
            sources.ads = Some(handle);
        }
        Ok(sources)
    }

    fn open(&self, api: &ApiConfigSource, type_url: Option<&str>) -> Result<Handle, ConfigError> {
        let (_, mut config, transport) = target(api, &self.transports)?;
        if let Some(type_url) = type_url {
            config.method = ads::method(type_url, config.protocol)
                .ok_or_else(|| ConfigError::new(format!("no service for {type_url}")))?;
        }
        let (handle, commands) = ads::channel();
        ads::spawn(
            config,
            self.node.clone(),
            transport,
            commands,
            (self.handler)(),
        );
        Ok(handle)
    }

    /// Subscribes to names of a type, or to all of it if there are none.
    ///
    /// # Errors
    /// An unsupported source.
    pub fn subscribe(
        &mut self,
        source: &ConfigSource,
        type_url: &str,
        names: Vec<String>,
    ) -> Result<(), ConfigError> {
        match self.handle(source, type_url)? {
            Some(handle) => handle.subscribe(type_url, names, fetch_timeout(source)),
            None => self.watch(path(source), type_url, names),
        }
        Ok(())
    }

    /// Gives names up.
    pub fn unsubscribe(&mut self, source: &ConfigSource, type_url: &str, names: Vec<String>) {
        match self.handle(source, type_url) {
            Ok(Some(handle)) => handle.unsubscribe(type_url, names),
            Ok(None) => self.unwatch(path(source), type_url, &names),
            Err(_) => {} // and so there was no subscription
        }
    }

    /// The stream of a source; `None` for a file.
    fn handle(
        &mut self,
        source: &ConfigSource,
        type_url: &str,
    ) -> Result<Option<Handle>, ConfigError> {
        match &source.config_source_specifier {
            Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => {
                self.ads.clone().map(Some).ok_or_else(without_ads)
            }
            Some(ConfigSourceSpecifier::Path(_) | ConfigSourceSpecifier::PathConfigSource(_)) => {
                Ok(None)
            }
            Some(ConfigSourceSpecifier::ApiConfigSource(api)) => {
                let (cluster, _) = stream_config(api).at("api_config_source")?;
                let key = (type_url.to_owned(), cluster);
                if let Some(handle) = self.streams.get(&key) {
                    return Ok(Some(handle.clone()));
                }
                let handle = self.open(api, Some(type_url)).at("api_config_source")?;
                self.streams.insert(key, handle.clone());
                Ok(Some(handle))
            }
            None => Err(ConfigError::new("no configuration source is set")),
        }
    }

    /// Watches a file. One that is watched already is read anew, for the sake of the new names.
    fn watch(&mut self, path: &str, type_url: &str, names: Vec<String>) {
        let key = (type_url.to_owned(), path.to_owned());
        let old = self.files.remove(&key);
        let mut wanted: BTreeSet<String> = names.into_iter().collect();
        wanted.extend(old.iter().flat_map(|f| f.names.iter().cloned()));
        let task = xds_client::filesystem::spawn(path.into(), type_url, (self.handler)());
        let file = WatchedFile {
            task,
            names: wanted,
        };
        self.files.insert(key, file);
    }

    fn unwatch(&mut self, path: &str, type_url: &str, names: &[String]) {
        let key = (type_url.to_owned(), path.to_owned());
        if let Some(file) = self.files.get_mut(&key) {
            file.names.retain(|n| !names.contains(n));
            if file.names.is_empty() {
                self.files.remove(&key);
            }
        }
    }
}

/// The file of a source that has one.
fn path(source: &ConfigSource) -> &str {
    match &source.config_source_specifier {
        Some(ConfigSourceSpecifier::Path(path)) => path,
        Some(ConfigSourceSpecifier::PathConfigSource(file)) => &file.path,
        _ => "",
    }
}

/// The cluster and settings of a gRPC stream.
fn stream_config(api: &ApiConfigSource) -> Result<(String, Config), ConfigError> {
    let protocol = match api.api_type() {
        ApiType::Grpc | ApiType::AggregatedGrpc => Protocol::StateOfTheWorld,
        ApiType::DeltaGrpc | ApiType::AggregatedDeltaGrpc => Protocol::Delta,
        other => {
            let reason = format!("{} is not supported", other.as_str_name());
            return Err(ConfigError::new(reason).at("api_type"));
        }
    };
    let target = api.grpc_services.first();
    let cluster = match target.and_then(|s| s.target_specifier.as_ref()) {
        Some(TargetSpecifier::EnvoyGrpc(envoy)) => envoy.cluster_name.clone(),
        Some(TargetSpecifier::GoogleGrpc(_)) => {
            return Err(ConfigError::unsupported("grpc_services[0].google_grpc"));
        }
        None => return Err(ConfigError::new("value is required").at("grpc_services")),
    };
    let mut config = Config::ads(protocol, &cluster);
    config.node_on_first_message_only = api.set_node_on_first_message_only;
    Ok((cluster, config))
}

/// How to reach the static clusters that a stream can use: those whose first endpoint is in plaintext.
fn transports(bootstrap: &Bootstrap) -> HashMap<String, Transport> {
    let statics = bootstrap.static_resources.as_ref();
    let clusters = statics.map(|s| s.clusters.as_slice()).unwrap_or_default();
    let with = |c: &Cluster| Some((c.name.clone(), transport(c)?));
    clusters.iter().filter_map(with).collect()
}

fn transport(cluster: &Cluster) -> Option<Transport> {
    use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
    if cluster.transport_socket.is_some() {
        return None;
    }
    let endpoints = &cluster.load_assignment.as_ref()?.endpoints;
    let first = endpoints.iter().flat_map(|l| &l.lb_endpoints).next()?;
    let Some(HostIdentifier::Endpoint(endpoint)) = &first.host_identifier else {
        return None;
    };
    Some(match Target::compile(endpoint.address.as_ref()).ok()? {
        Target::Address(Address::Ip(address)) => Transport::Tcp(address.to_string()),
        Target::Address(Address::Pipe(path)) => Transport::Unix((&*path).into()),
        Target::Name(name, port) => Transport::Tcp(format!("{name}:{port}")),
        _ => return None,
    })
}
