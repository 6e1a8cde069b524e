//! HTTP/1.1 (and, if allowed, 1.0): our own codec, server and client side.
//!
//! Bytes to heads and bodies and back, framing and connection persistence (RFC 9112). No policy.
//!
//! What a request costs: one allocation for the bytes that were read (the head's values and the body's
//! frames are slices of it), one for the request's state, one per header map. An idle connection holds
//! no buffer: it reads through a buffer on the stack and keeps only what arrived.

pub mod chunked;
pub mod client;
pub mod config;
pub mod encode;
pub mod parse;
pub mod server;
mod stats;
mod wire;

use std::time::Duration;

pub use stats::Http1Stats;

/// What to do with field names that hold an underscore (Envoy's `headers_with_underscores_action`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnderscoreAction {
    /// Pass them.
    #[default]
    Allow,
    /// Refuse the request (`http1.unexpected_underscore`).
    Reject,
    /// Leave those fields out.
    Drop,
}

/// How field names are written (Envoy's `header_key_format`). They are read in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeaderCase {
    /// `x-forwarded-for`.
    #[default]
    Lower,
    /// `X-Forwarded-For` (`proper_case_words`).
    ProperWords,
    /// As the peer wrote it (`preserve_case`): what this connection reads keeps its spelling wherever it is
    /// sent on, and what it sends is lower case unless it has one.
    Preserve {
        /// Names that the peer did not write are written `Like-This` in what it wrote.
        proper_others: bool,
        /// A response keeps its reason phrase.
        keep_reason: bool,
    },
}

/// Limits and choices of the HTTP/1 codec.
#[derive(Debug, Clone, PartialEq)]
pub struct Http1Settings {
    /// Most bytes of a head, request or status line included (Envoy: 60 KiB); beyond it 431.
    pub max_head_bytes: usize,
    /// Most fields in a head (Envoy: 100); beyond it 431.
    pub max_headers: usize,
    /// Whether HTTP/1.0 requests are served; otherwise 426.
    pub accept_http_10: bool,
    /// Whether trailers are passed; otherwise they are read and dropped.
    pub enable_trailers: bool,
    /// Whether a message with both `content-length` and the chunked coding is taken by the latter;
    /// otherwise it is refused (RFC 9112 section 6.3, 3).
    pub allow_chunked_length: bool,
    /// Whether requests in absolute form are served; otherwise the whole URL becomes the path, which the
    /// connection manager refuses.
    pub allow_absolute_url: bool,
    /// Whether any token is a method; otherwise only the registered methods that Envoy knows are.
    pub allow_custom_methods: bool,
    /// How field names are written.
    pub header_case: HeaderCase,
    /// Whether our requests are in absolute form (`send_fully_qualified_url`).
    pub absolute_requests: bool,
    /// See [`UnderscoreAction`].
    pub underscores: UnderscoreAction,
    /// What the codec counts.
    pub stats: Http1Stats,
    /// Longest time from the first byte of a head to its last; none by default.
    pub request_headers_timeout: Option<Duration>,
    /// Longest time between requests before the connection is closed.
    pub idle_timeout: Option<Duration>,
    /// How long a connection that we close reads on, so that the client gets to read the response before a
    /// reset destroys it (RFC 9112 section 9.6; Envoy's `delayed_close_timeout`); none closes at once.
    pub linger: Option<Duration>,
}

impl Http1Settings {
    /// What holds for upstream connections: Envoy allows response heads 80 KiB.
    pub fn upstream() -> Self {
        Self {
            max_head_bytes: 80 * 1024,
            accept_http_10: true,
            ..Self::default()
        }
    }
}

impl Default for Http1Settings {
    fn default() -> Self {
        Self {
            max_head_bytes: 60 * 1024,
            max_headers: 100,
            accept_http_10: false,
            enable_trailers: false,
            allow_chunked_length: false,
            allow_absolute_url: true,
            allow_custom_methods: false,
            header_case: HeaderCase::Lower,
            absolute_requests: false,
            underscores: UnderscoreAction::Allow,
            stats: Http1Stats::default(),
            request_headers_timeout: None,
            idle_timeout: Some(Duration::from_secs(3600)),
            linger: Some(Duration::from_secs(1)),
        }
    }
}

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod grammar_tests;
#[cfg(test)]
#[path = "../../../../fuzz/src/properties.rs"]
pub(in crate::http) mod properties;
#[cfg(test)]
mod tests;
