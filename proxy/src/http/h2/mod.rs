//! HTTP/2 on the `h2` crate's handles: request trailers, 1xx and flow control stay in our hands.
//!
//! RFC 9113. `h2` frames, compresses and bounds; this module maps streams to the service seam, judges heads
//! and watches for what the library does alone.

mod body;
pub mod client;
mod keepalive;
mod limits;
mod request;
mod scan;
pub mod server;
mod server_stream;
mod settings;
mod stats;
mod watch;
mod windows;

pub use keepalive::Keepalive;
pub use limits::FieldLimits;
pub use settings::{FloodLimits, Http2Settings};
pub use stats::{Http2Stats, LazyHttp2Stats};

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod tests;
