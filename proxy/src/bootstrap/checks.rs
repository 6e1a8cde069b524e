//! What is wrong with a bootstrap as a whole: extensions that are not there, names given twice, references to
//! clusters that are not there. Fields that are not supported are `config/fields.rs`' to refuse.

use std::collections::HashSet;

use envoy_types::pb::envoy::config::bootstrap::v3::runtime_layer::LayerSpecifier;
use envoy_types::pb::envoy::config::bootstrap::v3::{Bootstrap, LayeredRuntime};
use envoy_types::pb::envoy::config::core::v3::Address;
use envoy_types::pb::envoy::config::metrics::v3::StatsConfig;
use xds_client::error::ConfigError;

use crate::server::socket::BindAddress;

/// Refuses what cannot be honoured, and what contradicts itself.
///
/// # Errors
/// The first such field, by its path.
pub fn check(b: &Bootstrap) -> Result<(), ConfigError> {
    extensions(b)?;
    b.layered_runtime.as_ref().map_or(Ok(()), runtime)?;
    b.stats_config.as_ref().map_or(Ok(()), stats)?;
    static_names(b)
}

/// Extensions whose section is ignored must at least be some: without a configuration nobody could tell a
/// mistake in the name.
fn extensions(b: &Bootstrap) -> Result<(), ConfigError> {
    for (i, extension) in b.bootstrap_extensions.iter().enumerate() {
        // Istio sends both in a TypedStruct; what they configure is built in.
        let known = ["metadata_discovery", "internal_listener"];
        if !known.iter().any(|k| extension.name.ends_with(k)) {
            let error = ConfigError::new(format!("not supported: {}", extension.name));
            return Err(error.at(format!("bootstrap_extensions[{i}]")));
        }
    }
    let unknown = |name: &str| ConfigError::new(format!("'{name}' has no typed_config"));
    for (i, sink) in b.stats_sinks.iter().enumerate() {
        if sink.config_type.is_none() {
            return Err(unknown(&sink.name).at(format!("stats_sinks[{i}]")));
        }
    }
    let overload = b.overload_manager.iter().flat_map(|o| &o.resource_monitors);
    for (i, monitor) in overload.enumerate() {
        if monitor.config_type.is_none() {
            let path = format!("overload_manager.resource_monitors[{i}]");
            return Err(unknown(&monitor.name).at(path));
        }
    }
    #[allow(deprecated)] // by the API, but istio's agent writes it
    let tracer = b.tracing.as_ref().and_then(|t| t.http.as_ref());
    match tracer {
        Some(t) if t.config_type.is_none() => Err(unknown(&t.name).at("tracing.http")),
        _ => Ok(()),
    }
}

fn runtime(runtime: &LayeredRuntime) -> Result<(), ConfigError> {
    let (mut names, mut admin) = (HashSet::new(), false);
    for (i, layer) in runtime.layers.iter().enumerate() {
        let path = || format!("layered_runtime.layers[{i}]");
        if !names.insert(&layer.name) {
            let error = format!("duplicate layer name '{}'", layer.name);
            return Err(ConfigError::new(error).at("name").at(path()));
        }
        let is_admin = matches!(layer.layer_specifier, Some(LayerSpecifier::AdminLayer(_)));
        if is_admin && std::mem::replace(&mut admin, true) {
            let error = ConfigError::new("there is an admin layer already");
            return Err(error.at("admin_layer").at(path()));
        }
    }
    Ok(())
}

fn stats(config: &StatsConfig) -> Result<(), ConfigError> {
    let nameless = config.stats_tags.iter().position(|t| t.tag_name.is_empty());
    match nameless {
        Some(i) => Err(ConfigError::new("value is required")
            .at(format!("stats_config.stats_tags[{i}].tag_name"))),
        None => Ok(()),
    }
}

