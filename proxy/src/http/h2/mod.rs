//! HTTP/2 on the `h2` crate's handles: request trailers, 1xx and flow control stay in our hands.
//!
//! RFC 9113. `h2` frames, compresses and bounds; this module maps streams to the service seam.

mod body;
pub mod client;
pub mod server;

use std::time::Duration;

/// HTTP/2 settings of one side of a connection (Envoy's `Http2ProtocolOptions`).
#[derive(Debug, Clone)]
pub struct Http2Settings {
    /// `SETTINGS_MAX_CONCURRENT_STREAMS` that we advertise.
    pub max_concurrent_streams: u32,
    /// Initial window of a stream, in bytes.
    pub initial_stream_window: u32,
    /// Window of the connection, in bytes.
    pub initial_connection_window: u32,
    /// Upper bound of a decoded header list, in bytes.
    pub max_header_list: u32,
    /// Whether extended CONNECT (RFC 8441) is advertised.
    pub allow_connect: bool,
    /// Ping interval and how long an answer may take.
    pub keepalive: Option<(Duration, Duration)>,
}

impl Default for Http2Settings {
    /// Envoy 1.40's numbers for streams and header sizes. Windows are smaller than Envoy's 16 and 24 MiB:
    /// a window is memory that a peer can make us hold.
    fn default() -> Self {
        Self {
            max_concurrent_streams: 1024,
            initial_stream_window: 1 << 20,
            initial_connection_window: 4 << 20,
            max_header_list: 60 << 10,
            allow_connect: false,
            keepalive: None,
        }
    }
}
