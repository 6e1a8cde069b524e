//! The connection manager's stats: `http.<stat_prefix>.*`.

use crate::telemetry::stats::{Counter, Gauge, Histogram, Scope};

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident: $kind:ident $make:ident;)*) => {
        /// Envoy's "HTTP connection manager statistics", as far as they are kept.
        pub struct ConnectionManagerStats {
            $(pub(super) $name: $kind,)*
        }

        impl ConnectionManagerStats {
            /// Makes the stats in `scope` (`http.<stat_prefix>.`).
            pub fn new(scope: &Scope) -> Self {
                Self { $($name: scope.$make(stringify!($name)),)* }
            }
        }
    };
}

stats! {
    downstream_cx_total: Counter counter;
    downstream_cx_active: Gauge gauge;
    downstream_cx_ssl_total: Counter counter;
    downstream_cx_ssl_active: Gauge gauge;
    downstream_cx_http1_total: Counter counter;
    downstream_cx_http1_active: Gauge gauge;
    downstream_cx_http2_total: Counter counter;
    downstream_cx_http2_active: Gauge gauge;
    downstream_cx_protocol_error: Counter counter;
    downstream_cx_max_duration_reached: Counter counter;
    downstream_rq_total: Counter counter;
    downstream_rq_active: Gauge gauge;
    downstream_rq_http1_total: Counter counter;
    downstream_rq_http2_total: Counter counter;
    downstream_rq_completed: Counter counter;
    downstream_rq_1xx: Counter counter;
    downstream_rq_2xx: Counter counter;
    downstream_rq_3xx: Counter counter;
    downstream_rq_4xx: Counter counter;
    downstream_rq_5xx: Counter counter;
    downstream_rq_rx_reset: Counter counter;
    downstream_rq_tx_reset: Counter counter;
    downstream_rq_non_relative_path: Counter counter;
    downstream_rq_timeout: Counter counter;
    downstream_rq_idle_timeout: Counter counter;
    downstream_rq_max_duration_reached: Counter counter;
    downstream_rq_time: Histogram histogram;
    no_route: Counter counter;
    rq_total: Counter counter;
    rq_direct_response: Counter counter;
    rq_redirect: Counter counter;
    no_cluster: Counter counter;
}

impl ConnectionManagerStats {
    /// Counts a completed response by its status class.
    pub(super) fn count_response(&self, status: u16) {
        self.downstream_rq_completed.inc();
        match status / 100 {
            1 => self.downstream_rq_1xx.inc(),
            2 => self.downstream_rq_2xx.inc(),
            3 => self.downstream_rq_3xx.inc(),
            4 => self.downstream_rq_4xx.inc(),
            _ => self.downstream_rq_5xx.inc(),
        }
    }
}
