//! The client side of an HTTP/2 connection: many exchanges at a time.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use filters::body::{Body, BodyError, BodyStream, Frame, ResetReason};
use filters::head::{RequestHead, ResponseHead};
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, StatusCode, Uri};
use tokio::io::{AsyncRead, AsyncWrite};

use super::body::{Pump, RecvBody, reset_reason};
use super::windows::{Tunnel, TunnelWindows};
use super::{FieldLimits, Keepalive};
use crate::http::service::EarlyResponses;
use crate::http::validate;

/// Settings that we announce.
#[derive(Debug, Clone, Copy)]
pub struct ClientSettings {
    /// Initial window of a stream, in bytes.
    pub stream_window: u32,
    /// Window of the connection, in bytes.
    pub connection_window: u32,
    /// Most streams on one connection.
    pub max_streams: u32,
    /// Of a response's fields, and of its trailers.
    pub limits: FieldLimits,
    /// When and how to ask whether the server is still there.
    pub keepalive: Option<Keepalive>,
}

/// A connection that can carry exchanges.
pub struct ClientConnection {
    requests: SendRequest<Bytes>,
    state: Rc<State>,
    windows: Rc<TunnelWindows>,
    max_streams: u32,
    limits: FieldLimits,
    /// The authority of the last request: most requests of a connection have the same, and parsing it is a hundredth
    /// of what one costs. A copy, so that no head's buffer lives on.
    authority: RefCell<Option<Authority>>,
}

/// For how long a stream has to wait for the peer's window until its connection is thought to be congested: far longer
/// than windows take to come back from a peer that reads.
const CONGESTED: Duration = Duration::from_millis(20);

#[derive(Default)]
struct State {
    closed: Cell<bool>,
    active: Cell<u32>,
    /// Streams that wait for the peer's window, and since when there are some.
    stalled: Cell<u32>,
    stalled_since: Cell<Option<Instant>>,
}

impl State {
    fn stalls(&self) {
        if self.stalled.get() == 0 {
            self.stalled_since.set(Some(Instant::now()));
        }
        self.stalled.set(self.stalled.get() + 1);
    }

    fn goes_on(&self) {
        self.stalled.set(self.stalled.get().saturating_sub(1));
        if self.stalled.get() == 0 {
            self.stalled_since.set(None);
        }
    }
}

impl ClientConnection {
    /// Says the preface and starts to drive the connection on this worker.
    ///
    /// # Errors
    /// The transport failed.
    pub async fn handshake<IO>(io: IO, settings: ClientSettings) -> Result<Self, ResetReason>
    where
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let (requests, mut connection) = h2::client::Builder::new()
            .initial_window_size(settings.stream_window)
            .initial_connection_window_size(settings.connection_window)
            .enable_push(false)
            .max_header_list_size(settings.limits.of_library())
            .handshake::<IO, Bytes>(io)
            .await
            .map_err(|error| reset_reason(&error))?;
        let state = Rc::new(State::default());
        let driven = state.clone();
        let windows = TunnelWindows::new(settings.stream_window, settings.connection_window);
        let announced = windows.clone();
        let pings = settings.keepalive.zip(connection.ping_pong());
        tokio::task::spawn_local(async move {
            let lost = async {
                let lost = match pings {
                    Some((keepalive, pings)) => keepalive.until_lost(pings).await,
                    None => false,
                };
                if !lost {
                    std::future::pending::<()>().await;
                }
            };
            let ended = poll_fn(|cx| {
                announced.announce(&mut connection);
                Pin::new(&mut connection).poll(cx)
            });
            tokio::select! {
                // Its error reaches every stream; there is nobody else to tell.
                _ = ended => {}
                () = lost => {}
            }
            driven.closed.set(true);
        });
        Ok(Self {
            requests,
            state,
            windows,
            max_streams: settings.max_streams,
            limits: settings.limits,
            authority: RefCell::default(),
        })
    }

    /// Whether another exchange may begin now.
    pub fn has_room(&self) -> bool {
        let peer = u32::try_from(self.requests.current_max_send_streams()).unwrap_or(u32::MAX);
        !self.is_closed() && self.state.active.get() < self.max_streams.min(peer)
    }

    /// `:authority` as the library wants it; `None` if it is not one.
    fn authority_of(&self, head: &RequestHead) -> Option<Authority> {
        let mut last = self.authority.borrow_mut();
        match &*last {
            Some(last) if *last.as_str() == *head.authority => {}
            _ => *last = Authority::try_from(&*head.authority).ok(),
        }
        last.clone()
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.state.closed.get()
    }

    /// Whether streams have been waiting for the peer's window for a while. It may be that of one stream whose reader is
    /// slow, or that of the connection, which would hold up every other.
    pub fn is_congested(&self) -> bool {
        let since = self.state.stalled_since.get();
        since.is_some_and(|since| since.elapsed() >= CONGESTED)
    }

    /// Exchanges in flight.
    pub fn active(&self) -> u32 {
        self.state.active.get()
    }

    /// Marks the connection as of no use for new exchanges.
    pub fn retire(&self) {
        self.state.closed.set(true);
    }

    /// Opens a stream with a request's head; `end` says that there is no body. Waits while the server's limit of
    /// streams is reached.
    ///
    /// # Errors
    /// Why not. Nothing of the request has left; except after a protocol error, another connection may have it.
    pub async fn open(&self, head: &RequestHead, end: bool) -> Result<OpenStream, ResetReason> {
        let active = ActiveStream::new(&self.state, head.is_connect().then(|| self.windows.open()));
        let request =
            request_of(head, self.authority_of(head)).ok_or(ResetReason::ProtocolError)?;
        // GOAWAY shows here.
        let requests = self.requests.clone().ready().await;
        let mut requests = requests.map_err(|_| ResetReason::RemoteRefusedStreamReset)?;
        let (response, stream) = requests
            .send_request(request, end)
            .map_err(|e| reset_reason(&e))?;
        Ok(OpenStream {
            active,
            response,
            stream: (!end).then_some(stream),
            upgrade: head.upgrade.is_some(),
            limits: self.limits,
        })
    }
}

