//! The bytes of an upstream connection, counted.

use std::io;

use super::guard::ConnectionGuard;
use crate::transport::ByteStream;
use crate::transport::observed::{Observed, Observer};
use crate::transport::tls::failure;

/// An upstream connection's bytes with its share of the limits.
pub(crate) type PooledIo = Observed<Box<dyn ByteStream>, ConnectionGuard>;

impl ConnectionGuard {
    /// Notes what TLS found wrong with what came.
    fn broke(&self, error: &io::Error) {
        let tls = self.place.host.transport.tls();
        if let Some(tls) = tls.filter(|_| error.kind() == io::ErrorKind::InvalidData)
            && self
                .state()
                .failure
                .set(failure::text(error).into())
                .is_ok()
        {
            tls.broke();
        }
    }
}

impl Observer for ConnectionGuard {
    fn received(&self, outcome: &io::Result<usize>) {
        match outcome {
            Ok(0) => self.state().remote.set(true),
            Ok(n) => {
                let stats = self.place.stats();
                stats.upstream_cx_rx_bytes_total.add(*n as u64);
            }
            Err(error) => {
                self.state().remote.set(true);
                self.broke(error);
            }
        }
    }

    fn sent(&self, outcome: &io::Result<usize>) {
        match outcome {
            Ok(n) => {
                let stats = self.place.stats();
                stats.upstream_cx_tx_bytes_total.add(*n as u64);
            }
            Err(_) => self.state().remote.set(true),
        }
    }
}
