//! What control planes are told of this process: the bootstrap's node, and what Fairway can do.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::core::v3::node::UserAgentVersionType;
use envoy_types::pb::envoy::config::core::v3::{BuildVersion, Extension, Locality, Node};
use envoy_types::pb::envoy::r#type::v3::SemanticVersion;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use filters::registry::Registry;

use super::command_line::CommandLine;

/// The version of Envoy whose API and behaviour Fairway follows; control planes decide by it what to send.
const ENVOY: (u32, u32, u32) = (1, 40, 0);
/// <https://www.envoyproxy.io/docs/envoy/latest/api/client_features>
const CLIENT_FEATURES: [&str; 1] = ["envoy.lb.does_not_support_overprovisioning"];

/// Puts the command line over the bootstrap's node, and adds the client's part.
pub(super) fn node(line: &CommandLine, bootstrap: Option<&Node>) -> Node {
    let mut node = bootstrap.cloned().unwrap_or_default();
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
    // Istio and others recognise a proxy by this name.
    "envoy".clone_into(&mut node.user_agent_name);
    node.user_agent_version_type = Some(UserAgentVersionType::UserAgentBuildVersion(version()));
    node.extensions = extensions();
    node.client_features = CLIENT_FEATURES.map(str::to_owned).to_vec();
    node
}

fn version() -> BuildVersion {
    let (major_number, minor_number, patch) = ENVOY;
    let text = |(name, value): (&str, &str)| {
        let kind = Some(Kind::StringValue(value.to_owned()));
        (name.to_owned(), Value { kind })
    };
    let fields: HashMap<_, _> = [
        ("fairway.version", env!("CARGO_PKG_VERSION")),
        ("ssl.version", "rustls"),
    ]
    .map(text)
    .into();
    BuildVersion {
        version: Some(SemanticVersion {
            major_number,
            minor_number,
            patch,
        }),
        metadata: Some(Struct { fields }),
    }
}

/// The HTTP filters, under the names that Envoy lists them by.
fn extensions() -> Vec<Extension> {
    let mut types: Vec<&str> = Registry::default().types().collect();
    types.sort_unstable();
    let extension = |name: &str| {
        let short = name.strip_prefix("envoy.extensions.filters.http.")?;
        let (short, _) = short.split_once('.')?;
        Some(Extension {
            name: format!("envoy.filters.http.{short}"),
            category: "envoy.filters.http".to_owned(),
            type_urls: vec![name.to_owned()],
            ..Default::default()
        })
    };
    types.into_iter().filter_map(extension).collect()
}
