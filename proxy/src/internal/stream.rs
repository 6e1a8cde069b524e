//! Two connected ends in memory: both on one worker, or each on its own.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::spread::Counted;
use crate::transport::ByteStream;

/// A buffer that has grown past this is given back once it is empty: most connections are quiet most of the time.
const KEPT: usize = 16 * 1024;

/// One end of a connection inside the process. Each direction buffers so many bytes and no more: a side that does not
/// read stops the other. Shutting one end down is the other's end of stream, after what was written; dropping it before
/// that is a reset.
#[derive(Debug)]
pub struct InternalStream {
    incoming: Shared,
    outgoing: Shared,
    /// That its worker has one tunnel more.
    counted: Option<Counted>,
}

/// An end for another worker, which becomes an [`InternalStream`] there.
#[derive(Debug)]
pub struct FarEnd {
    incoming: Arc<Mutex<Direction>>,
    outgoing: Arc<Mutex<Direction>>,
}

impl From<FarEnd> for InternalStream {
    fn from(end: FarEnd) -> Self {
        Self {
            incoming: Shared::Far(end.incoming),
            outgoing: Shared::Far(end.outgoing),
            counted: None,
        }
    }
}

/// A direction as both ends have it.
#[derive(Debug, Clone)]
enum Shared {
    Near(Rc<RefCell<Direction>>),
    Far(Arc<Mutex<Direction>>),
}

impl Shared {
    fn near(limit: usize) -> Self {
        Self::Near(Rc::new(RefCell::new(Direction::new(limit))))
    }

    /// Whoever `act` has to wake is woken when the direction is free again.
    fn with<R>(&self, act: impl FnOnce(&mut Direction) -> R) -> R {
        let (result, due) = match self {
            Self::Near(direction) => direction.borrow_mut().act(act),
            // It is whole between any two calls, so that a panic elsewhere says nothing about it.
            Self::Far(direction) => direction
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .act(act),
        };
        if let Some(waker) = due {
            waker.wake();
        }
        result
    }
}

/// The bytes on their way in one direction.
#[derive(Debug)]
struct Direction {
    buffer: BytesMut,
    limit: usize,
    /// Nothing more is written.
    ended: bool,
    /// Because the writer is gone, before it had said all.
    cut: bool,
    /// Nothing more is read.
    unread: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Who is to be woken for what was done last.
    due: Option<Waker>,
}

impl Direction {
    fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            limit: limit.max(1),
            ended: false,
            cut: false,
            unread: false,
            reader: None,
            writer: None,
            due: None,
        }
    }

    fn act<R>(&mut self, act: impl FnOnce(&mut Self) -> R) -> (R, Option<Waker>) {
        let result = act(self);
        (result, self.due.take())
    }

    fn end(&mut self) {
        self.ended = true;
        self.due = self.reader.take();
    }

    fn leave(&mut self) {
        self.unread = true;
        self.buffer = BytesMut::new();
        self.due = self.writer.take();
    }

    fn poll_read(&mut self, cx: &Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let n = self.buffer.len().min(buf.remaining());
        if let Some(bytes) = self.buffer.get(..n).filter(|bytes| !bytes.is_empty()) {
            buf.put_slice(bytes);
            self.buffer.advance(n);
            if self.buffer.is_empty() && self.buffer.capacity() > KEPT {
                self.buffer = BytesMut::new();
            }
            self.due = self.writer.take();
            return Poll::Ready(Ok(()));
        }
        if self.ended || buf.remaining() == 0 {
            return Poll::Ready(match self.cut {
                true => Err(io::ErrorKind::ConnectionReset.into()),
                false => Ok(()),
            });
        }
        wait(&mut self.reader, cx);
        Poll::Pending
    }

    fn poll_write(
        &mut self,
        cx: &Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.ended || self.unread {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let before = self.buffer.len();
        for buf in bufs {
            let room = self.limit.saturating_sub(self.buffer.len());
            let part = buf.get(..room).unwrap_or(buf);
            self.buffer.extend_from_slice(part);
        }
        let written = self.buffer.len() - before;
        if written == 0 && bufs.iter().any(|buf| !buf.is_empty()) {
            wait(&mut self.writer, cx);
            return Poll::Pending;
        }
        self.due = self.reader.take();
        Poll::Ready(Ok(written))
    }
}

fn wait(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}

impl InternalStream {
    /// Two ends; each direction holds `limit` bytes.
    pub fn pair(limit: usize) -> (Self, Self) {
        let (there, back) = (Shared::near(limit), Shared::near(limit));
        let ours = Self {
            incoming: back.clone(),
            outgoing: there.clone(),
            counted: None,
        };
        let theirs = Self {
            incoming: there,
            outgoing: back,
            counted: None,
        };
        (ours, theirs)
    }

    /// The same, with the other end for another worker.
    pub fn across(limit: usize) -> (Self, FarEnd) {
        let far = || Arc::new(Mutex::new(Direction::new(limit)));
        let (there, back) = (far(), far());
        let ours = FarEnd {
            incoming: back.clone(),
            outgoing: there.clone(),
        };
        let theirs = FarEnd {
            incoming: there,
            outgoing: back,
        };
        (ours.into(), theirs)
    }

