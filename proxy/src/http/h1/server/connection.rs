//! The connection as the codec and the body of its request share it.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use filters::body::{Body, BodyError, BodyStream, Frame, ResetReason};
use tokio::io::AsyncRead;

use crate::http::h1::parse::Framing;
use crate::http::h1::wire::{self, BodyDecoder, BodyFault};

/// Most bytes of pipelined requests that are read ahead.
const PIPELINE_LIMIT: usize = 64 * 1024;

/// The connection as the request's body and the codec share it, on one worker.
pub(super) struct Conn<IO> {
    pub(super) io: IO,
    pub(super) buf: BytesMut,
    pub(super) eof: bool,
    pub(super) body: BodyDecoder,
    /// Why the current request's body will never end; nothing more is read of it.
    fault: Option<BodyFault>,
    /// The request that `body` belongs to: a body that outlives its request must not read the next one.
    request: u64,
    /// Whether who reads the body waits for the client: then the body's end shows there.
    awaited: bool,
    /// Whether trailers are passed on.
    pub(super) trailers: bool,
    /// The codec, to be woken when the body ends.
    waker: Option<Waker>,
}

impl<IO> Conn<IO> {
    pub(super) fn new(io: IO, prefix: &[u8], trailers: bool) -> Self {
        Self {
            io,
            buf: BytesMut::from(prefix),
            eof: false,
            body: BodyDecoder::Done,
            fault: None,
            request: 0,
            awaited: false,
            trailers,
            waker: None,
        }
    }

    /// Ends the request: what is left of its body is nobody's, and its [`RequestBody`] reads no more.
    pub(super) fn end_request(&mut self) {
        self.request += 1;
        self.body = BodyDecoder::Done;
        self.awaited = false;
        self.waker = None;
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// What a body yields that has a fault. One that is not what its framing says is answered. One that ends
    /// early is a client that went away: the codec is about to drop everything of the request, and nobody
    /// shall mistake its end for an upstream's.
    fn failed(&self) -> Poll<Option<Result<Frame, BodyError>>> {
        match self.fault {
            Some(BodyFault::Malformed) => Poll::Ready(Some(Err(BodyError {
                reason: ResetReason::ProtocolError,
                details: Some("http1.codec_error"),
            }))),
            Some(BodyFault::Short | BodyFault::Broken) if !self.is_tunnel() => Poll::Pending,
            _ => Poll::Ready(Some(Err(BodyError::new(
                ResetReason::ConnectionTermination,
            )))),
        }
    }

    fn is_tunnel(&self) -> bool {
        matches!(self.body, BodyDecoder::Close)
    }

    pub(super) fn register(&mut self, cx: &Context<'_>) {
        if !self.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
    }
}

impl<IO: AsyncRead + Unpin> Conn<IO> {
    /// Whether the client is gone. Reads ahead, boundedly, while nobody waits for a body: then nothing else would see
    /// that the client has left.
    pub(super) fn is_gone(&mut self, cx: &mut Context<'_>) -> bool {
        self.register(cx);
        if matches!(self.fault, Some(BodyFault::Short | BodyFault::Broken)) {
            return true;
        }
        if !self.body.is_done() && (self.awaited || self.is_tunnel()) {
            return false;
        }
        while !self.eof && self.buf.len() < PIPELINE_LIMIT {
            match wire::poll_read(&mut self.io, &mut self.buf, cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => self.eof = true,
            }
        }
        self.eof
    }
}

/// The body of a request: reads the connection when the service pulls.
pub(super) struct RequestBody<IO> {
    conn: Rc<RefCell<Conn<IO>>>,
    request: u64,
}

impl<IO: AsyncRead + Unpin + 'static> RequestBody<IO> {
    /// The body of the request whose head was just read.
    pub(super) fn begin(conn: &Rc<RefCell<Conn<IO>>>, framing: Framing) -> Body {
        let mut guard = conn.borrow_mut();
        guard.request += 1;
        match framing {
            Framing::None => Body::Empty,
            // All here already: no stream, and the connection is free for the next request.
            Framing::Length(n) if n <= guard.buf.len() as u64 => {
                let n = usize::try_from(n).unwrap_or(usize::MAX);
                Body::Full(guard.buf.split_to(n).freeze())
            }
            framing => {
                guard.body = BodyDecoder::new(framing);
                Body::stream(Self {
                    conn: Rc::clone(conn),
                    request: guard.request,
                })
            }
        }
    }
}

impl<IO: AsyncRead + Unpin> BodyStream for RequestBody<IO> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let conn = &mut *self.conn.borrow_mut();
        if conn.request != self.request {
            return Poll::Ready(Some(Err(BodyError::new(ResetReason::LocalReset))));
        }
        if conn.fault.is_some() {
            return conn.failed();
        }
        let polled = conn
            .body
            .poll(&mut conn.io, &mut conn.buf, &mut conn.eof, cx);
        conn.awaited = polled.is_pending();
        if conn.body.is_done() {
            conn.wake();
        }
        match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Ok(Frame::Trailers(_)))) if !conn.trailers => Poll::Ready(None),
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(frame))),
            Poll::Ready(Some(Err(fault))) => {
                conn.fault = Some(fault);
                conn.wake();
                conn.failed()
            }
        }
    }

    fn remaining(&self) -> Option<u64> {
        let conn = self.conn.borrow();
        match conn.body {
            _ if conn.request != self.request => None,
            BodyDecoder::Length(n) => Some(n),
            BodyDecoder::Done => Some(0),
            _ => None,
        }
    }

    fn is_end(&self) -> bool {
        let conn = self.conn.borrow();
        conn.request == self.request && conn.body.is_done()
    }
}
