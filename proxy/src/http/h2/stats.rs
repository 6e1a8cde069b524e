//! The numbers of the HTTP/2 codec on the server side: `http2.*`.

use crate::telemetry::stats::{Counter, Scope};

macro_rules! stats {
    ($($name:ident)*) => {
        /// Envoy's "HTTP/2 codec statistics" of downstream connections, as far as they are kept. Without a scope,
        /// nothing is recorded.
        #[derive(Default)]
        pub struct Http2Stats {
            $(pub(super) $name: Counter,)*
        }

        impl Http2Stats {
            /// Makes the stats in `scope` (`http2.`).
            pub fn new(scope: &Scope) -> Self {
                Self { $($name: scope.counter(stringify!($name)),)* }
            }
        }
    };
}

stats! {
    dropped_headers_with_underscores
    goaway_sent
    header_overflow
    inbound_empty_frames_flood
    inbound_priority_frames_flood
    inbound_window_update_frames_flood
    keepalive_timeout
    requests_rejected_with_underscores_in_headers
    rx_messaging_error
    rx_reset
    tx_reset
}

impl std::fmt::Debug for Http2Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http2Stats").finish_non_exhaustive()
    }
}
