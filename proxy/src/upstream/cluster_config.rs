//! The settings of a cluster, compiled from `envoy.config.cluster.v3.Cluster`.

use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf as wkt;
use filters::metadata::ConfiguredMetadata;
use xds_client::duration;
use xds_client::error::{At, ConfigError};

use crate::http::h1::Http1Settings;
use crate::telemetry::stats::Scope;
use crate::transport::tls::secrets::SecretStore;
use crate::transport::upstream::{UpstreamContext, UpstreamTransport};
use crate::upstream::balance::{LbPolicy, SetOptions};
use crate::upstream::circuit_breaker::{Limits, Priority};
use crate::upstream::http_options::HttpOptions;
pub use crate::upstream::http_options::{AutoNames, Http2Options, UpstreamProtocol};
use crate::upstream::lb_policy::Balancing;
use crate::upstream::original_dst::OriginalDst;

/// What compiling a cluster takes from the process.
#[derive(Default)]
pub struct Stores {
    /// Secrets by name.
    pub secrets: Arc<SecretStore>,
    /// The scope without a prefix, in which clusters make their stats.
    pub scope: Option<Scope>,
}

/// Where a cluster's endpoints come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Discovery {
    /// `load_assignment`, addresses only.
    Static,
    /// Every address of every name is a host.
    StrictDns,
    /// One name, one host: its first address.
    LogicalDns,
    /// EDS under this name (`service_name`, or the cluster's own).
    Eds {
        /// The resource's name.
        name: ByteString,
        /// The source, as the subscription needs it.
        source: Box<core::ConfigSource>,
    },
    /// Where the connection was meant to go.
    OriginalDst(OriginalDst),
}

/// The settings of a cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterConfig {
    /// Its name.
    pub name: ByteString,
    /// Under which its stats stand: `alt_stat_name`, or the name.
    pub stat_name: ByteString,
    /// Where endpoints come from.
    pub discovery: Discovery,
    /// `connect_timeout`; 5 s by default.
    pub connect_timeout: Duration,
    /// `per_connection_buffer_limit_bytes`; 1 MiB by default.
    pub buffer_limit: u32,
    /// How hosts are picked.
    pub lb: LbPolicy,
    /// Panic threshold and localities.
    pub set: SetOptions,
    /// The HTTP version.
    pub protocol: UpstreamProtocol,
    /// HTTP/1 settings.
    pub http1: Http1Settings,
    /// HTTP/2 settings.
    pub http2: Http2Options,
    /// Names for TLS that come from requests.
    pub auto: AutoNames,
    /// `metadata` says `istio: {alpn_override: "false"}`: what istio's ALPN filter asks for does not count here.
    pub keeps_alpn: bool,
    /// After how many requests a connection is not reused; none: no limit.
    pub max_requests: Option<u32>,
    /// After how long a connection takes no more requests; none: never.
    pub max_connection_age: Option<Duration>,
    /// How long a stream may take once it has its connection; none: no limit.
    pub max_stream_duration: Option<Duration>,
    /// After how long an unused connection is closed; none: never. 1 h by default.
    pub idle_timeout: Option<Duration>,
    /// `dns_refresh_rate`; 5 s by default.
    pub dns_refresh: Duration,
    /// `dns_lookup_family`.
    pub dns_family: pb::cluster::DnsLookupFamily,
    /// `respect_dns_ttl`.
    pub respect_dns_ttl: bool,
    /// `upstream_bind_config.source_address`.
    pub bind: Option<std::net::SocketAddr>,
    /// The default transport.
    pub transport: UpstreamTransport,
    /// `transport_socket_matches`: labels that must all be in the endpoint's
    /// `envoy.transport_socket_match` metadata, and the transport they choose.
    pub transport_matches: Vec<(wkt::Struct, UpstreamTransport)>,
    /// `metadata`, for formatters and matchers.
    pub metadata: ConfiguredMetadata,
    /// Circuit breaker limits: default and high priority.
    pub limits: [Limits; 2],
}

