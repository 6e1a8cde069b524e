//! `tcp.<stat_prefix>.*`.

use crate::telemetry::stats::{Counter, Scope};

macro_rules! stats {
    ($($name:ident: $kind:ident $make:ident;)*) => {
        /// Envoy's "TCP proxy statistics", as far as they are kept.
        pub(super) struct TcpProxyStats {
            $(pub(super) $name: $kind,)*
        }

        impl TcpProxyStats {
            /// Makes the stats in `scope` (`tcp.<stat_prefix>.`).
            pub(super) fn new(scope: &Scope) -> Self {
                Self { $($name: scope.$make(stringify!($name)),)* }
            }
        }
    };
}

stats! {
    downstream_cx_no_route: Counter counter;
    downstream_cx_rx_bytes_total: Counter counter;
    downstream_cx_total: Counter counter;
    downstream_cx_tx_bytes_total: Counter counter;
    idle_timeout: Counter counter;
    max_downstream_connection_duration: Counter counter;
}
