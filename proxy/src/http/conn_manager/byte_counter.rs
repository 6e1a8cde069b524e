//! What counts a connection's bytes, for `downstream_cx_rx_bytes_total` and for logs.

use std::io;
use std::sync::Arc;

use super::config::HcmConfig;
use crate::http::service::ConnectionControl;
use crate::transport::observed::Observer;

/// Counts what passes between a codec and its connection.
pub struct ByteCounter {
    config: Arc<HcmConfig>,
    control: ConnectionControl,
}

impl ByteCounter {
    /// Counts from now on, and the `read` bytes that were read before.
    pub fn new(read: usize, config: Arc<HcmConfig>, control: ConnectionControl) -> Self {
        let counter = Self { config, control };
        counter.add_received(read as u64);
        counter
    }

    fn add_received(&self, n: u64) {
        self.control.add_received(n);
        self.config.stats.downstream_cx_rx_bytes_total.add(n);
    }
}

impl Observer for ByteCounter {
    fn received(&self, outcome: &io::Result<usize>) {
        if let Ok(n) = outcome {
            self.add_received(*n as u64);
        }
    }

    fn sent(&self, outcome: &io::Result<usize>) {
        if let Ok(n) = outcome {
            let n = *n as u64;
            self.control.add_sent(n);
            self.config.stats.downstream_cx_tx_bytes_total.add(n);
        }
    }
}