    /// Counts the connection for as long as this end lives.
    pub(super) fn counted(mut self, counted: Counted) -> Self {
        self.counted = Some(counted);
        self
    }

    /// Whether the other end is gone already.
    pub fn is_refused(&self) -> bool {
        self.outgoing.with(|outgoing| outgoing.unread)
    }

    /// Ready when the other end is gone, or has said that it reads no more.
    pub fn poll_unread(&mut self, cx: &Context<'_>) -> Poll<()> {
        self.outgoing.with(|outgoing| {
            if outgoing.unread {
                return Poll::Ready(());
            }
            wait(&mut outgoing.writer, cx);
            Poll::Pending
        })
    }
}

impl Drop for InternalStream {
    fn drop(&mut self) {
        self.outgoing.with(|outgoing| {
            outgoing.cut |= !outgoing.ended;
            outgoing.end();
        });
        self.incoming.with(Direction::leave);
    }
}

impl ByteStream for InternalStream {
    fn abort(&mut self) {
        self.outgoing.with(|outgoing| outgoing.cut = true);
    }
}

impl AsyncRead for InternalStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.incoming.with(|incoming| incoming.poll_read(cx, buf))
    }
}

impl AsyncWrite for InternalStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.outgoing.with(|outgoing| outgoing.poll_write(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.with(Direction::end);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn capacity(end: &InternalStream) -> usize {
        end.incoming.with(|incoming| incoming.buffer.capacity())
    }

    #[test]
    fn ends_on_two_threads_wake_each_other() {
        let (mut ours, theirs) = InternalStream::across(7);
        let sent: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let block_on = |work: std::pin::Pin<Box<dyn Future<Output = ()>>>| {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            runtime.unwrap().block_on(work);
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let end = theirs;
                block_on(Box::pin(async {
                    let (mut read, mut write) = tokio::io::split(InternalStream::from(end));
                    tokio::io::copy(&mut read, &mut write).await.unwrap();
                    write.shutdown().await.unwrap();
                }));
            });
            let expected = sent.clone();
            block_on(Box::pin(async move {
                let mut back = Vec::new();
                let (mut read, mut write) = tokio::io::split(&mut ours);
                let writing = async {
                    write.write_all(&sent).await.unwrap();
                    write.shutdown().await.unwrap();
                };
                let (read, ()) = tokio::join!(read.read_to_end(&mut back), writing);
                read.unwrap();
                assert!(back == expected);
            }));
        });
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_each_way_ends_alone() {
        let (mut a, mut b) = InternalStream::pair(64);
        a.write_all(b"to b").await.unwrap();
        a.shutdown().await.unwrap();
        b.write_all(b"to a").await.unwrap();
        let mut got = String::new();
        b.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "to b");
        // The other direction goes on, and what is written before the end still arrives.
        b.write_all(b", more").await.unwrap();
        b.shutdown().await.unwrap();
        drop(b);
        let mut got = String::new();
        a.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "to a, more");
    }

    #[tokio::test]
    async fn a_full_buffer_stops_the_writer_until_there_is_room() {
        let (mut a, mut b) = InternalStream::pair(4);
        assert_eq!(a.write(b"123456").await.unwrap(), 4);
        assert!(a.write(b"5").now_or_never().is_none());
        let mut two = [0; 2];
        b.read_exact(&mut two).await.unwrap();
        let parts = [io::IoSlice::new(b"5"), io::IoSlice::new(b"67")];
        assert_eq!(a.write_vectored(&parts).await.unwrap(), 2);
        assert!(a.write(b"7").now_or_never().is_none());
    }

    #[tokio::test]
    async fn whoever_waits_is_woken_by_the_other_ends_leaving() {
        let (mut a, b) = InternalStream::pair(1);
        a.write_all(b"x").await.unwrap();
        let (written, ()) = tokio::join!(a.write(b"y"), async { drop(b) });
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let (mut a, b) = InternalStream::pair(1);
        let mut byte = [0];
        let (read, ()) = tokio::join!(a.read(&mut byte), async { drop(b) });
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn what_was_written_before_a_reset_arrives() {
        let (mut a, mut b) = InternalStream::pair(16);
        a.write_all(b"last words").await.unwrap();
        drop(a);
        let mut got = Vec::new();
        let end = b.read_to_end(&mut got).await;
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(got, b"last words");
    }

    #[tokio::test]
    async fn a_large_buffer_is_given_back_when_it_is_empty() {
        let (mut a, mut b) = InternalStream::pair(1 << 20);
        a.write_all(&vec![7; 1 << 18]).await.unwrap();
        assert!(capacity(&b) >= 1 << 18);
        b.read_exact(&mut vec![0; 1 << 18]).await.unwrap();
        assert_eq!(capacity(&b), 0);
    }
}
