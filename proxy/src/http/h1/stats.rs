//! The numbers of the HTTP/1 codec on the server side: `http1.*`.

use crate::telemetry::stats::{Counter, Scope};

/// Envoy's "HTTP/1 codec statistics", as far as they are kept. Without a scope, nothing is recorded.
#[derive(Clone, Default)]
pub struct Http1Stats {
    pub(super) dropped_headers_with_underscores: Counter,
    pub(super) requests_rejected_with_underscores_in_headers: Counter,
}

impl Http1Stats {
    /// Makes the stats in `scope` (`http1.`).
    pub fn new(scope: &Scope) -> Self {
        let counter = |name| scope.counter(name);
        Self {
            dropped_headers_with_underscores: counter("dropped_headers_with_underscores"),
            requests_rejected_with_underscores_in_headers: counter(
                "requests_rejected_with_underscores_in_headers",
            ),
        }
    }
}

/// Settings are compared by what they choose, not by where it is counted.
impl PartialEq for Http1Stats {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl std::fmt::Debug for Http1Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http1Stats").finish_non_exhaustive()
    }
}
