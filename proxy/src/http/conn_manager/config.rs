//! `HttpConnectionManager`, validated and compiled.

use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use envoy_types::pb::envoy::config::core::v3::scheme_header_transformation::Transformation;
use envoy_types::pb::envoy::config::core::v3::{
    HttpProtocolOptions, Node, TypedExtensionConfig, http_protocol_options,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager as hcm,
};
use envoy_types::pb::envoy::extensions::http::early_header_mutation::header_mutation::v3::HeaderMutation;
use envoy_types::pb::google::protobuf::{self as wkt};
use filters::chain::FilterChain;
use filters::header_mutation::MutationList;
use http::HeaderValue;
use xds_client::any;
use xds_client::duration;
use xds_client::error::{At, ConfigError};

use super::client_address::ClientAddress;
use super::client_certificate::ClientCertificates;
use super::host::HostRules;
use super::local_reply_config::LocalReplyConfig;
use super::path::{EscapedSlashes, PathRules};
use super::request_id::RequestIds;
use super::request_mutation::UserAgent;
use super::stats::ConnectionManagerStats;
use crate::config::runtime::Runtime;
use crate::http::h1::{Http1Settings, Http1Stats, UnderscoreAction};
use crate::http::h2::{FieldLimits, Http2Settings, Http2Stats};
use crate::router::RouteSlot;
use crate::router::options::RouterOptions;
use crate::telemetry::http_log::AccessLog;

/// Which codec a connection gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// By ALPN, or by the connection's first bytes.
    Auto,
    /// HTTP/1 always.
    Http1,
    /// HTTP/2 always.
    Http2,
}

/// What to do with `server` in responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServerHeader {
    Overwrite,
    AppendIfAbsent,
    PassThrough,
}

/// A compiled connection manager, shared by all its connections.
pub struct HcmConfig {
    pub(super) stats: ConnectionManagerStats,
    pub(super) routes: Arc<RouteSlot>,
    pub(super) chain: FilterChain,
    pub(super) router: RouterOptions,
    pub(super) access_logs: Vec<AccessLog>,
    /// The codec choice.
    pub codec: Codec,
    /// HTTP/1 settings.
    pub http1: Http1Settings,
    /// HTTP/2 settings.
    pub http2: Http2Settings,
    /// How long a connection may have no stream.
    pub idle_timeout: Option<Duration>,
    /// How long a connection may live before it is drained.
    pub max_connection_duration: Option<Duration>,
    /// How many requests a connection may carry.
    pub max_requests: Option<u32>,
    pub(super) client: ClientAddress,
    pub(super) early_mutations: Vec<MutationList>,
    /// Whether `x-forwarded-port` tells the listener's port.
    pub(super) append_forwarded_port: bool,
    /// The scheme of all requests: whether it is `https`.
    pub(super) overwrite_scheme: Option<bool>,
    pub(super) user_agent: Option<UserAgent>,
    pub(super) client_certificates: ClientCertificates,
    pub(super) via: Option<HeaderValue>,
    pub(super) server_name: HeaderValue,
    pub(super) server_header: ServerHeader,
    pub(super) request_ids: RequestIds,
    pub(super) host: HostRules,
    pub(super) path: PathRules,
    pub(super) upgrades: Vec<ByteString>,
    pub(super) proxy_100_continue: bool,
    pub(super) default_host: ByteString,
    /// Whether a bad HTTP/1 request leaves the connection open.
    pub(super) stream_error_on_invalid_http1: bool,
    pub(super) stream_idle_timeout: Option<Duration>,
    pub(super) request_timeout: Option<Duration>,
    pub(super) max_stream_duration: Option<Duration>,
    pub(super) local_replies: Option<LocalReplyConfig>,
}

