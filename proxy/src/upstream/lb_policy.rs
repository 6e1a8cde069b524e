//! How a cluster picks hosts, compiled from `lb_policy` and `load_balancing_policy`.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::cluster::v3::cluster::LbConfig;
use envoy_types::pb::envoy::config::cluster::v3::cluster::common_lb_config::{
    ConsistentHashingLbConfig, LocalityConfigSpecifier as ClusterLocality,
};
use envoy_types::pb::envoy::config::core::v3::RuntimeDouble;
use envoy_types::pb::envoy::extensions::load_balancing_policies as policies;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf as wkt;
use policies::common::v3 as common;
use policies::common::v3::locality_lb_config::LocalityConfigSpecifier;
use prost::{Message, Name};
use xds_client::any;
use xds_client::duration;
use xds_client::error::{At, ConfigError};

use crate::upstream::hash_table::{HashTableConfig, HashTableKind, RingHash, is_prime};

/// How hosts are picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LbPolicy {
    /// Weighted round robin, per worker.
    RoundRobin,
    /// The least loaded of this many random picks.
    LeastRequest {
        /// At least 2; `u32::MAX` is the least loaded of all hosts.
        choices: u32,
    },
    /// Random, weights ignored as Envoy does.
    Random,
    /// By a request's hash; at random for requests without one.
    Hash(HashTableConfig),
}

/// `slow_start_config`: how a new host's share grows to its weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlowStart {
    /// For how long; more than zero.
    pub window: Duration,
    /// The growth's form: 1 is linear, more is faster at first.
    pub aggression: f64,
    /// The least share, from 0 to 1.
    pub min_share: f64,
}

impl SlowStart {
    /// The part of its weight that a host of this age has.
    pub fn share(&self, age: Duration) -> f64 {
        if age >= self.window {
            return 1.0;
        }
        let time = age.as_secs_f64().max(0.001) / self.window.as_secs_f64();
        time.powf(1.0 / self.aggression).max(self.min_share)
    }

    fn compile(
        window: Option<&wkt::Duration>,
        aggression: Option<&RuntimeDouble>,
        min: Option<&Percent>,
    ) -> Result<Option<Self>, ConfigError> {
        let window = duration::of_field(window, "slow_start_config.slow_start_window")?;
        let aggression = aggression.map_or(1.0, |a| a.default_value);
        if aggression.is_nan() || aggression <= 0.0 {
            return Err(ConfigError::new("must be greater than 0")
                .at("slow_start_config.aggression.default_value"));
        }
        Ok(window.filter(|w| !w.is_zero()).map(|window| Self {
            window,
            aggression,
            min_share: (min.map_or(10.0, |p| p.value) / 100.0).clamp(0.0, 1.0),
        }))
    }
}

/// All that a cluster says about balancing between its hosts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Balancing {
    /// The policy.
    pub policy: LbPolicy,
    /// For round robin and least request.
    pub slow_start: Option<SlowStart>,
    /// Whether localities are picked by their weights.
    pub locality_weighted: bool,
}

impl From<LbPolicy> for Balancing {
    fn from(policy: LbPolicy) -> Self {
        Self {
            policy,
            slow_start: None,
            locality_weighted: false,
        }
    }
}

impl Balancing {
    /// Compiles a cluster's policy.
    ///
    /// Without effect: zone aware routing (it needs a local cluster), and `active_request_bias`.
    ///
    /// # Errors
    /// An invalid or unsupported field, with its path.
    pub fn compile(proto: &pb::Cluster) -> Result<Self, ConfigError> {
        if let Some(policy) = &proto.load_balancing_policy {
            return Self::extension(policy, MAX_NESTING).at("load_balancing_policy");
        }
        let shared = proto.common_lb_config.as_ref();
        let hashing = shared.and_then(|c| c.consistent_hashing_lb_config.as_ref());
        let mut balancing = Self::named(proto, hashing)?;
        let locality = shared.and_then(|c| c.locality_config_specifier.as_ref());
        balancing.locality_weighted =
            matches!(locality, Some(ClusterLocality::LocalityWeightedLbConfig(_)));
        Ok(balancing)
    }

