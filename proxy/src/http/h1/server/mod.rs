//! The server side: one future per connection, one boxed future per request in it.

mod close;
mod connection;
mod head;
mod writer;

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use filters::body::Body;
use filters::stream::Protocol;
use http::{Method, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;

use self::close::{linger, reject};
use self::connection::{Conn, RequestBody};
use self::head::{Next, next_head};
use self::writer::Writer;
use super::Http1Settings;
use super::encode::{self, Persistence, ResponseFrame};
use super::parse::{self, Framing, ParsedRequest};
use super::wire::WriteBuf;
use crate::http::service::{ConnectionControl, EarlyResponses, HttpService, Request};

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
    let conn = Conn::new(io, &prefix, settings.enable_trailers);
    let conn = Rc::new(RefCell::new(conn));
    drop(prefix);
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    loop {
        let block = match next_head(&conn, &settings, &control, &mut timer).await {
            Next::Head(block) => block,
            Next::Closed => break,
            Next::Bad(error) => {
                Box::pin(reject(&conn, &*service, &settings, error)).await;
                break;
            }
        };
        let parsed = match parse::request(&block, &settings) {
            Ok(parsed) => parsed,
            Err(error) => {
                Box::pin(reject(&conn, &*service, &settings, error)).await;
                break;
            }
        };
        drop(block);
        // Boxed, so that an idle connection's future stays small.
        if !Box::pin(one(&conn, parsed, &settings, &*service, &control)).await {
            break;
        }
    }
    let _ = poll_fn(|cx| Pin::new(&mut conn.borrow_mut().io).poll_shutdown(cx)).await;
}

/// Serves one request; true if the connection goes on.
async fn one<IO, S>(
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
    let ParsedRequest {
        head,
        framing,
        http_10,
        keep_alive,
    } = parsed;
    let upgrade = head.upgrade.clone();
    let connect = head.method == Method::CONNECT;
    let head_request = head.method == Method::HEAD;
    let body = RequestBody::begin(conn, framing);
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
    let Some(response) = answered else {
        conn.borrow_mut().end_request();
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
    let mut writer = Writer::new(response, settings, http_10, head_request, out);
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
        if conn.borrow_mut().is_gone(cx) {
            return Poll::Ready(false);
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
