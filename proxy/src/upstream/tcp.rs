//! A connection to a host for bytes that are not HTTP: made for one downstream connection, never shared.

use std::sync::Arc;

use filters::body::ResetReason;

use super::circuit_breaker::Priority;
use super::cluster::Cluster;
use super::connect::{ConnectError, ConnectionFacts};
use super::host::Host;
use super::pool::{ConnectionGuard, Place, PooledIo};
use crate::transport::options::Purpose;

/// A fresh connection, with its share of the cluster's limits.
pub(crate) struct TcpConnection {
    /// The bytes.
    pub(crate) io: PooledIo,
    /// What logs tell of it.
    pub(crate) facts: ConnectionFacts,
}

/// Connects to `host`.
///
/// # Errors
/// The circuit breaker of connections is open, or as [`connect`](connect_host).
pub(crate) async fn connect(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    purpose: Purpose,
) -> Result<TcpConnection, ConnectError> {
    let place = Place::new(
        cluster,
        host,
        Priority::Default,
        purpose.on(&host.transport),
    );
    let guard = ConnectionGuard::take(&place, false).ok_or_else(|| ConnectError {
        reason: ResetReason::Overflow,
        transport_failure: None,
    })?;
    match place.connect(&[]).await {
        Ok(connected) => {
            guard.connected(connected.facts);
            Ok(TcpConnection {
                facts: guard.state().facts(),
                io: PooledIo::new(connected.io, guard),
            })
        }
        Err(error) => {
            guard.failed(&error);
            Err(error)
        }
    }
}