/// What a connection manager refers to, compiled by others.
pub struct HcmParts {
    /// Its route configuration.
    pub routes: Arc<RouteSlot>,
    /// Its filters.
    pub chain: FilterChain,
    /// Its router.
    pub router: RouterOptions,
    /// Its access logs.
    pub access_logs: Vec<AccessLog>,
    /// Its stats.
    pub stats: ConnectionManagerStats,
    /// The stats of its HTTP/2 codec.
    pub http2_stats: Arc<Http2Stats>,
    /// `http1.*`.
    pub http1_stats: Http1Stats,
    /// The runtime feature `http_reject_path_with_fragment`.
    pub reject_fragment: bool,
    /// This process as control planes know it.
    pub node: Arc<Node>,
    /// What the runtime may change.
    pub runtime: Arc<Runtime>,
}

impl HcmConfig {
    /// Compiles the parts that are the connection manager's own.
    ///
    /// # Errors
    /// Names the field that cannot be honoured.
    pub fn compile(proto: &HttpConnectionManager, parts: HcmParts) -> Result<Self, ConfigError> {
        refuse_unsupported(proto)?;
        let common = proto.common_http_protocol_options.unwrap_or_default();
        let http1 = proto.http_protocol_options.clone().unwrap_or_default();
        let max_head_kb = proto.max_request_headers_kb.as_ref();
        let max_head_bytes = (max_head_kb.map_or(60, |v| v.value) as usize) << 10;
        let max_headers = common.max_headers_count.as_ref();
        let max_headers = max_headers.map_or(100, |v| v.value) as usize;
        let idle_timeout = duration_or(&common.idle_timeout, Some(Duration::from_secs(3600)))
            .at("common_http_protocol_options.idle_timeout")?;
        let head_timeout =
            duration_or(&proto.request_headers_timeout, None).at("request_headers_timeout")?;
        let linger = duration_or(&proto.delayed_close_timeout, Some(Duration::from_secs(1)))
            .at("delayed_close_timeout")?;
        let underscores = underscores(&common)?;
        let limits = FieldLimits {
            bytes: max_head_bytes,
            count: max_headers,
        };
        Ok(Self {
            codec: codec(proto)?,
            http1: Http1Settings {
                max_head_bytes,
                max_headers,
                underscores,
                stats: parts.http1_stats,
                request_headers_timeout: head_timeout,
                idle_timeout,
                linger,
                ..Http1Settings::default()
            }
            .with_options(&http1)
            .at("http_protocol_options")?,
            http2: Http2Settings {
                linger,
                stats: parts.http2_stats,
                ..http2(proto, limits, underscores)?
            },
            idle_timeout,
            max_connection_duration: duration_or(&common.max_connection_duration, None)
                .at("common_http_protocol_options.max_connection_duration")?,
            max_requests: common
                .max_requests_per_connection
                .as_ref()
                .map(|v| v.value)
                .filter(|v| *v > 0),
            client: ClientAddress::compile(proto)?,
            early_mutations: early_mutations(proto)?,
            append_forwarded_port: proto.append_x_forwarded_port,
            overwrite_scheme: overwrite_scheme(proto)?,
            user_agent: match is_true(&proto.add_user_agent) {
                true => Some(user_agent(&parts.node)?),
                false => None,
            },
            client_certificates: ClientCertificates::compile(proto),
            via: match proto.via.as_str() {
                "" => None,
                via => Some(header_value(via).at("via")?),
            },
            server_name: match proto.server_name.as_str() {
                "" => HeaderValue::from_static("envoy"),
                name => header_value(name).at("server_name")?,
            },
            server_header: match proto.server_header_transformation() {
                hcm::ServerHeaderTransformation::Overwrite => ServerHeader::Overwrite,
                hcm::ServerHeaderTransformation::AppendIfAbsent => ServerHeader::AppendIfAbsent,
                hcm::ServerHeaderTransformation::PassThrough => ServerHeader::PassThrough,
            },
            request_ids: RequestIds::compile(proto)?,
            host: HostRules::compile(proto)?,
            path: path_rules(proto, parts.reject_fragment),
            upgrades: upgrades(proto)?,
            proxy_100_continue: proto.proxy_100_continue,
            default_host: http1.default_host_for_http_10.into(),
            stream_error_on_invalid_http1: http1
                .override_stream_error_on_invalid_http_message
                .as_ref()
                .or(proto.stream_error_on_invalid_http_message.as_ref())
                .is_some_and(|v| v.value),
            stream_idle_timeout: duration_or(
                &proto.stream_idle_timeout,
                Some(Duration::from_secs(300)),
            )
            .at("stream_idle_timeout")?,
            request_timeout: duration_or(&proto.request_timeout, None).at("request_timeout")?,
            max_stream_duration: duration_or(&common.max_stream_duration, None)
                .at("common_http_protocol_options.max_stream_duration")?,
            local_replies: proto
                .local_reply_config
                .as_ref()
                .map(|config| LocalReplyConfig::compile(config, &*parts.runtime))
                .transpose()
                .at("local_reply_config")?,
            stats: parts.stats,
            routes: parts.routes,
            chain: parts.chain,
            router: parts.router,
            access_logs: parts.access_logs,
        })
    }

