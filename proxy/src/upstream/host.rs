//! Endpoints: what is known about one address of a cluster, shared by all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytestring::ByteString;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::address::Address as Which;
use envoy_types::pb::envoy::config::core::v3::envoy_internal_address::AddressNameSpecifier;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use filters::metadata::ConfiguredMetadata;
use filters::stream::{Address, StreamInfo};
use xds_client::error::ConfigError;

use crate::transport::upstream::UpstreamTransport;

/// How a host may be used, from `LbEndpoint.health_status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Health {
    /// HEALTHY and UNKNOWN.
    Healthy = 0,
    /// DEGRADED: only when there are not enough healthy hosts.
    Degraded = 1,
    /// UNHEALTHY, DRAINING and TIMEOUT: only in panic.
    Unhealthy = 2,
}

impl Health {
    /// From the protobuf's number; unknown numbers count as healthy, as UNKNOWN does.
    pub fn from_proto(status: i32) -> Self {
        match core::HealthStatus::try_from(status) {
            Ok(
                core::HealthStatus::Unhealthy
                | core::HealthStatus::Draining
                | core::HealthStatus::Timeout,
            ) => Self::Unhealthy,
            Ok(core::HealthStatus::Degraded) => Self::Degraded,
            _ => Self::Healthy,
        }
    }
}

static NEXT_HOST: AtomicU64 = AtomicU64::new(1);

/// One endpoint. It survives updates of its cluster as long as its address and transport stay.
#[derive(Debug)]
pub struct Host {
    /// Unique in the process and never reused; pools are found by it.
    pub id: u64,
    /// Where it is.
    pub address: Address,
    /// `Endpoint.hostname`, or the DNS name that it was resolved from; may be empty.
    pub hostname: ByteString,
    /// How to speak to it.
    pub transport: UpstreamTransport,
    weight: AtomicU32,
    health: AtomicU8,
    removed: AtomicBool,
    canary: AtomicBool,
    hash_key: ArcSwapOption<String>,
    metadata: ArcSwap<ConfiguredMetadata>,
    born: Instant,
    /// What the admin interface shows.
    pub(crate) stats: HostStats,
}

impl Host {
    /// A new host.
    pub fn new(
        address: Address,
        hostname: ByteString,
        transport: UpstreamTransport,
        weight: u32,
        health: Health,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: NEXT_HOST.fetch_add(1, Ordering::Relaxed),
            address,
            hostname,
            transport,
            weight: AtomicU32::new(weight.max(1)),
            health: AtomicU8::new(health as u8),
            removed: AtomicBool::new(false),
            canary: AtomicBool::new(false),
            hash_key: ArcSwapOption::empty(),
            metadata: ArcSwap::default(),
            born: Instant::now(),
            stats: HostStats::default(),
        })
    }

    /// The balancing weight, at least 1.
    pub fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    /// The health that EDS told.
    pub fn health(&self) -> Health {
        match self.health.load(Ordering::Relaxed) {
            0 => Health::Healthy,
            1 => Health::Degraded,
            _ => Health::Unhealthy,
        }
    }

    /// Requests in flight, all workers.
    pub fn active(&self) -> u32 {
        self.stats.rq_active.load(Ordering::Relaxed)
    }

    /// Whether any worker has a connection to it.
    pub fn is_connected(&self) -> bool {
        self.stats.cx_active.load(Ordering::Relaxed) > 0
    }

    /// Its stats by Envoy's names, in the order in which `/clusters` prints them.
    pub fn stats(&self) -> [(&'static str, u64); 9] {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let stats = &self.stats;
        [
            ("cx_active", stats.cx_active.load(Ordering::Relaxed).into()),
            ("cx_connect_fail", of(&stats.cx_connect_fail)),
            ("cx_total", of(&stats.cx_total)),
            ("rq_active", stats.rq_active.load(Ordering::Relaxed).into()),
            ("rq_error", of(&stats.rq_error)),
            (
                "rq_pending_active",
                stats.rq_pending_active.load(Ordering::Relaxed).into(),
            ),
            ("rq_success", of(&stats.rq_success)),
            ("rq_timeout", of(&stats.rq_timeout)),
            ("rq_total", of(&stats.rq_total)),
        ]
    }

    /// Whether its metadata marks it as a canary (`envoy.lb`, `canary`).
    pub fn is_canary(&self) -> bool {
        self.canary.load(Ordering::Relaxed)
    }

    /// Whether an update took the host out of its cluster: its connections are not reused.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    /// What stands for the host in hash tables in place of its address (`envoy.lb`, `hash_key`).
    pub fn hash_key(&self) -> Option<Arc<String>> {
        self.hash_key.load_full()
    }

    /// Its metadata.
    pub fn metadata(&self) -> ConfiguredMetadata {
        ConfiguredMetadata::clone(&self.metadata.load())
    }

    /// Notes that an attempt goes to it.
    pub fn note(&self, info: &mut StreamInfo) {
        info.begin_attempt(&self.address, &self.hostname, self.metadata());
    }

    /// How long it has been known.
    pub fn age(&self) -> Duration {
        self.born.elapsed()
    }

    /// Makes it older than any slow start.
    #[cfg(test)]
    pub(crate) fn make_old(&mut self) {
        self.born -= Duration::from_secs(1 << 20);
    }

    pub(crate) fn set_labels(
        &self,
        canary: bool,
        hash_key: Option<&str>,
        metadata: &ConfiguredMetadata,
    ) {
        if **self.metadata.load() != *metadata {
            self.metadata.store(Arc::new(metadata.clone()));
        }
        self.canary.store(canary, Ordering::Relaxed);
        self.hash_key
            .store(hash_key.map(|key| Arc::new(key.to_owned())));
    }

    pub(crate) fn update(&self, weight: u32, health: Health) {
        self.weight.store(weight.max(1), Ordering::Relaxed);
        self.health.store(health as u8, Ordering::Relaxed);
    }

    pub(crate) fn set_removed(&self) {
        self.removed.store(true, Ordering::Relaxed);
    }
}

