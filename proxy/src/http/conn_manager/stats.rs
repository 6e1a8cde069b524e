//! The connection manager's stats: `http.<stat_prefix>.*`.

use crate::telemetry::stats::{Counter, Gauge, Histogram, Scope};

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident: $kind:ident $make:ident;)*) => {
        /// Envoy's "HTTP connection manager statistics", as far as they are kept.
        pub struct ConnectionManagerStats {
            $(pub(super) $name: $kind,)*
            responses: ResponseStats,
            /// The same for one listener: `listener.<address>.http.<stat_prefix>.*`.
            of_listener: ResponseStats,
        }

        impl ConnectionManagerStats {
            /// Makes the stats in `scope` (`http.<stat_prefix>.`), and those of one listener in `of_listener`.
            pub fn new(scope: &Scope, of_listener: &Scope) -> Self {
                Self {
                    $($name: scope.$make(stringify!($name)),)*
                    responses: ResponseStats::new(scope),
                    of_listener: ResponseStats::new(of_listener),
                }
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
    downstream_cx_rx_bytes_total: Counter counter;
    downstream_cx_tx_bytes_total: Counter counter;
    downstream_cx_max_duration_reached: Counter counter;
    downstream_rq_total: Counter counter;
    downstream_rq_active: Gauge gauge;
    downstream_rq_http1_total: Counter counter;
    downstream_rq_http2_total: Counter counter;
    downstream_rq_rx_reset: Counter counter;
    downstream_rq_tx_reset: Counter counter;
    downstream_rq_non_relative_path: Counter counter;
    downstream_rq_timeout: Counter counter;
    downstream_rq_too_many_premature_resets: Counter counter;
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
        self.responses.count(status);
        self.of_listener.count(status);
    }
}

/// Responses by status class.
struct ResponseStats {
    completed: Counter,
    /// 1xx to 5xx.
    classes: [Counter; 5],
}

impl ResponseStats {
    fn new(scope: &Scope) -> Self {
        let class = |n| scope.counter(&format!("downstream_rq_{n}xx"));
        Self {
            completed: scope.counter("downstream_rq_completed"),
            classes: [1, 2, 3, 4, 5].map(class),
        }
    }

    fn count(&self, status: u16) {
        self.completed.inc();
        let class = usize::from((status / 100).clamp(1, 5)) - 1;
        if let Some(class) = self.classes.get(class) {
            class.inc();
        }
    }
}
