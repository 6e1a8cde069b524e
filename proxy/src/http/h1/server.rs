//! The server side: one future per connection, one boxed future per request in it.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use filters::body::{Body, BodyError, BodyStream, Frame, ResetReason};
use filters::stream::Protocol;
use http::{HeaderMap, Method, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

use super::Http1Settings;
use super::encode::{self, Persistence};
use super::parse::{self, Framing, HeadScanner, ParseError, ParsedRequest};
use super::wire::{self, BodyDecoder, WriteBuf};
use crate::http::service::{
    ConnectionControl, EarlyResponses, HttpService, Rejection, Request, Response,
};

/// Most bytes of pipelined requests that are read ahead.
const PIPELINE_LIMIT: usize = 64 * 1024;
/// Most bytes, and longest time, for which a closing connection reads on, so that the client gets to read
/// the response before a reset destroys it (RFC 9112 section 9.6; Envoy's delayed close).
const LINGER_BYTES: usize = 64 * 1024;
const LINGER_TIME: Duration = Duration::from_secs(1);

/// The connection as the request's body and the codec share it, on one worker.
struct Conn<IO> {
    io: IO,
    buf: BytesMut,
    eof: bool,
    body: BodyDecoder,
    /// The request that `body` belongs to: a body that outlives its request must not read the next one.
    request: u64,
    /// Set once the body of the current request was dropped.
    abandoned: bool,
    trailers: bool,
    /// The codec, to be woken when the body ends or is dropped.
    waker: Option<Waker>,
}

impl<IO> Conn<IO> {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn register(&mut self, cx: &Context<'_>) {
        if !self.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
    }
}

impl<IO: AsyncRead + Unpin> Conn<IO> {
    /// Whether the client is gone. Reads ahead only while no body is being read, and boundedly.
    fn is_gone(&mut self, cx: &mut Context<'_>) -> bool {
        self.register(cx);
        if !self.body.is_done() {
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
struct RequestBody<IO> {
    conn: Rc<RefCell<Conn<IO>>>,
    request: u64,
}

impl<IO: AsyncRead + Unpin> BodyStream for RequestBody<IO> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let conn = &mut *self.conn.borrow_mut();
        if conn.request != self.request {
            return Poll::Ready(Some(Err(BodyError::new(ResetReason::LocalReset))));
        }
        let polled = conn
            .body
            .poll(&mut conn.io, &mut conn.buf, &mut conn.eof, cx);
        if conn.body.is_done() {
            conn.wake();
        }
        match polled {
            Poll::Ready(Some(Ok(Frame::Trailers(_)))) if !conn.trailers => Poll::Ready(None),
            Poll::Ready(Some(Err(e))) => {
                conn.wake();
                Poll::Ready(Some(Err(e)))
            }
            polled => polled,
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

impl<IO> Drop for RequestBody<IO> {
    fn drop(&mut self) {
        let mut conn = self.conn.borrow_mut();
        if conn.request == self.request {
            conn.abandoned = true;
            conn.wake();
        }
    }
}

struct Active(ConnectionControl);

impl Active {
    fn new(control: &ConnectionControl) -> Self {
        control.add_active(1);
        Self(control.clone())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.add_active(-1);
    }
}

/// Serves one connection to its end. `prefix` holds bytes that were read already.
///
/// Returns when the connection is over, whoever ended it; errors of the connection end it silently, errors
/// of the protocol go to [`HttpService::reject`].
pub async fn serve<IO, S>(
    io: IO,
    prefix: Bytes,
    settings: Rc<Http1Settings>,
    service: Rc<S>,
    control: ConnectionControl,
) where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    S: HttpService,
{
    let conn = Rc::new(RefCell::new(Conn {
        io,
        // Takes the buffer over: kept beside a copy it would live as long as the connection.
        buf: BytesMut::from(prefix),
        eof: false,
        body: BodyDecoder::Done,
        request: 0,
        abandoned: false,
        trailers: settings.enable_trailers,
        waker: None,
    }));
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    loop {
        let block = match next_head(&conn, &settings, &control, &mut timer).await {
            Next::Head(block) => block,
            Next::Closed => break,
            Next::Bad(error) => {
                Box::pin(reject(&conn, &*service, error, None)).await;
                break;
            }
        };
        let parsed = match parse::request(&block, &settings) {
            Ok(parsed) => parsed,
            Err(error) => {
                Box::pin(reject(&conn, &*service, error, Some(&block))).await;
                break;
            }
        };
        drop(block);
        // Boxed, so that an idle connection's future stays small.
        if !Box::pin(one(&conn, parsed, &*service, &control)).await {
            break;
        }
    }
    let _ = poll_fn(|cx| Pin::new(&mut conn.borrow_mut().io).poll_shutdown(cx)).await;
}

enum Next {
    Head(Bytes),
    Closed,
    Bad(ParseError),
}

async fn next_head<IO: AsyncRead + Unpin>(
    conn: &RefCell<Conn<IO>>,
    settings: &Http1Settings,
    control: &ConnectionControl,
    timer: &mut Option<Pin<Box<Sleep>>>,
) -> Next {
    let mut scanner = HeadScanner::default();
    let mut fresh = true;
    // The clock is read only when a timer is configured.
    let mut since: Option<Instant> = None;
    poll_fn(|cx| {
        let conn = &mut *conn.borrow_mut();
        loop {
            if fresh {
                parse::skip_empty_lines(&mut conn.buf);
            }
            if !conn.buf.is_empty() {
                match scanner.scan(&conn.buf, settings.max_head_bytes) {
                    Ok(Some(end)) => {
                        return Poll::Ready(Next::Head(conn.buf.split_to(end).freeze()));
                    }
                    Ok(None) => {}
                    Err(error) => return Poll::Ready(Next::Bad(error)),
                }
                if fresh && conn.buf.as_ref() != b"\r" {
                    fresh = false;
                    since = None;
                }
            }
            if fresh && control.is_draining() {
                return Poll::Ready(Next::Closed);
            }
            if conn.eof {
                return Poll::Ready(Next::Closed);
            }
            match wire::poll_read(&mut conn.io, &mut conn.buf, cx) {
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => return Poll::Ready(Next::Closed),
                Poll::Pending => break,
            }
        }
        control.register(cx.waker());
        let limit = match fresh {
            true => settings.idle_timeout,
            false => settings.request_headers_timeout,
        };
        let Some(limit) = limit else {
            return Poll::Pending;
        };
        let due = *since.get_or_insert_with(Instant::now) + limit;
        // One timer for the connection's life. It is moved only when it is too late for what is due, or
        // when it fires too early: an idle timer that is not moved per request costs nothing per request.
        let sleep = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if sleep.deadline() > due || sleep.is_elapsed() {
            sleep.as_mut().reset(due);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= due {
                return Poll::Ready(match fresh {
                    true => Next::Closed,
                    false => Next::Bad(ParseError {
                        status: 408,
                        details: "request_header_timeout",
                    }),
                });
            }
            sleep.as_mut().reset(due);
        }
        Poll::Pending
    })
    .await
}

async fn reject<IO, S>(
    conn: &RefCell<Conn<IO>>,
    service: &S,
    error: ParseError,
    block: Option<&Bytes>,
) where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: HttpService,
{
    let mut words = block
        .and_then(|b| std::str::from_utf8(b).ok())
        .and_then(|b| b.lines().next())
        .unwrap_or_default()
        .split(' ');
    let rejection = Rejection {
        status: error.status,
        details: error.details,
        body: match error.status {
            408 => "request header timeout",
            426 => "Upgrade Required",
            431 => "Request Header Fields Too Large",
            501 => "Not Implemented",
            _ => "Bad Request",
        },
        method: words.next().filter(|w| !w.is_empty()).map(Into::into),
        path: words.next().map(Into::into),
    };
    let mut response = service.reject(&rejection, Protocol::Http11);
    response.close = true;
    let mut writer = Writer::new(response, false, false);
    writer.head(Persistence::Close, None);
    let _ = poll_fn(|cx| writer.poll(conn, cx)).await;
    linger(conn).await;
}

/// Writes one response.
struct Writer {
    response: Response,
    framing: Framing,
    http_10: bool,
    /// A declared length is kept though no body follows: HEAD and 304.
    keep_length: bool,
    /// The body is not to be written, whatever it holds.
    silent: bool,
    trailers: bool,
    ended: bool,
    out: WriteBuf,
}

impl Writer {
    /// Decides the framing (RFC 9112 section 6.3, RFC 9110 sections 15.3.5 and 15.4.5).
    fn new(response: Response, http_10: bool, head_request: bool) -> Self {
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
            trailers: false,
            ended: false,
            out: WriteBuf::default(),
        }
    }

    fn head(&mut self, persistence: Persistence, upgrade: Option<&str>) {
        if self.framing == Framing::Close {
            self.silent = false;
        }
        encode::response(
            &mut self.out.head,
            &self.response.head,
            self.http_10,
            self.framing,
            self.keep_length,
            persistence,
            upgrade,
        );
    }

    /// Writes until the end: true if the message was completed. Small bodies leave with the head in one
    /// write: the body is asked first, and the buffer goes out when the body has nothing at hand.
    fn poll<IO: AsyncRead + AsyncWrite + Unpin>(
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
                    Poll::Ready(Some(Err(_))) => return Poll::Ready(false),
                }
            }
            match self.out.poll_flush(&mut conn.borrow_mut().io, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Ready(Ok(())) if self.ended => {
                    let short = matches!(self.framing, Framing::Length(1..)) && !self.silent;
                    return Poll::Ready(!short);
                }
                Poll::Ready(Ok(())) if waiting => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
            }
        }
    }

    fn end(&mut self, trailers: Option<HeaderMap>) {
        self.ended = true;
        if self.framing == Framing::Chunked {
            self.out
                .end_of_chunks(trailers.filter(|_| self.trailers).as_ref());
        }
    }
}

/// Ends our direction and reads on for a bounded while.
async fn linger<IO: AsyncRead + AsyncWrite + Unpin>(conn: &RefCell<Conn<IO>>) {
    let mut left = LINGER_BYTES;
    let mut shut = false;
    let drained = poll_fn(|cx| {
        let conn = &mut *conn.borrow_mut();
        if !shut {
            match Pin::new(&mut conn.io).poll_shutdown(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) => shut = true,
            }
        }
        while !conn.eof {
            conn.buf.clear();
            match wire::poll_read(&mut conn.io, &mut conn.buf, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(n)) if n > 0 && n < left => left -= n,
                Poll::Ready(_) => break,
            }
        }
        Poll::Ready(())
    });
    let _ = tokio::time::timeout(LINGER_TIME, drained).await;
}