/// An exchange whose head is on its way.
pub struct OpenStream {
    active: ActiveStream,
    response: ResponseFuture,
    stream: Option<SendStream<Bytes>>,
    upgrade: bool,
    limits: FieldLimits,
}

impl OpenStream {
    /// Sends the body and waits for the final head. Dropping the future, or later the body, cancels the stream.
    ///
    /// # Errors
    /// Why the stream ended.
    pub async fn exchange(
        self,
        body: Body,
        early: Option<&EarlyResponses>,
    ) -> Result<(ResponseHead, Body), ResetReason> {
        let Self {
            active,
            mut response,
            stream,
            upgrade,
            limits,
        } = self;
        let mut sending = stream.map(|stream| Sending {
            pump: Pump::new(body),
            stream,
            state: active.state.clone(),
            stalled: false,
        });
        let response = poll_fn(|cx| {
            // A server may answer, or refuse, before it has read everything.
            if let Poll::Ready(Err(error)) = poll_sending(&mut sending, cx)
                && error.reason == ResetReason::LocalReset
            {
                return Poll::Ready(Err(error.reason));
            }
            poll_response(&mut response, early, cx)
        })
        .await?;
        let (parts, stream) = response.into_parts();
        if !validate::are_field_names(&parts.headers) {
            return Err(ResetReason::ProtocolError);
        }
        // `:status` is a field like others.
        let status = (1, ":status".len() + 3);
        if limits.check(&parts.headers, status).is_err() {
            return Err(ResetReason::RemoteReset);
        }
        let mut head = ResponseHead::with_headers(parts.status, parts.headers);
        if upgrade && head.status == StatusCode::OK {
            head.status = StatusCode::SWITCHING_PROTOCOLS;
        }
        let received = RecvBody::new(stream, limits);
        if received.is_end() && sending.is_none() {
            return Ok((head, Body::Empty));
        }
        Ok((
            head,
            Body::stream(ClientBody {
                received,
                sending,
                _active: active,
            }),
        ))
    }
}

struct Sending {
    pump: Pump,
    stream: SendStream<Bytes>,
    state: Rc<State>,
    /// Whether it is among those that wait for the peer's window.
    stalled: bool,
}

impl Sending {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        let polled = self.pump.poll(&mut self.stream, cx);
        let stalled = polled.is_pending() && self.pump.waits_for_window();
        if stalled != self.stalled {
            self.stalled = stalled;
            match stalled {
                true => self.state.stalls(),
                false => self.state.goes_on(),
            }
        }
        polled
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if self.stalled {
            self.state.goes_on();
        }
    }
}

