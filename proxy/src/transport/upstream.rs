//! The transport sockets of a cluster.

use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
use envoy_types::pb::envoy::config::core::v3::{Metadata, TransportSocket};
use envoy_types::pb::envoy::extensions::transport_sockets::internal_upstream::v3::InternalUpstreamTransport;
use envoy_types::pb::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use filters::stream::StreamInfo;
use xds_client::any;
use xds_client::error::{At, ConfigError};

use super::internal_upstream::InternalTransport;
use super::proxy_protocol::Client;
use super::proxy_protocol::upstream::ProxiedTransport;
use super::tls::secrets::SecretStore;
use super::tls::upstream::UpstreamTls;
use crate::telemetry::stats::Scope;

const RAW_BUFFER: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
const INTERNAL: &str =
    "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport";
const PROXY_PROTOCOL: &str =
    "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport";
const TLS: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";

/// How the bytes of connections to a host are wrapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpstreamTransport {
    /// Not at all.
    Raw,
    /// In TLS. Equal contexts are equal, wherever they were compiled, so that hosts stay over updates.
    Tls(Arc<UpstreamTls>),
    /// In either of them, behind a PROXY header.
    Proxied(Arc<ProxiedTransport>),
    /// In any of them, with something told to internal listeners.
    Internal(Arc<InternalTransport>),
    /// A transport socket that this version cannot speak. Connecting fails with this text; the host is
    /// never spoken to in plaintext instead.
    Unavailable(Arc<str>),
}

/// What compiling the transport sockets of a cluster takes.
pub struct UpstreamContext<'a> {
    /// Secrets by name.
    pub secrets: &'a SecretStore,
    /// `cluster.<name>.`; stats are made in it with the first connection.
    pub scope: Option<Scope>,
    /// The cluster's metadata.
    pub metadata: Option<&'a Metadata>,
}

fn type_name(socket: &TransportSocket) -> Result<String, ConfigError> {
    match &socket.config_type {
        Some(ConfigType::TypedConfig(config)) => any::inner_type_name(config),
        // Envoy takes a bare name for the socket that has no settings.
        None if socket.name == "envoy.transport_sockets.raw_buffer" => Ok(RAW_BUFFER.to_owned()),
        None => Err(ConfigError::new("value is required")),
    }
}

impl UpstreamTransport {
    /// Its TLS context, if it has one.
    pub fn tls(&self) -> Option<&UpstreamTls> {
        match self {
            Self::Tls(tls) => Some(tls),
            Self::Proxied(proxied) => proxied.inner().tls(),
            Self::Internal(internal) => internal.inner().tls(),
            Self::Raw | Self::Unavailable(_) => None,
        }
    }

    /// The header before it, if it has one, and what comes after.
    pub fn layers(&self) -> (Option<&ProxiedTransport>, &Self) {
        match self {
            Self::Proxied(proxied) => (Some(proxied), proxied.inner()),
            Self::Internal(internal) => internal.inner().layers(),
            plain => (None, plain),
        }
    }

    /// The client that upstreams are told of, if they are.
    pub fn client(&self, info: &StreamInfo) -> Option<Client> {
        Client::of(info, self.layers().0?.added())
    }

    /// What internal listeners are told, if anything.
    pub fn internal(&self) -> Option<&InternalTransport> {
        match self {
            Self::Internal(internal) => Some(internal),
            Self::Raw | Self::Tls(_) | Self::Proxied(_) | Self::Unavailable(_) => None,
        }
    }

    /// The transport of an endpoint with this metadata.
    ///
    /// # Errors
    /// Metadata for the transport that cannot be honoured.
    pub fn for_endpoint(&self, metadata: Option<&Metadata>) -> Result<Self, ConfigError> {
        Ok(match self {
            Self::Proxied(proxied) => match proxied.with_metadata(metadata)? {
                Some(own) => Self::Proxied(Arc::new(own)),
                None => self.clone(),
            },
            Self::Internal(internal) => Self::Internal(Arc::new(internal.for_endpoint(metadata)?)),
            Self::Raw | Self::Tls(_) | Self::Unavailable(_) => self.clone(),
        })
    }

    /// Compiles a transport socket; none is plain bytes.
    ///
    /// # Errors
    /// What is wrong or not supported in a TLS context, by field.
    pub fn compile(
        socket: Option<&TransportSocket>,
        context: &UpstreamContext<'_>,
    ) -> Result<Self, ConfigError> {
        let Some(socket) = socket else {
            return Ok(Self::Raw);
        };
        let name = type_name(socket).at("typed_config")?;
        match (name.as_str(), &socket.config_type) {
            (RAW_BUFFER, _) => Ok(Self::Raw),
            (TLS, Some(ConfigType::TypedConfig(config))) => {
                let proto: UpstreamTlsContext = any::unpack(config).at("typed_config")?;
                let tls = UpstreamTls::compile(&proto, context.secrets, context.scope.clone());
                Ok(Self::Tls(tls.at("typed_config")?))
            }
            (PROXY_PROTOCOL, Some(ConfigType::TypedConfig(config))) => {
                let proto: ProxyProtocolUpstreamTransport =
                    any::unpack(config).at("typed_config")?;
                let proxied = ProxiedTransport::compile(&proto, context).at("typed_config")?;
                Ok(Self::Proxied(Arc::new(proxied)))
            }
            (INTERNAL, Some(ConfigType::TypedConfig(config))) => {
                let proto: InternalUpstreamTransport = any::unpack(config).at("typed_config")?;
                let internal = InternalTransport::compile(&proto, context).at("typed_config")?;
                Ok(Self::Internal(Arc::new(internal)))
            }
            _ => Ok(Self::Unavailable(
                format!("transport socket {name} is not supported").into(),
            )),
        }
    }
}

/// The TLS contexts of a cluster, as far as they can be read.
pub fn tls_contexts(cluster: &Cluster) -> Vec<UpstreamTlsContext> {
    let matched = cluster.transport_socket_matches.iter();
    let sockets = matched.filter_map(|m| m.transport_socket.as_ref());
    sockets
        .chain(&cluster.transport_socket)
        .filter_map(|socket| tls_context(socket, LAYERS))
        .collect()
}

/// How many transport sockets may be around TLS: `internal_upstream` and a PROXY header, once each.
const LAYERS: u32 = 2;

/// The TLS context of a transport socket, also inside of others.
fn tls_context(socket: &TransportSocket, layers: u32) -> Option<UpstreamTlsContext> {
    let Some(ConfigType::TypedConfig(config)) = &socket.config_type else {
        return None;
    };
    let inner = match any::inner_type_name(config).ok()?.as_str() {
        TLS => return any::unpack(config).ok(),
        PROXY_PROTOCOL => {
            let proxied: ProxyProtocolUpstreamTransport = any::unpack(config).ok()?;
            proxied.transport_socket
        }
        INTERNAL => {
            let internal: InternalUpstreamTransport = any::unpack(config).ok()?;
            internal.transport_socket
        }
        _ => None,
    };
    tls_context(&inner?, layers.checked_sub(1)?)
}
