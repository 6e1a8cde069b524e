//! Message bodies: pull streams of data frames and trailers, with back-pressure by not pulling.

use std::fmt;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

/// One piece of a body.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// Some bytes; may be empty.
    Data(Bytes),
    /// The trailers: always the last frame.
    Trailers(HeaderMap),
}

/// Why a stream or an attempt ended before its time, in Envoy's words (`Http::StreamResetReason`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResetReason {
    /// We ended the stream.
    LocalReset,
    /// We refused the stream before processing.
    LocalRefusedStreamReset,
    /// The peer reset the stream.
    RemoteReset,
    /// The peer refused the stream and did not process it (HTTP/2 REFUSED_STREAM, GOAWAY).
    RemoteRefusedStreamReset,
    /// The connection could not be made (refused, unreachable).
    RemoteConnectionFailure,
    /// The connection could not be made for a local reason.
    LocalConnectionFailure,
    /// The connection was not made in time.
    ConnectionTimeout,
    /// The connection closed under the stream.
    ConnectionTermination,
    /// A circuit breaker or a limit said no.
    Overflow,
    /// The peer broke the protocol.
    ProtocolError,
    /// The peer refused CONNECT.
    ConnectError,
    /// A filter or the configuration ended the stream because a body exceeded its limit.
    PayloadTooLarge,
    /// A timer ended the stream.
    Timeout,
}

impl ResetReason {
    /// The text that Envoy prints in bodies and details.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LocalReset => "local reset",
            Self::LocalRefusedStreamReset => "local refused stream reset",
            Self::RemoteReset => "remote reset",
            Self::RemoteRefusedStreamReset => "remote refused stream reset",
            Self::RemoteConnectionFailure => "remote connection failure",
            Self::LocalConnectionFailure => "local connection failure",
            Self::ConnectionTimeout => "connection timeout",
            Self::ConnectionTermination => "connection termination",
            Self::Overflow => "overflow",
            Self::ProtocolError => "protocol error",
            Self::ConnectError => "remote error with CONNECT request",
            Self::PayloadTooLarge => "payload too large",
            Self::Timeout => "timeout",
        }
    }
}

/// A body that ended early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodyError {
    /// Why, for flags and retries.
    pub reason: ResetReason,
    /// Details for the access log, if the source knows more.
    pub details: Option<&'static str>,
}

impl BodyError {
    /// An error with no details.
    pub fn new(reason: ResetReason) -> Self {
        Self {
            reason,
            details: None,
        }
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.details.unwrap_or(self.reason.as_str()))
    }
}

impl std::error::Error for BodyError {}

/// A source of frames. After `None`, an error, or trailers it is not polled again.
///
/// Implementations run on one worker thread and need not be `Send`.
pub trait BodyStream {
    /// The next frame; `None` at the end.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>>;

    /// How many data bytes are still to come, if that is known exactly.
    fn remaining(&self) -> Option<u64> {
        None
    }

    /// Whether it is certain that no frame is left.
    fn is_end(&self) -> bool {
        false
    }

    /// What goes on behind the body while its reader can take no frame: deadlines, and the sending of the request
    /// whose response this is. An error is the body's end. Bodies around another one pass this on to it.
    fn poll_progress(&mut self, _: &mut Context<'_>) -> Poll<BodyError> {
        Poll::Pending
    }
}

/// A message body.
#[derive(Default)]
pub enum Body {
    /// No body: the head was the end of the message.
    #[default]
    Empty,
    /// All of it, at hand.
    Full(Bytes),
    /// A stream.
    Stream(Box<dyn BodyStream>),
}

impl Body {
    /// A body that streams from `source`.
    pub fn stream(source: impl BodyStream + 'static) -> Self {
        Self::Stream(Box::new(source))
    }

    /// The next frame; `None` at the end. Turns into `Empty` once it ends.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready((!bytes.is_empty()).then_some(Ok(Frame::Data(bytes))))
            }
            Self::Stream(source) => {
                let polled = source.poll_frame(cx);
                if matches!(
                    polled,
                    Poll::Ready(None | Some(Err(_)) | Some(Ok(Frame::Trailers(_))))
                ) {
                    *self = Self::Empty;
                }
                polled
            }
        }
    }

    /// To be called by a reader that has to wait before it can take the next frame; see
    /// [`BodyStream::poll_progress`]. Turns into `Empty` by an error.
    pub fn poll_progress(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let Self::Stream(source) = self else {
            return Poll::Pending;
        };
        let polled = source.poll_progress(cx);
        if polled.is_ready() {
            *self = Self::Empty;
        }
        polled
    }

    /// The next frame, awaited.
    pub async fn frame(&mut self) -> Option<Result<Frame, BodyError>> {
        std::future::poll_fn(|cx| self.poll_frame(cx)).await
    }

    /// How many data bytes are still to come, if that is known exactly.
    pub fn remaining(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Full(bytes) => Some(bytes.len() as u64),
            Self::Stream(source) => source.remaining(),
        }
    }

    /// Whether it is certain that no frame is left.
    pub fn is_end(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Stream(source) => source.is_end(),
        }
    }

    /// Reads the body to its end, at most `limit` bytes of it.
    ///
    /// # Errors
    /// The body's own error, or [`ResetReason::PayloadTooLarge`] once it exceeds `limit`.
    pub async fn collect(&mut self, limit: usize) -> Result<Collected, BodyError> {
        let mut first: Option<Bytes> = None;
        let mut rest = BytesMut::new();
        let mut trailers = None;
        while let Some(frame) = self.frame().await {
            match frame? {
                Frame::Data(data) => {
                    let held = first.as_ref().map_or(0, Bytes::len) + rest.len();
                    if held + data.len() > limit {
                        return Err(BodyError::new(ResetReason::PayloadTooLarge));
                    }
                    match &first {
                        None => first = Some(data),
                        Some(_) => rest.extend_from_slice(&data),
                    }
                }
                Frame::Trailers(map) => trailers = Some(map),
            }
        }
        let data = match first {
            None => Bytes::new(),
            Some(one) if rest.is_empty() => one,
            Some(one) => {
                let mut all = BytesMut::with_capacity(one.len() + rest.len());
                all.extend_from_slice(&one);
                all.extend_from_slice(&rest);
                all.freeze()
            }
        };
        Ok(Collected { data, trailers })
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() {
            Self::Empty
        } else {
            Self::Full(bytes)
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Full(bytes) => write!(f, "Full({} bytes)", bytes.len()),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// A whole body in memory.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Collected {
    /// The data, joined.
    pub data: Bytes,
    /// The trailers, if any came.
    pub trailers: Option<HeaderMap>,
}

impl BodyStream for Collected {
    fn poll_frame(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        if !self.data.is_empty() {
            return Poll::Ready(Some(Ok(Frame::Data(std::mem::take(&mut self.data)))));
        }
        Poll::Ready(self.trailers.take().map(|t| Ok(Frame::Trailers(t))))
    }

    fn remaining(&self) -> Option<u64> {
        Some(self.data.len() as u64)
    }

    fn is_end(&self) -> bool {
        self.data.is_empty() && self.trailers.is_none()
    }
}

impl From<Collected> for Body {
    fn from(all: Collected) -> Self {
        match all.trailers {
            None => all.data.into(),
            Some(_) => Self::stream(all),
        }
    }
}
