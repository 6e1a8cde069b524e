//! One request and its response.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use bytestring::ByteString;
use filters::body::Body;
use filters::stream::Protocol;
use http::{Method, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};

use super::close::linger;
use super::connection::{Conn, RequestBody};
use super::writer::Writer;
use crate::http::h1::Http1Settings;
use crate::http::h1::encode::{self, Persistence, ResponseFrame};
use crate::http::h1::parse::{Framing, ParsedRequest};
use crate::http::h1::wire::WriteBuf;
use crate::http::service::{ConnectionControl, EarlyResponses, HttpService, Request, Response};

/// Counts a request as active for as long as it lives.
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

/// What of a request decides over its response and over the connection.
struct Asked {
    upgrade: Option<ByteString>,
    connect: bool,
    head: bool,
    http_10: bool,
    keep_alive: bool,
}

impl Asked {
    fn of(request: &ParsedRequest) -> Self {
        Self {
            upgrade: request.head.upgrade.clone(),
            connect: request.head.method == Method::CONNECT,
            head: request.head.method == Method::HEAD,
            http_10: request.http_10,
            keep_alive: request.keep_alive,
        }
    }

    fn is_agreed(&self, status: StatusCode) -> bool {
        match self.upgrade {
            Some(_) => status == StatusCode::SWITCHING_PROTOCOLS,
            None => self.connect && status.is_success(),
        }
    }
}

/// Serves one request; true if the connection goes on.
pub(super) async fn serve<IO, S>(
    conn: &Rc<RefCell<Conn<IO>>>,
    parsed: ParsedRequest,
    settings: &Http1Settings,
    service: &S,
    control: &ConnectionControl,
) -> bool
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    S: HttpService,
{
    let _active = Active::new(control);
    let asked = Asked::of(&parsed);
    let early = EarlyResponses::default();
    let mut call = service.call(Request {
        body: RequestBody::begin(conn, parsed.framing),
        head: parsed.head,
        protocol: if asked.http_10 {
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
            if !asked.http_10 && head.status.is_informational() && head.status != 101 {
                let frame = ResponseFrame::interim(settings.header_case);
                encode::response(&mut out.head, &head, frame);
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
    let agreed = answered
        .as_ref()
        .is_some_and(|response| asked.is_agreed(response.head.status));
    match answered {
        // A switch that was not asked for must not reach the client: what would it read next?
        Some(response) if agreed || response.head.status != StatusCode::SWITCHING_PROTOCOLS => {
            respond(conn, settings, control, &asked, response, out).await
        }
        _ => {
            conn.borrow_mut().end_request();
            false
        }
    }
}

/// Writes the response behind what waits in `out`; true if the connection goes on.
async fn respond<IO: AsyncRead + AsyncWrite + Unpin>(
    conn: &RefCell<Conn<IO>>,
    settings: &Http1Settings,
    control: &ConnectionControl,
    asked: &Asked,
    response: Response,
    out: WriteBuf,
) -> bool {
    let tunnel = asked.is_agreed(response.head.status);
    let unread = !conn.borrow().body.is_done();
    let mut close = !asked.keep_alive
        || response.close
        || control.is_draining()
        // What follows a refused tunnel was meant for the tunnel.
        || asked.upgrade.is_some()
        || asked.connect
        // A response at hand in full ends before the request does.
        || unread && !matches!(response.body, Body::Stream(_));
    let mut writer = Writer::new(response, settings, asked.http_10, asked.head, out);
    if tunnel {
        writer.framing = Framing::Close;
        writer.head(Persistence::Default, asked.upgrade.as_deref());
    } else {
        close |= writer.framing == Framing::Close;
        let persistence = match (close, asked.http_10) {
            (true, _) => Persistence::Close,
            (false, true) => Persistence::KeepAlive,
            (false, false) => Persistence::Default,
        };
        writer.head(persistence, None);
    }
    let mut stuck = None;
    let written = poll_fn(|cx| {
        // The borrow never spans a poll of the response's body, which may read the request's.
        if let Poll::Ready(done) = writer.poll(conn, cx) {
            return Poll::Ready(done);
        }
        if conn.borrow_mut().is_gone(cx) {
            return Poll::Ready(false);
        }
        // A response that waits in full for its client has no stream any more, and no stream's limits.
        if let Some(limit) = settings.idle_timeout.filter(|_| writer.is_ended()) {
            let timer = stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
            return timer.as_mut().poll(cx).map(|()| false);
        }
        Poll::Pending
    })
    .await;
    drop(writer);
    let unread = !conn.borrow().body.is_done();
    conn.borrow_mut().end_request();
    if tunnel || written && (close || unread) {
        linger(conn, settings.linger).await;
        return false;
    }
    written
}
