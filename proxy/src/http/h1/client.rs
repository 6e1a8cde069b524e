//! The client side: one exchange at a time on a connection that is handed back when it ends cleanly.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use bytestring::ByteString;
use filters::body::{Body, BodyError, BodyStream, Frame, ResetReason};
use filters::head::{RequestHead, ResponseHead};
use http::{HeaderValue, Method};
use tokio::io::{AsyncRead, AsyncWrite};

use super::Http1Settings;
use super::encode;
use super::parse::{self, Framing, HeadScanner};
use super::wire::{self, BodyDecoder, BodyFault, WriteBuf};
use crate::http::service::EarlyResponses;

/// Most 1xx responses before a final one; more is a protocol error.
const MAX_EARLY: usize = 16;

/// Takes back a connection that may carry another request. A pool implements it.
pub trait Recycle<IO> {
    /// Called at most once per exchange, when both directions ended cleanly and the server agrees.
    fn recycle(&self, connection: ClientConnection<IO>);

    /// Called instead when the response is complete and the connection is of no more use; it is closed next.
    /// `asked` says that the server wants it so.
    fn finished(&self, _io: &IO, _asked: bool) {}
}

/// A connection to a server, idle.
pub struct ClientConnection<IO> {
    io: IO,
    settings: Rc<Http1Settings>,
    exchanges: u64,
}

/// What an exchange needs beside the message.
pub struct ExchangeOptions<IO> {
    /// Where the connection goes afterwards; it is closed if there is none.
    pub recycle: Option<Rc<dyn Recycle<IO>>>,
    /// Where 1xx responses go; dropped if there is none.
    pub early: Option<EarlyResponses>,
}

impl<IO> Default for ExchangeOptions<IO> {
    fn default() -> Self {
        Self {
            recycle: None,
            early: None,
        }
    }
}

/// A response as it begins.
#[derive(Debug)]
pub struct ClientResponse {
    /// The head, hop-by-hop fields taken out.
    pub head: ResponseHead,
    /// The body. While it is polled it goes on sending the request's body.
    pub body: Body,
    /// The connection is a tunnel now: the body is the server's bytes.
    pub upgraded: bool,
}

/// An exchange that failed before a final head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExchangeError {
    /// Why.
    pub reason: ResetReason,
    /// Whether any byte of the request was written.
    pub request_sent: bool,
    /// Whether any byte of a response was read.
    pub response_started: bool,
    /// Whether the connection had carried an exchange before.
    pub was_reused: bool,
    /// Details, if known.
    pub details: Option<&'static str>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin + 'static> ClientConnection<IO> {
    /// A connection over `io`; the limits of `settings` hold for response heads.
    pub fn new(io: IO, settings: Rc<Http1Settings>) -> Self {
        Self {
            io,
            settings,
            exchanges: 0,
        }
    }

    /// What it is made over.
    pub fn io(&self) -> &IO {
        &self.io
    }

    /// Whether it has carried an exchange before.
    pub fn was_reused(&self) -> bool {
        self.exchanges > 0
    }

    /// How many exchanges it has carried.
    pub fn exchanges(&self) -> u64 {
        self.exchanges
    }

    /// Ready once an idle connection is of no more use: the server closed it, or sent what nobody asked for.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        wire::poll_read(&mut self.io, &mut BytesMut::new(), cx).map(|_| ())
    }

    /// Sends a request and waits for the final head. Dropping the future closes the connection.
    ///
    /// # Errors
    /// See [`ExchangeError`]; whether to try again is the caller's to decide.
    pub async fn exchange(
        self,
        head: &RequestHead,
        body: Body,
        options: ExchangeOptions<IO>,
    ) -> Result<ClientResponse, ExchangeError> {
        // One allocation for the whole exchange; it becomes the response's body as it is.
        let mut exchange = Box::new(Exchange::new(self, head, body, options));
        let begun = if encode::is_sendable(head) {
            let e = &mut *exchange;
            encode::request(&mut e.out.head, head, e.request_framing, &e.settings);
            poll_fn(|cx| exchange.poll_head(cx)).await
        } else {
            Err(BodyError {
                reason: ResetReason::ProtocolError,
                details: Some("http1.invalid_url"),
            })
        };
        match begun {
            Ok(head) => Ok(exchange.into_response(head)),
            Err(error) => Err(ExchangeError {
                reason: error.reason,
                request_sent: exchange.out.wrote,
                response_started: exchange.response_started,
                was_reused: exchange.exchanges > 0,
                details: error.details,
            }),
        }
    }
}

