//! What routes are compiled with, and what they inherit from their virtual host and configuration.

use std::collections::HashMap;
use std::sync::Arc;

use bytestring::ByteString;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::google::protobuf as wkt;
use filters::header_mutation::MessageMutations;
use filters::metadata::ConfiguredMetadata;
use filters::runtime::RuntimeKeys;
use filters::stream::{FilterId, RouteFilterConfig};
use http::HeaderName;
use xds_client::error::{At, ConfigError};

use crate::router::action::Mirror;
use crate::router::retry_policy::RetryPolicy;
use crate::upstream::cluster::Cluster;
use crate::upstream::slot::{ClusterDirectory, ClusterSlot};

/// A cluster by reference: routes outlive versions of clusters.
pub type ClusterRef = Arc<ClusterSlot<Cluster>>;

/// Compiled `typed_per_filter_config`.
pub type FilterConfigs = Vec<(FilterId, RouteFilterConfig)>;

/// Compiles one entry of `typed_per_filter_config`, by the filter's name; None if it has no effect.
pub type CompileFilterConfig<'a> =
    &'a dyn Fn(&str, &wkt::Any) -> Result<Option<(FilterId, RouteFilterConfig)>, ConfigError>;

/// What compiling routes needs from the rest of the proxy.
#[derive(Clone, Copy)]
pub struct CompileContext<'a> {
    /// The place of a cluster, by name.
    pub cluster: &'a dyn Fn(&str) -> ClusterRef,
    /// Whether a cluster exists; None if routes may name ones that do not (`validate_clusters`).
    pub known: Option<&'a dyn Fn(&str) -> bool>,
    /// The clusters that requests may name.
    pub directory: &'a ClusterDirectory<Cluster>,
    /// Compiles per-route filter configuration.
    pub filter_config: CompileFilterConfig<'a>,
    /// What the runtime may change.
    pub runtime: &'a dyn RuntimeKeys,
}

impl CompileContext<'_> {
    /// The place of a cluster.
    ///
    /// # Errors
    /// It does not exist, and must.
    pub(super) fn cluster(&self, name: &str) -> Result<ClusterRef, ConfigError> {
        if self.known.is_some_and(|known| !known(name)) {
            return Err(ConfigError::new(format!("unknown cluster '{name}'")));
        }
        Ok((self.cluster)(name))
    }

    /// Compiles a `typed_per_filter_config`.
    pub(super) fn filter_configs(
        &self,
        map: &HashMap<String, wkt::Any>,
    ) -> Result<FilterConfigs, ConfigError> {
        // In the order of the names, so that errors do not depend on the map's order.
        let mut entries: Vec<_> = map.iter().collect();
        entries.sort_by_key(|(name, _)| name.as_str());
        let mut configs = Vec::new();
        for (name, any) in entries {
            let config = (self.filter_config)(name, any);
            configs.extend(config.at(format!("typed_per_filter_config[{name}]"))?);
        }
        Ok(configs)
    }
}

/// What a route inherits.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    /// Its virtual host.
    pub virtual_host: &'a Arc<VirtualHostInfo>,
    /// Its route configuration.
    pub config: &'a Arc<RouteConfigInfo>,
}

/// The part of a virtual host that its routes inherit. Domains, `require_tls` and routes are the
/// table's.
#[derive(Debug, Default)]
pub struct VirtualHostInfo {
    /// The name.
    pub name: ByteString,
    /// What it adds to and removes from heads.
    pub headers: MessageMutations,
    /// Its metadata.
    pub metadata: ConfiguredMetadata,
    /// For routes without their own.
    pub retry_policy: Option<Arc<RetryPolicy>>,
    /// Per-route filter configuration.
    pub filter_configs: FilterConfigs,
    /// For routes without their own.
    pub mirrors: Arc<[Mirror]>,
    /// Whether requests carry `x-envoy-attempt-count`.
    pub include_request_attempt_count: bool,
    /// Whether responses do.
    pub include_attempt_count_in_response: bool,
    /// How much of a request may be kept for a retry, bytes.
    pub per_request_buffer_limit: Option<u32>,
}