/// Counts of one host, over all workers: these the balancer reads, so they cannot be a worker's own.
#[derive(Debug, Default)]
pub(crate) struct HostStats {
    pub(crate) cx_active: AtomicU32,
    pub(crate) cx_connect_fail: AtomicU64,
    pub(crate) cx_total: AtomicU64,
    pub(crate) rq_active: AtomicU32,
    pub(crate) rq_error: AtomicU64,
    pub(crate) rq_pending_active: AtomicU32,
    pub(crate) rq_success: AtomicU64,
    pub(crate) rq_timeout: AtomicU64,
    pub(crate) rq_total: AtomicU64,
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// An endpoint's address as configured: ready, or a name to look up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Ready to connect to.
    Address(Address),
    /// A DNS name and a port.
    Name(ByteString, u16),
}

impl Target {
    /// Compiles an address.
    ///
    /// # Errors
    /// A missing address, a port over 65535 or named, or UDP.
    pub fn compile(address: Option<&core::Address>) -> Result<Self, ConfigError> {
        match address.and_then(|a| a.address.as_ref()) {
            None => Err(ConfigError::new("is required").at("address")),
            Some(Which::Pipe(pipe)) => Ok(Self::Address(Address::Pipe(pipe.path.as_str().into()))),
            Some(Which::EnvoyInternalAddress(internal)) => {
                let name = match &internal.address_name_specifier {
                    Some(AddressNameSpecifier::ServerListenerName(name)) => name.as_str(),
                    None => "",
                };
                Ok(Self::Address(Address::Internal(
                    name.into(),
                    internal.endpoint_id.as_str().into(),
                )))
            }
            Some(Which::SocketAddress(socket)) => {
                let at = |e: ConfigError| e.at("address.socket_address");
                if socket.protocol != 0 {
                    return Err(at(ConfigError::unsupported("protocol")));
                }
                let port = match &socket.port_specifier {
                    Some(PortSpecifier::PortValue(port)) => u16::try_from(*port)
                        .map_err(|_| at(ConfigError::new("over 65535").at("port_value")))?,
                    Some(PortSpecifier::NamedPort(_)) => {
                        return Err(at(ConfigError::unsupported("named_port")));
                    }
                    None => 0,
                };
                Ok(match socket.address.parse::<std::net::IpAddr>() {
                    Ok(ip) => Self::Address(Address::Ip((ip, port).into())),
                    Err(_) => Self::Name(socket.address.as_str().into(), port),
                })
            }
        }
    }
}