struct Exchange<IO> {
    io: IO,
    settings: Rc<Http1Settings>,
    exchanges: u64,
    options: ExchangeOptions<IO>,
    request: Body,
    request_framing: Framing,
    /// The tunnel's bytes wait until the server has agreed.
    hold: bool,
    sent: bool,
    send_failed: bool,
    request_error: Option<BodyError>,
    out: WriteBuf,
    buf: BytesMut,
    eof: bool,
    scanner: HeadScanner,
    early: usize,
    decoder: BodyDecoder,
    head_request: bool,
    connect: bool,
    upgrade: Option<ByteString>,
    tunnel: bool,
    keep_alive: bool,
    response_started: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin + 'static> Exchange<IO> {
    fn new(
        connection: ClientConnection<IO>,
        head: &RequestHead,
        request: Body,
        options: ExchangeOptions<IO>,
    ) -> Self {
        let length = encode::declared_length(&head.headers).or_else(|| request.remaining());
        let request_framing = match length {
            _ if head.is_tunnel() => Framing::Close,
            Some(0) => Framing::None,
            Some(n) => Framing::Length(n),
            None => Framing::Chunked,
        };
        Self {
            io: connection.io,
            settings: connection.settings,
            exchanges: connection.exchanges,
            options,
            request,
            request_framing,
            hold: head.is_tunnel(),
            sent: false,
            send_failed: false,
            request_error: None,
            out: WriteBuf::default(),
            buf: BytesMut::new(),
            eof: false,
            scanner: HeadScanner::default(),
            early: 0,
            decoder: BodyDecoder::Done,
            head_request: head.method == Method::HEAD,
            connect: head.method == Method::CONNECT,
            upgrade: head.upgrade.clone(),
            tunnel: false,
            keep_alive: false,
            response_started: false,
        }
    }

    /// Whether a 101 switches to what was asked for, and to nothing else (RFC 9110 section 7.8).
    fn agreed(&self, switched: Option<&HeaderValue>) -> bool {
        let (Some(asked), Some(switched)) = (&self.upgrade, switched) else {
            return false;
        };
        let mut chosen = switched.as_bytes().split(|b| *b == b',');
        chosen.all(|chosen| {
            let mut asked = asked.as_bytes().split(|b| *b == b',');
            asked.any(|asked| asked.trim_ascii().eq_ignore_ascii_case(chosen.trim_ascii()))
        })
    }

    /// Sends what can be sent. A failure to write is not yet the end: the response may be on its way.
    fn send(&mut self, cx: &mut Context<'_>) {
        while !self.sent && !self.send_failed {
            let mut waiting = self.hold;
            let mut ended = false;
            while !waiting && !ended && !self.out.is_full() {
                match self.request.poll_frame(cx) {
                    Poll::Pending => waiting = true,
                    Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                        match &mut self.request_framing {
                            Framing::Length(left) if *left >= data.len() as u64 => {
                                *left -= data.len() as u64;
                            }
                            Framing::Length(_) | Framing::None if !data.is_empty() => {
                                self.request_error = Some(BodyError::new(ResetReason::LocalReset));
                                self.send_failed = true;
                                return;
                            }
                            _ => {}
                        }
                        self.out
                            .push(data, self.request_framing == Framing::Chunked);
                    }
                    Poll::Ready(Some(Ok(Frame::Trailers(map)))) => {
                        ended = true;
                        self.end(Some(&map).filter(|_| self.settings.enable_trailers));
                    }
                    Poll::Ready(None) => {
                        ended = true;
                        self.end(None);
                    }
                    Poll::Ready(Some(Err(error))) => {
                        self.request_error = Some(error);
                        self.send_failed = true;
                        return;
                    }
                }
            }
            match self.out.poll_flush(&mut self.io, cx) {
                Poll::Pending => {
                    // The end is in the buffer; what is left to do is to flush it.
                    if ended {
                        self.request = Body::Empty;
                        self.request_framing = Framing::None;
                    }
                    return;
                }
                Poll::Ready(Err(_)) => self.send_failed = true,
                Poll::Ready(Ok(())) if ended => {
                    self.sent = true;
                    if self.tunnel {
                        let _ = std::pin::Pin::new(&mut self.io).poll_shutdown(cx);
                    }
                }
                Poll::Ready(Ok(())) if waiting => return,
                Poll::Ready(Ok(())) => {}
            }
        }
    }

    fn end(&mut self, trailers: Option<&http::HeaderMap>) {
        match self.request_framing {
            Framing::Chunked => self.out.end_of_chunks(trailers),
            // Less than was declared: the server must not wait for the rest on a live connection.
            Framing::Length(1..) => {
                self.request_error = Some(BodyError::new(ResetReason::LocalReset));
                self.send_failed = true;
            }
            _ => {}
        }
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, BodyError>> {
        let protocol = |details| {
            Poll::Ready(Err(BodyError {
                reason: ResetReason::ProtocolError,
                details: Some(details),
            }))
        };
        self.send(cx);
        if let Some(error) = self.request_error.take() {
            return Poll::Ready(Err(error));
        }
        loop {
            if !self.buf.is_empty() {
                self.response_started = true;
            }
            match self.scanner.scan(&self.buf, self.settings.max_head_bytes) {
                Err(error) => return protocol(error.details),
                Ok(Some(end)) => {
                    let block = self.buf.split_to(end).freeze();
                    let parsed = match parse::response(
                        &block,
                        &self.settings,
                        self.head_request,
                        self.connect,
                    ) {
                        Ok(parsed) => parsed,
                        Err(error) => return protocol(error.details),
                    };
                    let status = parsed.head.status;
                    if status.is_informational() && status != 101 {
                        self.early += 1;
                        if self.early > MAX_EARLY {
                            return protocol("http1.codec_error");
                        }
                        if let Some(early) = &self.options.early {
                            early.forward(parsed.head);
                        }
                        continue;
                    }
                    if status == 101 && !self.agreed(parsed.upgrade.as_ref()) {
                        return protocol("http1.codec_error");
                    }
                    self.tunnel = status == 101 || (self.connect && status.is_success());
                    self.keep_alive = parsed.keep_alive;
                    self.decoder = BodyDecoder::new(parsed.framing);
                    if self.hold && !self.tunnel {
                        // Refused: nothing of the tunnel was or will be sent.
                        self.request = Body::Empty;
                        self.request_framing = Framing::None;
                    }
                    self.hold = false;
                    self.send(cx);
                    return Poll::Ready(Ok(parsed.head));
                }
                Ok(None) => {}
            }
            match wire::poll_read(&mut self.io, &mut self.buf, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => {
                    return Poll::Ready(Err(BodyError::new(ResetReason::ConnectionTermination)));
                }
            }
        }
    }

    fn into_response(mut self: Box<Self>, head: ResponseHead) -> ClientResponse {
        let upgraded = self.tunnel;
        // Small bodies are often here with their head: then no stream, and the connection is free now.
        let body = match self.decoder {
            BodyDecoder::Length(n) if self.sent && n <= self.buf.len() as u64 => {
                let n = usize::try_from(n).unwrap_or(usize::MAX);
                self.decoder = BodyDecoder::Done;
                let data = self.buf.split_to(n).freeze();
                (*self).recycle();
                Body::Full(data)
            }
            BodyDecoder::Done if self.sent || self.send_failed => {
                (*self).recycle();
                Body::Empty
            }
            BodyDecoder::Done => Body::Empty,
            _ => Body::Stream(Box::new(ResponseBody(Some(self)))),
        };
        ClientResponse {
            head,
            body,
            upgraded,
        }
    }

    /// Hands the connection back if it is clean, or closes it.
    fn recycle(mut self) {
        let clean = self.sent
            && !self.send_failed
            && self.keep_alive
            && !self.tunnel
            && !self.eof
            && self.buf.is_empty()
            && self.decoder.is_done();
        let Some(pool) = self.options.recycle.take() else {
            return;
        };
        if !clean {
            pool.finished(&self.io, !self.keep_alive && !self.tunnel);
        } else {
            let exchange = self;
            pool.recycle(ClientConnection {
                io: exchange.io,
                settings: exchange.settings,
                exchanges: exchange.exchanges + 1,
            });
        }
    }
}

