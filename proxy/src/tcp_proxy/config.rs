//! `TcpProxy`, compiled.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::BackoffStrategy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy, UpstreamConnectMode,
};
use envoy_types::pb::envoy::r#type::v3::hash_policy::PolicySpecifier;
use envoy_types::pb::google::protobuf as wkt;
use filters::filter_state::keys;
use filters::stream::StreamInfo;
use xds_client::backoff::Backoff;
use xds_client::duration;
use xds_client::error::{At, ConfigError};

use super::proxy_tlvs::ProxyTlvs;
use super::stats::TcpProxyStats;
use super::tunneling::Tunneling;
use crate::telemetry::http_log::AccessLog;
use crate::telemetry::stats::Scope;
use crate::upstream::cluster::Cluster;
use crate::upstream::slot::{ClusterDirectory, ClusterSlot};

/// How long a connection may be quiet if nothing else is said.
const IDLE: Duration = Duration::from_secs(3600);

/// A compiled TCP proxy.
pub struct TcpProxyConfig {
    /// Clusters with the running sum of their weights, or the one.
    pub(super) clusters: Vec<(u64, Arc<ClusterSlot<Cluster>>)>,
    /// Clusters have weights, over which filter state has no say.
    weighted: bool,
    /// The clusters that filter state may name.
    directory: ClusterDirectory<Cluster>,
    /// `None` is for ever.
    idle_timeout: Option<Duration>,
    max_duration: Option<Duration>,
    /// By how much of itself `max_duration` may be longer, at random.
    jitter: f64,
    pub(super) connect_attempts: u32,
    /// Between attempts; `None` is no wait.
    pub(super) backoff: Option<Backoff>,
    /// Choose hosts by the hash of the client's address.
    pub(super) hash_source_ip: bool,
    /// Connections go on in a request.
    tunneling: Option<Tunneling>,
    /// Nothing is done before the client has said something.
    pub(super) on_data: bool,
    pub(super) proxy_tlvs: ProxyTlvs,
    pub(super) access_logs: Vec<AccessLog>,
    pub(super) moments: Moments,
    pub(super) stats: TcpProxyStats,
}

/// When access logs are written besides a connection's end.
pub(super) struct Moments {
    pub(super) start: bool,
    pub(super) connected: bool,
    /// So often.
    pub(super) interval: Option<Duration>,
}

impl Moments {
    #[allow(deprecated)]
    fn compile(proto: &TcpProxy) -> Result<Self, ConfigError> {
        let Some(options) = &proto.access_log_options else {
            return Ok(Self {
                start: false,
                connected: proto.flush_access_log_on_connected,
                interval: interval(proto.access_log_flush_interval.as_ref())?,
            });
        };
        if proto.flush_access_log_on_connected || proto.access_log_flush_interval.is_some() {
            return Err(
                ConfigError::new("excludes the older fields for the same").at("access_log_options")
            );
        }
        Ok(Self {
            start: options.flush_access_log_on_start,
            connected: options.flush_access_log_on_connected,
            interval: interval(options.access_log_flush_interval.as_ref())
                .at("access_log_options")?,
        })
    }
}

/// `access_log_flush_interval`, for which less than a millisecond is too often.
fn interval(proto: Option<&wkt::Duration>) -> Result<Option<Duration>, ConfigError> {
    let field = "access_log_flush_interval";
    let interval = duration::of_field(proto, field)?;
    if interval.is_some_and(|interval| interval < Duration::from_millis(1)) {
        return Err(ConfigError::new("must be at least 1 ms").at(field));
    }
    Ok(interval)
}

/// The waits between attempts to connect.
fn backoff(proto: &BackoffStrategy) -> Result<Backoff, ConfigError> {
    let base = duration::of_field(proto.base_interval.as_ref(), "base_interval")?;
    let base = base.ok_or_else(|| ConfigError::new("is required").at("base_interval"))?;
    let max = duration::of_field(proto.max_interval.as_ref(), "max_interval")?;
    let max = max.unwrap_or(base.saturating_mul(10));
    if base < Duration::from_millis(1) {
        return Err(ConfigError::new("must be at least 1 ms").at("base_interval"));
    }
    if max < base {
        return Err(ConfigError::new("must not be less than base_interval").at("max_interval"));
    }
    Ok(Backoff::new(base, max))
}

