//! Routes, compiled: one for each `Route`, or for each of its weighted clusters.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::route::Action as ProtoAction;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::weighted_cluster as weighted;
use filters::formatter::FormatContext;
use filters::head::{RequestHead, ResponseHead};
use filters::header_mutation::HeaderMutations;
use filters::matcher::metadata::struct_to_json;
use filters::stream::{FilterId, RouteFilterConfig, RouteView, StreamInfo};
use http::StatusCode;
use xds_client::error::{At, ConfigError};

use crate::router::action::{Action, DirectResponse, HashPolicy, Mirror};
use crate::router::context::{
    CompileContext, FilterConfigs, RouteConfigInfo, Scope, VirtualHostInfo, buffer_limit, duration,
    header_name, hedges, reject,
};
use crate::router::redirect::Redirect;
use crate::router::retry_policy::RetryPolicy;
use crate::router::rewrite::{HostRewrite, MatchedPath, PathRewrite, replace_host};

/// What all weighted clusters of a route share.
struct Shared {
    name: ByteString,
    virtual_host: Arc<VirtualHostInfo>,
    config: Arc<RouteConfigInfo>,
    matched: MatchedPath,
    request: HeaderMutations,
    response: HeaderMutations,
    filter_configs: FilterConfigs,
    metadata: BTreeMap<String, serde_json::Value>,
    buffer_limit: Option<u32>,
    forward: Forward,
}

/// What a `RouteAction` says beside the cluster.
struct Forward {
    timeout: Option<Duration>,
    idle_timeout: Option<Duration>,
    max_stream_duration: Option<Duration>,
    grpc_timeout_header_max: Option<Duration>,
    grpc_timeout_header_offset: Option<Duration>,
    max_grpc_timeout: Option<Duration>,
    grpc_timeout_offset: Option<Duration>,
    retry_policy: Option<Arc<RetryPolicy>>,
    mirrors: Arc<[Mirror]>,
    hash_policies: Vec<HashPolicy>,
    cluster_not_found: StatusCode,
    high_priority: bool,
    upgrades: Vec<(ByteString, bool)>,
    path: Option<PathRewrite>,
    host: Option<HostRewrite>,
    append_forwarded_host: bool,
}

impl Default for Forward {
    fn default() -> Self {
        Self {
            timeout: Some(Duration::from_secs(15)),
            idle_timeout: None,
            max_stream_duration: None,
            grpc_timeout_header_max: None,
            grpc_timeout_header_offset: None,
            max_grpc_timeout: None,
            grpc_timeout_offset: None,
            retry_policy: None,
            mirrors: Arc::default(),
            hash_policies: Vec::new(),
            cluster_not_found: StatusCode::SERVICE_UNAVAILABLE,
            high_priority: false,
            upgrades: Vec::new(),
            path: None,
            host: None,
            append_forwarded_host: false,
        }
    }
}

