//! The transport socket of a filter chain.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
use envoy_types::pb::envoy::config::listener::v3::FilterChain;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;
use filters::stream::ConnectionInfo;
use filters::tls::TlsInfo;
use tokio::io::{AsyncRead, AsyncWrite};
use xds_client::any;
use xds_client::duration;
use xds_client::error::{At, ConfigError};

use super::tls::accept::{HandshakeFailure, ServerStream, unknown};
use super::tls::downstream::DownstreamTls;
use super::tls::secrets::SecretStore;
use super::tls::stats::TlsStats;
use crate::telemetry::stats::{Counter, Scope};

const RAW_BUFFER: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
const TLS: &str = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";

/// `%CONNECTION_TERMINATION_DETAILS%` of a handshake that took too long.
const TIMED_OUT: &str = "transport socket timeout was reached";

/// How the bytes of a filter chain's connections are wrapped.
#[derive(Clone)]
pub enum DownstreamTransport {
    /// Not at all.
    Raw,
    /// In TLS.
    Tls(Arc<TlsTransport>),
}

/// TLS, and how long a handshake may take.
pub struct TlsTransport {
    tls: Arc<DownstreamTls>,
    /// `transport_socket_connect_timeout`; `None` is for ever.
    timeout: Option<Duration>,
    timed_out: Counter,
}

/// The TLS context of a filter chain, if it has one that can be read.
pub fn tls_context(chain: &FilterChain) -> Option<DownstreamTlsContext> {
    match &chain.transport_socket.as_ref()?.config_type {
        Some(ConfigType::TypedConfig(config)) if any::inner_type_name(config).ok()? == TLS => {
            any::unpack(config).ok()
        }
        _ => None,
    }
}

impl DownstreamTransport {
    /// Compiles the transport socket of `chain`. `scope` is `listener.<address>.`.
    ///
    /// # Errors
    /// What is wrong or not supported, by field. Nothing that asks for TLS is ever served in plaintext.
    pub fn compile(
        chain: &FilterChain,
        secrets: &SecretStore,
        scope: &Scope,
    ) -> Result<Self, ConfigError> {
        let Some(socket) = &chain.transport_socket else {
            return Ok(Self::Raw);
        };
        let step = "transport_socket.typed_config";
        let Some(ConfigType::TypedConfig(config)) = &socket.config_type else {
            return Err(ConfigError::new("value is required").at(step));
        };
        match any::inner_type_name(config).at(step)?.as_str() {
            RAW_BUFFER => Ok(Self::Raw),
            TLS => {
                let proto: DownstreamTlsContext = any::unpack(config).at(step)?;
                let stats = Arc::new(TlsStats::downstream(scope));
                Ok(Self::Tls(Arc::new(TlsTransport {
                    tls: DownstreamTls::compile(&proto, secrets, stats).at(step)?,
                    timeout: connect_timeout(chain)?,
                    timed_out: scope.counter("downstream_cx_transport_socket_connect_timeout"),
                })))
            }
            other => Err(ConfigError::new(format!("{other} is not supported")).at(step)),
        }
    }
}

fn connect_timeout(chain: &FilterChain) -> Result<Option<Duration>, ConfigError> {
    let timeout = chain.transport_socket_connect_timeout.as_ref();
    let timeout = duration::of_field(timeout, "transport_socket_connect_timeout")?;
    Ok(timeout.filter(|d| !d.is_zero()))
}

impl TlsTransport {
    /// Shakes hands; `prefix` has been read from `io` already.
    ///
    /// # Errors
    /// That failed or took too long: what is known of the connection. The reason has been counted, logged and noted.
    pub async fn accept<IO>(
        &self,
        prefix: Bytes,
        io: IO,
        info: Rc<ConnectionInfo>,
    ) -> Result<(ServerStream<IO>, Rc<ConnectionInfo>), Rc<ConnectionInfo>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let accepting = self.tls.accept(prefix, io);
        let accepted = match self.timeout {
            None => accepting.await,
            Some(limit) => match tokio::time::timeout(limit, accepting).await {
                Ok(accepted) => accepted,
                Err(_) => {
                    self.timed_out.inc();
                    tracing::debug!(remote = %info.direct_remote, "TLS handshake timed out");
                    info.note(|notes| notes.termination_details = Some(TIMED_OUT.into()));
                    return Err(with_tls(info, unknown()));
                }
            },
        };
        match accepted {
            Ok((io, tls)) => {
                let session = io.session();
                let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(Into::into);
                let mut info = Rc::unwrap_or_clone(info);
                info.secure = true;
                info.alpn = session.alpn_protocol().and_then(text);
                Ok((io, with_tls(Rc::new(info), tls)))
            }
            Err(HandshakeFailure { text, info: tls }) => {
                tracing::debug!(remote = %info.direct_remote, error = %text, "TLS handshake failed");
                let text = (!text.is_empty()).then(|| text.into());
                info.note(|notes| notes.transport_failure = text);
                Err(with_tls(info, tls))
            }
        }
    }
}

/// The connection with what its TLS found out, which is noted too.
fn with_tls(info: Rc<ConnectionInfo>, tls: TlsInfo) -> Rc<ConnectionInfo> {
    let tls = Rc::new(tls);
    info.note(|notes| notes.tls = Some(tls.clone()));
    let mut info = Rc::unwrap_or_clone(info);
    info.tls = Some(tls);
    Rc::new(info)
}
