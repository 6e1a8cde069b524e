//! What a `RouteAction` says beside the cluster, compiled.

use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use envoy_types::pb::envoy::config::route::v3 as pb;
use http::StatusCode;
use xds_client::duration;
use xds_client::error::{At, ConfigError};

use crate::router::action::{HashPolicy, Mirror};
use crate::router::context::{CompileContext, Scope, hedges, reject};
use crate::router::retry_policy::RetryPolicy;
use crate::router::rewrite::{HostRewrite, MatchedPath, PathRewrite};
use crate::upstream::circuit_breaker::Priority;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// What a `RouteAction` says beside the cluster.
pub(super) struct Forward {
    pub(super) timeout: Option<Duration>,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) max_stream_duration: Option<Duration>,
    pub(super) grpc_timeout_header_max: Option<Duration>,
    pub(super) grpc_timeout_header_offset: Option<Duration>,
    pub(super) max_grpc_timeout: Option<Duration>,
    pub(super) grpc_timeout_offset: Option<Duration>,
    pub(super) retry_policy: Option<Arc<RetryPolicy>>,
    pub(super) mirrors: Arc<[Mirror]>,
    pub(super) hash_policies: Vec<HashPolicy>,
    pub(super) cluster_not_found: StatusCode,
    pub(super) priority: Priority,
    pub(super) upgrades: Vec<(ByteString, bool)>,
    /// CONNECT ends here: what it carries goes to the cluster as bytes.
    pub(super) ends_connect: bool,
    pub(super) path: Option<PathRewrite>,
    pub(super) host: Option<HostRewrite>,
    pub(super) append_forwarded_host: bool,
}

impl Default for Forward {
    fn default() -> Self {
        Self {
            timeout: Some(DEFAULT_TIMEOUT),
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
            priority: Priority::Default,
            upgrades: Vec::new(),
            ends_connect: false,
            path: None,
            host: None,
            append_forwarded_host: false,
        }
    }
}

/// How a route rewrites the path.
fn path_rewrite(
    proto: &pb::RouteAction,
    matched: &MatchedPath,
) -> Result<Option<PathRewrite>, ConfigError> {
    let prefix = Some(proto.prefix_rewrite.as_str()).filter(|prefix| !prefix.is_empty());
    let regex = proto.regex_rewrite.as_ref();
    let policy = proto.path_rewrite_policy.as_ref();
    Ok(match (prefix, regex, policy) {
        (None, None, None) => None,
        (Some(prefix), None, None) => Some(matched.rewrite_prefix(prefix).at("prefix_rewrite")?),
        (None, Some(regex), None) => Some(PathRewrite::regex(regex).at("regex_rewrite")?),
        (None, None, Some(policy)) => {
            Some(PathRewrite::policy(policy, matched).at("path_rewrite_policy")?)
        }
        _ => {
            return Err(ConfigError::new(
                "only one of prefix_rewrite, regex_rewrite and path_rewrite_policy may be set",
            ));
        }
    })
}

impl Forward {
    pub(super) fn compile(
        proto: &pb::RouteAction,
        matched: &MatchedPath,
        scope: &Scope<'_>,
        cx: &CompileContext<'_>,
    ) -> Result<Self, ConfigError> {
        #[allow(deprecated)] // deprecated fields are still sent
        let deprecated = proto.internal_redirect_action != 0;
        reject(&[
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
        let path = path_rewrite(proto, matched)?;
        let cluster_not_found = match proto.cluster_not_found_response_code {
            1 => StatusCode::NOT_FOUND,
            2 => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let mut upgrades: Vec<(ByteString, bool)> = Vec::new();
        let mut ends_connect = false;
        for (i, upgrade) in proto.upgrade_configs.iter().enumerate() {
            let kind = &upgrade.upgrade_type;
            if upgrades.iter().any(|(k, _)| k.eq_ignore_ascii_case(kind)) {
                let error = ConfigError::new(format!("'{kind}' is configured already"));
                return Err(error.at(format!("upgrade_configs[{i}].upgrade_type")));
            }
            if let Some(config) = &upgrade.connect_config {
                let step = format!("upgrade_configs[{i}].connect_config");
                if !kind.eq_ignore_ascii_case("CONNECT") {
                    let error = format!("non-CONNECT upgrade type {kind} has a connect_config");
                    return Err(ConfigError::new(error).at(step));
                }
                reject(&[
                    (
                        config.proxy_protocol_config.is_some(),
                        "proxy_protocol_config",
                    ),
                    (config.allow_post, "allow_post"),
                ])
                .at(step)?;
                ends_connect = true;
            }
            let on = upgrade.enabled.as_ref().is_none_or(|e| e.value);
            upgrades.push((upgrade.upgrade_type.clone().into(), on));
        }
        let own = Mirror::compile_all(&proto.request_mirror_policies, cx)?;
        let mirrors = [&own, &scope.virtual_host.mirrors, &scope.config.mirrors];
        let mirrors = mirrors.into_iter().find(|m| !m.is_empty()).cloned();
        // Whatever it says, its presence turns the older timeouts off.
        let max = proto.max_stream_duration.as_ref();
        let host = proto
            .host_rewrite_specifier
            .as_ref()
            .map(HostRewrite::compile);
        let retry = proto.retry_policy.as_ref().map(RetryPolicy::compile);
        let timeout = duration::of_field(proto.timeout.as_ref(), "timeout")?;
        Ok(Self {
            timeout: match max {
                Some(_) => None,
                None => timeout.or(Some(DEFAULT_TIMEOUT)).filter(|d| !d.is_zero()),
            },
            idle_timeout: duration::of_field(proto.idle_timeout.as_ref(), "idle_timeout")?,
            max_stream_duration: duration::of_field(
                max.and_then(|m| m.max_stream_duration.as_ref()),
                "max_stream_duration.max_stream_duration",
            )?,
            grpc_timeout_header_max: duration::of_field(
                max.and_then(|m| m.grpc_timeout_header_max.as_ref()),
                "max_stream_duration.grpc_timeout_header_max",
            )?,
            grpc_timeout_header_offset: duration::of_field(
                max.and_then(|m| m.grpc_timeout_header_offset.as_ref()),
                "max_stream_duration.grpc_timeout_header_offset",
            )?,
            max_grpc_timeout: duration::of_field(
                proto.max_grpc_timeout.as_ref(),
                "max_grpc_timeout",
            )?
            .filter(|_| max.is_none()),
            grpc_timeout_offset: duration::of_field(
                proto.grpc_timeout_offset.as_ref(),
                "grpc_timeout_offset",
            )?,
            retry_policy: retry.transpose().at("retry_policy")?.map(Arc::new),
            mirrors: mirrors.unwrap_or_default(),
            hash_policies: HashPolicy::compile_all(&proto.hash_policy)?,
            cluster_not_found,
            priority: if proto.priority == 1 {
                Priority::High
            } else {
                Priority::Default
            },
            upgrades,
            ends_connect,
            path,
            host: host.transpose()?.flatten(),
            append_forwarded_host: proto.append_x_forwarded_host,
        })
    }
}