fn static_names(b: &Bootstrap) -> Result<(), ConfigError> {
    let resources = b.static_resources.clone().unwrap_or_default();
    let mut clusters = HashSet::new();
    for (i, cluster) in resources.clusters.iter().enumerate() {
        if !clusters.insert(cluster.name.as_str()) {
            let error = ConfigError::new(format!("duplicate cluster '{}'", cluster.name));
            return Err(error.at(format!("static_resources.clusters[{i}].name")));
        }
    }
    let local = b
        .cluster_manager
        .as_ref()
        .map_or("", |m| &m.local_cluster_name);
    if !local.is_empty() && !clusters.contains(local) {
        let error = ConfigError::new(format!("no static cluster '{local}'"));
        return Err(error.at("cluster_manager.local_cluster_name"));
    }
    let mut bound: Vec<(&str, BindAddress)> = Vec::new();
    for (i, listener) in resources.listeners.iter().enumerate() {
        let additional = listener.additional_addresses.iter();
        let addresses = listener
            .address
            .iter()
            .chain(additional.filter_map(|a| a.address.as_ref()));
        for address in addresses.filter_map(fixed) {
            let taken = |(name, other): &&(&str, BindAddress)| {
                *name != listener.name.as_str() && *other == address
            };
            if let Some((name, _)) = bound.iter().find(taken) {
                let error = format!("duplicate address '{address}': listener '{name}' has it");
                let path = format!("static_resources.listeners[{i}].address");
                return Err(ConfigError::new(error).at(path));
            }
            bound.push((&listener.name, address));
        }
    }
    Ok(())
}

/// An address that only one listener can have. What is wrong with others is the listener compiler's to say.
fn fixed(address: &Address) -> Option<BindAddress> {
    BindAddress::parse(address)
        .ok()
        .filter(|a| !matches!(a, BindAddress::Tcp { address, .. } if address.port() == 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use xds_client::bootstrap::{LoadOptions, load};

    fn check_yaml(yaml: &str) -> Result<(), String> {
        let options = LoadOptions {
            config_yaml: Some(yaml),
            ..LoadOptions::default()
        };
        check(&load(options).unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn an_unknown_extension_is_refused_by_name() {
        let with = |name: &str| {
            let config = "{'@type': t/udpa.type.v1.TypedStruct}";
            check_yaml(&format!(
                "bootstrap_extensions: [{{name: {name}, typed_config: {config}}}]"
            ))
        };
        assert!(with("metadata_discovery").is_ok());
        assert!(with("envoy.bootstrap.internal_listener").is_ok());
        assert_eq!(
            with("envoy.bootstrap.wasm").unwrap_err(),
            "bootstrap_extensions[0]: not supported: envoy.bootstrap.wasm"
        );
        assert_eq!(
            check_yaml("stats_sinks: [{name: no.such}]").unwrap_err(),
            "stats_sinks[0]: 'no.such' has no typed_config"
        );
    }

    #[test]
    fn names_and_addresses_are_given_once() {
        let layers = |second: &str| {
            check_yaml(&format!(
                "layered_runtime: {{layers: [{{name: a, admin_layer: {{}}}}, {second}]}}"
            ))
        };
        assert!(layers("{name: b, static_layer: {}}").is_ok());
        assert_eq!(
            layers("{name: a, static_layer: {}}").unwrap_err(),
            "layered_runtime.layers[1].name: duplicate layer name 'a'"
        );
        assert!(layers("{name: b, admin_layer: {}}").is_err());
        let statics = |what: &str| check_yaml(&format!("static_resources: {{{what}}}"));
        assert_eq!(
            statics("clusters: [{name: a}, {name: b}, {name: a}]").unwrap_err(),
            "static_resources.clusters[2].name: duplicate cluster 'a'"
        );
        let two = |port: u16| {
            let address =
                |port| format!("{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}");
            statics(&format!(
                "listeners: [{{name: a, address: {}}}, {{name: b, address: {}}}]",
                address(port),
                address(port)
            ))
        };
        assert_eq!(
            two(80).unwrap_err(),
            "static_resources.listeners[1].address: duplicate address '127.0.0.1:80': listener 'a' has it"
        );
        assert!(two(0).is_ok(), "the kernel gives each its own");
        assert!(check_yaml("cluster_manager: {local_cluster_name: a}").is_err());
    }
}
