//! What one request asks of the transport to its upstream.

use bytestring::ByteString;
use filters::http::alpn::AlpnNames;

/// Envoy's `TransportSocketOptions`: what takes the place of a TLS context's own settings for one request.
/// Connections are shared only by requests that ask for the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TransportOptions {
    /// The name that is asked for (SNI), lower case; an empty one asks for none.
    pub server_name: Option<ByteString>,
    /// What the server's certificate must cover, beside what the context demands.
    pub subject: Option<ByteString>,
    /// The protocols that are offered (ALPN).
    pub alpn: Option<AlpnNames>,
}

impl TransportOptions {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.server_name.is_none() && self.subject.is_none() && self.alpn.is_none()
    }
}
