//! What the command line and the bootstrap say together.

use std::collections::BTreeMap;
use std::time::Duration;

use envoy_types::pb::envoy::config::bootstrap::v3::runtime_layer::LayerSpecifier;
use envoy_types::pb::envoy::config::bootstrap::v3::{Bootstrap, LayeredRuntime};
use envoy_types::pb::envoy::config::core::v3::{Locality, Node};
use envoy_types::pb::envoy::config::overload::v3::resource_monitor;
use envoy_types::pb::envoy::extensions::resource_monitors::downstream_connections::v3::DownstreamConnectionsConfig;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use prost::Name;
use xds_client::any;
use xds_client::error::{At, ConfigError};

use super::checks;
use super::command_line::CommandLine;
use crate::server::drain::DrainStrategy;
use crate::server::socket::BindAddress;

/// Static runtime values by dotted key, later layers over earlier ones.
#[derive(Debug, Clone, Default)]
pub struct Runtime(BTreeMap<String, String>);

impl Runtime {
    fn compile(layers: Option<&LayeredRuntime>) -> Result<Self, ConfigError> {
        let mut runtime = Self::default();
        let layers = layers.map(|l| l.layers.as_slice()).unwrap_or_default();
        for (i, layer) in layers.iter().enumerate() {
            let path = || format!("layered_runtime.layers[{i}]");
            match &layer.layer_specifier {
                Some(LayerSpecifier::StaticLayer(values)) => {
                    runtime
                        .flatten("", values, 0)
                        .at("static_layer")
                        .at(path())?;
                }
                // Starts empty; the admin interface fills it.
                Some(LayerSpecifier::AdminLayer(_)) => {}
                Some(LayerSpecifier::DiskLayer(_)) => {
                    return Err(ConfigError::unsupported("disk_layer").at(path()));
                }
                Some(LayerSpecifier::RtdsLayer(_)) => {
                    return Err(ConfigError::unsupported("rtds_layer").at(path()));
                }
                None => return Err(ConfigError::new("value is required").at(path())),
            }
        }
        Ok(runtime)
    }

    fn flatten(&mut self, prefix: &str, values: &Struct, depth: u8) -> Result<(), ConfigError> {
        if depth > 16 {
            return Err(ConfigError::new("nested too deeply"));
        }
        for (key, value) in &values.fields {
            let key = if prefix.is_empty() {
                key.clone()
            } else {
                format!("{prefix}.{key}")
            };
            self.set(key, value, depth)?;
        }
        Ok(())
    }

    fn set(&mut self, key: String, value: &Value, depth: u8) -> Result<(), ConfigError> {
        let text = match &value.kind {
            Some(Kind::BoolValue(v)) => v.to_string(),
            Some(Kind::NumberValue(v)) => v.to_string(),
            Some(Kind::StringValue(v)) => v.clone(),
            Some(Kind::StructValue(v)) => return self.flatten(&key, v, depth + 1),
            Some(Kind::NullValue(_) | Kind::ListValue(_)) | None => {
                return Err(ConfigError::new("Invalid runtime entry value").at(key));
            }
        };
        self.0.insert(key, text);
        Ok(())
    }

    /// The text under `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// The whole number under `key`.
    pub fn integer(&self, key: &str) -> Option<u64> {
        self.get(key)?.parse().ok()
    }

    /// The truth value under `key`, or `default`.
    pub fn feature(&self, key: &str, default: bool) -> bool {
        self.get(key)
            .and_then(|v| v.parse().ok())
            .unwrap_or(default)
    }

    /// Every key and value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }
}

/// The settings of the process.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The node, as it is sent to control planes.
    pub node: Node,
    /// Where the admin interface listens; `None` without one.
    pub admin: Option<BindAddress>,
    /// Number of workers.
    pub concurrency: usize,
    /// How long a drain may take.
    pub drain_time: Duration,
    /// How it is spread.
    pub drain_strategy: DrainStrategy,
    /// Runtime values.
    pub runtime: Runtime,
    /// The limit of the overload manager's resource monitor, or
    /// `overload.global_downstream_max_connections`; `u64::MAX` without one.
    pub max_connections: u64,
    /// Answer 400 to a fragment in the path instead of cutting it off.
    pub reject_path_with_fragment: bool,
}

