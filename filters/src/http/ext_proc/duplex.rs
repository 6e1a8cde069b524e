//! Bodies in full duplex: the original goes to the processor, what comes back takes its place.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::service::ext_proc::v3 as pb;
use http::HeaderMap;
use pb::body_mutation::Mutation;
use pb::processing_request::Request;
use pb::processing_response::Response;
use tokio_util::sync::PollSender;

use super::session::{Closed, Session, Side};
use super::{Cause, Settings, failure, immediate, note_metadata};
use crate::body::{Body, BodyError, BodyStream, Frame, ResetReason};
use crate::filter::{LocalReply, SharedInfo};
use crate::http::wire::{self, Unset};

/// Sends an original body to the processor, as fast as gRPC takes it.
pub(super) struct Pump {
    side: Side,
    original: Body,
    sender: PollSender<pb::ProcessingRequest>,
    /// Read, and waiting for room in the channel.
    held: Option<pb::ProcessingRequest>,
    trailers: HeaderMap,
    /// Whether anything was taken off the original.
    pub(super) touched: bool,
    ended: bool,
    error: Option<BodyError>,
}

impl Pump {
    pub(super) fn new(side: Side, original: Body, session: &Session) -> Self {
        Self {
            side,
            original,
            sender: session.sender(side),
            held: None,
            trailers: HeaderMap::new(),
            touched: false,
            ended: false,
            error: None,
        }
    }

    /// Gives the original body back.
    pub(super) fn into_original(self) -> Body {
        self.original
    }

    /// Sends what can be sent. At most one frame is held here and one in the channel.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(message) = self.held.take() {
                match self.sender.poll_reserve(cx) {
                    Poll::Pending => {
                        self.held = Some(message);
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(())) => drop(self.sender.send_item(message)),
                    // The processor is gone: the reading side says how.
                    Poll::Ready(Err(_)) => self.ended = true,
                }
            }
            if self.ended {
                return Poll::Ready(());
            }
            let frame = ready!(self.original.poll_frame(cx));
            self.touched = true;
            let (data, end) = match frame {
                Some(Ok(Frame::Data(data))) => (data, self.original.is_end()),
                None => (bytes::Bytes::new(), true),
                Some(Ok(Frame::Trailers(trailers))) => {
                    let map = wire::header_map(wire::map_pairs(&trailers));
                    let message = pb::HttpTrailers {
                        trailers: Some(map),
                    };
                    self.trailers = trailers;
                    self.ended = true;
                    self.held = Some(message_of(match self.side {
                        Side::Request => Request::RequestTrailers(message),
                        Side::Response => Request::ResponseTrailers(message),
                    }));
                    continue;
                }
                Some(Err(error)) => {
                    self.ended = true;
                    self.error = Some(error);
                    continue;
                }
            };
            self.ended = end;
            let message = pb::HttpBody {
                body: data.to_vec(),
                end_of_stream: end,
                ..pb::HttpBody::default()
            };
            self.held = Some(message_of(match self.side {
                Side::Request => Request::RequestBody(message),
                Side::Response => Request::ResponseBody(message),
            }));
        }
    }

    /// The original's error, once.
    pub(super) fn take_error(&mut self) -> Option<BodyError> {
        self.error.take()
    }
}

/// A message around a request.
pub(super) fn message_of(request: Request) -> pb::ProcessingRequest {
    pb::ProcessingRequest {
        request: Some(request),
        // Empty as in Envoy, which fills it only where the configuration says so.
        metadata_context: Some(core::Metadata::default()),
        ..pb::ProcessingRequest::default()
    }
}

/// The body that the processor sends back.
pub(super) struct Duplex {
    pub(super) pump: Pump,
    pub(super) session: Session,
    pub(super) settings: Arc<Settings>,
    pub(super) info: SharedInfo,
    pub(super) done: bool,
}

impl Duplex {
    fn side(&self) -> Side {
        self.pump.side
    }

    /// Ends the body early: a request that has had no response yet is answered.
    fn fail(&mut self, reply: LocalReply) -> BodyError {
        if self.side() == Side::Request {
            self.info.borrow_mut().body_reply = Some(Box::new(reply));
        }
        BodyError::new(ResetReason::LocalReset)
    }
}

impl BodyStream for Duplex {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        if self.done {
            return Poll::Ready(None);
        }
        // The processor asked for no more before it was given anything of this body.
        if self.session.closed() == Some(Closed::Done) && !self.pump.touched {
            return self.pump.original.poll_frame(cx);
        }
        loop {
            let _ = self.pump.poll(cx);
            if let Some(error) = self.pump.take_error() {
                return Poll::Ready(Some(Err(error)));
            }
            let answer = match ready!(self.session.poll_next(self.side(), cx)) {
                Ok(answer) => answer,
                Err(how) => {
                    let reply = failure(&self.settings, how.into());
                    return Poll::Ready(Some(Err(self.fail(reply))));
                }
            };
            note_metadata(&self.settings, &answer, &self.info);
            match (answer.response, self.side()) {
                (Some(Response::RequestBody(body)), Side::Request)
                | (Some(Response::ResponseBody(body)), Side::Response) => {
                    let mutation = body.response.and_then(|c| c.body_mutation);
                    let Some(Mutation::StreamedResponse(chunk)) = mutation.and_then(|m| m.mutation)
                    else {
                        let reply = failure(&self.settings, Cause::Call);
                        return Poll::Ready(Some(Err(self.fail(reply))));
                    };
                    self.done = chunk.end_of_stream || chunk.end_of_stream_without_message;
                    if !chunk.body.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::Data(chunk.body.into()))));
                    }
                    if self.done {
                        return Poll::Ready(None);
                    }
                }
                (Some(Response::RequestTrailers(answer)), Side::Request)
                | (Some(Response::ResponseTrailers(answer)), Side::Response) => {
                    let mut trailers = std::mem::take(&mut self.pump.trailers);
                    if let Some(mutation) = answer.header_mutation {
                        wire::remove(&mutation.remove_headers, &mut trailers);
                        wire::apply(&mutation.set_headers, Unset::Append, &mut trailers);
                    }
                    self.done = true;
                    return Poll::Ready(Some(Ok(Frame::Trailers(trailers))));
                }
                (Some(Response::ImmediateResponse(answer)), _) => {
                    let reply = immediate(&self.settings, answer);
                    return Poll::Ready(Some(Err(self.fail(reply))));
                }
                _ => {
                    let reply = failure(&self.settings, Cause::Spurious);
                    return Poll::Ready(Some(Err(self.fail(reply))));
                }
            }
        }
    }

    fn is_end(&self) -> bool {
        self.done
    }

    fn poll_progress(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        self.pump.original.poll_progress(cx)
    }
}

impl Drop for Duplex {
    fn drop(&mut self) {
        self.session.leave(self.side());
    }
}