    /// Counts a connection that has reached `max_connection_duration`.
    pub fn count_max_duration(&self) {
        self.stats.downstream_cx_max_duration_reached.inc();
    }
}

fn refuse_unsupported(proto: &HttpConnectionManager) -> Result<(), ConfigError> {
    #[allow(deprecated)] // still sent
    let (flush_interval, flush_early) = (
        proto.access_log_flush_interval.is_some(),
        proto.flush_access_log_on_new_request,
    );
    let refused = [
        (
            proto.path_normalization_options.is_some(),
            "path_normalization_options",
        ),
        (proto.proxy_status_config.is_some(), "proxy_status_config"),
        (
            proto.typed_header_validation_config.is_some(),
            "typed_header_validation_config",
        ),
        (
            proto
                .add_proxy_protocol_connection_state
                .as_ref()
                .is_some_and(|v| v.value),
            "add_proxy_protocol_connection_state",
        ),
        (
            proto.forward_client_cert_matcher.is_some(),
            "forward_client_cert_matcher",
        ),
        (proto.stream_flush_timeout.is_some(), "stream_flush_timeout"),
        (flush_interval, "access_log_flush_interval"),
        (flush_early, "flush_access_log_on_new_request"),
        (
            proto
                .access_log_options
                .is_some_and(|o| o != hcm::HcmAccessLogOptions::default()),
            "access_log_options",
        ),
        (
            proto.represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
            "represent_ipv4_remote_address_as_ipv4_mapped_ipv6",
        ),
        (proto.forward_proto_config.is_some(), "forward_proto_config"),
    ];
    match refused.iter().find(|(set, _)| *set) {
        Some((_, field)) => Err(ConfigError::unsupported(field)),
        None => Ok(()),
    }
}

fn codec(proto: &HttpConnectionManager) -> Result<Codec, ConfigError> {
    match proto.codec_type() {
        hcm::CodecType::Auto => Ok(Codec::Auto),
        hcm::CodecType::Http1 => Ok(Codec::Http1),
        hcm::CodecType::Http2 => Ok(Codec::Http2),
        hcm::CodecType::Http3 => Err(ConfigError::unsupported("codec_type")),
    }
}

fn underscores(common: &HttpProtocolOptions) -> Result<UnderscoreAction, ConfigError> {
    use http_protocol_options::HeadersWithUnderscoresAction as Action;
    Ok(match common.headers_with_underscores_action() {
        Action::Allow => UnderscoreAction::Allow,
        Action::RejectRequest => UnderscoreAction::Reject,
        Action::DropHeader => UnderscoreAction::Drop,
    })
}

fn http2(
    proto: &HttpConnectionManager,
    limits: FieldLimits,
    underscores: UnderscoreAction,
) -> Result<Http2Settings, ConfigError> {
    let mut settings = Http2Settings {
        limits,
        underscores,
        keep_connection_on_bad_message: is_true(&proto.stream_error_on_invalid_http_message),
        ..Http2Settings::default()
    };
    if let Some(options) = &proto.http2_protocol_options {
        settings.apply(options).at("http2_protocol_options")?;
    }
    Ok(settings)
}