fn discovery(proto: &pb::Cluster) -> Result<Discovery, ConfigError> {
    let number = match &proto.cluster_discovery_type {
        Some(ClusterDiscoveryType::ClusterType(_)) => {
            return Err(ConfigError::unsupported("cluster_type"));
        }
        Some(ClusterDiscoveryType::Type(number)) => *number,
        None => 0,
    };
    match DiscoveryType::try_from(number) {
        Ok(DiscoveryType::Static) => Ok(Discovery::Static),
        Ok(DiscoveryType::StrictDns) => Ok(Discovery::StrictDns),
        Ok(DiscoveryType::LogicalDns) => Ok(Discovery::LogicalDns),
        Ok(DiscoveryType::OriginalDst) => OriginalDst::compile(proto).map(Discovery::OriginalDst),
        Ok(DiscoveryType::Eds) => {
            let config = proto.eds_cluster_config.as_ref();
            let source = config.and_then(|c| c.eds_config.clone()).ok_or_else(|| {
                ConfigError::new("is required for EDS").at("eds_cluster_config.eds_config")
            })?;
            let name = config.map_or("", |c| c.service_name.as_str());
            Ok(Discovery::Eds {
                name: if name.is_empty() { &proto.name } else { name }.into(),
                source: Box::new(source),
            })
        }
        Err(_) => Err(ConfigError::unsupported("type")),
    }
}