impl Forward {
    fn compile(
        proto: &pb::RouteAction,
        scope: &Scope<'_>,
        cx: &CompileContext<'_>,
    ) -> Result<Self, ConfigError> {
        #[allow(deprecated)] // deprecated fields are still sent
        let deprecated = proto.internal_redirect_action != 0;
        reject(&[
            (proto.path_rewrite_policy.is_some(), "path_rewrite_policy"),
            (!proto.path_rewrite.is_empty(), "path_rewrite"),
            (proto.flush_timeout.is_some(), "flush_timeout"),
            (
                proto.retry_policy_typed_config.is_some(),
                "retry_policy_typed_config",
            ),
            (proto.cors.is_some(), "cors"),
            (
                proto.internal_redirect_policy.is_some(),
                "internal_redirect_policy",
            ),
            (deprecated, "internal_redirect_action"),
            (hedges(proto.hedge_policy.as_ref()), "hedge_policy"),
        ])?;
        let path = match (proto.prefix_rewrite.as_str(), &proto.regex_rewrite) {
            ("", None) => None,
            ("", Some(regex)) => Some(PathRewrite::regex(regex).at("regex_rewrite")?),
            (prefix, None) => Some(PathRewrite::prefix(prefix).at("prefix_rewrite")?),
            _ => {
                return Err(ConfigError::new(
                    "prefix_rewrite and regex_rewrite are both set",
                ));
            }
        };
        let cluster_not_found = match proto.cluster_not_found_response_code {
            1 => StatusCode::NOT_FOUND,
            2 => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let mut upgrades = Vec::new();
        for (i, upgrade) in proto.upgrade_configs.iter().enumerate() {
            if upgrade.connect_config.is_some() {
                let field = format!("upgrade_configs[{i}].connect_config");
                return Err(ConfigError::unsupported(&field));
            }
            let on = upgrade.enabled.as_ref().is_none_or(|e| e.value);
            upgrades.push((upgrade.upgrade_type.clone().into(), on));
        }
        let own = Mirror::compile_all(&proto.request_mirror_policies, cx)?;
        let mirrors = [&own, &scope.virtual_host.mirrors, &scope.config.mirrors];
        let mirrors = mirrors.into_iter().find(|m| !m.is_empty()).cloned();
        let max = proto.max_stream_duration.as_ref();
        let host = proto
            .host_rewrite_specifier
            .as_ref()
            .map(HostRewrite::compile);
        let retry = proto.retry_policy.as_ref().map(RetryPolicy::compile);
        let timeout = duration(proto.timeout.as_ref(), "timeout")?;
        Ok(Self {
            timeout: Some(timeout.unwrap_or(Duration::from_secs(15))).filter(|d| !d.is_zero()),
            idle_timeout: duration(proto.idle_timeout.as_ref(), "idle_timeout")?,
            max_stream_duration: duration(
                max.and_then(|m| m.max_stream_duration.as_ref()),
                "max_stream_duration.max_stream_duration",
            )?,
            grpc_timeout_header_max: duration(
                max.and_then(|m| m.grpc_timeout_header_max.as_ref()),
                "max_stream_duration.grpc_timeout_header_max",
            )?,
            grpc_timeout_header_offset: duration(
                max.and_then(|m| m.grpc_timeout_header_offset.as_ref()),
                "max_stream_duration.grpc_timeout_header_offset",
            )?,
            max_grpc_timeout: duration(proto.max_grpc_timeout.as_ref(), "max_grpc_timeout")?,
            grpc_timeout_offset: duration(
                proto.grpc_timeout_offset.as_ref(),
                "grpc_timeout_offset",
            )?,
            retry_policy: retry.transpose().at("retry_policy")?.map(Arc::new),
            mirrors: mirrors.unwrap_or_default(),
            hash_policies: HashPolicy::compile_all(&proto.hash_policy)?,
            cluster_not_found,
            high_priority: proto.priority == 1,
            upgrades,
            path,
            host: host.transpose()?.flatten(),
            append_forwarded_host: proto.append_x_forwarded_host,
        })
    }
}

/// What a weighted cluster adds to its route.
#[derive(Default)]
struct Weighted {
    request: HeaderMutations,
    response: HeaderMutations,
    filter_configs: FilterConfigs,
    host: Option<HostRewrite>,
}

/// A compiled route.
pub struct Route {
    action: Action,
    shared: Arc<Shared>,
    weighted: Option<Weighted>,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Route");
        out.field("name", &self.shared.name);
        out.field("virtual_host", &self.shared.virtual_host.name);
        out.finish_non_exhaustive()
    }
}

impl Route {
    /// What to do with the request.
    pub fn action(&self) -> &Action {
        &self.action
    }

    /// The route's name.
    pub fn name(&self) -> &ByteString {
        &self.shared.name
    }

    /// Its virtual host.
    pub fn virtual_host(&self) -> &Arc<VirtualHostInfo> {
        &self.shared.virtual_host
    }

    /// Its route configuration.
    pub fn config(&self) -> &Arc<RouteConfigInfo> {
        &self.shared.config
    }

    /// What its match takes of the path.
    pub fn matched_path(&self) -> &MatchedPath {
        &self.shared.matched
    }

    /// The limit of the whole response, retries included; 15 s by default, None is none.
    pub fn timeout(&self) -> Option<Duration> {
        self.shared.forward.timeout
    }

    /// The stream's idle timeout; None leaves the connection manager's, zero is none.
    pub fn idle_timeout(&self) -> Option<Duration> {
        self.shared.forward.idle_timeout
    }

    /// The stream's longest life; None leaves the connection manager's, zero is none.
    pub fn max_stream_duration(&self) -> Option<Duration> {
        self.shared.forward.max_stream_duration
    }

    /// `max_stream_duration.grpc_timeout_header_max`: if set, `grpc-timeout` is the stream's longest life,
    /// up to this; zero is no cap.
    pub fn grpc_timeout_header_max(&self) -> Option<Duration> {
        self.shared.forward.grpc_timeout_header_max
    }

