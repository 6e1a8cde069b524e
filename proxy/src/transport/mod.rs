//! Byte streams: raw sockets, connections inside the process, TLS and the PROXY protocol.

pub(crate) mod buffer;
pub mod downstream;
pub mod internal_upstream;
pub(crate) mod observed;
pub mod options;
pub mod prefixed;
pub mod proxy_protocol;
pub mod socket;
pub mod tls;
pub mod upstream;

use tokio::io::{AsyncRead, AsyncWrite};

use self::socket::Socket;
use crate::internal::stream::InternalStream;

/// A connection, whatever it is made of.
pub trait ByteStream: AsyncRead + AsyncWrite + Unpin {
    /// Has the connection end in a reset when it is dropped, where there is such a thing. Without it the drop is an
    /// ordinary end, but for what tells its peer of every end that comes too soon.
    fn abort(&mut self);
}

impl<T: ByteStream + ?Sized> ByteStream for Box<T> {
    fn abort(&mut self) {
        (**self).abort();
    }
}

#[cfg(test)]
impl ByteStream for tokio::io::DuplexStream {
    fn abort(&mut self) {}
}

/// A connection that a listener has taken.
pub enum Incoming {
    /// From outside.
    Socket(Socket),
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
