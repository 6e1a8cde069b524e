//! What one request asks of the transport to its upstream.

use bytestring::ByteString;
use filters::filter_state::{FilterState, keys};
use filters::http::alpn::AlpnNames;
use filters::stream::SharedObjects;

use super::proxy_protocol::Client;
use super::upstream::UpstreamTransport;

/// Envoy's `TransportSocketOptions`: what takes the place of a TLS context's own settings for one request.
/// Connections are shared only by requests that ask for the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TransportOptions {
    /// The name that is asked for (SNI); an empty one for what the context says.
    pub server_name: Option<ByteString>,
    /// Of these the server's certificate must cover one, beside what the context demands; none demand nothing.
    pub subjects: Vec<ByteString>,
    /// The protocols that are offered (ALPN).
    pub alpn: Option<AlpnNames>,
}

impl TransportOptions {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.server_name.is_none() && self.subjects.is_empty() && self.alpn.is_none()
    }

    /// What a connection's or a stream's filter state asks for.
    pub fn of_state(state: &FilterState) -> Self {
        let subjects = state.name(keys::SUBJECT_ALT_NAMES);
        let subjects = subjects.map(|names| names.split(',').map(Into::into).collect());
        let alpn = state.protocols(keys::APPLICATION_PROTOCOLS);
        Self {
            server_name: state.name(keys::UPSTREAM_SERVER_NAME).cloned(),
            subjects: subjects.unwrap_or_default(),
            alpn: alpn.filter(|names| !names.is_empty()).cloned(),
        }
    }
}

/// For whom a connection is made. Only those for whom all of this is the same share one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Purpose {
    /// What is asked of TLS.
    pub options: TransportOptions,
    /// Whom upstreams are told of that want to know.
    pub client: Option<Client>,
    /// Filter state for the internal listener at the other end. Principals are among it: a connection that was made
    /// for one is never another's.
    pub shared: Option<SharedObjects>,
    /// That it is a tunnel, which may [go on at another worker](crate::internal::spread).
    pub spread: bool,
}

impl From<TransportOptions> for Purpose {
    fn from(options: TransportOptions) -> Self {
        Self {
            options,
            ..Self::default()
        }
    }
}

impl Purpose {
    /// What of it makes a difference on this transport.
    pub fn on(self, transport: &UpstreamTransport) -> Self {
        Self {
            options: match transport.tls() {
                Some(_) => self.options,
                // Bytes without TLS have nothing that could be asked for.
                None => TransportOptions::default(),
            },
            client: self.client,
            shared: self.shared.filter(|_| transport.internal().is_some()),
            spread: self.spread,
        }
    }

    /// Whether it is like that of nearly all requests.
    pub fn is_plain(&self) -> bool {
        self.options.is_empty() && self.client.is_none() && self.shared.is_none() && !self.spread
    }
}
