//! A connection in TLS.
//!
//! Over rustls's interface without buffers: while a connection is idle it has none, and a record is encrypted where it
//! is sent from.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::CommonState;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::records::{Outbound, Records};
use super::session::Session;
use crate::transport::ByteStream;
use crate::transport::buffer::Buffer;

/// The most that is asked of the connection below at a time: a record of the greatest length.
const READ: usize = 16 * 1024 + 256 + 5;
/// The most content that is taken at a time.
const WRITE: usize = 64 * 1024;
/// Small pieces up to this much in sum become one record.
const GATHER: usize = 16 * 1024;
/// When this much waits for a peer that does not read, nothing more is read from it.
const MAX_OUTGOING: usize = 64 * 1024;

/// Content in TLS over `IO`. Bounded: at most one write's records wait to be sent, at most one read's content to be
/// read.
///
/// It ends as TLS wants it (RFC 8446, 6.1): a connection that breaks off without `close_notify` reads as
/// [`io::ErrorKind::UnexpectedEof`].
pub struct TlsStream<IO, S> {
    io: IO,
    records: Records<S>,
    /// Content that found no room where it was to be read to, and how much of it has been read since.
    content: Vec<u8>,
    read: usize,
    /// `close_notify` is on its way: no more content is taken.
    closed: bool,
}

/// Nothing in it is pinned, whatever a session is.
impl<IO: Unpin, S> Unpin for TlsStream<IO, S> {}

impl<IO, S: Session> TlsStream<IO, S>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    /// A connection at the beginning of its handshake; `incoming` has been read from `io` already.
    ///
    /// Boxed: it is more than a kilobyte, which futures would move about and make room for several times.
    pub(super) fn new(io: IO, session: S, incoming: Buffer) -> Box<Self> {
        Box::new(Self {
            io,
            records: Records::new(session, incoming),
            content: Vec::new(),
            read: 0,
            closed: false,
        })
    }

    /// What has been agreed on.
    pub fn session(&self) -> &CommonState {
        self.records.session.state()
    }

    /// Shakes hands.
    ///
    /// # Errors
    /// The connection below broke, or the peer breaks the rules (a [`rustls::Error`] inside); it has been sent an
    /// alert then.
    pub(super) async fn handshake(mut self: Box<Self>) -> io::Result<Box<Self>> {
        std::future::poll_fn(|cx| self.poll_handshake(cx)).await?;
        Ok(self)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.understand(cx, None)?;
            // Both sides may have something to say at once: whoever only spoke would wait for ever if both did.
            let sent = self.poll_send(cx)?;
            if !self.session().is_handshaking() {
                ready!(sent);
                return Pin::new(&mut self.io).poll_flush(cx);
            }
            if ready!(self.poll_more(cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Reads from below.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.records.incoming.poll_fill(&mut self.io, cx, READ)
    }

    /// Understands what came; content goes to `to` while it has room.
    fn understand(
        &mut self,
        cx: &mut Context<'_>,
        mut to: Option<&mut ReadBuf<'_>>,
    ) -> io::Result<()> {
        let content = &mut self.content;
        let mut deliver = |payload: &[u8]| {
            let fits = to.as_ref().filter(|_| content.is_empty());
            let fits = fits.map_or(0, |to| to.remaining().min(payload.len()));
            let (now, later) = payload.split_at(fits);
            if let Some(to) = &mut to {
                to.put_slice(now);
            }
            content.extend_from_slice(later);
        };
        let driven = self.records.drive(Outbound::Nothing, &mut deliver);
        driven.map(|_| ()).map_err(|error| {
            // The alert; nobody waits for it any more.
            let _ = self.poll_send(cx);
            io::Error::new(io::ErrorKind::InvalidData, error)
        })
    }

    /// Sends what is outgoing.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outgoing = &mut self.records.outgoing;
        while !outgoing.is_empty() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, outgoing.filled()))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            outgoing.consume(n);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.closed, true) {
            // A session that has failed has said so.
            let _ = self.put(Outbound::CloseNotify);
        }
        self.poll_send(cx)
    }

    /// Encrypts; what comes meanwhile of content is kept.
    fn put(&mut self, outbound: Outbound<'_>) -> io::Result<()> {
        let content = &mut self.content;
        let driven = self
            .records
            .drive(outbound, &mut |payload| content.extend_from_slice(payload));
        match driven {
            Ok(true) => Ok(()),
            Ok(false) => Err(io::ErrorKind::NotConnected.into()),
            Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }

    /// Gives `to` what has been kept; tells whether there was any.
    fn give(&mut self, to: &mut ReadBuf<'_>) -> bool {
        let rest = self.content.get(self.read..).unwrap_or_default();
        if rest.is_empty() {
            return false;
        }
        let n = rest.len().min(to.remaining());
        to.put_slice(rest.get(..n).unwrap_or_default());
        self.read += n;
        if self.read == self.content.len() {
            self.content = Vec::new();
            self.read = 0;
        }
        true
    }
}

impl<IO: ByteStream, S: Session> ByteStream for TlsStream<IO, S> {
    fn abort(&mut self) {
        self.io.abort();
    }
}

impl<IO, S: Session> AsyncRead for TlsStream<IO, S>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.give(buf) || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if self.records.peer_closed {
                return Poll::Ready(Ok(()));
            }
            if self.records.failed {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            // Answers of TLS itself go out though nobody writes; a peer that does not take them is read no more.
            let sent = self.poll_send(cx)?;
            if sent.is_pending() && self.records.outgoing.len() > MAX_OUTGOING {
                return Poll::Pending;
            }
            if ready!(self.poll_more(cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            let before = buf.filled().len();
            self.understand(cx, Some(buf))?;
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<IO, S: Session> AsyncWrite for TlsStream<IO, S>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        // Nothing is taken while the last is not gone.
        ready!(self.poll_send(cx))?;
        let now = buf.get(..WRITE).unwrap_or(buf);
        if now.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.put(Outbound::Data(now))?;
        match self.poll_send(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // Taken; the rest goes with the next write or flush.
            _ => Poll::Ready(Ok(now.len())),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut pieces = bufs.iter().filter(|piece| !piece.is_empty());
        let first = pieces.next().map_or(&[][..], |piece| piece);
        if first.len() >= GATHER || pieces.next().is_none() {
            return self.poll_write(cx, first);
        }
        let mut gathered = Buffer::default();
        for piece in bufs {
            let piece = piece.get(..GATHER - gathered.len()).unwrap_or(piece);
            let room = gathered.room(GATHER);
            if let Some(room) = room.get_mut(..piece.len()) {
                room.copy_from_slice(piece);
                gathered.grow(piece.len());
            }
        }
        self.poll_write(cx, gathered.filled())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_close(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