fn poll_sending(
    sending: &mut Option<Sending>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), BodyError>> {
    let Some(sent) = sending else {
        return Poll::Ready(Ok(()));
    };
    let polled = sent.poll(cx);
    if polled.is_ready() {
        *sending = None;
    }
    polled
}

fn poll_response(
    response: &mut ResponseFuture,
    early: Option<&EarlyResponses>,
    cx: &mut Context<'_>,
) -> Poll<Result<http::Response<h2::RecvStream>, ResetReason>> {
    while let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
        if let Some(early) = early {
            let (parts, ()) = interim.into_parts();
            early.forward(ResponseHead::with_headers(parts.status, parts.headers));
        }
    }
    Pin::new(response)
        .poll(cx)
        .map_err(|error| reset_reason(&error))
}

/// A response body that goes on sending the request's while it is polled.
struct ClientBody {
    received: RecvBody,
    sending: Option<Sending>,
    _active: ActiveStream,
}

impl BodyStream for ClientBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        // The upstream's view of the request body is its business once it has answered.
        let _ = poll_sending(&mut self.sending, cx);
        self.received.poll_frame(cx)
    }

    fn poll_progress(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let _ = poll_sending(&mut self.sending, cx);
        Poll::Pending
    }

    fn is_end(&self) -> bool {
        self.received.is_end()
    }
}

/// Counts an exchange for as long as it lives.
struct ActiveStream {
    state: Rc<State>,
    _tunnel: Option<Tunnel>,
}

impl ActiveStream {
    fn new(state: &Rc<State>, tunnel: Option<Tunnel>) -> Self {
        state.active.set(state.active.get() + 1);
        Self {
            state: state.clone(),
            _tunnel: tunnel,
        }
    }
}

impl Drop for ActiveStream {
    fn drop(&mut self) {
        let active = &self.state.active;
        active.set(active.get().saturating_sub(1));
    }
}

/// Our head as HTTP/2 pseudo-headers (RFC 9113, 8.3.1; RFC 8441 for upgrades).
fn request_of(head: &RequestHead, authority: Option<Authority>) -> Option<http::Request<()>> {
    let mut uri = http::uri::Parts::default();
    if !head.authority.is_empty() {
        uri.authority = Some(authority?);
    }
    if !head.is_connect() {
        uri.scheme = Some(if &*head.scheme == "https" {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        });
        uri.path_and_query =
            Some(PathAndQuery::from_maybe_shared(head.path.clone().into_bytes()).ok()?);
    }
    let mut request = http::Request::new(());
    *request.uri_mut() = Uri::from_parts(uri).ok()?;
    *request.method_mut() = match &head.upgrade {
        Some(protocol) => {
            request
                .extensions_mut()
                .insert(h2::ext::Protocol::from(&**protocol));
            Method::CONNECT
        }
        None => head.method.clone(),
    };
    *request.headers_mut() = head.headers.clone();
    Some(request)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use envoy_types::pb::envoy::config::core::v3::KeepaliveSettings;
    use envoy_types::pb::google::protobuf::Duration as PbDuration;
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn a_server_that_answers_no_ping_is_given_up() {
        let soon = Some(PbDuration {
            seconds: 0,
            nanos: 1_000_000,
        });
        let keepalive = Keepalive::compile(&KeepaliveSettings {
            interval: soon,
            timeout: soon,
            ..Default::default()
        });
        let settings = ClientSettings {
            stream_window: 1 << 16,
            connection_window: 1 << 16,
            max_streams: 1,
            limits: FieldLimits {
                bytes: 1 << 10,
                count: 10,
            },
            keepalive: keepalive.unwrap(),
        };
        let (io, mut mute) = tokio::io::duplex(1 << 16);
        tokio::task::LocalSet::new()
            .run_until(async move {
                let connection = ClientConnection::handshake(io, settings).await.unwrap();
                assert!(!connection.is_closed());
                let mut heard = Vec::new();
                // Ends when the connection is dropped.
                let reading = mute.read_to_end(&mut heard);
                let ended = tokio::time::timeout(Duration::from_secs(20), reading).await;
                assert!(ended.is_ok());
                assert!(connection.is_closed());
            })
            .await;
    }
}
