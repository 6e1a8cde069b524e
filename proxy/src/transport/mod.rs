//! Byte streams: raw sockets and TLS; PROXY protocol, internal and HBONE to come.

pub mod downstream;
pub mod prefixed;
pub mod tls;
