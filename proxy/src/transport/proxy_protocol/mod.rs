//! The PROXY protocol: who a connection really comes from, told by the proxy before us, and told by us to upstreams.
//!
//! HAProxy's `proxy-protocol.txt`, versions 1 (a line of text) and 2 (binary, with TLVs).

pub mod encode;
#[cfg(test)]
mod fuzz_tests;
pub mod parse;
pub mod tlvs;
pub mod upstream;

use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};

use envoy_types::pb::envoy::config::core::v3::ProxyProtocolPassThroughTlVs;
use envoy_types::pb::envoy::config::core::v3::proxy_protocol_pass_through_tl_vs::PassTlVsMatchType;
use filters::stream::{ConnectionInfo, StreamInfo};
use xds_client::error::{At, ConfigError};

use self::tlvs::{AddedTlvs, Tlv};

/// What a header of version 2 begins with.
pub const SIGNATURE_V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// What a header of version 1 begins with.
pub const SIGNATURE_V1: &[u8; 6] = b"PROXY ";
/// The fixed part of a header of version 2: signature, command, family, length.
pub const HEAD_V2: usize = 16;

/// TLVs that pass from a client's header to an upstream's (`pass_through_tlvs`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PassThrough {
    /// None of them.
    None,
    /// All of them.
    All,
    /// Those of these types.
    Some(Vec<u8>),
}

impl PassThrough {
    /// Compiles the message; without one, nothing passes.
    ///
    /// # Errors
    /// A type over 255.
    pub fn compile(proto: Option<&ProxyProtocolPassThroughTlVs>) -> Result<Self, ConfigError> {
        Ok(match proto {
            None => Self::None,
            Some(pass) if pass.match_type == PassTlVsMatchType::IncludeAll as i32 => Self::All,
            Some(pass) => {
                let kinds = pass.tlv_type.iter().map(|kind| tlv_type(*kind));
                Self::Some(kinds.collect::<Result<_, _>>().at("tlv_type")?)
            }
        })
    }

    /// Whether TLVs of a type pass.
    pub fn wants(&self, kind: u8) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Some(kinds) => kinds.contains(&kind),
        }
    }
}

/// A TLV's type as configured.
///
/// # Errors
/// It is over 255.
pub fn tlv_type(kind: u32) -> Result<u8, ConfigError> {
    u8::try_from(kind).map_err(|_| ConfigError::new("must be less than 256"))
}

/// The client that an upstream is told of. Connections made for one are not used for another.
#[derive(Debug, Clone)]
pub struct Client {
    source: SocketAddr,
    target: SocketAddr,
    /// Those of its PROXY header, with what the TCP proxy adds to them.
    tlvs: Option<Rc<[Tlv]>>,
    /// Those that the transport makes for it.
    made: Option<Rc<[Tlv]>>,
    connection: Weak<ConnectionInfo>,
}

impl Client {
    /// The client of a stream's connection, if it has addresses that a header can tell; `added` to the header by the
    /// transport.
    pub fn of(info: &StreamInfo, added: &AddedTlvs) -> Option<Self> {
        let connection = &info.connection;
        Some(Self {
            made: added.format(info),
            source: connection.remote.ip()?,
            target: connection.local.ip()?,
            tlvs: connection.proxy_tlvs.clone(),
            connection: Rc::downgrade(connection),
        })
    }

    /// The same with other TLVs in place of those of its PROXY header, of which there are none where it has none.
    pub fn with_tlvs(self, tlvs: impl FnOnce(Option<Rc<[Tlv]>>) -> Option<Rc<[Tlv]>>) -> Self {
        Self {
            tlvs: tlvs(self.tlvs),
            ..self
        }
    }

    /// Whether it is still connected.
    pub fn is_connected(&self) -> bool {
        self.connection.strong_count() > 0
    }
}

impl PartialEq for Client {
    fn eq(&self, other: &Self) -> bool {
        (self.source, self.target, &self.tlvs, &self.made)
            == (other.source, other.target, &other.tlvs, &other.made)
    }
}

impl Eq for Client {}

impl Hash for Client {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.source, self.target, &self.tlvs, &self.made).hash(state);
    }
}
