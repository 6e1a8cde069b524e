//! The bytes of an upstream connection, counted.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::guard::{ConnectionGuard, ConnectionState, is_worn};
use crate::transport::ByteStream;
use crate::transport::tls::failure;

/// An upstream connection's bytes with its share of the limits.
pub(crate) struct PooledIo {
    stream: Box<dyn ByteStream>,
    guard: ConnectionGuard,
}

impl PooledIo {
    pub(in crate::upstream) fn new(stream: Box<dyn ByteStream>, guard: ConnectionGuard) -> Self {
        Self { stream, guard }
    }

    pub(super) fn state(&self) -> &Rc<ConnectionState> {
        self.guard.state()
    }

    pub(super) fn finished(&self) {
        self.guard.finished();
    }

    /// Whether the connection is too old for another request; counts it if so.
    pub(super) fn is_worn(&self) -> bool {
        is_worn(&self.guard.place, self.guard.began)
    }

    /// Notes what TLS found wrong with what came.
    fn broke(&self, error: &io::Error) {
        let tls = self.guard.place.host.transport.tls();
        if let Some(tls) = tls.filter(|_| error.kind() == io::ErrorKind::InvalidData)
            && self
                .guard
                .state()
                .failure
                .set(failure::text(error).into())
                .is_ok()
        {
            tls.broke();
        }
    }

    fn wrote(&self, polled: &Poll<io::Result<usize>>) {
        match polled {
            Poll::Ready(Ok(n)) => {
                let stats = self.guard.place.stats();
                stats.upstream_cx_tx_bytes_total.add(*n as u64);
            }
            Poll::Ready(Err(_)) => self.guard.state().remote.set(true),
            Poll::Pending => {}
        }
    }
}

impl AsyncRead for PooledIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        match &polled {
            Poll::Ready(Ok(())) if buf.filled().len() > before => {
                let n = (buf.filled().len() - before) as u64;
                self.guard.place.stats().upstream_cx_rx_bytes_total.add(n);
            }
            Poll::Ready(Ok(())) => self.guard.state().remote.set(true),
            Poll::Ready(Err(error)) => {
                self.guard.state().remote.set(true);
                self.broke(error);
            }
            Poll::Pending => {}
        }
        polled
    }
}

impl AsyncWrite for PooledIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(&polled);
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(&polled);
        polled
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
