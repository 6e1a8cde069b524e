//! Bodies over `h2` handles: receiving as a [`BodyStream`], sending with flow control.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use filters::body::{Body, BodyError, BodyStream, Frame, ResetReason};
use h2::{Reason, RecvStream, SendStream};

use super::limits::FieldLimits;
use crate::http::validate;

/// What an `h2` error means for a stream.
pub(super) fn reset_reason(error: &h2::Error) -> ResetReason {
    match error.reason() {
        Some(Reason::REFUSED_STREAM) => ResetReason::RemoteRefusedStreamReset,
        Some(Reason::PROTOCOL_ERROR | Reason::FRAME_SIZE_ERROR | Reason::COMPRESSION_ERROR)
            if error.is_library() =>
        {
            ResetReason::ProtocolError
        }
        Some(Reason::CONNECT_ERROR) => ResetReason::ConnectError,
        _ if error.is_io() => ResetReason::ConnectionTermination,
        _ => ResetReason::RemoteReset,
    }
}

/// The receiving half of a stream. Window is given back when a frame is handed out, so a consumer that
/// does not pull stops the sender once the window is used up.
pub(super) struct RecvBody {
    stream: RecvStream,
    limits: FieldLimits,
    data_done: bool,
    /// What the last look at the stream, which takes a lock, said of its end. Asked for by every layer above.
    ended: bool,
}

impl RecvBody {
    /// `limits`: of the trailers.
    pub(super) fn new(stream: RecvStream, limits: FieldLimits) -> Self {
        let ended = stream.is_end_stream();
        Self {
            stream,
            limits,
            data_done: false,
            ended,
        }
    }
}

impl BodyStream for RecvBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        if !self.data_done {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails only when the stream is gone, which the next poll reports.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.ended = self.stream.is_end_stream();
                    return Poll::Ready(Some(Ok(Frame::Data(data))));
                }
                Some(Err(error)) => {
                    return Poll::Ready(Some(Err(BodyError::new(reset_reason(&error)))));
                }
                None => self.data_done = true,
            }
        }
        let frame = match ready!(self.stream.poll_trailers(cx)) {
            Ok(Some(trailers)) if !validate::are_field_names(&trailers) => {
                Some(Err(BodyError::new(ResetReason::ProtocolError)))
            }
            Ok(Some(trailers)) => Some(match self.limits.check(&trailers, (0, 0)) {
                Ok(()) => Ok(Frame::Trailers(trailers)),
                Err(excess) => Err(BodyError {
                    reason: ResetReason::RemoteReset,
                    details: Some(excess.details()),
                }),
            }),
            Ok(None) => None,
            Err(error) => Some(Err(BodyError::new(reset_reason(&error)))),
        };
        self.ended = true;
        Poll::Ready(frame)
    }

    fn is_end(&self) -> bool {
        self.ended
    }
}

/// Sends a body on a stream. A future in the form of a struct, so that both the server (response) and the
/// client (request, polled along with its response) can own it.
pub(super) struct Pump {
    body: Body,
    pending: Bytes,
    end_after_pending: bool,
    failed: Option<BodyError>,
    flush_before_reset: bool,
    /// What a failure of the source is told as.
    reset: Reason,
    done: bool,
}

impl Pump {
    pub(super) fn new(body: Body) -> Self {
        Self {
            body,
            pending: Bytes::new(),
            end_after_pending: false,
            failed: None,
            flush_before_reset: false,
            reset: Reason::INTERNAL_ERROR,
            done: false,
        }
    }

    /// The same, but what came before its source fails goes out before the reset, which says `reset`.
    pub(super) fn flushing(body: Body, reset: Reason) -> Self {
        Self {
            flush_before_reset: true,
            reset,
            ..Self::new(body)
        }
    }

    /// Whether there are bytes to send that the peer has no window for.
    pub(super) fn waits_for_window(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Goes on until the body has been sent, its source fails, or the peer resets the stream.
    ///
    /// # Errors
    /// The source's error, after a reset of the stream, or the peer's reset.
    pub(super) fn poll(
        &mut self,
        stream: &mut SendStream<Bytes>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), BodyError>> {
        loop {
            if self.done {
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = self.failed.take() {
                self.done = true;
                stream.send_reset(self.reset);
                return Poll::Ready(Err(error));
            }
            if !self.pending.is_empty() {
                match self.poll_send(stream, cx) {
                    Poll::Ready(sent) => sent?,
                    // A peer that does not read stops neither its own upload nor the clock.
                    Poll::Pending => {
                        self.failed = Some(ready!(self.body.poll_progress(cx)));
                        self.pending = Bytes::new();
                    }
                }
                continue;
            }
            match self.body.poll_frame(cx) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                    self.end_after_pending = self.body.is_end();
                    if data.is_empty() && self.end_after_pending {
                        return self.finish(stream);
                    }
                    self.pending = data;
                }
                Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => {
                    self.done = true;
                    return Poll::Ready(stream.send_trailers(trailers).map_err(|e| error_of(&e)));
                }
                Poll::Ready(Some(Err(error))) => {
                    self.failed = Some(error);
                    if self.flush_before_reset {
                        // A reset takes back what is queued: let the connection send that first.
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
                Poll::Ready(None) => return self.finish(stream),
                Poll::Pending => {
                    // A peer that resets must end the wait for a slow source.
                    return match stream.poll_reset(cx) {
                        Poll::Ready(reason) => Poll::Ready(Err(peer_reset(reason))),
                        Poll::Pending => Poll::Pending,
                    };
                }
            }
        }
    }

    fn finish(&mut self, stream: &mut SendStream<Bytes>) -> Poll<Result<(), BodyError>> {
        self.done = true;
        Poll::Ready(
            stream
                .send_data(Bytes::new(), true)
                .map_err(|e| error_of(&e)),
        )
    }

    /// Sends of `pending` what the peer's window allows.
    fn poll_send(
        &mut self,
        stream: &mut SendStream<Bytes>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), BodyError>> {
        stream.reserve_capacity(self.pending.len());
        let mut capacity = stream.capacity();
        if capacity == 0 {
            capacity = match stream.poll_capacity(cx) {
                Poll::Ready(Some(Ok(capacity))) => capacity,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error_of(&error))),
                Poll::Ready(None) => {
                    return Poll::Ready(Err(BodyError::new(ResetReason::RemoteReset)));
                }
                Poll::Pending => {
                    return match stream.poll_reset(cx) {
                        Poll::Ready(reason) => Poll::Ready(Err(peer_reset(reason))),
                        Poll::Pending => Poll::Pending,
                    };
                }
            };
            if capacity == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        let part = self.pending.split_to(capacity.min(self.pending.len()));
        let end = self.end_after_pending && self.pending.is_empty();
        self.done = end;
        Poll::Ready(stream.send_data(part, end).map_err(|e| error_of(&e)))
    }
}

fn error_of(error: &h2::Error) -> BodyError {
    BodyError::new(reset_reason(error))
}

fn peer_reset(reason: Result<Reason, h2::Error>) -> BodyError {
    BodyError::new(match reason {
        Ok(Reason::REFUSED_STREAM) => ResetReason::RemoteRefusedStreamReset,
        Ok(_) => ResetReason::RemoteReset,
        Err(error) => reset_reason(&error),
    })
}
