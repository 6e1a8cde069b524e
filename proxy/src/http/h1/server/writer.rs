//! One response on its way out.

use std::cell::RefCell;
use std::task::{Context, Poll};

use filters::body::Frame;
use http::{HeaderMap, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::Conn;
use crate::http::h1::encode::{self, Persistence, ResponseFrame};
use crate::http::h1::parse::Framing;
use crate::http::h1::wire::WriteBuf;
use crate::http::h1::{HeaderCase, Http1Settings};
use crate::http::service::Response;

/// Writes one response.
pub(super) struct Writer {
    response: Response,
    pub(super) framing: Framing,
    http_10: bool,
    /// A declared length is kept though no body follows: HEAD and 304.
    keep_length: bool,
    /// The body is not to be written, whatever it holds.
    silent: bool,
    trailers: bool,
    case: HeaderCase,
    ended: bool,
    /// The body broke off: what came of it is still written, then the connection ends.
    failed: bool,
    out: WriteBuf,
}

impl Writer {
    /// Decides the framing (RFC 9112 section 6.3, RFC 9110 sections 15.3.5 and 15.4.5).
    /// `out` may hold interim responses that are still to be written.
    pub(super) fn new(
        response: Response,
        settings: &Http1Settings,
        http_10: bool,
        head_request: bool,
        out: WriteBuf,
    ) -> Self {
        let status = response.head.status;
        let none = status.is_informational() || status == StatusCode::NO_CONTENT;
        let not_modified = status == StatusCode::NOT_MODIFIED;
        let silent = head_request || none || not_modified;
        let declared = encode::declared_length(&response.head.headers);
        let framing = if silent {
            // As Envoy, HEAD says what GET would have said as far as it is known.
            let chunked = head_request && !none && !not_modified && declared.is_none() && !http_10;
            if chunked {
                Framing::Chunked
            } else {
                Framing::None
            }
        } else {
            match declared.or_else(|| response.body.remaining()) {
                Some(n) => Framing::Length(n),
                None if http_10 => Framing::Close,
                None => Framing::Chunked,
            }
        };
        Self {
            response,
            framing,
            http_10,
            keep_length: silent && !none && declared.is_some(),
            silent,
            trailers: settings.enable_trailers,
            case: settings.header_case,
            ended: false,
            failed: false,
            out,
        }
    }

    /// Queues the head. A tunnel's bytes follow as they come.
    pub(super) fn head(&mut self, persistence: Persistence, upgrade: Option<&str>) {
        if self.framing == Framing::Close {
            self.silent = false;
        }
        let frame = ResponseFrame {
            http_10: self.http_10,
            framing: self.framing,
            keep_length: self.keep_length,
            persistence,
            upgrade,
            case: self.case,
        };
        encode::response(&mut self.out.head, &self.response.head, frame);
    }

    /// Whether all of the response is in the buffer.
    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }

    /// Writes until the end: true if the message was completed. Small bodies leave with the head in one
    /// write: the body is asked first, and the buffer goes out when the body has nothing at hand.
    pub(super) fn poll<IO: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        conn: &RefCell<Conn<IO>>,
        cx: &mut Context<'_>,
    ) -> Poll<bool> {
        loop {
            let mut waiting = false;
            while !self.ended && !self.out.is_full() {
                if self.silent {
                    self.ended = true;
                    break;
                }
                match self.response.body.poll_frame(cx) {
                    Poll::Pending => {
                        waiting = true;
                        break;
                    }
                    Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                        if let Framing::Length(left) = &mut self.framing {
                            // More than was declared would be read as the next response.
                            let Some(rest) = left.checked_sub(data.len() as u64) else {
                                return Poll::Ready(false);
                            };
                            *left = rest;
                        }
                        self.out.push(data, self.framing == Framing::Chunked);
                    }
                    Poll::Ready(Some(Ok(Frame::Trailers(map)))) => self.end(Some(map)),
                    Poll::Ready(None) => self.end(None),
                    Poll::Ready(Some(Err(_))) => {
                        self.ended = true;
                        self.failed = true;
                    }
                }
            }
            let flushed = self.out.poll_flush(&mut conn.borrow_mut().io, cx);
            match flushed {
                Poll::Pending if waiting => return Poll::Pending,
                // A client that does not read stops neither its own upload nor the clock.
                Poll::Pending => return self.response.body.poll_progress(cx).map(|_| false),
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Ready(Ok(())) if self.ended => {
                    let short = matches!(self.framing, Framing::Length(1..)) && !self.silent;
                    return Poll::Ready(!short && !self.failed);
                }
                Poll::Ready(Ok(())) if waiting => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
            }
        }
    }

    fn end(&mut self, trailers: Option<HeaderMap>) {
        self.ended = true;
        if self.framing == Framing::Chunked {
            let trailers = trailers.filter(|_| self.trailers);
            self.out.end_of_chunks(trailers.as_ref());
        }
    }
}
