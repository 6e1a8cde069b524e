//! Byte streams: raw sockets now; TLS, PROXY protocol, internal and HBONE to come.

pub mod prefixed;
