//! Bytes both ways between two connections.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// The most bytes that wait in each direction. A side that does not read stops the other: nothing more is read
/// from it until there is room.
const BUFFER: usize = 16 * 1024;

/// What moved, and when.
pub(super) struct Traffic {
    /// Bytes from the client.
    pub(super) received: Cell<u64>,
    /// Bytes to the client.
    pub(super) sent: Cell<u64>,
    last: Cell<Instant>,
}

impl Traffic {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self {
            received: Cell::new(0),
            sent: Cell::new(0),
            last: Cell::new(Instant::now()),
        })
    }

    fn moved(&self, counter: &Cell<u64>, n: usize) {
        if n > 0 {
            counter.set(counter.get() + n as u64);
            self.last.set(Instant::now());
        }
    }

    /// Ends when nothing has moved for `limit`; never without one.
    pub(super) async fn quiet(&self, limit: Option<Duration>) {
        let Some(limit) = limit else {
            return std::future::pending().await;
        };
        // One timer for the connection, set again only when it rings.
        loop {
            let end = self.last.get() + limit;
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// The client's connection, watched.
struct Watched<IO> {
    io: IO,
    traffic: Rc<Traffic>,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        let read = buf.filled().len().saturating_sub(before);
        self.traffic.moved(&self.traffic.received, read);
        polled
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = polled {
            self.traffic.moved(&self.traffic.sent, n);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Copies until both ends are done or one breaks. An end of one direction is passed on, and the other direction
/// goes on (half-close).
pub(super) async fn both_ways(
    client: impl AsyncRead + AsyncWrite + Unpin,
    mut upstream: impl AsyncRead + AsyncWrite + Unpin,
    traffic: Rc<Traffic>,
) -> io::Result<()> {
    let mut client = Watched {
        io: client,
        traffic,
    };
    tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER)
        .await
        .map(|_| ())
}
