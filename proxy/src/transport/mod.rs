//! Byte streams: raw sockets, TLS and the PROXY protocol; internal and HBONE to come.

pub mod downstream;
pub(crate) mod observed;
pub mod options;
pub mod prefixed;
pub mod proxy_protocol;
pub mod tls;
pub mod upstream;

use tokio::io::{AsyncRead, AsyncWrite};

/// A connection, whatever it is made of.
pub trait ByteStream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> ByteStream for T {}
