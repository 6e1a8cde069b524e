//! The seam between codecs and the connection manager, for both versions of HTTP.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

use filters::body::{Body, BodyError};
use filters::flags::ResponseFlags;
use filters::head::{RequestHead, ResponseHead};
use filters::stream::Protocol;
use futures_util::future::LocalBoxFuture;

use crate::telemetry::stats::Counter;

/// A request as a server codec hands it over.
pub struct Request {
    /// The head, valid by the validator's rules, with hop-by-hop fields taken out.
    pub head: RequestHead,
    /// The body. For CONNECT and upgrades it streams the tunnel's bytes.
    pub body: Body,
    /// The version on the wire.
    pub protocol: Protocol,
    /// The way to send 1xx responses before the final one.
    pub early: EarlyResponses,
}

/// A final response as a service hands it back. For an accepted upgrade (status 101 or, for CONNECT and
/// extended CONNECT, 200) the body streams the tunnel's bytes.
pub struct Response {
    /// The head. Hop-by-hop fields and framing are the codec's business, not the service's.
    pub head: ResponseHead,
    /// The body. Dropped unread when the client goes away.
    pub body: Body,
    /// Close the connection after this response (`connection: close`, or GOAWAY).
    pub close: bool,
}

/// Handles requests. One per connection.
pub trait HttpService {
    /// Handles one request. The future is dropped when the client resets the stream or its connection
    /// closes. An error resets the stream (HTTP/2) or closes the connection (HTTP/1) without an answer.
    fn call(&self, request: Request) -> LocalBoxFuture<'static, Result<Response, BodyError>>;

    /// A message that was malformed, too large, or late, before it became a request: what to answer.
    /// The codec sends the answer where the protocol allows one and closes. Counts and logs.
    fn reject(&self, rejection: &Rejection, protocol: Protocol) -> Response;

    /// A message that the codec refused without an answer, before it became a request. Counts and logs.
    fn refuse(&self, _details: &'static str, _flags: ResponseFlags, _protocol: Protocol) {}

    /// The codec ends the connection of a client that opened streams only to reset them. Counts.
    fn too_many_premature_resets(&self) {}
}

/// Why a codec refused a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The status to answer with: 400, 408, 426, 431, 501...
    pub status: u16,
    /// `%RESPONSE_CODE_DETAILS%`, Envoy's name for it where it has one (`http1.codec_error`, ...).
    pub details: &'static str,
    /// Body text; empty for most.
    pub body: &'static str,
}

/// Carries 1xx responses from the service to the codec of one stream, and back what the codec knows of the
/// stream's early end. Cheap to clone.
#[derive(Clone, Default)]
pub struct EarlyResponses(Rc<EarlyQueue>);

#[derive(Default)]
struct EarlyQueue {
    heads: RefCell<VecDeque<ResponseHead>>,
    waker: RefCell<Option<Waker>>,
    used: Cell<bool>,
    closed: Cell<bool>,
    ended: Cell<Option<(&'static str, ResponseFlags)>>,
}

impl EarlyResponses {
    /// Upper bound of heads that wait to be written; more are dropped, as RFC 9110 allows.
    const LIMIT: usize = 8;

