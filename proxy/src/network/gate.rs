//! Bytes that network filters look at before they are read.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use filters::stream::ConnectionInfo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::{NetworkFilter, OnData};
use crate::transport::ByteStream;
use crate::transport::prefixed::Prefixed;

/// A connection whose bytes pass only as long as the filters agree. Once one does not, nothing more comes from the
/// client, and when it is time the connection fails.
pub struct Gate<IO> {
    io: Prefixed<IO>,
    filters: Arc<[Arc<dyn NetworkFilter>]>,
    connection: Rc<ConnectionInfo>,
    ends_pass: bool,
    state: State,
}

enum State {
    /// Nothing has come yet.
    First,
    /// Something has, and some filters want to see more.
    Watching,
    /// No filter wants to see more.
    Open,
    /// Refused; fails then.
    Closing(Pin<Box<Sleep>>),
    /// Has failed.
    Closed,
}

impl<IO> Gate<IO> {
    pub(super) fn new(
        filters: Arc<[Arc<dyn NetworkFilter>]>,
        io: IO,
        prefix: Bytes,
        connection: Rc<ConnectionInfo>,
        ends_pass: bool,
    ) -> Self {
        Self {
            io: Prefixed::new(prefix, io),
            filters,
            connection,
            ends_pass,
            state: State::First,
        }
    }

    /// Asks the filters about bytes that have come.
    fn ask(&mut self) {
        let first = matches!(self.state, State::First);
        let mut next = State::Open;
        for filter in self.filters.iter().filter(|f| f.reads()) {
            match filter.on_data(&self.connection, first) {
                OnData::Done => {}
                OnData::Again => next = State::Watching,
                OnData::Close(after) => {
                    let sleep = tokio::time::sleep_until(Instant::now() + after);
                    self.state = State::Closing(Box::pin(sleep));
                    return;
                }
            }
        }
        self.state = next;
    }
}

fn refused() -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        "refused by a network filter",
    )
}

impl<IO: ByteStream> ByteStream for Gate<IO> {
    fn abort(&mut self) {
        self.io.abort();
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Gate<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let State::First | State::Watching | State::Open = self.state {
            let before = buf.filled().len();
            ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
            let read = buf.filled().len().saturating_sub(before);
            let asked = read > 0 || self.ends_pass && buf.remaining() > 0;
            if asked && !matches!(self.state, State::Open) {
                self.ask();
            }
            if !matches!(self.state, State::Closing(_)) {
                return Poll::Ready(Ok(()));
            }
            buf.set_filled(before);
            if let Some(notes) = &self.connection.notes {
                notes.borrow_mut().refused_bytes = u64::try_from(read).unwrap_or(u64::MAX);
            }
        }
        if let State::Closing(sleep) = &mut self.state {
            ready!(sleep.as_mut().poll(cx));
            self.state = State::Closed;
        }
        Poll::Ready(Err(refused()))
    }
}

impl<IO> Gate<IO> {
    /// Whether bytes may leave.
    fn check_open(&self) -> io::Result<()> {
        match self.state {
            State::Closed => Err(refused()),
            // Until the end the client may hear the server, as in Envoy.
            _ => Ok(()),
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Gate<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_open()?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_open()?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
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
