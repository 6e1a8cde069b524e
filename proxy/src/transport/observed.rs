//! A connection whose bytes somebody counts.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::ByteStream;

/// Learns what passes through an [`Observed`] connection.
pub(crate) trait Observer {
    /// So many bytes came; none at the end.
    fn received(&self, outcome: &io::Result<usize>);

    /// So many bytes were taken for the peer.
    fn sent(&self, outcome: &io::Result<usize>);
}

/// A connection whose reads and writes an [`Observer`] is told of, as they end.
pub(crate) struct Observed<IO, O> {
    io: IO,
    observer: O,
}

impl<IO, O: Observer> Observed<IO, O> {
    pub(crate) fn new(io: IO, observer: O) -> Self {
        Self { io, observer }
    }

    pub(crate) fn observer(&self) -> &O {
        &self.observer
    }

    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(outcome) = &polled {
            self.observer.sent(outcome);
        }
        polled
    }
}

impl<IO: ByteStream, O: Observer + Unpin> ByteStream for Observed<IO, O> {
    fn abort(&mut self) {
        self.io.abort();
    }
}

impl<IO: AsyncRead + Unpin, O: Observer + Unpin> AsyncRead for Observed<IO, O> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        polled.map(|outcome| {
            let outcome = outcome.map(|()| buf.filled().len().saturating_sub(before));
            self.observer.received(&outcome);
            outcome.map(|_| ())
        })
    }
}

impl<IO: AsyncWrite + Unpin, O: Observer + Unpin> AsyncWrite for Observed<IO, O> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.wrote(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.wrote(polled)
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[derive(Default)]
    struct Seen(RefCell<Vec<String>>);

    impl Seen {
        fn note(&self, what: &str, outcome: &io::Result<usize>) {
            let outcome = outcome.as_ref().map_err(io::Error::kind);
            self.0.borrow_mut().push(format!("{what} {outcome:?}"));
        }
    }

    impl Observer for Seen {
        fn received(&self, outcome: &io::Result<usize>) {
            self.note("received", outcome);
        }

        fn sent(&self, outcome: &io::Result<usize>) {
            self.note("sent", outcome);
        }
    }

    #[tokio::test]
    async fn tells_bytes_the_end_and_errors_but_not_waiting() {
        let (ours, mut theirs) = tokio::io::duplex(4);
        let mut observed = Observed::new(ours, Seen::default());
        let mut buf = [0; 8];
        let waits = tokio::time::timeout(std::time::Duration::ZERO, observed.read(&mut buf));
        assert!(waits.await.is_err());
        theirs.write_all(b"abc").await.unwrap();
        assert_eq!(observed.read(&mut buf).await.unwrap(), 3);
        assert_eq!(observed.write(b"defghi").await.unwrap(), 4);
        drop(theirs);
        assert_eq!(observed.read(&mut buf).await.unwrap(), 0);
        assert!(observed.write(b"j").await.is_err());
        let seen = observed.observer().0.borrow();
        let want = [
            "received Ok(3)",
            "sent Ok(4)",
            "received Ok(0)",
            "sent Err(BrokenPipe)",
        ];
        assert_eq!(*seen, want);
    }
}