    /// Queues a 1xx response and wakes the codec.
    pub fn send(&self, head: ResponseHead) {
        let mut heads = self.0.heads.borrow_mut();
        if !self.0.closed.get() && heads.len() < Self::LIMIT {
            heads.push_back(head);
            self.0.used.set(true);
            if let Some(waker) = self.0.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// Passes an upstream's 1xx response on if it is 100 (Continue). As in Envoy, others end here: not every
    /// client knows that a response may have several heads.
    pub fn forward(&self, head: ResponseHead) {
        if head.status == http::StatusCode::CONTINUE {
            self.send(head);
        }
    }

    /// Takes no more heads: what is sent from now on is dropped.
    pub fn close(&self) {
        self.0.closed.set(true);
    }

    /// The next 1xx head to write, if there is one. Codecs call this before they write a final head and
    /// whenever the service's future is pending.
    pub fn pop(&self, waker: &Waker) -> Option<ResponseHead> {
        let head = self.0.heads.borrow_mut().pop_front();
        if head.is_none() {
            let mut slot = self.0.waker.borrow_mut();
            if !slot.as_ref().is_some_and(|w| w.will_wake(waker)) {
                *slot = Some(waker.clone());
            }
        }
        head
    }

    /// The codec says why it is about to drop the service's future or body: details and flags for the access
    /// log. Without this, the connection is taken to have closed.
    pub fn end(&self, details: &'static str, flags: ResponseFlags) {
        self.0.ended.set(Some((details, flags)));
    }

    /// What [`end`](Self::end) was told.
    pub fn ended(&self) -> Option<(&'static str, ResponseFlags)> {
        self.0.ended.get()
    }

    /// Whether any 1xx was queued.
    pub fn used(&self) -> bool {
        self.0.used.get()
    }
}

/// What a connection's codec and its owner (listener drain, max duration) tell each other.
#[derive(Clone, Default)]
pub struct ConnectionControl(Rc<ControlState>);

#[derive(Default)]
struct ControlState {
    draining: Cell<bool>,
    closes_idle: Cell<bool>,
    /// Set while the server fails its health checks.
    unhealthy: Option<Arc<AtomicBool>>,
    panics: Counter,
    aborted: Cell<bool>,
    active: Cell<u32>,
    waker: RefCell<Option<Waker>>,
    protocol: Cell<Option<Protocol>>,
    received: Cell<u64>,
    sent: Cell<u64>,
}

impl ConnectionControl {
    /// A control of a connection whose responses ask to close while `unhealthy` is set; `panics` counts those of
    /// its tasks.
    pub fn new(unhealthy: Arc<AtomicBool>, panics: Counter) -> Self {
        Self(Rc::new(ControlState {
            unhealthy: Some(unhealthy),
            panics,
            ..ControlState::default()
        }))
    }

    /// Asks the codec to finish: HTTP/1 says `connection: close` on the next response; HTTP/2 sends GOAWAY
    /// twice. Streams in flight finish. An idle HTTP/1 connection stays open, because a request may be on its
    /// way: see [`close_idle`](Self::close_idle).
    pub fn drain(&self) {
        self.0.draining.set(true);
        self.wake();
    }

    /// Drains, and closes an HTTP/1 connection as soon as it is idle. To be called some time after
    /// [`drain`](Self::drain): a client that is not idle learns by a response that it is to go elsewhere, and
    /// loses no request.
    pub fn close_idle(&self) {
        self.0.closes_idle.set(true);
        self.drain();
    }

    /// Whether [`close_idle`](Self::close_idle) was called.
    pub fn closes_idle(&self) -> bool {
        self.0.closes_idle.get()
    }

    /// Whether a response is to ask the client to go elsewhere.
    pub fn asks_to_close(&self) -> bool {
        let unhealthy = self.0.unhealthy.as_ref();
        self.is_draining() || unhealthy.is_some_and(|u| u.load(Ordering::Relaxed))
    }

    fn wake(&self) {
        if let Some(waker) = self.0.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Asks the codec to close at once: the peer is gone.
    pub fn abort(&self) {
        self.0.aborted.set(true);
        self.close_idle();
    }

    /// Whether [`abort`](Self::abort) was called.
    pub fn is_aborted(&self) -> bool {
        self.0.aborted.get()
    }

    /// Whether [`drain`](Self::drain) was called.
    pub fn is_draining(&self) -> bool {
        self.0.draining.get()
    }

    /// The codec registers here to be woken by [`drain`](Self::drain).
    pub fn register(&self, waker: &Waker) {
        let mut slot = self.0.waker.borrow_mut();
        if !slot.as_ref().is_some_and(|w| w.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }

    /// To be called when a task of the connection ends: tokio catches a panic at the task's boundary, and the
    /// worker goes on.
    pub fn count_panic(&self) {
        if std::thread::panicking() {
            self.0.panics.inc();
        }
    }

    /// Notes what is spoken.
    pub fn set_protocol(&self, protocol: Protocol) {
        self.0.protocol.set(Some(protocol));
    }

    /// What is spoken, once that is known; none if it is not HTTP.
    pub fn protocol(&self) -> Option<Protocol> {
        self.0.protocol.get()
    }

    /// Counts bytes from the client.
    pub fn add_received(&self, n: u64) {
        self.0.received.set(self.0.received.get() + n);
    }

    /// Counts bytes to the client.
    pub fn add_sent(&self, n: u64) {
        self.0.sent.set(self.0.sent.get() + n);
    }

    /// Bytes from the client and to it.
    pub fn bytes(&self) -> (u64, u64) {
        (self.0.received.get(), self.0.sent.get())
    }

    /// Streams in flight.
    pub fn active(&self) -> u32 {
        self.0.active.get()
    }

    /// The codec counts its streams here.
    pub fn add_active(&self, delta: i32) {
        self.0
            .active
            .set(self.0.active.get().saturating_add_signed(delta));
    }
}
