//! A connection whose bytes are counted, for `downstream_cx_rx_bytes_total` and for logs.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::config::HcmConfig;
use crate::http::service::ConnectionControl;

/// Counts what passes between a codec and its connection.
pub struct Counted<IO> {
    io: IO,
    config: Arc<HcmConfig>,
    control: ConnectionControl,
}

impl<IO> Counted<IO> {
    /// Counts what is read and written from now on, and the `read` bytes that were read before.
    pub fn new(io: IO, read: usize, config: Arc<HcmConfig>, control: ConnectionControl) -> Self {
        let counted = Self {
            io,
            config,
            control,
        };
        counted.received(read);
        counted
    }

    fn received(&self, n: usize) {
        let n = n as u64;
        self.control.add_received(n);
        self.config.stats.downstream_cx_rx_bytes_total.add(n);
    }

    fn sent(&self, polled: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(n)) = polled {
            let n = *n as u64;
            self.control.add_sent(n);
            self.config.stats.downstream_cx_tx_bytes_total.add(n);
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Counted<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if polled.is_ready() {
            self.received(buf.filled().len().saturating_sub(before));
        }
        polled
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Counted<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.sent(&polled);
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.sent(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