    /// What is subtracted from the `grpc-timeout` that the above uses.
    pub fn grpc_timeout_header_offset(&self) -> Option<Duration> {
        self.shared.forward.grpc_timeout_header_offset
    }

    /// Deprecated `max_grpc_timeout`: if set, `grpc-timeout` takes the place of [`timeout`](Self::timeout),
    /// up to this; zero is no cap.
    pub fn max_grpc_timeout(&self) -> Option<Duration> {
        self.shared.forward.max_grpc_timeout
    }

    /// What is subtracted from the `grpc-timeout` that `max_grpc_timeout` uses.
    pub fn grpc_timeout_offset(&self) -> Option<Duration> {
        self.shared.forward.grpc_timeout_offset
    }

    /// The route's retry policy, else the virtual host's.
    pub fn retry_policy(&self) -> Option<&RetryPolicy> {
        let own = self.shared.forward.retry_policy.as_deref();
        own.or(self.shared.virtual_host.retry_policy.as_deref())
    }

    /// The mirrors: the route's, else the virtual host's, else the configuration's.
    pub fn mirrors(&self) -> &[Mirror] {
        &self.shared.forward.mirrors
    }

    /// What requests are hashed by.
    pub fn hash_policies(&self) -> &[HashPolicy] {
        &self.shared.forward.hash_policies
    }

    /// The answer if the cluster does not exist.
    pub fn cluster_not_found_status(&self) -> StatusCode {
        self.shared.forward.cluster_not_found
    }

    /// Whether the cluster's circuit breakers of priority HIGH apply.
    pub fn is_high_priority(&self) -> bool {
        self.shared.forward.high_priority
    }

    /// Whether requests carry `x-envoy-attempt-count`.
    pub fn include_request_attempt_count(&self) -> bool {
        self.shared.virtual_host.include_request_attempt_count
    }

    /// Whether responses carry `x-envoy-attempt-count`.
    pub fn include_attempt_count_in_response(&self) -> bool {
        self.shared.virtual_host.include_attempt_count_in_response
    }

    /// Whether the route allows or forbids an upgrade (any case); None leaves it to the connection manager.
    pub fn allows_upgrade(&self, name: &str) -> Option<bool> {
        let upgrades = &self.shared.forward.upgrades;
        let mut found = upgrades.iter().filter(|u| u.0.eq_ignore_ascii_case(name));
        found.next().map(|u| u.1)
    }

    /// How much of a request may be kept for a retry, bytes.
    pub fn buffer_limit(&self) -> Option<u32> {
        let outer = self.shared.virtual_host.per_request_buffer_limit;
        self.shared.buffer_limit.or(outer)
    }

    /// Whether the host is to be replaced by the upstream host's name, with
    /// [`set_upstream_host`](Self::set_upstream_host), once that host is chosen.
    pub fn auto_host_rewrite(&self) -> bool {
        matches!(self.shared.forward.host, Some(HostRewrite::Auto))
    }

    /// Replaces the request's host by the upstream host's name, if the route wants that.
    pub fn set_upstream_host(&self, head: &mut RequestHead, name: &str) {
        if self.auto_host_rewrite() && !name.is_empty() {
            replace_host(head, name.into(), self.shared.forward.append_forwarded_host);
        }
    }

    /// Changes a request on its way to the upstream: header mutations, then host, then path. To be called
    /// once for each request, before the first attempt.
    pub fn prepare_request(&self, head: &mut RequestHead, info: &StreamInfo) {
        for mutations in self.order([
            self.weighted.as_ref().map(|w| &w.request),
            Some(&self.shared.request),
            Some(&self.shared.virtual_host.request),
            Some(&self.shared.config.request),
        ]) {
            mutations.remove(&mut head.headers);
            let values = mutations.values(&FormatContext {
                info,
                request: Some(head),
                response: None,
                trailers: None,
                local_reply: None,
            });
            mutations.write(values, &mut head.headers);
        }
        let forward = &self.shared.forward;
        let weighted = self.weighted.as_ref().and_then(|w| w.host.as_ref());
        if let Some(host) = weighted.or(forward.host.as_ref()) {
            host.rewrite(head, forward.append_forwarded_host);
        }
        if let Some(path) = &forward.path {
            path.rewrite(head, &self.shared.matched);
        }
    }

