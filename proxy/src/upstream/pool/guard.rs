//! What connections and requests hold of their cluster's limits, given back on drop.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pingora_core::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::upstream::cluster::Cluster;
use crate::upstream::host::Host;

/// A request in flight.
pub(crate) struct RequestGuard {
    cluster: Arc<Cluster>,
    host: Arc<Host>,
}

impl RequestGuard {
    /// Takes a request's share; `None` when the circuit breaker is open.
    pub(crate) fn take(cluster: &Arc<Cluster>, host: &Arc<Host>) -> Option<Self> {
        if !cluster.breakers.default.requests.try_take() {
            return None;
        }
        host.begin();
        Some(Self {
            cluster: cluster.clone(),
            host: host.clone(),
        })
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.cluster.breakers.default.requests.give();
        self.host.end();
    }
}

/// A connection's share of the cluster's limit.
pub(crate) struct ConnectionGuard {
    cluster: Arc<Cluster>,
    on_close: Option<Box<dyn FnOnce()>>,
}

impl ConnectionGuard {
    /// Takes a connection's share; `None` when the circuit breaker is open.
    pub(crate) fn take(cluster: &Arc<Cluster>) -> Option<Self> {
        cluster
            .breakers
            .default
            .connections
            .try_take()
            .then(|| Self {
                cluster: cluster.clone(),
                on_close: None,
            })
    }

    /// Calls `f` when the connection is gone.
    pub(crate) fn on_close(&mut self, f: impl FnOnce() + 'static) {
        self.on_close = Some(Box::new(f));
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.cluster.breakers.default.connections.give();
        if let Some(f) = self.on_close.take() {
            f();
        }
    }
}

/// An upstream connection's bytes with its share of the limits.
pub(crate) struct PooledIo {
    pub(crate) stream: Stream,
    pub(crate) _guard: ConnectionGuard,
}

impl AsyncRead for PooledIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for PooledIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
