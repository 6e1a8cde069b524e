//! Where dynamic resources come from: `ConfigSource`s turned into subscriptions.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::core::v3::api_config_source::ApiType;
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::grpc_service::TargetSpecifier;
use envoy_types::pb::envoy::config::core::v3::{ApiConfigSource, ConfigSource, Node};
use xds_client::ads::{self, Config, Handle, Protocol};
use xds_client::error::{At, ConfigError};
use xds_client::filesystem::{self, Watch};
use xds_client::subscription::ResourceHandler;

use super::management::Ways;
use crate::upstream::cluster_config::Stores;

/// Envoy's default `initial_fetch_timeout`.
const FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// Makes the handler of one more subscription.
pub type HandlerFactory = Box<dyn Fn() -> Box<dyn ResourceHandler> + Send + Sync>;

/// The open streams and watched files of the process. Must be used on the control runtime.
pub struct Sources {
    node: Node,
    ways: Ways,
    /// What compiling TLS contexts takes.
    stores: Stores,
    handler: HandlerFactory,
    ads: Option<Handle>,
    /// Streams of `api_config_source`, by type and cluster.
    streams: HashMap<(String, String), Handle>,
    /// Watched files, by type and path, and the names that are wanted of them (none: all).
    files: HashMap<(String, String), (Watch, BTreeSet<String>)>,
}

/// `initial_fetch_timeout` of a source; zero is for ever.
pub fn fetch_timeout(source: &ConfigSource) -> Duration {
    let timeout = source.initial_fetch_timeout.as_ref();
    timeout
        .and_then(|timeout| xds_client::duration::read(timeout).ok())
        .unwrap_or(FETCH_TIMEOUT)
}

/// Refuses `dynamic_resources` that name clusters which are not there, before anything is started.
///
/// # Errors
/// The path of the name, or of what is not supported.
pub fn check_bootstrap(bootstrap: &Bootstrap) -> Result<(), ConfigError> {
    let Some(dynamic) = &bootstrap.dynamic_resources else {
        return Ok(());
    };
    let ways = Ways::new(bootstrap);
    let target = |api| ways.check(&stream_config(api)?.0);
    if let Some(ads) = &dynamic.ads_config {
        target(ads).at("dynamic_resources.ads_config")?;
    }
    let named = [
        ("cds_config", &dynamic.cds_config),
        ("lds_config", &dynamic.lds_config),
    ];
    for (field, source) in named {
        let checked = match source.as_ref().map(|s| &s.config_source_specifier) {
            Some(Some(ConfigSourceSpecifier::ApiConfigSource(api))) => {
                target(api).at("api_config_source")
            }
            Some(Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)))
                if dynamic.ads_config.is_none() =>
            {
                Err(without_ads())
            }
            _ => Ok(()),
        };
        checked.at(field).at("dynamic_resources")?;
    }
    Ok(())
}

fn without_ads() -> ConfigError {
    ConfigError::new("there is no dynamic_resources.ads_config").at("ads")
}

