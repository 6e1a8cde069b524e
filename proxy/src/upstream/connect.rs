//! Making upstream connections.

use std::time::Duration;

use bytestring::ByteString;
use filters::body::ResetReason;
use filters::stream::Address;
use pingora_core::protocols::l4::stream::Stream as L4Stream;
use tokio::net::{TcpSocket, UnixStream};

use crate::transport::ByteStream;
use crate::transport::upstream::UpstreamTransport;
use crate::upstream::cluster::ClusterConfig;
use crate::upstream::host::Host;

/// A connection that could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectError {
    /// For flags and retries.
    pub reason: ResetReason,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub transport_failure: Option<ByteString>,
}

/// A fresh connection.
pub struct Connected {
    /// The bytes.
    pub io: Box<dyn ByteStream>,
    /// Its local end, for `%UPSTREAM_LOCAL_ADDRESS%`.
    pub local: Option<Address>,
}

/// Connects to `host` within the cluster's `connect_timeout`.
///
/// # Errors
/// A timeout, a refusal, or a transport that this version cannot speak.
pub async fn connect(config: &ClusterConfig, host: &Host) -> Result<Connected, ConnectError> {
    if let UpstreamTransport::Unavailable(text) = &host.transport {
        return Err(local(text.as_ref()));
    }
    let attempt = async {
        match &host.address {
            Address::Ip(address) => {
                let socket = match address {
                    std::net::SocketAddr::V4(_) => TcpSocket::new_v4(),
                    std::net::SocketAddr::V6(_) => TcpSocket::new_v6(),
                }
                .map_err(|e| local(describe(&e)))?;
                if let Some(bind) = config.bind {
                    socket.bind(bind).map_err(|e| local(describe(&e)))?;
                }
                let tcp = socket.connect(*address).await.map_err(|e| refused(&e))?;
                // Small writes must not wait for acknowledgements; failure only costs latency.
                let _ = tcp.set_nodelay(true);
                let bound = tcp.local_addr().ok().map(Address::Ip);
                Ok((L4Stream::from(tcp), bound))
            }
            Address::Pipe(path) => {
                let unix = UnixStream::connect(&**path).await;
                Ok((unix.map_err(|e| refused(&e))?.into(), None))
            }
            Address::Internal(name, _) => {
                Err(local(format!("internal listener {name} is not supported")))
            }
        }
    };
    let whole = async {
        let (io, local) = attempt.await?;
        let io: Box<dyn ByteStream> = match &host.transport {
            UpstreamTransport::Raw => Box::new(io),
            UpstreamTransport::Tls(tls) => {
                let ip = host.address.ip().map(|address| address.ip());
                let (io, _) = tls.connect(io, ip).await.map_err(|e| tls_failure(&e))?;
                Box::new(io)
            }
            UpstreamTransport::Unavailable(text) => return Err(self::local(text.as_ref())),
        };
        Ok(Connected { io, local })
    };
    within(config.connect_timeout, whole)
        .await
        .unwrap_or(Err(ConnectError {
            reason: ResetReason::ConnectionTimeout,
            transport_failure: None,
        }))
}

/// A handshake that failed is a connection failure, as in Envoy.
fn tls_failure(error: &std::io::Error) -> ConnectError {
    let text = error.to_string();
    ConnectError {
        reason: ResetReason::RemoteConnectionFailure,
        transport_failure: (!text.is_empty()).then(|| text.into()),
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, work).await.ok()
}

fn local(text: impl Into<String>) -> ConnectError {
    ConnectError {
        reason: ResetReason::LocalConnectionFailure,
        transport_failure: Some(text.into().into()),
    }
}

fn refused(error: &std::io::Error) -> ConnectError {
    ConnectError {
        reason: ResetReason::RemoteConnectionFailure,
        transport_failure: Some(format!("delayed connect error: {}", describe(error)).into()),
    }
}

/// The system's text without Rust's ` (os error N)`.
fn describe(error: &std::io::Error) -> String {
    let mut text = error.to_string();
    if let Some(at) = text.find(" (os error") {
        text.truncate(at);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use envoy_types::pb::envoy::config::cluster::v3 as pb;

    use super::*;
    use crate::upstream::host::Health;

    fn config() -> ClusterConfig {
        ClusterConfig::compile(
            &pb::Cluster {
                name: "a".into(),
                ..Default::default()
            },
            &Default::default(),
        )
        .unwrap()
    }

    fn host(address: Address, transport: UpstreamTransport) -> Arc<Host> {
        Host::new(address, "".into(), transport, 1, Health::Healthy)
    }

    #[tokio::test]
    async fn refusals_and_unavailable_transports_say_why() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Ip(listener.local_addr().unwrap());
        let tls = UpstreamTransport::Unavailable("no tls".into());
        let error = connect(&config(), &host(address.clone(), tls)).await.err();
        assert_eq!(error, Some(local("no tls")));
        let up = connect(&config(), &host(address.clone(), UpstreamTransport::Raw)).await;
        assert!(up.ok().unwrap().local.is_some());
        drop(listener);
        let error = connect(&config(), &host(address, UpstreamTransport::Raw)).await;
        let error = error.err().unwrap();
        assert_eq!(error.reason, ResetReason::RemoteConnectionFailure);
        assert_eq!(
            error.transport_failure.as_deref(),
            Some("delayed connect error: Connection refused")
        );
    }
}