impl ClusterConfig {
    /// Validates and compiles a cluster.
    ///
    /// Refused, because ignoring them would change which host a request reaches, or when it fails:
    /// `health_checks`, subsets, `per_host_thresholds`.
    ///
    /// Accepted without effect: `outlier_detection` (all hosts stay in use, as they do in Envoy until one is
    /// ejected; control planes set it by default), `filters` (istio sends its metadata exchange, which only adds
    /// telemetry), zone aware routing (it needs a local cluster), and preconnecting (it only saves time).
    ///
    /// # Errors
    /// The path of the field that is missing, invalid, or not supported.
    // Control planes still send the deprecated fields, and Envoy still reads them.
    #[allow(deprecated)]
    pub fn compile(proto: &pb::Cluster, stores: &Stores) -> Result<Self, ConfigError> {
        if proto.name.is_empty() {
            return Err(ConfigError::new("must not be empty").at("name"));
        }
        if !proto.health_checks.is_empty() {
            return Err(ConfigError::unsupported("health_checks"));
        }
        if proto.lb_subset_config.is_some() {
            return Err(ConfigError::unsupported("lb_subset_config"));
        }
        if proto.connection_pool_per_downstream_connection {
            return Err(ConfigError::unsupported(
                "connection_pool_per_downstream_connection",
            ));
        }
        let balancing = Balancing::compile(proto)?;
        let mut set = SetOptions {
            locality_weighted: balancing.locality_weighted,
            slow_start: balancing.slow_start,
            ..SetOptions::default()
        };
        let common = proto.common_lb_config.as_ref();
        if let Some(threshold) = common.and_then(|c| c.healthy_panic_threshold.as_ref()) {
            set.panic_threshold = threshold.value;
        }
        let limits = Limits::compile(proto.circuit_breakers.as_ref()).at("circuit_breakers")?;
        let HttpOptions {
            protocol,
            mut http1,
            http2: h2,
            auto,
            common,
        } = HttpOptions::compile(proto)?;
        let common = common.unwrap_or_default();
        if let Some(max) = &common.max_headers_count {
            http1.max_headers = max.value as usize;
        }
        let path = "common_http_protocol_options";
        let max_stream = common.max_stream_duration.as_ref();
        let max_stream = duration::of_field(max_stream, "max_stream_duration").at(path)?;
        let max_age = common.max_connection_duration.as_ref();
        let max_age = duration::of_field(max_age, "max_connection_duration").at(path)?;
        let max_requests = common
            .max_requests_per_connection
            .as_ref()
            .or(proto.max_requests_per_connection.as_ref())
            .map(|v| v.value)
            .filter(|v| *v > 0);
        let idle = duration::of_field(
            common.idle_timeout.as_ref(),
            "common_http_protocol_options.idle_timeout",
        )?;
        let connect_timeout =
            duration::of_field(proto.connect_timeout.as_ref(), "connect_timeout")?;
        if connect_timeout == Some(Duration::ZERO) {
            return Err(ConfigError::new("must be greater than 0").at("connect_timeout"));
        }
        let source = proto
            .upstream_bind_config
            .as_ref()
            .and_then(|b| b.source_address.as_ref());
        let bind = source
            .map(|s| {
                let ip = s.address.parse::<std::net::IpAddr>();
                ip.map(|ip| (ip, 0).into()).map_err(|_| {
                    ConfigError::new("is not an IP address")
                        .at("upstream_bind_config.source_address.address")
                })
            })
            .transpose()?;
        let stat_name = match proto.alt_stat_name.as_str() {
            "" => proto.name.replace(':', "_"),
            alt => alt.replace(':', "_"),
        };
        let sockets = UpstreamContext {
            secrets: &stores.secrets,
            metadata: proto.metadata.as_ref(),
            scope: stores
                .scope
                .as_ref()
                .map(|root| root.scope(&format!("cluster.{stat_name}."))),
        };
        let mut transport_matches = Vec::with_capacity(proto.transport_socket_matches.len());
        for (i, m) in proto.transport_socket_matches.iter().enumerate() {
            let transport = UpstreamTransport::compile(m.transport_socket.as_ref(), &sockets)
                .at(format!("transport_socket_matches[{i}].transport_socket"))?;
            transport_matches.push((m.r#match.clone().unwrap_or_default(), transport));
        }
        let config = Self {
            name: proto.name.as_str().into(),
            stat_name: stat_name.into(),
            discovery: discovery(proto)?,
            connect_timeout: connect_timeout.unwrap_or(Duration::from_secs(5)),
            buffer_limit: proto
                .per_connection_buffer_limit_bytes
                .as_ref()
                .map_or(1 << 20, |v| v.value),
            lb: balancing.policy,
            set,
            protocol,
            http1,
            http2: h2,
            auto,
            keeps_alpn: keeps_alpn(proto.metadata.as_ref()),
            max_requests,
            max_connection_age: max_age.filter(|d| !d.is_zero()),
            max_stream_duration: max_stream.filter(|d| !d.is_zero()),
            idle_timeout: Some(idle.unwrap_or(Duration::from_secs(3600))).filter(|d| !d.is_zero()),
            dns_refresh: duration::of_field(proto.dns_refresh_rate.as_ref(), "dns_refresh_rate")?
                .unwrap_or(Duration::from_secs(5))
                .max(Duration::from_millis(1)),
            dns_family: pb::cluster::DnsLookupFamily::try_from(proto.dns_lookup_family)
                .map_err(|_| ConfigError::unsupported("dns_lookup_family"))?,
            respect_dns_ttl: proto.respect_dns_ttl,
            bind,
            transport: UpstreamTransport::compile(proto.transport_socket.as_ref(), &sockets)
                .at("transport_socket")?,
            transport_matches,
            metadata: ConfiguredMetadata::compile(proto.metadata.as_ref()),
            limits,
        };
        config.check_alpn()?;
        Ok(config)
    }

    /// `auto_config` lets servers choose, so every transport must be able to ask them.
    fn check_alpn(&self) -> Result<(), ConfigError> {
        if self.protocol != UpstreamProtocol::Auto {
            return Ok(());
        }
        let asks = |transport: &UpstreamTransport| transport.tls().is_some();
        let refused = |what: &str| {
            let name = &self.name;
            ConfigError::new(format!(
                "ALPN configured for cluster {name} which has a non-ALPN {what}"
            ))
        };
        if !asks(&self.transport) {
            return Err(refused("transport socket").at("transport_socket"));
        }
        if !self.transport_matches.iter().all(|(_, t)| asks(t)) {
            return Err(refused("transport socket matcher").at("transport_socket_matches"));
        }
        Ok(())
    }

    /// Whether nobody waits for secrets of its TLS contexts any longer.
    pub fn has_secrets(&self, secrets: &SecretStore) -> bool {
        let matched = self.transport_matches.iter().map(|(_, t)| t);
        let mut all = matched.chain([&self.transport]);
        all.all(|transport| transport.tls().is_none_or(|tls| tls.is_answered(secrets)))
    }

    /// The circuit breaker limits of a priority.
    pub fn limits_of(&self, priority: Priority) -> &Limits {
        let [default, high] = &self.limits;
        match priority {
            Priority::Default => default,
            Priority::High => high,
        }
    }

    /// The transport for an endpoint with this metadata; its locality's counts if its own chooses none.
    pub fn transport_for(
        &self,
        endpoint: Option<&core::Metadata>,
        locality: Option<&core::Metadata>,
    ) -> &UpstreamTransport {
        let chosen = |metadata: Option<&core::Metadata>| {
            let labels = metadata.map(|m| &m.filter_metadata);
            let labels = labels.and_then(|l| l.get("envoy.transport_socket_match"));
            let has = |(k, v): (&String, &_)| labels.and_then(|l| l.fields.get(k)) == Some(v);
            let mut matches = self.transport_matches.iter();
            matches.find(|(wanted, _)| wanted.fields.iter().all(has))
        };
        chosen(endpoint)
            .or_else(|| chosen(locality))
            .map_or(&self.transport, |(_, transport)| transport)
    }
}

fn keeps_alpn(metadata: Option<&core::Metadata>) -> bool {
    let istio = metadata.and_then(|m| m.filter_metadata.get("istio"));
    let value = istio.and_then(|fields| fields.fields.get("alpn_override"));
    let kind = value.and_then(|value| value.kind.as_ref());
    matches!(kind, Some(wkt::value::Kind::StringValue(text)) if text == "false")
}
