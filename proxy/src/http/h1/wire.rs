//! Bytes in and out: the read helpers, the body decoder and the write buffer that both sides share.

use std::fmt::Write as _;
use std::future::Future;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use filters::body::Frame;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::chunked::{ChunkedDecoder, Decoded};
use super::encode;
use super::parse::Framing;

/// Bytes of one head read while nothing is buffered: on the stack.
const HEAD_READ: usize = 4096;
/// Room for one body read.
const BODY_READ: usize = 16 * 1024;
/// Frames up to this size are copied behind the head, so that one write carries both.
const COPY_LIMIT: usize = 8 * 1024;
/// The buffer is flushed once it is this full, even if more is at hand.
const FLUSH_AT: usize = 32 * 1024;

/// Reads something behind `buf`; 0 is the end. Holds no buffer while it waits with nothing read.
pub(super) fn poll_read<IO: AsyncRead + Unpin>(
    io: &mut IO,
    buf: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    if buf.is_empty() {
        let mut scratch = [const { MaybeUninit::uninit() }; HEAD_READ];
        let mut scratch = ReadBuf::uninit(&mut scratch);
        return match Pin::new(io).poll_read(cx, &mut scratch) {
            Poll::Ready(Ok(())) => {
                let filled = scratch.filled();
                buf.extend_from_slice(filled);
                Poll::Ready(Ok(filled.len()))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => {
                *buf = BytesMut::new();
                Poll::Pending
            }
        };
    }
    buf.reserve(HEAD_READ);
    pin!(io.read_buf(buf)).poll(cx)
}

/// Where in a body we are.
#[derive(Debug)]
pub(super) enum BodyDecoder {
    Done,
    Length(u64),
    Chunked(ChunkedDecoder),
    Close,
}

impl BodyDecoder {
    pub(super) fn new(framing: Framing) -> Self {
        match framing {
            Framing::None | Framing::Length(0) => Self::Done,
            Framing::Length(n) => Self::Length(n),
            Framing::Chunked => Self::Chunked(ChunkedDecoder::default()),
            Framing::Close => Self::Close,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// What is at hand in `buf`, without reading.
    pub(super) fn take(&mut self, buf: &mut BytesMut) -> Result<Taken, BodyFault> {
        match self {
            Self::Done => Ok(Taken::End),
            Self::Length(_) | Self::Close if buf.is_empty() => Ok(Taken::More),
            Self::Length(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
                *left -= take as u64;
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(Taken::Frame(Frame::Data(buf.split_to(take).freeze())))
            }
            Self::Close => Ok(Taken::Frame(Frame::Data(buf.split().freeze()))),
            Self::Chunked(decoder) => match decoder.decode(buf) {
                Ok(Decoded::More) => Ok(Taken::More),
                Ok(Decoded::Data(data)) => Ok(Taken::Frame(Frame::Data(data))),
                Ok(Decoded::End(trailers)) => {
                    *self = Self::Done;
                    Ok(match trailers.is_empty() {
                        true => Taken::End,
                        false => Taken::Frame(Frame::Trailers(trailers)),
                    })
                }
                Err(_) => Err(BodyFault::Malformed),
            },
        }
    }

    /// The next frame. Sets `eof` when the peer has ended its direction.
    pub(super) fn poll<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        buf: &mut BytesMut,
        eof: &mut bool,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, BodyFault>>> {
        loop {
            match self.take(buf) {
                Ok(Taken::Frame(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(Taken::End) => return Poll::Ready(None),
                Ok(Taken::More) => {}
                Err(fault) => return Poll::Ready(Some(Err(fault))),
            }
            if !*eof {
                buf.reserve(BODY_READ);
                match ready!(pin!(io.read_buf(buf)).poll(cx)) {
                    Ok(0) => *eof = true,
                    Ok(_) => continue,
                    Err(_) => {
                        *eof = true;
                        return Poll::Ready(Some(Err(BodyFault::Broken)));
                    }
                }
            }
            if matches!(self, Self::Close) {
                *self = Self::Done;
                return Poll::Ready(None);
            }
            return Poll::Ready(Some(Err(BodyFault::Short)));
        }
    }
}

/// What [`BodyDecoder::take`] found.
pub(super) enum Taken {
    Frame(Frame),
    End,
    More,
}

/// Why a body ends before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyFault {
    /// It is not what its framing says.
    Malformed,
    /// The peer ended its direction in the middle.
    Short,
    /// The connection failed.
    Broken,
}

/// What is to be written: a run of small things, then at most one large frame and its end.
#[derive(Debug, Default)]
pub(super) struct WriteBuf {
    pub(super) head: BytesMut,
    large: Bytes,
    tail: &'static [u8],
    pub(super) wrote: bool,
}

impl WriteBuf {
    pub(super) fn is_empty(&self) -> bool {
        self.head.is_empty() && self.large.is_empty() && self.tail.is_empty()
    }

    /// Whether a frame must wait until what is here is written.
    pub(super) fn is_full(&self) -> bool {
        !self.large.is_empty() || !self.tail.is_empty() || self.head.len() >= FLUSH_AT
    }

    /// Queues one frame; call only while not [`is_full`](Self::is_full).
    pub(super) fn push(&mut self, data: Bytes, chunked: bool) {
        if data.is_empty() {
            return;
        }
        if chunked {
            // Writing to a BytesMut cannot fail.
            let _ = write!(self.head, "{:x}\r\n", data.len());
        }
        if data.len() <= COPY_LIMIT {
            self.head.extend_from_slice(&data);
            if chunked {
                self.head.extend_from_slice(b"\r\n");
            }
        } else {
            self.large = data;
            self.tail = if chunked { b"\r\n" } else { b"" };
        }
    }

    pub(super) fn end_of_chunks(&mut self, trailers: Option<&http::HeaderMap>) {
        if !self.large.is_empty() || !self.tail.is_empty() {
            // Behind the large frame: fold it in, which only happens for a trailer-bearing last frame.
            let large = std::mem::take(&mut self.large);
            self.head.extend_from_slice(&large);
            self.head.extend_from_slice(self.tail);
            self.tail = b"";
        }
        encode::end_of_chunks(&mut self.head, trailers);
    }

    /// Writes everything.
    pub(super) fn poll_flush<IO: AsyncWrite + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let any = !self.is_empty();
        while !self.is_empty() {
            let io = Pin::new(&mut *io);
            let sent = if self.large.is_empty() && self.tail.is_empty() {
                ready!(io.poll_write(cx, &self.head))?
            } else if io.is_write_vectored() {
                let parts = [
                    IoSlice::new(&self.head),
                    IoSlice::new(&self.large),
                    IoSlice::new(self.tail),
                ];
                ready!(io.poll_write_vectored(cx, &parts))?
            } else {
                let part = [&self.head[..], &self.large[..], self.tail]
                    .into_iter()
                    .find(|p| !p.is_empty())
                    .unwrap_or_default();
                ready!(io.poll_write(cx, part))?
            };
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.wrote = true;
            self.consume(sent);
        }
        if any {
            ready!(Pin::new(io).poll_flush(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    fn consume(&mut self, mut sent: usize) {
        let n = sent.min(self.head.len());
        self.head.advance(n);
        sent -= n;
        let n = sent.min(self.large.len());
        self.large.advance(n);
        sent -= n;
        self.tail = self.tail.get(sent..).unwrap_or_default();
    }
}