fn early_mutations(proto: &HttpConnectionManager) -> Result<Vec<MutationList>, ConfigError> {
    let one = |(i, extension): (usize, &TypedExtensionConfig)| {
        let config = extension.typed_config.as_ref();
        let compiled = config
            .ok_or_else(|| ConfigError::new("is required"))
            .and_then(any::unpack::<HeaderMutation>)
            .and_then(|config| MutationList::compile(&config.mutations).at("mutations"));
        compiled.at(format!(
            "early_header_mutation_extensions[{i}].typed_config"
        ))
    };
    let extensions = proto.early_header_mutation_extensions.iter();
    extensions.enumerate().map(one).collect()
}

fn overwrite_scheme(proto: &HttpConnectionManager) -> Result<Option<bool>, ConfigError> {
    let Some(transformation) = &proto.scheme_header_transformation else {
        return Ok(None);
    };
    if transformation.match_upstream {
        return Err(ConfigError::unsupported(
            "scheme_header_transformation.match_upstream",
        ));
    }
    match &transformation.transformation {
        None => Ok(None),
        Some(Transformation::SchemeToOverwrite(scheme)) => match scheme.as_str() {
            "https" => Ok(Some(true)),
            "http" => Ok(Some(false)),
            _ => Err(ConfigError::new("must be http or https")
                .at("scheme_header_transformation.scheme_to_overwrite")),
        },
    }
}

fn user_agent(node: &Node) -> Result<UserAgent, ConfigError> {
    let value = |text: &str| header_value(text).at("add_user_agent (the node's id and cluster)");
    Ok(UserAgent {
        cluster: value(&node.cluster)?,
        node: match node.id.as_str() {
            "" => None,
            id => Some(value(id)?),
        },
    })
}

fn path_rules(proto: &HttpConnectionManager, reject_fragment: bool) -> PathRules {
    use hcm::PathWithEscapedSlashesAction as Action;
    PathRules {
        normalize: is_true(&proto.normalize_path),
        reject_fragment,
        merge_slashes: proto.merge_slashes,
        escaped_slashes: match proto.path_with_escaped_slashes_action() {
            Action::ImplementationSpecificDefault | Action::KeepUnchanged => EscapedSlashes::Keep,
            Action::RejectRequest => EscapedSlashes::Reject,
            Action::UnescapeAndRedirect => EscapedSlashes::Redirect,
            Action::UnescapeAndForward => EscapedSlashes::Forward,
        },
    }
}

fn upgrades(proto: &HttpConnectionManager) -> Result<Vec<ByteString>, ConfigError> {
    let mut names = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for (i, upgrade) in proto.upgrade_configs.iter().enumerate() {
        let kind = upgrade.upgrade_type.as_str();
        if seen.iter().any(|k| k.eq_ignore_ascii_case(kind)) {
            let error = ConfigError::new(format!("'{kind}' is configured already"));
            return Err(error.at(format!("upgrade_configs[{i}].upgrade_type")));
        }
        seen.push(kind);
        if !upgrade.filters.is_empty() {
            return Err(ConfigError::unsupported(&format!(
                "upgrade_configs[{i}].filters"
            )));
        }
        if upgrade.enabled.as_ref().is_none_or(|v| v.value) {
            names.push(upgrade.upgrade_type.to_ascii_lowercase().into());
        }
    }
    Ok(names)
}

fn is_true(value: &Option<wkt::BoolValue>) -> bool {
    value.as_ref().is_some_and(|v| v.value)
}

fn header_value(text: &str) -> Result<HeaderValue, ConfigError> {
    HeaderValue::from_str(text).map_err(|_| ConfigError::new("not a valid header value"))
}

/// A duration, or `default` when absent. Zero means none.
fn duration_or(
    value: &Option<wkt::Duration>,
    default: Option<Duration>,
) -> Result<Option<Duration>, ConfigError> {
    let Some(value) = value else {
        return Ok(default);
    };
    let duration = duration::read(value)?;
    Ok((!duration.is_zero()).then_some(duration))
}