impl TcpProxyConfig {
    /// Compiles the filter. `cluster` finds slots, `directory` those of clusters that filter state names; `root` is the
    /// scope without a prefix.
    ///
    /// # Errors
    /// What is wrong or not supported, by field.
    pub fn compile(
        proto: &TcpProxy,
        cluster: &dyn Fn(&str) -> Arc<ClusterSlot<Cluster>>,
        directory: &ClusterDirectory<Cluster>,
        access_logs: Vec<AccessLog>,
        root: &Scope,
    ) -> Result<Self, ConfigError> {
        refuse_unsupported(proto)?;
        if proto.stat_prefix.is_empty() {
            return Err(ConfigError::new("must not be empty").at("stat_prefix"));
        }
        let mut clusters = Vec::new();
        match &proto.cluster_specifier {
            None => return Err(ConfigError::new("is required").at("cluster_specifier")),
            Some(ClusterSpecifier::Cluster(name)) => clusters.push((1, cluster(name))),
            Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                let mut sum = 0_u64;
                for (i, entry) in weighted.clusters.iter().enumerate() {
                    let at = |e: ConfigError| e.at(format!("weighted_clusters.clusters[{i}]"));
                    if entry.name.is_empty() {
                        return Err(at(ConfigError::new("must not be empty").at("name")));
                    }
                    if entry.weight == 0 {
                        return Err(at(ConfigError::new("must be at least 1").at("weight")));
                    }
                    sum += u64::from(entry.weight);
                    clusters.push((sum, cluster(&entry.name)));
                }
                if clusters.is_empty() {
                    return Err(ConfigError::new("needs at least one cluster")
                        .at("weighted_clusters.clusters"));
                }
            }
        }
        let mut hash_source_ip = false;
        for (i, policy) in proto.hash_policy.iter().enumerate() {
            match &policy.policy_specifier {
                Some(PolicySpecifier::SourceIp(_)) => hash_source_ip = true,
                _ => {
                    return Err(
                        ConfigError::unsupported("filter_state").at(format!("hash_policy[{i}]"))
                    );
                }
            }
        }
        let attempts = proto.max_connect_attempts.as_ref().map_or(1, |v| v.value);
        if attempts == 0 {
            return Err(ConfigError::new("must be at least 1").at("max_connect_attempts"));
        }
        let jitter = proto
            .max_downstream_connection_duration_jitter_percentage
            .as_ref();
        if jitter.is_some_and(|percent| !(0.0..=100.0).contains(&percent.value)) {
            return Err(ConfigError::new("must be from 0 to 100")
                .at("max_downstream_connection_duration_jitter_percentage.value"));
        }
        Ok(Self {
            clusters,
            weighted: matches!(
                proto.cluster_specifier,
                Some(ClusterSpecifier::WeightedClusters(_))
            ),
            directory: directory.clone(),
            idle_timeout: match &proto.idle_timeout {
                None => Some(IDLE),
                Some(d) => Some(duration::read(d).at("idle_timeout")?).filter(|d| !d.is_zero()),
            },
            max_duration: duration::of_field(
                proto.max_downstream_connection_duration.as_ref(),
                "max_downstream_connection_duration",
            )?,
            jitter: jitter.map_or(0.0, |percent| percent.value / 100.0),
            connect_attempts: attempts,
            backoff: match &proto.backoff_options {
                Some(options) => Some(backoff(options).at("backoff_options")?),
                None => None,
            },
            moments: Moments::compile(proto)?,
            hash_source_ip,
            tunneling: match &proto.tunneling_config {
                Some(tunneling) => Some(Tunneling::compile(tunneling).at("tunneling_config")?),
                None => None,
            },
            on_data: waits_for_data(proto)?,
            proxy_tlvs: ProxyTlvs::compile(proto)?,
            access_logs,
            stats: TcpProxyStats::new(&root.scope(&format!("tcp.{}.", proto.stat_prefix))),
        })
    }

    /// How long a new connection may live.
    pub(super) fn lifetime(&self) -> Option<Duration> {
        let longer = 1.0 + self.jitter * fastrand::f64();
        self.max_duration.map(|most| most.mul_f64(longer))
    }

    /// How long a connection may be quiet.
    pub(super) fn idle_timeout(&self, info: &StreamInfo) -> Option<Duration> {
        let own = info.filter_state.number(keys::TCP_IDLE_TIMEOUT);
        own.map(Duration::from_millis).or(self.idle_timeout)
    }

    /// The tunnel that a connection takes.
    pub(super) fn tunneling(&self, info: &StreamInfo) -> Option<&Tunneling> {
        let disabled = info.filter_state.flag(keys::DISABLE_TUNNELING);
        self.tunneling.as_ref().filter(|_| disabled != Some(true))
    }

    /// The cluster that a connection goes to; `random` decides between those with weights.
    pub(super) fn cluster(
        &self,
        info: &StreamInfo,
        random: u64,
    ) -> Option<Arc<ClusterSlot<Cluster>>> {
        match info.filter_state.name(keys::TCP_CLUSTER) {
            Some(name) if !self.weighted => self.directory.find(name),
            _ => self.configured_cluster(random).cloned(),
        }
    }

    fn configured_cluster(&self, random: u64) -> Option<&Arc<ClusterSlot<Cluster>>> {
        let (total, _) = self.clusters.last()?;
        let turn = random % (*total).max(1);
        let found = self.clusters.iter().find(|(sum, _)| turn < *sum);
        found.map(|(_, slot)| slot)
    }
}

/// Whether the upstream is only connected to once the client has said something. After the handshake it is anyway:
/// nothing is done before.
fn waits_for_data(proto: &TcpProxy) -> Result<bool, ConfigError> {
    let field = "upstream_connect_mode";
    let mode = UpstreamConnectMode::try_from(proto.upstream_connect_mode)
        .map_err(|_| ConfigError::new("unknown value").at(field))?;
    if mode != UpstreamConnectMode::Immediate && proto.max_early_data_bytes.is_none() {
        let reason = "must be set when upstream_connect_mode is not IMMEDIATE";
        return Err(ConfigError::new(reason).at("max_early_data_bytes"));
    }
    Ok(mode == UpstreamConnectMode::OnDownstreamData)
}

/// Fields that would change where bytes go, or when a connection ends, and that nothing here implements.
fn refuse_unsupported(p: &TcpProxy) -> Result<(), ConfigError> {
    let refused = [
        (p.on_demand.is_some(), "on_demand"),
        (
            p.downstream_idle_timeout.is_some(),
            "downstream_idle_timeout",
        ),
        (p.upstream_idle_timeout.is_some(), "upstream_idle_timeout"),
        (p.check_drain_close.is_some(), "check_drain_close"),
    ];
    match refused.iter().find(|(set, _)| *set) {
        Some((_, field)) => Err(ConfigError::unsupported(field)),
        None => Ok(()),
    }
}