impl VirtualHostInfo {
    /// Compiles what routes inherit from a virtual host.
    ///
    /// # Errors
    /// An invalid or unsupported field, with its path.
    pub fn compile(proto: &pb::VirtualHost, cx: &CompileContext<'_>) -> Result<Self, ConfigError> {
        reject(&[
            (proto.matcher.is_some(), "matcher"),
            (proto.cors.is_some(), "cors"),
            (
                proto.retry_policy_typed_config.is_some(),
                "retry_policy_typed_config",
            ),
            (hedges(proto.hedge_policy.as_ref()), "hedge_policy"),
            (
                proto.include_is_timeout_retry_header,
                "include_is_timeout_retry_header",
            ),
            (!proto.route_specifiers.is_empty(), "route_specifiers"),
        ])?;
        let retry = proto.retry_policy.as_ref().map(RetryPolicy::compile);
        Ok(Self {
            name: proto.name.clone().into(),
            metadata: ConfiguredMetadata::compile(proto.metadata.as_ref()),
            headers: MessageMutations::compile(
                (
                    &proto.request_headers_to_add,
                    &proto.request_headers_to_remove,
                ),
                (
                    &proto.response_headers_to_add,
                    &proto.response_headers_to_remove,
                ),
            )?,
            retry_policy: retry.transpose().at("retry_policy")?.map(Arc::new),
            filter_configs: cx.filter_configs(&proto.typed_per_filter_config)?,
            mirrors: Mirror::compile_all(&proto.request_mirror_policies, cx)?,
            include_request_attempt_count: proto.include_request_attempt_count,
            include_attempt_count_in_response: proto.include_attempt_count_in_response,
            per_request_buffer_limit: buffer_limit(
                proto.per_request_buffer_limit_bytes.as_ref(),
                proto.request_body_buffer_limit.as_ref(),
            ),
        })
    }
}

/// The part of a route configuration that its routes inherit.
#[derive(Debug, Default)]
pub struct RouteConfigInfo {
    /// The name.
    pub name: ByteString,
    /// What it adds to and removes from heads.
    pub headers: MessageMutations,
    /// `most_specific_header_mutations_wins`: the route's mutations come last instead of first.
    pub most_specific_wins: bool,
    /// Headers that are taken off external requests.
    pub internal_only_headers: Vec<HeaderName>,
    /// Per-route filter configuration.
    pub filter_configs: FilterConfigs,
    /// For routes and virtual hosts without their own.
    pub mirrors: Arc<[Mirror]>,
    /// The limit of a direct response's body, bytes; 4096 by default.
    pub max_direct_response_body: usize,
}

impl RouteConfigInfo {
    /// Compiles what routes inherit from a route configuration.
    ///
    /// # Errors
    /// An invalid or unsupported field, with its path.
    pub fn compile(
        proto: &pb::RouteConfiguration,
        cx: &CompileContext<'_>,
    ) -> Result<Self, ConfigError> {
        reject(&[
            (proto.vhds.is_some(), "vhds"),
            (
                !proto.cluster_specifier_plugins.is_empty(),
                "cluster_specifier_plugins",
            ),
            (!proto.route_specifiers.is_empty(), "route_specifiers"),
        ])?;
        let limit = proto.max_direct_response_body_size_bytes.as_ref();
        let names = proto.internal_only_headers.iter().enumerate();
        let names = names.map(|(i, n)| header_name(n).at(format!("internal_only_headers[{i}]")));
        Ok(Self {
            name: proto.name.clone().into(),
            headers: MessageMutations::compile(
                (
                    &proto.request_headers_to_add,
                    &proto.request_headers_to_remove,
                ),
                (
                    &proto.response_headers_to_add,
                    &proto.response_headers_to_remove,
                ),
            )?,
            most_specific_wins: proto.most_specific_header_mutations_wins,
            internal_only_headers: names.collect::<Result<_, _>>()?,
            filter_configs: cx.filter_configs(&proto.typed_per_filter_config)?,
            mirrors: Mirror::compile_all(&proto.request_mirror_policies, cx)?,
            max_direct_response_body: limit
                .map_or(4096, |l| usize::try_from(l.value).unwrap_or(usize::MAX)),
        })
    }
}

/// Refuses the first field that is set.
pub(super) fn reject(fields: &[(bool, &str)]) -> Result<(), ConfigError> {
    match fields.iter().find(|(set, _)| *set) {
        Some((_, name)) => Err(ConfigError::unsupported(name)),
        None => Ok(()),
    }
}

/// Whether a hedge policy changes anything: without `hedge_on_per_try_timeout` Envoy itself does nothing
/// with it.
pub(super) fn hedges(policy: Option<&pb::HedgePolicy>) -> bool {
    policy.is_some_and(|p| p.hedge_on_per_try_timeout)
}

/// The newer field wins; a limit over 4 GiB is one of 4 GiB.
pub(super) fn buffer_limit(
    old: Option<&wkt::UInt32Value>,
    new: Option<&wkt::UInt64Value>,
) -> Option<u32> {
    let new = new.map(|v| u32::try_from(v.value).unwrap_or(u32::MAX));
    new.or(old.map(|v| v.value))
}

/// Parses a header name.
pub(crate) fn header_name(name: &str) -> Result<HeaderName, ConfigError> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| ConfigError::new(format!("invalid header name {name:?}")))
}
