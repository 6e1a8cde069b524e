//! `TcpProxy`, compiled.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use envoy_types::pb::envoy::r#type::v3::hash_policy::PolicySpecifier;
use xds_client::duration;
use xds_client::error::{At, ConfigError};

use super::stats::TcpProxyStats;
use super::tunneling::Tunneling;
use crate::telemetry::http_log::AccessLog;
use crate::telemetry::stats::Scope;
use crate::upstream::cluster::Cluster;
use crate::upstream::slot::ClusterSlot;

/// How long a connection may be quiet if nothing else is said.
const IDLE: Duration = Duration::from_secs(3600);

/// A compiled TCP proxy.
pub struct TcpProxyConfig {
    /// Clusters with the running sum of their weights.
    pub(super) clusters: Vec<(u64, Arc<ClusterSlot<Cluster>>)>,
    /// `None` is for ever.
    pub(super) idle_timeout: Option<Duration>,
    pub(super) max_duration: Option<Duration>,
    pub(super) connect_attempts: u32,
    /// Choose hosts by the hash of the client's address.
    pub(super) hash_source_ip: bool,
    /// Connections go on in a request.
    pub(super) tunneling: Option<Tunneling>,
    pub(super) access_logs: Vec<AccessLog>,
    pub(super) stats: TcpProxyStats,
}

impl TcpProxyConfig {
    /// Compiles the filter. `cluster` finds slots; `root` is the scope without a prefix.
    ///
    /// # Errors
    /// What is wrong or not supported, by field.
    pub fn compile(
        proto: &TcpProxy,
        cluster: &dyn Fn(&str) -> Arc<ClusterSlot<Cluster>>,
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
                    if entry.metadata_match.is_some() {
                        return Err(at(ConfigError::unsupported("metadata_match")));
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
        Ok(Self {
            clusters,
            idle_timeout: match &proto.idle_timeout {
                None => Some(IDLE),
                Some(d) => Some(duration::read(d).at("idle_timeout")?).filter(|d| !d.is_zero()),
            },
            max_duration: duration::of_field(
                proto.max_downstream_connection_duration.as_ref(),
                "max_downstream_connection_duration",
            )?,
            connect_attempts: attempts,
            hash_source_ip,
            tunneling: match &proto.tunneling_config {
                Some(tunneling) => Some(Tunneling::compile(tunneling).at("tunneling_config")?),
                None => None,
            },
            access_logs,
            stats: TcpProxyStats::new(&root.scope(&format!("tcp.{}.", proto.stat_prefix))),
        })
    }

    /// The cluster that a connection with this random number goes to.
    pub(super) fn cluster(&self, random: u64) -> Option<&Arc<ClusterSlot<Cluster>>> {
        let (total, _) = self.clusters.last()?;
        let turn = random % (*total).max(1);
        let found = self.clusters.iter().find(|(sum, _)| turn < *sum);
        found.map(|(_, slot)| slot)
    }
}

/// Fields that would change where bytes go, or when a connection ends, and that nothing here implements.
fn refuse_unsupported(p: &TcpProxy) -> Result<(), ConfigError> {
    let refused = [
        (p.on_demand.is_some(), "on_demand"),
        (p.metadata_match.is_some(), "metadata_match"),
        (
            p.downstream_idle_timeout.is_some(),
            "downstream_idle_timeout",
        ),
        (p.upstream_idle_timeout.is_some(), "upstream_idle_timeout"),
        (p.backoff_options.is_some(), "backoff_options"),
        (
            p.max_downstream_connection_duration_jitter_percentage
                .is_some(),
            "max_downstream_connection_duration_jitter_percentage",
        ),
        (
            p.access_log_flush_interval.is_some(),
            "access_log_flush_interval",
        ),
        (
            p.flush_access_log_on_connected,
            "flush_access_log_on_connected",
        ),
        (p.access_log_options.is_some(), "access_log_options"),
        (!p.proxy_protocol_tlvs.is_empty(), "proxy_protocol_tlvs"),
        (p.upstream_connect_mode != 0, "upstream_connect_mode"),
        (p.max_early_data_bytes.is_some(), "max_early_data_bytes"),
        (p.check_drain_close.is_some(), "check_drain_close"),
    ];
    match refused.iter().find(|(set, _)| *set) {
        Some((_, field)) => Err(ConfigError::unsupported(field)),
        None => Ok(()),
    }
}
