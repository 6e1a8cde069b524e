//! The server side of an HTTP/2 connection.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use filters::body::{Body, BodyError, ResetReason};
use filters::head::{RequestHead, ResponseHead};
use filters::stream::Protocol;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, header};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::Http2Settings;
use super::body::{Pump, RecvBody};
use crate::http::service::{
    ConnectionControl, EarlyResponses, HttpService, Rejection, Request, Response,
};

/// How long a connection that has said GOAWAY with the last stream id may linger for the peer to close.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves one connection until it ends.
pub async fn serve<IO, S>(
    io: IO,
    settings: &Http2Settings,
    idle_timeout: Option<Duration>,
    service: Rc<S>,
    control: ConnectionControl,
) where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    S: HttpService + 'static,
{
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(settings.max_concurrent_streams)
        .initial_window_size(settings.initial_stream_window)
        .initial_connection_window_size(settings.initial_connection_window)
        .max_header_list_size(settings.max_header_list);
    if settings.allow_connect {
        builder.enable_connect_protocol();
    }
    let handshake = builder.handshake::<IO, Bytes>(io);
    let Ok(Ok(connection)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await else {
        return;
    };
    accept_streams(connection, settings, idle_timeout, service, control).await;
}

async fn accept_streams<IO, S>(
    mut connection: Connection<IO, Bytes>,
    settings: &Http2Settings,
    idle_timeout: Option<Duration>,
    service: Rc<S>,
    control: ConnectionControl,
) where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    S: HttpService + 'static,
{
    if let (Some((interval, timeout)), Some(pings)) = (settings.keepalive, connection.ping_pong()) {
        tokio::task::spawn_local(keep_alive(pings, interval, timeout, control.clone()));
    }
    let mut goaway = false;
    let mut idle = idle_timeout.map(|after| (after, Box::pin(tokio::time::sleep(after))));
    loop {
        let accepted = poll_fn(|cx| {
            control.register(cx.waker());
            if control.is_aborted() {
                return Poll::Ready(Some(None));
            }
            if control.is_draining() && !goaway {
                // `h2` sends GOAWAY twice: with 2^31-1, and after a ping's answer with the last id.
                goaway = true;
                connection.graceful_shutdown();
            }
            if let Poll::Ready(accepted) = connection.poll_accept(cx) {
                return Poll::Ready(Some(accepted));
            }
            if let Some((after, timer)) = idle.as_mut() {
                if control.active() > 0 {
                    timer.as_mut().reset(Instant::now() + *after);
                }
                if timer.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
            }
            Poll::Pending
        })
        .await;
        match accepted {
            Some(Some(Ok((request, respond)))) => {
                control.add_active(1);
                let task = serve_stream(request, respond, service.clone(), control.clone());
                tokio::task::spawn_local(task);
            }
            Some(None | Some(Err(_))) => return,
            None => {
                idle = None;
                control.drain();
            }
        }
    }
}

/// Pings at an interval; a peer that does not answer in time loses its connection.
async fn keep_alive(
    mut pings: h2::PingPong,
    interval: Duration,
    timeout: Duration,
    control: ConnectionControl,
) {
    loop {
        tokio::time::sleep(interval).await;
        match tokio::time::timeout(timeout, pings.ping(h2::Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return,
            Err(_) => return control.abort(),
        }
    }
}

/// Counts a stream as active for as long as it lives.
struct Active(ConnectionControl);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.add_active(-1);
    }
}

async fn serve_stream<S: HttpService>(
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    service: Rc<S>,
    control: ConnectionControl,
) {
    let _active = Active(control.clone());
    let (head, stream) = match request_head(request) {
        Ok(parts) => parts,
        Err(rejection) => {
            let response = service.reject(&rejection, Protocol::Http2);
            let _ = send_response(respond, response).await;
            return;
        }
    };
    let body = if stream.is_end_stream() {
        Body::Empty
    } else {
        Body::stream(RecvBody::new(stream))
    };
    let early = EarlyResponses::default();
    let request = Request {
        head,
        body,
        protocol: Protocol::Http2,
        early: early.clone(),
    };
    let mut handling = service.call(request);
    let outcome = poll_fn(|cx| {
        let polled = handling.as_mut().poll(cx);
        while let Some(head) = early.pop(cx.waker()) {
            let _ = respond.send_informational(response_parts(head));
        }
        match polled {
            Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
            Poll::Pending => match respond.poll_reset(cx) {
                Poll::Ready(_) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            },
        }
    })
    .await;
    // A reset by the peer drops the service's future here, which is how the service learns of it.
    drop(handling);
    match outcome {
        None => {}
        Some(Ok(response)) => {
            if response.close {
                control.drain();
            }
            let _ = send_response(respond, response).await;
        }
        Some(Err(error)) => respond.send_reset(reset_code(&error)),
    }
}