impl Settings {
    /// Puts the command line over the bootstrap.
    ///
    /// # Errors
    /// What [`checks::check`] finds, or an invalid value, by its path.
    pub fn new(line: &CommandLine, bootstrap: &Bootstrap) -> Result<Self, ConfigError> {
        checks::check(bootstrap)?;
        let runtime = Runtime::compile(bootstrap.layered_runtime.as_ref())?;
        let admin = bootstrap.admin.as_ref().and_then(|a| a.address.as_ref());
        let admin = admin.map(BindAddress::parse).transpose();
        Ok(Self {
            node: node(line, bootstrap),
            admin: admin.at("admin.address")?,
            concurrency: line.workers(),
            drain_time: line.drain_time(),
            drain_strategy: line.drain_strategy(),
            max_connections: max_connections(bootstrap)?
                .or_else(|| runtime.integer("overload.global_downstream_max_connections"))
                .unwrap_or(u64::MAX),
            reject_path_with_fragment: runtime.feature(
                "envoy.reloadable_features.http_reject_path_with_fragment",
                true,
            ),
            runtime,
        })
    }
}

fn node(line: &CommandLine, bootstrap: &Bootstrap) -> Node {
    let mut node = bootstrap.node.clone().unwrap_or_default();
    if let Some(id) = &line.service_node {
        node.id.clone_from(id);
    }
    if let Some(cluster) = &line.service_cluster {
        node.cluster.clone_from(cluster);
    }
    if let Some(zone) = &line.service_zone {
        let locality = node.locality.get_or_insert_with(Locality::default);
        locality.zone.clone_from(zone);
    }
    node
}

/// The connection limit of `envoy.resource_monitors.global_downstream_max_connections`.
fn max_connections(b: &Bootstrap) -> Result<Option<u64>, ConfigError> {
    let overload = b.overload_manager.as_ref();
    let monitors = overload.map(|o| o.resource_monitors.as_slice());
    for (i, monitor) in monitors.unwrap_or_default().iter().enumerate() {
        let Some(resource_monitor::ConfigType::TypedConfig(any)) = &monitor.config_type else {
            continue;
        };
        let path = || format!("overload_manager.resource_monitors[{i}].typed_config");
        if any::inner_type_name(any).at(path())? == DownstreamConnectionsConfig::full_name() {
            let config: DownstreamConnectionsConfig = any::unpack(any).at(path())?;
            let limit = u64::try_from(config.max_active_downstream_connections);
            let limit = limit.ok().filter(|l| *l > 0).ok_or_else(|| {
                ConfigError::new("value must be greater than 0")
                    .at("max_active_downstream_connections")
            });
            return limit.at(path()).map(Some);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::bootstrap::v3::RuntimeLayer;

    fn text(text: &str) -> Value {
        Value {
            kind: Some(Kind::StringValue(text.into())),
        }
    }

    #[test]
    fn the_command_line_and_later_layers_win() {
        let layer = |name: &str, limit: &str| RuntimeLayer {
            name: name.into(),
            layer_specifier: Some(LayerSpecifier::StaticLayer(Struct {
                fields: [(
                    "overload".to_owned(),
                    Value {
                        kind: Some(Kind::StructValue(Struct {
                            fields: [("global_downstream_max_connections".to_owned(), text(limit))]
                                .into(),
                        })),
                    },
                )]
                .into(),
            })),
        };
        let bootstrap = Bootstrap {
            node: Some(Node {
                id: "file".into(),
                cluster: "kept".into(),
                ..Default::default()
            }),
            layered_runtime: Some(LayeredRuntime {
                layers: vec![layer("one", "5"), layer("two", "7")],
            }),
            ..Default::default()
        };
        let args = ["fairway", "--service-node", "cli", "--service-zone", "z"];
        let line = CommandLine::parse_from_args(args).unwrap();
        let settings = Settings::new(&line, &bootstrap).unwrap();
        assert_eq!(settings.node.id, "cli");
        assert_eq!(settings.node.cluster, "kept");
        assert_eq!(settings.node.locality.unwrap().zone, "z");
        assert_eq!(settings.max_connections, 7);
        assert!(settings.reject_path_with_fragment);
    }

    #[test]
    fn the_overload_manager_limits_connections() {
        let with = |max: i64| {
            let monitor = envoy_types::pb::envoy::config::overload::v3::ResourceMonitor {
                name: "m".into(),
                config_type: Some(resource_monitor::ConfigType::TypedConfig(any::pack(
                    &DownstreamConnectionsConfig {
                        max_active_downstream_connections: max,
                    },
                ))),
            };
            let bootstrap = Bootstrap {
                overload_manager: Some(
                    envoy_types::pb::envoy::config::overload::v3::OverloadManager {
                        resource_monitors: vec![monitor],
                        ..Default::default()
                    },
                ),
                ..Default::default()
            };
            let line = CommandLine::parse_from_args(["fairway"]).unwrap();
            Settings::new(&line, &bootstrap).map(|s| s.max_connections)
        };
        assert_eq!(with(9).unwrap(), 9);
        let path =
            "overload_manager.resource_monitors[0].typed_config.max_active_downstream_connections";
        assert_eq!(with(0).unwrap_err().path(), path);
    }
}