    fn named(
        proto: &pb::Cluster,
        hashing: Option<&ConsistentHashingLbConfig>,
    ) -> Result<Self, ConfigError> {
        use pb::cluster::LbPolicy as P;
        use pb::cluster::SlowStartConfig;
        let hashing = || -> Result<bool, ConfigError> {
            let path = "common_lb_config.consistent_hashing_lb_config";
            match hashing {
                Some(config) if config.hash_balance_factor.is_some() => {
                    Err(ConfigError::unsupported("hash_balance_factor").at(path))
                }
                config => Ok(config.is_some_and(|c| c.use_hostname_for_hashing)),
            }
        };
        let slow = |config: Option<&SlowStartConfig>| {
            config.map_or(Ok(None), |c| {
                let window = c.slow_start_window.as_ref();
                SlowStart::compile(window, c.aggression.as_ref(), c.min_weight_percent.as_ref())
            })
        };
        let config = proto.lb_config.as_ref();
        Ok(match P::try_from(proto.lb_policy) {
            // CLUSTER_PROVIDED belongs to ORIGINAL_DST, whose hosts are not chosen.
            Ok(P::RoundRobin | P::ClusterProvided) => Self {
                slow_start: match config {
                    Some(LbConfig::RoundRobinLbConfig(c)) => {
                        slow(c.slow_start_config.as_ref()).at("round_robin_lb_config")?
                    }
                    _ => None,
                },
                ..LbPolicy::RoundRobin.into()
            },
            Ok(P::Random) => LbPolicy::Random.into(),
            Ok(P::LeastRequest) => match config {
                Some(LbConfig::LeastRequestLbConfig(c)) => Self {
                    slow_start: slow(c.slow_start_config.as_ref()).at("least_request_lb_config")?,
                    ..least_request(c.choice_count.as_ref())
                },
                _ => least_request(None),
            },
            Ok(P::RingHash) => {
                let default = pb::cluster::RingHashLbConfig::default();
                let ring = match config {
                    Some(LbConfig::RingHashLbConfig(c)) => c,
                    _ => &default,
                };
                let (min, max) = (&ring.minimum_ring_size, &ring.maximum_ring_size);
                let kind = ring_kind(min.as_ref(), max.as_ref(), ring.hash_function == 1);
                hash(kind.at("ring_hash_lb_config")?, hashing()?)
            }
            Ok(P::Maglev) => {
                let size = match config {
                    Some(LbConfig::MaglevLbConfig(c)) => c.table_size.as_ref(),
                    _ => None,
                };
                hash(maglev_kind(size).at("maglev_lb_config")?, hashing()?)
            }
            _ => return Err(ConfigError::unsupported("lb_policy")),
        })
    }

    /// The first policy of the list that is known, as Envoy takes it. `depth` bounds nested policies.
    fn extension(policy: &pb::LoadBalancingPolicy, depth: u32) -> Result<Self, ConfigError> {
        for (i, entry) in policy.policies.iter().enumerate() {
            let config = entry.typed_extension_config.as_ref();
            let Some(any) = config.and_then(|e| e.typed_config.as_ref()) else {
                continue;
            };
            if let Some(known) = Self::typed(any, depth).at(format!("policies[{i}]"))? {
                return Ok(known);
            }
        }
        Err(ConfigError::unsupported("policies"))
    }

    fn typed(any: &wkt::Any, depth: u32) -> Result<Option<Self>, ConfigError> {
        let nested = |policy: Option<&pb::LoadBalancingPolicy>, field: &str| {
            let policy = policy.ok_or_else(|| ConfigError::new("is required").at(field))?;
            let depth = depth.checked_sub(1);
            let depth = depth.ok_or_else(|| ConfigError::new("nested too deep").at(field))?;
            Self::extension(policy, depth).at(field)
        };
        let kind = any.type_url.rsplit('/').next().unwrap_or_default();
        let kind = kind.strip_prefix("envoy.extensions.load_balancing_policies.");
        Ok(Some(match kind.unwrap_or_default() {
            "round_robin.v3.RoundRobin" => {
                let c: policies::round_robin::v3::RoundRobin = unpack(any)?;
                Self {
                    slow_start: slow_start(c.slow_start_config.as_ref())?,
                    locality_weighted: weighted(c.locality_lb_config.as_ref()),
                    ..LbPolicy::RoundRobin.into()
                }
            }
            "random.v3.Random" => {
                let c: policies::random::v3::Random = unpack(any)?;
                Self {
                    locality_weighted: weighted(c.locality_lb_config.as_ref()),
                    ..LbPolicy::Random.into()
                }
            }
            "least_request.v3.LeastRequest" => {
                let c: policies::least_request::v3::LeastRequest = unpack(any)?;
                let all = c.selection_method == 1 || c.enable_full_scan.is_some_and(|v| v.value);
                let every = wkt::UInt32Value { value: u32::MAX };
                Self {
                    slow_start: slow_start(c.slow_start_config.as_ref())?,
                    locality_weighted: weighted(c.locality_lb_config.as_ref()),
                    ..least_request(if all {
                        Some(&every)
                    } else {
                        c.choice_count.as_ref()
                    })
                }
            }
            "ring_hash.v3.RingHash" => {
                let c: policies::ring_hash::v3::RingHash = unpack(any)?;
                #[allow(deprecated)] // deprecated fields are still sent
                let (hostname, balance) = (c.use_hostname_for_hashing, c.hash_balance_factor);
                if balance.is_some() {
                    return Err(ConfigError::unsupported("hash_balance_factor"));
                }
                let (min, max) = (&c.minimum_ring_size, &c.maximum_ring_size);
                let kind = ring_kind(min.as_ref(), max.as_ref(), c.hash_function == 2)?;
                let hostname = hostname || hashing(c.consistent_hashing_lb_config.as_ref())?;
                Self {
                    locality_weighted: c.locality_weighted_lb_config.is_some(),
                    ..hash(kind, hostname)
                }
            }
            "maglev.v3.Maglev" => {
                let c: policies::maglev::v3::Maglev = unpack(any)?;
                let hostname = hashing(c.consistent_hashing_lb_config.as_ref())?;
                Self {
                    locality_weighted: c.locality_weighted_lb_config.is_some(),
                    ..hash(maglev_kind(c.table_size.as_ref())?, hostname)
                }
            }
            "wrr_locality.v3.WrrLocality" => {
                let c: policies::wrr_locality::v3::WrrLocality = unpack(any)?;
                let field = "endpoint_picking_policy";
                Self {
                    locality_weighted: true,
                    ..nested(c.endpoint_picking_policy.as_ref(), field)?
                }
            }
            // Nothing here overrides the host, so the policy behind it decides.
            "override_host.v3.OverrideHost" => {
                let c: policies::override_host::v3::OverrideHost = unpack(any)?;
                nested(c.fallback_policy.as_ref(), "fallback_policy")?
            }
            _ => return Ok(None),
        }))
    }
}

