//! What the command line and the bootstrap say together.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::overload::v3::resource_monitor;
use envoy_types::pb::envoy::extensions::bootstrap::internal_listener::v3::InternalListener;
use envoy_types::pb::envoy::extensions::resource_monitors::downstream_connections::v3::DownstreamConnectionsConfig;
use prost::Name;
use xds_client::any;
use xds_client::error::{At, ConfigError};

use super::checks;
use super::command_line::CommandLine;
use crate::config::runtime::Runtime;
use crate::server::drain::DrainStrategy;
use crate::server::socket::BindAddress;

/// The settings of the process.
#[derive(Clone)]
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
    pub runtime: Arc<Runtime>,
    /// The limit of the overload manager's resource monitor, which stands above the one in the runtime.
    pub max_connections: Option<u64>,
    /// How many bytes each direction of an internal connection buffers; `None`: there are no internal listeners.
    pub internal_buffer: Option<usize>,
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
        let node = super::node::node(line, bootstrap.node.as_ref());
        let runtime = Runtime::compile(bootstrap.layered_runtime.as_ref(), &node.cluster)?;
        let admin = bootstrap.admin.as_ref().and_then(|a| a.address.as_ref());
        let admin = admin.map(BindAddress::parse).transpose();
        Ok(Self {
            node,
            admin: admin.at("admin.address")?,
            concurrency: line.workers(),
            drain_time: line.drain_time(),
            drain_strategy: line.drain_strategy(),
            max_connections: max_connections(bootstrap)?,
            internal_buffer: internal_buffer(bootstrap)?,
            reject_path_with_fragment: runtime.feature(
                "envoy.reloadable_features.http_reject_path_with_fragment",
                true,
            ),
            runtime: Arc::new(runtime),
        })
    }
}

/// `buffer_size_kb` of `envoy.bootstrap.internal_listener`, in bytes; 1 MiB by default.
fn internal_buffer(b: &Bootstrap) -> Result<Option<usize>, ConfigError> {
    for (i, extension) in b.bootstrap_extensions.iter().enumerate() {
        let path = || format!("bootstrap_extensions[{i}].typed_config");
        let Some(any) = &extension.typed_config else {
            continue;
        };
        if any::inner_type_name(any).at(path())? == InternalListener::full_name() {
            let config: InternalListener = any::unpack(any).at(path())?;
            let size = config.buffer_size_kb.map_or(1024, |v| v.value);
            if !(1..=8192).contains(&size) {
                let error = ConfigError::new("must be between 1 and 8192");
                return Err(error.at("buffer_size_kb").at(path()));
            }
            return Ok(Some((size as usize) << 10));
        }
    }
    Ok(None)
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

    #[test]
    fn the_command_line_wins() {
        let bootstrap = Bootstrap {
            node: Some(Node {
                id: "file".into(),
                cluster: "kept".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let args = ["fairway", "--service-node", "cli", "--service-zone", "z"];
        let line = CommandLine::parse_from_args(args).unwrap();
        let settings = Settings::new(&line, &bootstrap).unwrap();
        assert_eq!(settings.node.id, "cli");
        assert_eq!(settings.node.cluster, "kept");
        assert_eq!(settings.node.locality.unwrap().zone, "z");
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
        assert_eq!(with(9).unwrap(), Some(9));
        let path =
            "overload_manager.resource_monitors[0].typed_config.max_active_downstream_connections";
        assert_eq!(with(0).unwrap_err().path(), path);
    }
}