/// As in Envoy, a body that ends early is a broken message, not a broken connection.
fn body_error(fault: BodyFault) -> BodyError {
    match fault {
        BodyFault::Malformed | BodyFault::Short => BodyError {
            reason: ResetReason::ProtocolError,
            details: Some("http1.codec_error"),
        },
        BodyFault::Broken => BodyError::new(ResetReason::ConnectionTermination),
    }
}

struct ResponseBody<IO>(Option<Box<Exchange<IO>>>);

impl<IO: AsyncRead + AsyncWrite + Unpin + 'static> BodyStream for ResponseBody<IO> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let Some(exchange) = &mut self.0 else {
            return Poll::Ready(None);
        };
        exchange.send(cx);
        if let Some(error) = exchange.request_error.take() {
            self.0 = None;
            return Poll::Ready(Some(Err(error)));
        }
        let e = &mut **exchange;
        let polled = e.decoder.poll(&mut e.io, &mut e.buf, &mut e.eof, cx);
        let mut polled = polled.map(|frame| frame.map(|frame| frame.map_err(body_error)));
        if matches!(polled, Poll::Ready(Some(Ok(Frame::Trailers(_)))))
            && !e.settings.enable_trailers
        {
            polled = Poll::Ready(None);
        }
        // As in Envoy, a tunnel has no halves: whoever ends its own ends the whole.
        if e.tunnel && matches!(polled, Poll::Ready(None)) {
            let reason = ResetReason::ConnectionTermination;
            polled = Poll::Ready(Some(Err(BodyError::new(reason))));
        }
        let failed = matches!(polled, Poll::Ready(Some(Err(_))));
        if failed {
            self.0 = None;
        } else if e.decoder.is_done()
            && let Some(done) = self.0.take()
        {
            (*done).recycle();
        }
        polled
    }

    fn poll_progress(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let Some(exchange) = &mut self.0 else {
            return Poll::Pending;
        };
        exchange.send(cx);
        match exchange.request_error.take() {
            Some(error) => {
                self.0 = None;
                Poll::Ready(error)
            }
            None => Poll::Pending,
        }
    }

    fn remaining(&self) -> Option<u64> {
        match self.0.as_ref().map(|e| &e.decoder) {
            Some(BodyDecoder::Length(n)) => Some(*n),
            Some(BodyDecoder::Done) | None => Some(0),
            Some(_) => None,
        }
    }

    fn is_end(&self) -> bool {
        self.0.is_none()
    }
}
