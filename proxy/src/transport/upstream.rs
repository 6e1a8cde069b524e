//! The transport sockets of a cluster.

use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::TransportSocket;
use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use xds_client::any;
use xds_client::error::{At, ConfigError};

use super::tls::secrets::SecretStore;
use super::tls::upstream::UpstreamTls;
use crate::telemetry::stats::Scope;

const RAW_BUFFER: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
const TLS: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";

/// How the bytes of connections to a host are wrapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpstreamTransport {
    /// Not at all.
    Raw,
    /// In TLS. Equal contexts are equal, wherever they were compiled, so that hosts stay over updates.
    Tls(Arc<UpstreamTls>),
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
            Self::Raw | Self::Unavailable(_) => None,
        }
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
        .filter(|socket| type_name(socket).is_ok_and(|name| name == TLS))
        .filter_map(|socket| match &socket.config_type {
            Some(ConfigType::TypedConfig(config)) => any::unpack(config).ok(),
            None => None,
        })
        .collect()
}
