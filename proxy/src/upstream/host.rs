//! Endpoints: what is known about one address of a cluster, shared by all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use bytestring::ByteString;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::address::Address as Which;
use envoy_types::pb::envoy::config::core::v3::envoy_internal_address::AddressNameSpecifier;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use filters::stream::Address;
use xds_client::error::ConfigError;

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

/// The transport that a host's connections use.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostTransport {
    /// Plain bytes.
    Raw,
    /// A transport socket that this version cannot speak. Connecting fails with this text; the host is
    /// never spoken to in plaintext instead.
    Unavailable(Arc<str>),
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
    pub transport: HostTransport,
    weight: AtomicU32,
    health: AtomicU8,
    removed: AtomicBool,
    active: AtomicU32,
    requests: AtomicU64,
}

impl Host {
    /// A new host.
    pub fn new(
        address: Address,
        hostname: ByteString,
        transport: HostTransport,
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
            active: AtomicU32::new(0),
            requests: AtomicU64::new(0),
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
        self.active.load(Ordering::Relaxed)
    }

    /// Requests so far, all workers.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Whether an update took the host out of its cluster: its connections are not reused.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    pub(crate) fn update(&self, weight: u32, health: Health) {
        self.weight.store(weight.max(1), Ordering::Relaxed);
        self.health.store(health as u8, Ordering::Relaxed);
    }

    pub(crate) fn set_removed(&self) {
        self.removed.store(true, Ordering::Relaxed);
    }

    /// Counts a request that begins; [`end`](Self::end) must follow.
    pub fn begin(&self) {
        self.active.fetch_add(1, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the end of a request.
    pub fn end(&self) {
        self.active.fetch_sub(1, Ordering::Relaxed);
    }
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