fn reset_code(error: &BodyError) -> Reason {
    match error.reason {
        ResetReason::LocalRefusedStreamReset => Reason::REFUSED_STREAM,
        ResetReason::ProtocolError => Reason::PROTOCOL_ERROR,
        ResetReason::ConnectError => Reason::CONNECT_ERROR,
        _ => Reason::INTERNAL_ERROR,
    }
}

async fn send_response(
    mut respond: SendResponse<Bytes>,
    response: Response,
) -> Result<(), BodyError> {
    let end = response.body.is_end();
    let mut stream = respond
        .send_response(response_parts(response.head), end)
        .map_err(|_| BodyError::new(ResetReason::RemoteReset))?;
    if end {
        return Ok(());
    }
    let mut pump = Pump::new(response.body);
    poll_fn(|cx| pump.poll(&mut stream, cx)).await
}

fn response_parts(head: ResponseHead) -> http::Response<()> {
    let mut response = http::Response::new(());
    // HTTP/2 has no 101; an accepted extended CONNECT is a 200 (RFC 8441).
    *response.status_mut() = match head.status {
        http::StatusCode::SWITCHING_PROTOCOLS => http::StatusCode::OK,
        status => status,
    };
    *response.headers_mut() = head.headers;
    response
}

/// Turns a decoded request into our head. `h2` has checked pseudo-headers, connection-specific fields and
/// field syntax (RFC 9113, 8.2 and 8.3).
fn request_head(
    request: http::Request<RecvStream>,
) -> Result<(RequestHead, RecvStream), Rejection> {
    let (mut parts, stream) = request.into_parts();
    let upgrade = parts
        .extensions
        .remove::<h2::ext::Protocol>()
        .map(|protocol| ByteString::from(protocol.as_str().to_ascii_lowercase()));
    let uri = parts.uri.into_parts();
    let mut head = RequestHead {
        // An extended CONNECT means what a GET with `upgrade` means in HTTP/1, and that is how filters,
        // routes and HTTP/1 upstreams see it.
        method: if upgrade.is_some() {
            http::Method::GET
        } else {
            parts.method
        },
        scheme: match uri.scheme {
            None => ByteString::from_static("http"),
            Some(scheme) if scheme == http::uri::Scheme::HTTP => ByteString::from_static("http"),
            Some(scheme) if scheme == http::uri::Scheme::HTTPS => ByteString::from_static("https"),
            Some(scheme) => ByteString::from(scheme.as_str()),
        },
        authority: uri
            .authority
            .map(|a| ByteString::from(a.as_str()))
            .unwrap_or_default(),
        path: uri
            .path_and_query
            .map(|p| ByteString::from(p.as_str()))
            .unwrap_or_default(),
        upgrade,
        headers: parts.headers,
    };
    // RFC 9113, 8.3.1: `host` stands in for an absent `:authority`; it must not contradict a present one.
    if let Some(host) = head.headers.remove(header::HOST)
        && head.authority.is_empty()
        && let Ok(host) = host.to_str()
    {
        head.authority = ByteString::from(host);
    }
    join_cookies(&mut head.headers);
    Ok((head, stream))
}

/// RFC 9113, 8.2.3: cookie crumbs are joined before they leave HTTP/2.
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    if crumbs.nth(1).is_none() {
        return;
    }
    let mut joined = Vec::new();
    for crumb in headers.get_all(header::COOKIE) {
        if !joined.is_empty() {
            joined.extend_from_slice(b"; ");
        }
        joined.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, value);
    }
}
