//! The numbers of the HTTP/2 codec: `http2.*`, and `cluster.<name>.http2.*`.

use std::sync::OnceLock;

use crate::telemetry::stats::{Counter, Gauge, Scope};

macro_rules! stats {
    ($($name:ident)*) => {
        /// Envoy's "HTTP/2 codec statistics", as far as they are kept. Without a scope, nothing is recorded.
        #[derive(Default)]
        pub struct Http2Stats {
            $(pub(crate) $name: Counter,)*
            pub(crate) streams_active: Gauge,
        }

        impl Http2Stats {
            /// Makes the stats in `scope` (`http2.`).
            pub fn new(scope: &Scope) -> Self {
                Self {
                    $($name: scope.counter(stringify!($name)),)*
                    streams_active: scope.gauge("streams_active"),
                }
            }
        }
    };
}

stats! {
    dropped_headers_with_underscores
    goaway_sent
    header_list_size_too_large
    header_overflow
    inbound_empty_frames_flood
    inbound_priority_frames_flood
    inbound_window_update_frames_flood
    keepalive_timeout
    requests_rejected_with_underscores_in_headers
    rx_messaging_error
    rx_reset
    stream_refused_errors
    trailers
    tx_reset
}

impl std::fmt::Debug for Http2Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http2Stats").finish_non_exhaustive()
    }
}

/// The numbers of a cluster's codec, made when it is first used: most clusters speak HTTP/1.
#[derive(Default)]
pub struct LazyHttp2Stats {
    scope: Option<Scope>,
    stats: OnceLock<Http2Stats>,
}

impl LazyHttp2Stats {
    /// To be made in `scope` (`cluster.<name>.`).
    pub(crate) fn new(scope: Scope) -> Self {
        Self {
            scope: Some(scope),
            stats: OnceLock::new(),
        }
    }

    /// The numbers.
    pub(crate) fn get(&self) -> &Http2Stats {
        self.stats.get_or_init(|| {
            let scope = self.scope.as_ref();
            scope.map_or_else(Http2Stats::default, |s| Http2Stats::new(&s.scope("http2.")))
        })
    }
}
