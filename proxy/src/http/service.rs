//! The seam between codecs and the connection manager, for both versions of HTTP.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;

use filters::body::{Body, BodyError};
use filters::flags::ResponseFlags;
use filters::head::{RequestHead, ResponseHead};
use filters::stream::Protocol;
use futures_util::future::LocalBoxFuture;

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
    /// Method and path as far as they were readable, for the access log.
    pub method: Option<Box<str>>,
    /// See `method`.
    pub path: Option<Box<str>>,
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
    ended: Cell<Option<(&'static str, ResponseFlags)>>,
}

impl EarlyResponses {
    /// Upper bound of heads that wait to be written; more are dropped, as RFC 9110 allows.
    const LIMIT: usize = 8;

    /// Queues a 1xx response and wakes the codec.
    pub fn send(&self, head: ResponseHead) {
        let mut heads = self.0.heads.borrow_mut();
        if heads.len() < Self::LIMIT {
            heads.push_back(head);
            self.0.used.set(true);
            if let Some(waker) = self.0.waker.borrow_mut().take() {
                waker.wake();
            }
        }
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
    aborted: Cell<bool>,
    active: Cell<u32>,
    waker: RefCell<Option<Waker>>,
}

impl ConnectionControl {
    /// Asks the codec to finish: HTTP/1 closes when idle and says `connection: close` on the next
    /// response; HTTP/2 sends GOAWAY twice. Streams in flight finish.
    pub fn drain(&self) {
        self.0.draining.set(true);
        if let Some(waker) = self.0.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Asks the codec to close at once: the peer is gone.
    pub fn abort(&self) {
        self.0.aborted.set(true);
        self.drain();
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