    /// Changes a response on its way to the client; also direct responses and redirects.
    pub fn finish_response(
        &self,
        head: &mut ResponseHead,
        request: Option<&RequestHead>,
        info: &StreamInfo,
    ) {
        for mutations in self.order([
            self.weighted.as_ref().map(|w| &w.response),
            Some(&self.shared.response),
            Some(&self.shared.virtual_host.response),
            Some(&self.shared.config.response),
        ]) {
            mutations.remove(&mut head.headers);
            let values = mutations.values(&FormatContext {
                info,
                request,
                response: Some(head),
                trailers: None,
                local_reply: None,
            });
            mutations.write(values, &mut head.headers);
        }
    }

    /// Puts levels, from the most specific on, in the order in which they apply; the last one wins.
    fn order<'a>(
        &self,
        mut levels: [Option<&'a HeaderMutations>; 4],
    ) -> impl Iterator<Item = &'a HeaderMutations> {
        if self.shared.config.most_specific_wins {
            levels.reverse();
        }
        levels.into_iter().flatten().filter(|m| !m.is_empty())
    }
}

impl RouteView for Route {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn virtual_host(&self) -> &str {
        &self.shared.virtual_host.name
    }

    fn filter_config(&self, filter: FilterId) -> Option<&RouteFilterConfig> {
        let weighted = self.weighted.as_ref().map(|w| &w.filter_configs);
        let levels = [
            weighted,
            Some(&self.shared.filter_configs),
            Some(&self.shared.virtual_host.filter_configs),
            Some(&self.shared.config.filter_configs),
        ];
        let mut all = levels.into_iter().flatten().flatten();
        all.find(|(id, _)| *id == filter).map(|(_, config)| config)
    }

    fn metadata(&self, namespace: &str) -> Option<&serde_json::Value> {
        self.shared.metadata.get(namespace)
    }
}

/// A route of a table: with one outcome, or one for each weighted cluster.
#[derive(Debug, Clone)]
pub enum CompiledRoute {
    /// One outcome.
    Single(Arc<Route>),
    /// One by chance.
    Weighted {
        /// The sum of the weights; positive.
        total: u64,
        /// Each outcome with the sum of the weights up to and including its own.
        entries: Vec<(u64, Arc<Route>)>,
        /// The last of them, which the last sum leads to.
        last: Arc<Route>,
    },
}

impl CompiledRoute {
    /// Compiles a route.
    ///
    /// # Errors
    /// An invalid or unsupported field, with its path inside the route.
    pub fn compile(
        proto: &pb::Route,
        scope: &Scope<'_>,
        cx: &CompileContext<'_>,
    ) -> Result<Self, ConfigError> {
        reject(&[(!proto.route_specifiers.is_empty(), "route_specifiers")])?;
        let matching = proto.r#match.as_ref();
        let matching = matching.ok_or_else(|| ConfigError::new("match is required"))?;
        let forward = match &proto.action {
            Some(ProtoAction::Route(route)) => Forward::compile(route, scope, cx).at("route")?,
            _ => Forward::default(),
        };
        let metadata = proto.metadata.iter().flat_map(|m| &m.filter_metadata);
        let metadata = metadata.map(|(k, v)| (k.clone(), struct_to_json(v).into()));
        let shared = Arc::new(Shared {
            name: proto.name.clone().into(),
            virtual_host: scope.virtual_host.clone(),
            config: scope.config.clone(),
            matched: MatchedPath::compile(matching).at("match")?,
            request: HeaderMutations::compile(
                "request",
                &proto.request_headers_to_add,
                &proto.request_headers_to_remove,
            )?,
            response: HeaderMutations::compile(
                "response",
                &proto.response_headers_to_add,
                &proto.response_headers_to_remove,
            )?,
            filter_configs: cx.filter_configs(&proto.typed_per_filter_config)?,
            metadata: metadata.collect(),
            buffer_limit: buffer_limit(
                proto.per_request_buffer_limit_bytes.as_ref(),
                proto.request_body_buffer_limit.as_ref(),
            ),
            forward,
        });
        let action = match &proto.action {
            None => return Err(ConfigError::new("an action is required")),
            Some(ProtoAction::Route(route)) => match &route.cluster_specifier {
                Some(ClusterSpecifier::WeightedClusters(clusters)) => {
                    return Self::weighted(clusters, &shared, cx)
                        .at("weighted_clusters")
                        .at("route");
                }
                specifier => target(specifier.as_ref(), cx).at("route")?,
            },
            Some(ProtoAction::Redirect(redirect)) => {
                Action::Redirect(Redirect::compile(redirect).at("redirect")?)
            }
            Some(ProtoAction::DirectResponse(direct)) => {
                let limit = scope.config.max_direct_response_body;
                let direct = DirectResponse::compile(direct, limit).at("direct_response")?;
                Action::DirectResponse(direct)
            }
            Some(ProtoAction::NonForwardingAction(_)) => Action::NonForwarding,
            Some(ProtoAction::FilterAction(_)) => {
                return Err(ConfigError::unsupported("filter_action"));
            }
        };
        Ok(Self::Single(Arc::new(Route {
            action,
            shared,
            weighted: None,
        })))
    }