/// How deep policies may be nested.
const MAX_NESTING: u32 = 4;

fn unpack<M: Message + Name + Default>(any: &wkt::Any) -> Result<M, ConfigError> {
    any::unpack(any).at("typed_config")
}

fn least_request(choices: Option<&wkt::UInt32Value>) -> Balancing {
    LbPolicy::LeastRequest {
        choices: choices.map_or(2, |c| c.value).max(2),
    }
    .into()
}

fn hash(kind: HashTableKind, use_hostname: bool) -> Balancing {
    LbPolicy::Hash(HashTableConfig { kind, use_hostname }).into()
}

fn weighted(locality: Option<&common::LocalityLbConfig>) -> bool {
    let specifier = locality.and_then(|l| l.locality_config_specifier.as_ref());
    matches!(
        specifier,
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_))
    )
}

fn slow_start(config: Option<&common::SlowStartConfig>) -> Result<Option<SlowStart>, ConfigError> {
    config.map_or(Ok(None), |c| {
        let window = c.slow_start_window.as_ref();
        SlowStart::compile(window, c.aggression.as_ref(), c.min_weight_percent.as_ref())
    })
}

/// Whether host names are hashed.
fn hashing(config: Option<&common::ConsistentHashingLbConfig>) -> Result<bool, ConfigError> {
    let Some(config) = config else {
        return Ok(false);
    };
    let path = "consistent_hashing_lb_config";
    if config.hash_balance_factor.is_some() {
        return Err(ConfigError::unsupported("hash_balance_factor").at(path));
    }
    if !config.hash_policy.is_empty() {
        return Err(ConfigError::unsupported("hash_policy").at(path));
    }
    Ok(config.use_hostname_for_hashing)
}

fn ring_kind(
    min: Option<&wkt::UInt64Value>,
    max: Option<&wkt::UInt64Value>,
    murmur: bool,
) -> Result<HashTableKind, ConfigError> {
    const MOST: u64 = 8 << 20;
    let size = |value: Option<&wkt::UInt64Value>, default, field: &str| {
        let value = value.map_or(default, |v| v.value);
        let fits = u32::try_from(value).ok().filter(|_| value <= MOST);
        fits.ok_or_else(|| ConfigError::new("must not be over 8388608").at(field))
    };
    let max = size(max, MOST, "maximum_ring_size")?;
    let min = size(min, 1024, "minimum_ring_size")?;
    if min > max {
        return Err(ConfigError::new("must not be over maximum_ring_size").at("minimum_ring_size"));
    }
    let function = if murmur {
        RingHash::Murmur2
    } else {
        RingHash::XxHash
    };
    Ok(HashTableKind::Ring { min, max, function })
}

fn maglev_kind(size: Option<&wkt::UInt64Value>) -> Result<HashTableKind, ConfigError> {
    let value = size.map_or(65537, |v| v.value);
    match u32::try_from(value) {
        Ok(size) if value <= 5_000_011 && is_prime(value) => Ok(HashTableKind::Maglev { size }),
        _ => {
            let text = "must be a prime number of at most 5000011";
            Err(ConfigError::new(text).at("table_size"))
        }
    }
}

#[cfg(test)]
#[path = "lb_policy_tests.rs"]
mod tests;
