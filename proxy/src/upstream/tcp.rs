//! A connection to a host for bytes that are not HTTP: made for one downstream connection, never shared.

use std::sync::Arc;

use filters::body::ResetReason;

use super::circuit_breaker::Priority;
use super::cluster::Cluster;
use super::connect::{ConnectError, ConnectionFacts};
use super::host::Host;
use super::pool::{ConnectionGuard, PendingGuard, Place, PooledIo, RequestGuard};
use crate::transport::options::Purpose;

/// A fresh connection, with its share of the cluster's limits.
pub(crate) struct TcpConnection {
    /// The bytes.
    pub(crate) io: PooledIo,
    /// What logs tell of it.
    pub(crate) facts: ConnectionFacts,
    /// To be kept as long as the connection, which counts as one request.
    pub(crate) request: RequestGuard,
}

fn overflow() -> ConnectError {
    ConnectError {
        reason: ResetReason::Overflow,
        transport_failure: None,
    }
}

/// Connects to `host`.
///
/// # Errors
/// A circuit breaker is open, or as [`connect`](connect_host).
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
    let guard = ConnectionGuard::take(&place, false).ok_or_else(overflow)?;
    let mut pending = None;
    PendingGuard::begin(&mut pending, &place).map_err(|_| overflow())?;
    let connected = place.connect(&[]).await;
    PendingGuard::finish(&mut pending, connected.is_err());
    match connected {
        Ok(connected) => {
            guard.connected(connected.facts);
            Ok(TcpConnection {
                facts: guard.state().facts(),
                request: RequestGuard::take(&place, guard.state(), None).ok_or_else(overflow)?,
                io: PooledIo::new(connected.io, guard),
            })
        }
        Err(error) => {
            guard.failed(&error);
            Err(error)
        }
    }
}
