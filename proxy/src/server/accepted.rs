//! An accepted socket, before it is known what it speaks.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use filters::stream::Address;
use pingora_core::protocols::Stream;
use pingora_core::protocols::l4::stream::Stream as L4Stream;
use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UnixStream};

use super::compiled::CompiledListener;
use super::sniff::{self, Sniff};

/// A connection.
pub(super) enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream, Arc<str>),
}

/// What the listener filters found out.
#[derive(Default)]
pub(super) struct Sniffed {
    pub(super) prefix: BytesMut,
    pub(super) server_name: String,
    pub(super) transport: &'static str,
    pub(super) protocols: Vec<String>,
}

impl Sniffed {
    /// Runs the listener filters that read: each as far as it needs to.
    pub(super) async fn look(
        &mut self,
        io: &mut Accepted,
        config: &CompiledListener,
        port: u16,
    ) -> io::Result<()> {
        if config.filters.tls_inspector.runs(port) {
            loop {
                match sniff::client_hello(&self.prefix) {
                    Sniff::More => io.read(&mut self.prefix).await?,
                    Sniff::No => {
                        self.transport = "raw_buffer";
                        break;
                    }
                    Sniff::Yes(hello) => {
                        self.transport = "tls";
                        self.server_name = hello.server_name;
                        self.protocols = hello.alpn;
                        break;
                    }
                }
            }
        }
        if self.transport != "tls" && config.filters.http_inspector.runs(port) {
            loop {
                match sniff::http(&self.prefix) {
                    Sniff::More => io.read(&mut self.prefix).await?,
                    Sniff::No => break,
                    Sniff::Yes(protocol) => {
                        self.protocols = vec![protocol.to_owned()];
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Accepted {
    /// The peer's and our own address.
    pub(super) fn addresses(&self) -> io::Result<(Address, Address)> {
        Ok(match self {
            Self::Tcp(s) => (Address::Ip(s.peer_addr()?), Address::Ip(s.local_addr()?)),
            Self::Unix(_, path) => (Address::Pipe("".into()), Address::Pipe(path.clone())),
        })
    }

    /// Where the peer meant to go before a redirect (`SO_ORIGINAL_DST`).
    pub(super) fn original_destination(&self) -> Option<Address> {
        let Self::Tcp(stream) = self else { return None };
        let socket = SockRef::from(stream);
        let address = match stream.local_addr().ok()?.ip().to_canonical() {
            std::net::IpAddr::V4(_) => socket.original_dst_v4(),
            std::net::IpAddr::V6(_) => socket.original_dst_v6(),
        };
        address.ok()?.as_socket().map(Address::Ip)
    }

    /// Reads once. The callers stop long before the buffer grows past their own limits.
    async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<()> {
        buffer.reserve(1024);
        let n = match self {
            Self::Tcp(s) => s.read_buf(buffer).await?,
            Self::Unix(s, _) => s.read_buf(buffer).await?,
        };
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// The stream as the transport sockets take it.
    pub(super) fn into_stream(self) -> Stream {
        match self {
            Self::Tcp(s) => Box::new(L4Stream::from(s)),
            Self::Unix(s, _) => Box::new(L4Stream::from(s)),
        }
    }
}
