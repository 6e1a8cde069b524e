//! Byte streams: raw sockets, connections inside the process, TLS and the PROXY protocol.

pub(crate) mod buffer;
pub mod downstream;
pub mod internal_upstream;
pub(crate) mod observed;
pub mod options;
pub mod prefixed;
pub mod proxy_protocol;
pub mod tls;
pub mod upstream;

use pingora_core::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::internal::stream::InternalStream;

/// A connection, whatever it is made of.
pub trait ByteStream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> ByteStream for T {}

/// A connection that a listener has taken.
pub enum Incoming {
    /// From outside.
    Socket(Stream),
    /// From inside the process.
    Internal(InternalStream),
}

#[cfg(test)]
impl Incoming {
    /// Its bytes, wherever it is from.
    pub(crate) fn boxed(self) -> Box<dyn ByteStream> {
        match self {
            Self::Socket(io) => Box::new(io),
            Self::Internal(io) => Box::new(io),
        }
    }
}