    fn weighted(
        proto: &pb::WeightedCluster,
        shared: &Arc<Shared>,
        cx: &CompileContext<'_>,
    ) -> Result<Self, ConfigError> {
        use weighted::RandomValueSpecifier as Random;
        reject(&[
            (
                matches!(&proto.random_value_specifier, Some(Random::HeaderName(_))),
                "header_name",
            ),
            (
                matches!(&proto.random_value_specifier, Some(Random::UseHashPolicy(on)) if on.value),
                "use_hash_policy",
            ),
        ])?;
        let mut total = 0_u64;
        let mut entries = Vec::new();
        for (i, cluster) in proto.clusters.iter().enumerate() {
            let (action, weighted) = entry(cluster, cx).at(format!("clusters[{i}]"))?;
            total += cluster.weight.as_ref().map_or(0, |w| u64::from(w.value));
            entries.push((
                total,
                Arc::new(Route {
                    action,
                    shared: shared.clone(),
                    weighted: Some(weighted),
                }),
            ));
        }
        if total == 0 || total > u64::from(u32::MAX) {
            return Err(ConfigError::new(
                "the sum of the weights must be from 1 to 4294967295",
            ));
        }
        let Some((_, last)) = entries.last() else {
            return Err(ConfigError::new("is empty").at("clusters"));
        };
        let last = last.clone();
        Ok(Self::Weighted {
            total,
            entries,
            last,
        })
    }

    /// The outcome for a random number.
    pub fn pick(&self, random: u64) -> &Arc<Route> {
        match self {
            Self::Single(route) => route,
            Self::Weighted {
                total,
                entries,
                last,
            } => {
                let point = random % (*total).max(1);
                let at = entries.partition_point(|(up_to, _)| *up_to <= point);
                entries.get(at).map_or(last, |(_, route)| route)
            }
        }
    }
}

/// Compiles what one weighted cluster is and adds.
fn entry(
    proto: &weighted::ClusterWeight,
    cx: &CompileContext<'_>,
) -> Result<(Action, Weighted), ConfigError> {
    use weighted::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral;
    let action = match (proto.name.as_str(), proto.cluster_header.as_str()) {
        ("", "") => return Err(ConfigError::new("name or cluster_header is required")),
        ("", header) => Action::ClusterHeader(header_name(header).at("cluster_header")?),
        (name, "") => Action::Cluster((cx.cluster)(name)),
        _ => return Err(ConfigError::new("name and cluster_header are both set")),
    };
    let host = match &proto.host_rewrite_specifier {
        Some(HostRewriteLiteral(host)) => HostRewrite::literal(host)?,
        None => None,
    };
    let weighted = Weighted {
        request: HeaderMutations::compile(
            "request",
            &proto.request_headers_to_add,
            &proto.request_headers_to_remove,
        )?,
        response: HeaderMutations::compile(
            "response",
            &proto.response_headers_to_add,
            &proto.response_headers_to_remove,
        )?,
        filter_configs: cx.filter_configs(&proto.typed_per_filter_config)?,
        host,
    };
    Ok((action, weighted))
}

fn target(
    specifier: Option<&ClusterSpecifier>,
    cx: &CompileContext<'_>,
) -> Result<Action, ConfigError> {
    Ok(match specifier {
        Some(ClusterSpecifier::Cluster(name)) => Action::Cluster((cx.cluster)(name)),
        Some(ClusterSpecifier::ClusterHeader(name)) => {
            Action::ClusterHeader(header_name(name).at("cluster_header")?)
        }
        Some(ClusterSpecifier::ClusterSpecifierPlugin(_)) => {
            return Err(ConfigError::unsupported("cluster_specifier_plugin"));
        }
        Some(ClusterSpecifier::InlineClusterSpecifierPlugin(_)) => {
            return Err(ConfigError::unsupported("inline_cluster_specifier_plugin"));
        }
        Some(ClusterSpecifier::WeightedClusters(_)) | None => {
            return Err(ConfigError::new("a cluster specifier is required"));
        }
    })
}
