//! A connection to a host for bytes that are not HTTP: made for one downstream connection, never shared.

use std::rc::Rc;
use std::sync::Arc;

use filters::body::ResetReason;
use filters::stream::Address;

use super::circuit_breaker::Priority;
use super::cluster::Cluster;
use super::connect::{ConnectError, connect as connect_host};
use super::host::Host;
use super::pool::{ConnectionGuard, Place, PooledIo, Speaks};

/// A fresh connection, with its share of the cluster's limits.
pub(crate) struct TcpConnection {
    /// The bytes.
    pub(crate) io: PooledIo,
    /// Its local end.
    pub(crate) local: Option<Address>,
}

/// Connects to `host`.
///
/// # Errors
/// The circuit breaker of connections is open, or as [`connect`](connect_host).
pub(crate) async fn connect(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
) -> Result<TcpConnection, ConnectError> {
    let place = Rc::new(Place {
        cluster: cluster.clone(),
        host: host.clone(),
        priority: Priority::Default,
    });
    let guard =
        ConnectionGuard::take(&place, Speaks::Other, false).ok_or_else(|| ConnectError {
            reason: ResetReason::Overflow,
            transport_failure: None,
        })?;
    match connect_host(&cluster.config, host).await {
        Ok(connected) => {
            guard.connected();
            Ok(TcpConnection {
                io: PooledIo::new(connected.io, guard),
                local: connected.local,
            })
        }
        Err(error) => {
            guard.failed(&error);
            Err(error)
        }
    }
}
