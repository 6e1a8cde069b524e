//! Making upstream connections.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytestring::ByteString;
use filters::body::ResetReason;
use filters::moments::Moment;
use filters::stream::{Address, StreamInfo};
use filters::tls::TlsInfo;
use tokio::net::{TcpSocket, UnixStream};

use crate::internal;
use crate::transport::ByteStream;
use crate::transport::options::Purpose;
use crate::transport::socket::Socket;
use crate::transport::tls::upstream::Connecting;
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
    /// Whether the server has chosen HTTP/2 (ALPN).
    pub http2: bool,
    /// What logs tell of it.
    pub facts: ConnectionFacts,
}

/// What is known of an upstream connection.
#[derive(Debug, Clone, Default)]
pub struct ConnectionFacts {
    /// Its local end, for `%UPSTREAM_LOCAL_ADDRESS%`.
    pub local: Option<Address>,
    /// What TLS found out.
    pub tls: Option<Rc<TlsInfo>>,
    /// Unique in the process.
    pub id: u64,
    /// When it was begun, and when it was there.
    pub made: Option<[Instant; 2]>,
    /// When its TLS handshake was done.
    pub secured: Option<Instant>,
}

/// The numbers of connections.
static NEXT: AtomicU64 = AtomicU64::new(1);

impl ConnectionFacts {
    /// Notes the connection that a stream has got.
    pub(crate) fn note(self, info: &mut StreamInfo) {
        let [begun, there] = self.made.map_or([None; 2], |made| made.map(Some));
        info.moments.set(Moment::ConnectBegin, begun);
        info.moments.set(Moment::ConnectEnd, there);
        info.moments.set(Moment::HandshakeEnd, self.secured);
        info.upstream.connection = Some(self.id);
        info.upstream.local = self.local;
        info.upstream.tls = self.tls;
    }
}

/// Connects to `host` within the cluster's `connect_timeout`. `protocols` are offered by TLS if neither the cluster
/// nor `purpose` name any.
///
/// # Errors
/// A timeout, a refusal, or a transport that this version cannot speak.
pub async fn connect(
    config: &ClusterConfig,
    host: &Host,
    purpose: &Purpose,
    protocols: &'static [&'static str],
) -> Result<Connected, ConnectError> {
    if let (_, UpstreamTransport::Unavailable(text)) = host.transport.layers() {
        return Err(local(text.as_ref()));
    }
    let begun = Instant::now();
    let whole = async {
        let (io, local) = match &host.address {
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
                (Socket::Tcp(tcp), bound)
            }
            Address::Pipe(path) => {
                let unix = UnixStream::connect(&**path).await;
                (Socket::Unix(unix.map_err(|e| refused(&e))?), None)
            }
            Address::Internal(name, id) => {
                let told = host.transport.internal();
                let told = told.map(|t| t.handover(purpose.shared.as_ref()));
                let told = told.unwrap_or_default();
                let io = match purpose.spread {
                    true => internal::spread::connect(name, id, told).await,
                    false => internal::registry::connect(name, id, told),
                };
                // What the listener refuses without having read anything, it refuses at once: nobody waits for a tunnel
                // that has no other end.
                tokio::task::yield_now().await;
                let io = io.filter(|io| !io.is_refused());
                let io = io.ok_or_else(|| nobody(&host.address))?;
                let local = Some(internal::client_address());
                return secure(host, purpose, protocols, io, (local, begun)).await;
            }
        };
        secure(host, purpose, protocols, io, (local, begun)).await
    };
    within(config.connect_timeout, whole)
        .await
        .unwrap_or(Err(ConnectError {
            reason: ResetReason::ConnectionTimeout,
            transport_failure: None,
        }))
}

/// Puts the host's transport around `io`, whose own end is at `local`, and which was begun then.
async fn secure<IO: ByteStream + 'static>(
    host: &Host,
    purpose: &Purpose,
    protocols: &'static [&'static str],
    mut io: IO,
    (local, begun): (Option<Address>, Instant),
) -> Result<Connected, ConnectError> {
    let (header, transport) = host.transport.layers();
    if let Some(header) = header {
        let ends = local.as_ref().and_then(Address::ip).zip(host.address.ip());
        let written = header.write(&mut io, purpose.client.as_ref(), ends).await;
        written.map_err(|e| refused(&e))?;
    }
    let mut facts = ConnectionFacts {
        local,
        tls: None,
        id: NEXT.fetch_add(1, Ordering::Relaxed),
        made: Some([begun, Instant::now()]),
        secured: None,
    };
    let mut http2 = false;
    let io: Box<dyn ByteStream> = match transport {
        UpstreamTransport::Raw => Box::new(io),
        UpstreamTransport::Tls(tls) => {
            let connecting = Connecting {
                address: host.address.ip().map(|address| address.ip()),
                hostname: &host.hostname,
                options: &purpose.options,
                protocols,
            };
            let connected = tls.connect(io, connecting).await;
            let (io, info) = connected.map_err(|e| tls_failure(&e))?;
            http2 = io.session().alpn_protocol() == Some(b"h2");
            facts.tls = Some(Rc::new(info));
            facts.secured = Some(Instant::now());
            Box::new(io)
        }
        UpstreamTransport::Unavailable(text) => return Err(self::local(text.as_ref())),
        // What is around them has been taken off.
        UpstreamTransport::Proxied(_) | UpstreamTransport::Internal(_) => {
            return Err(self::local("transport sockets inside of each other"));
        }
    };
    Ok(Connected { io, http2, facts })
}

/// There is no internal listener of this name, or it does not take the connection. In Envoy's words.
fn nobody(address: &Address) -> ConnectError {
    let text = format!("immediate connect error: Invalid argument|remote address:{address}");
    ConnectError {
        reason: ResetReason::RemoteConnectionFailure,
        transport_failure: Some(text.into()),
    }
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

    async fn reach(host: &Host) -> Result<Connected, ConnectError> {
        connect(&config(), host, &Purpose::default(), &[]).await
    }

    #[tokio::test]
    async fn refusals_and_unavailable_transports_say_why() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Ip(listener.local_addr().unwrap());
        let tls = UpstreamTransport::Unavailable("no tls".into());
        let error = reach(&host(address.clone(), tls)).await.err();
        assert_eq!(error, Some(local("no tls")));
        let up = reach(&host(address.clone(), UpstreamTransport::Raw)).await;
        assert!(up.ok().unwrap().facts.local.is_some());
        drop(listener);
        let error = reach(&host(address, UpstreamTransport::Raw)).await;
        let error = error.err().unwrap();
        assert_eq!(error.reason, ResetReason::RemoteConnectionFailure);
        assert_eq!(
            error.transport_failure.as_deref(),
            Some("delayed connect error: Connection refused")
        );
    }
}
