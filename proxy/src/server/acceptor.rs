//! A listening socket on a worker, and the end of its listening.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockFilter, SockRef, Socket};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::Instant;

use super::accepted::Accepted;
use super::socket::BindAddress;

/// How long handshakes that have begun get to finish. Longer than most round trips; what it delays is only that a
/// listener that goes away is gone.
const HANDSHAKES: Duration = Duration::from_millis(100);
/// How long the runtime may take to tell of a connection that the kernel has queued already.
const QUEUED: Duration = Duration::from_millis(5);

/// A listening socket.
pub(super) struct Acceptor {
    socket: Listening,
    /// No other worker, and no other listener, accepts on this very socket.
    own: bool,
}

enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener, Arc<str>),
}

impl Acceptor {
    /// Polls `socket`. `own`: it is bound with `SO_REUSEPORT` for this worker alone.
    pub(super) fn new(socket: Socket, address: &BindAddress, own: bool) -> io::Result<Self> {
        let socket = match address {
            BindAddress::Tcp { .. } => Listening::Tcp(TcpListener::from_std(socket.into())?),
            BindAddress::Pipe { path, .. } => {
                Listening::Unix(UnixListener::from_std(socket.into())?, path.clone())
            }
        };
        Ok(Self { socket, own })
    }

    /// The next connection.
    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            Listening::Tcp(listener) => listener.accept().await.map(|(s, _)| Accepted::Tcp(s)),
            Listening::Unix(listener, path) => {
                let accepted = listener.accept().await;
                accepted.map(|(s, _)| Accepted::Unix(s, path.clone()))
            }
        }
    }

    /// Stops listening without losing a connection: closing the socket resets whatever waits in its queue, so
    /// what has begun is taken before.
    pub(super) async fn finish(self, mut take: impl FnMut(Accepted)) {
        let mut until = Instant::now() + QUEUED;
        if let Listening::Tcp(listener) = &self.socket
            && self.own
            && refuse_new(listener).is_ok()
        {
            until = Instant::now() + HANDSHAKES;
        }
        while let Ok(Ok(io)) = tokio::time::timeout_at(until, self.accept()).await {
            take(io);
        }
    }
}

/// Drops the first packet of new handshakes. Their clients send it again a second later, and find the listener
/// that took over, or none; those whose handshake has begun are served.
fn refuse_new(listener: &TcpListener) -> io::Result<()> {
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    // Classic BPF over the TCP header: load a byte, mask, jump if equal, return.
    let program = [
        SockFilter::new(0x30, 0, 0, FLAGS),
        SockFilter::new(0x54, 0, 0, SYN | ACK),
        SockFilter::new(0x15, 1, 0, SYN),
        SockFilter::new(0x06, 0, 0, u32::MAX),
        SockFilter::new(0x06, 0, 0, 0),
    ];
    SockRef::from(listener).attach_filter(&program)
}
