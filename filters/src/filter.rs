//! What an HTTP filter is: a transformer of messages.
//!
//! A filter sees the request head and may answer, change it, await something, or replace the body by a
//! stream of its own; likewise the response on its way back. It is one shared, immutable object per
//! filter-chain position; what it remembers about a stream lives in that stream's [`Slot`]. A filter that
//! neither awaits nor remembers costs no allocation per request.

use std::any::Any;
use std::borrow::Cow;
use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use http::{HeaderMap, StatusCode};

use crate::body::{Body, BodyError};
use crate::flags::ResponseFlags;
use crate::head::{RequestHead, ResponseHead};
use crate::stream::StreamInfo;

/// A stream's facts, shared by the connection manager, the filters and their bodies. Borrow it for a
/// moment, never across an await.
pub type SharedInfo = Rc<RefCell<StreamInfo>>;

/// What one filter remembers about one stream.
pub type Slot = Option<Box<dyn Any>>;

/// A response that Fairway makes itself (Envoy's `sendLocalReply`).
#[derive(Debug, Clone)]
pub struct LocalReply {
    /// The status (mapped to `grpc-status` for gRPC requests).
    pub status: StatusCode,
    /// The text body; `text/plain` unless `headers` say otherwise.
    pub body: Bytes,
    /// Headers to add.
    pub headers: HeaderMap,
    /// A fixed `grpc-status`, instead of the one mapped from `status`.
    pub grpc_status: Option<u8>,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Cow<'static, str>,
    /// Response flags to set.
    pub flags: ResponseFlags,
}

impl LocalReply {
    /// A reply with a status, a body and its details.
    pub fn new(
        status: StatusCode,
        body: impl Into<Bytes>,
        details: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            body: body.into(),
            headers: HeaderMap::new(),
            grpc_status: None,
            details: details.into(),
            flags: ResponseFlags::default(),
        }
    }

    /// The same with flags.
    pub fn with_flags(mut self, flags: ResponseFlags) -> Self {
        self.flags.insert(flags);
        self
    }
}

/// What a filter decided about a message.
#[derive(Debug)]
pub enum Flow {
    /// Go on to the next filter.
    Continue,
    /// Answer with this reply. For a response, it replaces the upstream's.
    Reply(Box<LocalReply>),
    /// End the stream without an answer.
    Reset(BodyError),
}

/// What a filter does with a message: decide at once, or await.
pub enum Step<'a> {
    /// Decided, without an allocation.
    Ready(Flow),
    /// Awaits something; the chain goes on when the future is done.
    Wait(LocalBoxFuture<'a, Flow>),
}

impl Step<'_> {
    /// Go on.
    pub const CONTINUE: Self = Self::Ready(Flow::Continue);
}

/// An HTTP filter, configured and compiled.
pub trait HttpFilter: Send + Sync {
    /// Sees a request's head and body on their way to the upstream. To transform the body, take it and
    /// put a [`Body`] in its place; to buffer it, await [`Body::collect`].
    fn on_request<'a>(
        &'a self,
        _head: &'a mut RequestHead,
        _body: &'a mut Body,
        _slot: &'a mut Slot,
        _info: &'a SharedInfo,
    ) -> Step<'a> {
        Step::CONTINUE
    }

    /// Sees a response's head and body on their way back. Local replies come here too, also those of this
    /// filter itself and those to requests that it never saw: its slot is then as it was left, or empty.
    fn on_response<'a>(
        &'a self,
        _head: &'a mut ResponseHead,
        _body: &'a mut Body,
        _slot: &'a mut Slot,
        _info: &'a SharedInfo,
    ) -> Step<'a> {
        Step::CONTINUE
    }

    /// Sees the end of the stream, however it came, if the filter has seen its beginning.
    fn on_complete(&self, _slot: &mut Slot, _info: &SharedInfo) {}
}
