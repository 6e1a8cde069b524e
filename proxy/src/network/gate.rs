//! Bytes that network filters look at before they are read.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use filters::stream::ConnectionInfo;
use futures_util::future::LocalBoxFuture;
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
    /// Bit by bit, the filters that want to see what comes.
    waiting: u64,
    /// Bytes, or the end of them, that have come and that a filter is still asking about, or has just agreed to.
    held: Option<Bytes>,
}

enum State {
    /// What comes may pass if the filters that wait for it agree.
    Open,
    /// A filter is asking elsewhere whether what has come may pass; then the filters from this one on have their say.
    Asking(LocalBoxFuture<'static, bool>, usize),
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
        let reading = filters.iter().enumerate().filter(|(_, f)| f.reads());
        let waiting = reading.fold(0, |all, (number, _)| all | bit(number));
        Self {
            io: Prefixed::new(prefix, io),
            waiting,
            filters,
            connection,
            ends_pass,
            state: State::Open,
            held: None,
        }
    }

    /// Asks the filters about bytes that have come, from one on.
    fn ask(&mut self, from: usize) {
        self.state = State::Open;
        for (number, filter) in self.filters.iter().enumerate().skip(from) {
            let bit = bit(number);
            if self.waiting & bit == 0 {
                continue;
            }
            let answer = filter.on_data(&self.connection);
            if !matches!(answer, OnData::Again) {
                self.waiting &= !bit;
            }
            match answer {
                OnData::Done | OnData::Again => {}
                OnData::Ask(answer) => {
                    self.state = State::Asking(answer, number + 1);
                    return;
                }
                OnData::Close(after) => {
                    self.close(after);
                    return;
                }
            }
        }
    }

    fn close(&mut self, after: Duration) {
        let sleep = tokio::time::sleep_until(Instant::now() + after);
        self.state = State::Closing(Box::pin(sleep));
    }

    /// Notes how many bytes did not pass.
    fn refuse(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.connection.note(|notes| notes.refused_bytes = bytes);
    }

    /// Lets go of what was held, as much as there is room for.
    fn release(&mut self, mut held: Bytes, buf: &mut ReadBuf<'_>) {
        let now = held.split_to(held.len().min(buf.remaining()));
        buf.put_slice(&now);
        self.held = (!held.is_empty()).then_some(held);
    }
}

/// The bit of a filter; those beyond the last bit are refused where chains are compiled.
fn bit(number: usize) -> u64 {
    let shift = u32::try_from(number).unwrap_or(u32::MAX);
    1_u64.checked_shl(shift).unwrap_or(0)
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
        loop {
            match &mut self.state {
                State::Open => {
                    if let Some(held) = self.held.take() {
                        self.release(held, buf);
                        return Poll::Ready(Ok(()));
                    }
                    let before = buf.filled().len();
                    ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
                    let read = buf.filled().get(before..).unwrap_or_default();
                    let asked = !read.is_empty() || self.ends_pass && buf.remaining() > 0;
                    if !asked || self.waiting == 0 {
                        return Poll::Ready(Ok(()));
                    }
                    self.ask(0);
                    match self.state {
                        State::Asking(..) => self.held = Some(Bytes::copy_from_slice(read)),
                        State::Closing(_) => self.refuse(read.len()),
                        _ => return Poll::Ready(Ok(())),
                    }
                    buf.set_filled(before);
                }
                State::Asking(answer, next) => {
                    let next = *next;
                    match ready!(answer.as_mut().poll(cx)) {
                        true => self.ask(next),
                        false => self.close(Duration::ZERO),
                    }
                    if matches!(self.state, State::Closing(_)) {
                        let held = self.held.take();
                        self.refuse(held.map_or(0, |held| held.len()));
                    }
                }
                State::Closing(sleep) => {
                    ready!(sleep.as_mut().poll(cx));
                    self.state = State::Closed;
                }
                State::Closed => return Poll::Ready(Err(refused())),
            }
        }
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