/// Serves one request; true if the connection goes on.
async fn one<IO, S>(
    conn: &Rc<RefCell<Conn<IO>>>,
    parsed: ParsedRequest,
    service: &S,
    control: &ConnectionControl,
) -> bool
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    S: HttpService,
{
    let _active = Active::new(control);
    let ParsedRequest {
        head,
        framing,
        http_10,
        keep_alive,
    } = parsed;
    let upgrade = head.upgrade.clone();
    let connect = head.method == Method::CONNECT;
    let head_request = head.method == Method::HEAD;
    let body = {
        let mut guard = conn.borrow_mut();
        guard.request += 1;
        guard.abandoned = false;
        match framing {
            Framing::None => Body::Empty,
            // All here already: no stream, and the connection is free for the next request.
            Framing::Length(n) if n <= guard.buf.len() as u64 => {
                let n = usize::try_from(n).unwrap_or(usize::MAX);
                Body::Full(guard.buf.split_to(n).freeze())
            }
            framing => {
                guard.body = BodyDecoder::new(framing);
                Body::stream(RequestBody {
                    conn: Rc::clone(conn),
                    request: guard.request,
                })
            }
        }
    };
    let early = EarlyResponses::default();
    let mut call = service.call(Request {
        head,
        body,
        protocol: if http_10 {
            Protocol::Http10
        } else {
            Protocol::Http11
        },
        early: early.clone(),
    });
    let mut out = WriteBuf::default();
    let answered = poll_fn(|cx| {
        let polled = call.as_mut().poll(cx);
        while let Some(head) = early.pop(cx.waker()) {
            if !http_10 && head.status.is_informational() && head.status != 101 {
                let none = Persistence::Default;
                encode::response(
                    &mut out.head,
                    &head,
                    false,
                    Framing::None,
                    false,
                    none,
                    None,
                );
            }
        }
        let mut guard = conn.borrow_mut();
        if let Poll::Ready(answer) = polled {
            return Poll::Ready(answer.ok());
        }
        let failed = matches!(out.poll_flush(&mut guard.io, cx), Poll::Ready(Err(_)));
        if failed || guard.is_gone(cx) {
            return Poll::Ready(None);
        }
        Poll::Pending
    })
    .await;
    drop(call);
    let Some(response) = answered else {
        conn.borrow_mut().request += 1;
        return false;
    };
    let status = response.head.status;
    let tunnel = match &upgrade {
        Some(_) => status == StatusCode::SWITCHING_PROTOCOLS,
        None => connect && status.is_success(),
    };
    if status == StatusCode::SWITCHING_PROTOCOLS && !tunnel {
        return false;
    }
    let unread = !conn.borrow().body.is_done();
    let asked_tunnel = upgrade.is_some() || connect;
    // A response at hand in full ends before the request does: the connection cannot go on.
    let early_end = unread && !matches!(response.body, Body::Stream(_));
    let mut close = !keep_alive
        || response.close
        || control.is_draining()
        || (asked_tunnel && !tunnel)
        || early_end;
    let mut writer = Writer::new(response, http_10, head_request);
    writer.trailers = conn.borrow().trailers;
    writer.out = out;
    if tunnel {
        writer.framing = Framing::Close;
        writer.head(Persistence::Default, upgrade.as_deref());
    } else {
        close |= writer.framing == Framing::Close;
        writer.head(
            match (close, http_10) {
                (true, _) => Persistence::Close,
                (false, true) => Persistence::KeepAlive,
                (false, false) => Persistence::Default,
            },
            None,
        );
    }
    let written = poll_fn(|cx| {
        // The borrow never spans a poll of the response's body, which may read the request's.
        if let Poll::Ready(done) = writer.poll(conn, cx) {
            return Poll::Ready(done);
        }
        if !tunnel && conn.borrow_mut().is_gone(cx) {
            return Poll::Ready(false);
        }
        Poll::Pending
    })
    .await;
    drop(writer);
    if tunnel && written {
        finish_tunnel(conn).await;
        return false;
    }
    let unread = !conn.borrow().body.is_done();
    {
        let mut guard = conn.borrow_mut();
        guard.request += 1;
        guard.body = BodyDecoder::Done;
        guard.waker = None;
    }
    if !written {
        return false;
    }
    if close || unread {
        linger(conn).await;
        return false;
    }
    true
}

/// Our direction is over: ends it, then waits until the client's is read or nobody reads it any more.
async fn finish_tunnel<IO: AsyncRead + AsyncWrite + Unpin>(conn: &RefCell<Conn<IO>>) {
    let mut shut = false;
    poll_fn(|cx| {
        let guard = &mut *conn.borrow_mut();
        if !shut {
            match Pin::new(&mut guard.io).poll_shutdown(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(_) => shut = true,
            }
        }
        if guard.body.is_done() || guard.abandoned || guard.eof {
            return Poll::Ready(());
        }
        guard.register(cx);
        Poll::Pending
    })
    .await;
}
