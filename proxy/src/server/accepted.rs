//! A connection that was accepted: a socket, or one from inside the process.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::BytesMut;
use filters::stream::Address;
use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UnixStream};

use crate::internal::{self, InternalConnection};
use crate::transport::Incoming;
use crate::transport::socket::{Socket, reset_on_close};

/// An accepted connection.
pub(super) enum Accepted {
    Tcp(TcpStream),
    /// With the path listened on.
    Unix(UnixStream, Arc<str>),
    Internal(InternalConnection),
}

/// An IPv4 address that is mapped into IPv6 as the IPv4 address.
fn plain(address: SocketAddr) -> Address {
    let ip = address.ip().to_canonical();
    Address::Ip(match ip {
        IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        // With its scope.
        IpAddr::V6(_) => address,
    })
}

impl Accepted {
    /// The peer's and our own address. IPv4 addresses of sockets for both families are told as what they are.
    pub(super) fn addresses(&self) -> io::Result<(Address, Address)> {
        Ok(match self {
            Self::Tcp(s) => (plain(s.peer_addr()?), plain(s.local_addr()?)),
            Self::Unix(_, path) => (Address::Pipe("".into()), Address::Pipe(path.clone())),
            Self::Internal(c) => (internal::client_address(), c.local.clone()),
        })
    }

    /// Where the peer meant to go before a redirect (`SO_ORIGINAL_DST`). A socket that is transparent (TPROXY) has
    /// that for its own address.
    pub(super) fn original_destination(&self) -> Option<Address> {
        let Self::Tcp(stream) = self else { return None };
        let socket = SockRef::from(stream);
        let address = match stream.local_addr().ok()?.ip().to_canonical() {
            IpAddr::V4(_) => socket.original_dst_v4(),
            IpAddr::V6(_) => socket.original_dst_v6(),
        };
        match address {
            Ok(address) => address.as_socket().map(Address::Ip),
            Err(_) if socket.ip_transparent_v4().is_ok_and(|on| on) => {
                stream.local_addr().ok().map(plain)
            }
            Err(_) => None,
        }
    }

    /// Reads once. The callers stop long before the buffer grows past their own limits.
    pub(super) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<()> {
        buffer.reserve(1024);
        let n = match self {
            Self::Tcp(s) => s.read_buf(buffer).await?,
            Self::Unix(s, _) => s.read_buf(buffer).await?,
            Self::Internal(c) => c.stream.read_buf(buffer).await?,
        };
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    pub(super) fn into_incoming(self) -> Incoming {
        match self {
            Self::Tcp(s) => Incoming::Socket(Socket::Tcp(s)),
            Self::Unix(s, _) => Incoming::Socket(Socket::Unix(s)),
            Self::Internal(c) => Incoming::Internal(c.stream),
        }
    }

    /// Closes a socket that nothing serves. If bytes are `unread`, as Envoy: its listener filters leave what they
    /// look at in the kernel, which answers the close of a socket with unread data by a reset.
    pub(super) fn abandon(self, unread: bool) {
        if let (Self::Tcp(stream), true) = (&self, unread) {
            reset_on_close(stream);
        }
    }
}
