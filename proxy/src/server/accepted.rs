//! A socket that was accepted, and what listener filters find out about it before it has a filter chain.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use filters::stream::Address;
use pingora_core::protocols::Stream;
use pingora_core::protocols::l4::stream::Stream as L4Stream;
use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UnixStream};

use super::compiled::ListenerFilters;
use super::listener_stats::Inspectors;
use super::sniff::{self, Sniff};

/// An accepted socket.
pub(super) enum Accepted {
    Tcp(TcpStream),
    /// With the path listened on.
    Unix(UnixStream, Arc<str>),
}

/// What the listener filters found out.
#[derive(Default)]
pub(super) struct Sniffed {
    /// What was read.
    pub(super) prefix: BytesMut,
    /// SNI, lower case; empty without one.
    pub(super) server_name: String,
    /// `tls`, `raw_buffer`, or empty when nobody looked.
    pub(super) transport: &'static str,
    /// What the client offers (ALPN), or what its first bytes are.
    pub(super) protocols: Vec<String>,
}

impl Sniffed {
    /// Runs the listener filters of a connection to `port`.
    pub(super) async fn look(
        &mut self,
        io: &mut Accepted,
        filters: &ListenerFilters,
        port: u16,
        stats: &Inspectors,
    ) -> io::Result<()> {
        if filters.tls_inspector.runs(port) {
            self.look_for_tls(io, stats).await?;
        }
        if self.transport != "tls" && filters.http_inspector.runs(port) {
            self.look_for_http(io, stats).await?;
        }
        Ok(())
    }

    async fn look_for_tls(&mut self, io: &mut Accepted, stats: &Inspectors) -> io::Result<()> {
        loop {
            match sniff::client_hello(&self.prefix) {
                Sniff::More => io.read(&mut self.prefix).await?,
                Sniff::No => {
                    self.transport = "raw_buffer";
                    stats.tls(|s| s.tls_not_found.inc());
                    return Ok(());
                }
                Sniff::TooLarge => {
                    stats.tls(|s| s.client_hello_too_large.inc());
                    return Err(io::Error::other("ClientHello too large"));
                }
                Sniff::Yes(hello) => {
                    stats.tls(|s| {
                        let of = |found, yes, no| if found { yes } else { no };
                        let (name, alpn) = (!hello.server_name.is_empty(), !hello.alpn.is_empty());
                        s.tls_found.inc();
                        of(name, &s.sni_found, &s.sni_not_found).inc();
                        of(alpn, &s.alpn_found, &s.alpn_not_found).inc();
                    });
                    self.transport = "tls";
                    self.server_name = hello.server_name;
                    self.protocols = hello.alpn;
                    return Ok(());
                }
            }
        }
    }

    async fn look_for_http(&mut self, io: &mut Accepted, stats: &Inspectors) -> io::Result<()> {
        loop {
            match sniff::http(&self.prefix) {
                Sniff::More => io.read(&mut self.prefix).await?,
                Sniff::No | Sniff::TooLarge => {
                    stats.http(|s| s.http_not_found.inc());
                    return Ok(());
                }
                Sniff::Yes(protocol) => {
                    stats.http(|s| match protocol {
                        "h2c" => s.http2_found.inc(),
                        "http/1.0" => s.http10_found.inc(),
                        _ => s.http11_found.inc(),
                    });
                    self.protocols = vec![protocol.to_owned()];
                    return Ok(());
                }
            }
        }
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

    pub(super) fn into_stream(self) -> Stream {
        match self {
            Self::Tcp(s) => Box::new(L4Stream::from(s)),
            Self::Unix(s, _) => Box::new(L4Stream::from(s)),
        }
    }

    /// Closes a socket that nothing serves. If something was read, as Envoy: its listener filters leave what they
    /// look at in the kernel, which answers the close of a socket with unread data by a reset.
    pub(super) fn abandon(self, sniffed: &Sniffed) {
        if let (Self::Tcp(stream), false) = (&self, sniffed.prefix.is_empty()) {
            // A failure only makes the end a polite one.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}
