//! The endpoints of a cluster, compiled from `envoy.config.endpoint.v3.ClusterLoadAssignment`.

use std::sync::Arc;

use bytestring::ByteString;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as eds;
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::google::protobuf::value::Kind;
use filters::metadata::ConfiguredMetadata;
use xds_client::error::{At, ConfigError};

use crate::transport::upstream::UpstreamTransport;
use crate::upstream::cluster_config::ClusterConfig;
use crate::upstream::host::{Health, Target};

/// One endpoint of an assignment, compiled.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Endpoint {
    pub(crate) target: Target,
    pub(crate) hostname: ByteString,
    pub(crate) transport: UpstreamTransport,
    pub(crate) weight: u32,
    pub(crate) health: Health,
    pub(crate) canary: bool,
    pub(crate) hash_key: Option<String>,
    pub(crate) metadata: ConfiguredMetadata,
}

/// One locality of an assignment, compiled.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Locality {
    pub(crate) priority: u32,
    pub(crate) weight: u32,
    pub(crate) name: Arc<str>,
    pub(crate) endpoints: Vec<Endpoint>,
}

/// Compiles an assignment's endpoints and its overprovisioning factor.
pub(crate) fn compile_assignment(
    config: &ClusterConfig,
    proto: &eds::ClusterLoadAssignment,
) -> Result<(Vec<Locality>, u32), ConfigError> {
    if proto
        .policy
        .as_ref()
        .is_some_and(|p| !p.drop_overloads.is_empty())
    {
        return Err(ConfigError::unsupported("policy.drop_overloads"));
    }
    let mut localities = Vec::with_capacity(proto.endpoints.len());
    for (l, group) in proto.endpoints.iter().enumerate() {
        let step = format!("endpoints[{l}]");
        if group.lb_config.is_some() {
            return Err(ConfigError::unsupported("lb_config").at(step));
        }
        let mut endpoints = Vec::with_capacity(group.lb_endpoints.len());
        for (e, entry) in group.lb_endpoints.iter().enumerate() {
            let at = || format!("{step}.lb_endpoints[{e}]");
            let endpoint = match &entry.host_identifier {
                Some(HostIdentifier::Endpoint(endpoint)) => endpoint,
                Some(HostIdentifier::EndpointName(name)) => {
                    proto.named_endpoints.get(name).ok_or_else(|| {
                        ConfigError::new("names no endpoint")
                            .at("endpoint_name")
                            .at(at())
                    })?
                }
                None => return Err(ConfigError::new("is required").at("endpoint").at(at())),
            };
            let metadata = entry.metadata.as_ref();
            endpoints.push(Endpoint {
                target: Target::compile(endpoint.address.as_ref())
                    .at("endpoint")
                    .at(at())?,
                hostname: endpoint.hostname.as_str().into(),
                transport: config
                    .transport_for(metadata, group.metadata.as_ref())
                    .for_endpoint(metadata)
                    .at(at())?,
                weight: entry.load_balancing_weight.as_ref().map_or(1, |w| w.value),
                health: Health::from_proto(entry.health_status),
                metadata: ConfiguredMetadata::compile(metadata),
                canary: matches!(label(metadata, "canary"), Some(Kind::BoolValue(true))),
                hash_key: match label(metadata, "hash_key") {
                    Some(Kind::StringValue(key)) if !key.is_empty() => Some(key.clone()),
                    _ => None,
                },
            });
        }
        let locality = group.locality.clone().unwrap_or_default();
        localities.push(Locality {
            priority: group.priority,
            weight: group.load_balancing_weight.as_ref().map_or(0, |w| w.value),
            name: format!(
                "{}/{}/{}",
                locality.region, locality.zone, locality.sub_zone
            )
            .into(),
            endpoints,
        });
    }
    let factor = proto
        .policy
        .as_ref()
        .and_then(|p| p.overprovisioning_factor.as_ref())
        .map_or(140, |f| f.value.max(100));
    Ok((localities, factor))
}

/// A label of `envoy.lb`.
fn label<'a>(metadata: Option<&'a core::Metadata>, name: &str) -> Option<&'a Kind> {
    let labels = metadata.and_then(|m| m.filter_metadata.get("envoy.lb"))?;
    labels.fields.get(name)?.kind.as_ref()
}