impl Sources {
    /// The sources of a bootstrap. Opens the ADS stream if there is an `ads_config`.
    ///
    /// # Errors
    /// An unsupported `ads_config`, or one whose cluster is not static.
    pub fn new(
        bootstrap: &Bootstrap,
        node: Node,
        stores: Stores,
        handler: HandlerFactory,
    ) -> Result<Self, ConfigError> {
        let mut sources = Self {
            node,
            ways: Ways::new(bootstrap),
            stores,
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
        let (cluster, mut config) = stream_config(api)?;
        let transport = self.ways.open(&cluster, &config.authority, &self.stores)?;
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

    /// Whether a source can be subscribed to, without doing it.
    ///
    /// # Errors
    /// An unsupported source, or a file that is not there.
    pub fn check(&self, source: &ConfigSource) -> Result<(), ConfigError> {
        match &source.config_source_specifier {
            Some(ConfigSourceSpecifier::ApiConfigSource(api)) => {
                stream_config(api).at("api_config_source").map(drop)
            }
            Some(_) => file(source).map_or(Ok(()), |path| exists(path).at("path")),
            None => Err(ConfigError::new("no configuration source is set")),
        }
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
        let timeout = fetch_timeout(source);
        if let Some(path) = file(source) {
            exists(path).at("path")?;
            let (watch, wanted) = self.watch(path, type_url);
            wanted.extend(names.iter().cloned());
            watch.expect(names, timeout);
        } else {
            let handle = self.handle(source, type_url)?;
            handle.subscribe(type_url, names, timeout);
        }
        Ok(())
    }

    /// Gives names up. A file of which nothing is wanted is watched no longer, and read anew when something is.
    pub fn unsubscribe(&mut self, source: &ConfigSource, type_url: &str, names: Vec<String>) {
        if let Some(path) = file(source) {
            let key = (type_url.to_owned(), path.to_owned());
            if let Some((_, wanted)) = self.files.get_mut(&key) {
                wanted.retain(|n| !names.contains(n));
                if wanted.is_empty() {
                    self.files.remove(&key);
                }
            }
        } else if let Ok(handle) = self.handle(source, type_url) {
            handle.unsubscribe(type_url, names);
        }
    }

    /// The stream of a source that is no file.
    fn handle(&mut self, source: &ConfigSource, type_url: &str) -> Result<Handle, ConfigError> {
        match &source.config_source_specifier {
            Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => {
                self.ads.clone().ok_or_else(without_ads)
            }
            Some(ConfigSourceSpecifier::ApiConfigSource(api)) => {
                let (cluster, _) = stream_config(api).at("api_config_source")?;
                let key = (type_url.to_owned(), cluster);
                if let Some(handle) = self.streams.get(&key) {
                    return Ok(handle.clone());
                }
                let handle = self.open(api, Some(type_url)).at("api_config_source")?;
                self.streams.insert(key, handle.clone());
                Ok(handle)
            }
            Some(ConfigSourceSpecifier::Path(_) | ConfigSourceSpecifier::PathConfigSource(_))
            | None => Err(ConfigError::new("no configuration source is set")),
        }
    }

    /// The watch of a file, which begins with the first subscription.
    fn watch(&mut self, path: &str, type_url: &str) -> &mut (Watch, BTreeSet<String>) {
        let key = (type_url.to_owned(), path.to_owned());
        let handler = &self.handler;
        self.files.entry(key).or_insert_with(|| {
            let watch = filesystem::spawn(path.into(), type_url, handler());
            (watch, BTreeSet::new())
        })
    }
}

fn exists(path: &str) -> Result<(), ConfigError> {
    match std::path::Path::new(path).exists() {
        true => Ok(()),
        false => Err(ConfigError::new(format!(
            "paths must refer to an existing path in the system: '{path}' does not exist"
        ))),
    }
}

/// The file of a source that is one.
fn file(source: &ConfigSource) -> Option<&str> {
    match source.config_source_specifier.as_ref()? {
        ConfigSourceSpecifier::Path(path) => Some(path),
        ConfigSourceSpecifier::PathConfigSource(file) => Some(&file.path),
        _ => None,
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
    let envoy = match target.and_then(|s| s.target_specifier.as_ref()) {
        Some(TargetSpecifier::EnvoyGrpc(envoy)) => envoy,
        Some(TargetSpecifier::GoogleGrpc(_)) => {
            return Err(ConfigError::unsupported("grpc_services[0].google_grpc"));
        }
        None => return Err(ConfigError::new("value is required").at("grpc_services")),
    };
    let cluster = envoy.cluster_name.clone();
    let authority = match envoy.authority.as_str() {
        "" => &cluster,
        authority => authority,
    };
    let mut config = Config::ads(protocol, authority);
    config.node_on_first_message_only = api.set_node_on_first_message_only;
    Ok((cluster, config))
}
