//! A response's body on its way from the upstream: its deadlines, and what its end means for the numbers.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use filters::body::{Body, BodyError, BodyStream, Frame, ResetReason};
use filters::filter::SharedInfo;
use filters::flags::ResponseFlags;
use filters::moments::Moment;

use super::charge::{Charge, upstream_time};
use super::timeout::{AfterRequest, Idle};
use crate::upstream::code_stats::ResponseKind;
use crate::upstream::host::{Host, count};
use crate::upstream::request::RequestGuard;

/// Details of a stream that took longer than its cluster allows.
pub(super) const MAX_DURATION: &str = "upstream_max_stream_duration_reached";

/// The body of a response that has begun: when a timer strikes, or the upstream fails, the stream is reset.
pub(super) struct ResponseBody {
    pub(super) body: Body,
    pub(super) global: AfterRequest,
    pub(super) idle: Idle,
    /// The cluster's limit of the whole stream, already running.
    pub(super) stream_limit: AfterRequest,
    pub(super) info: SharedInfo,
    pub(super) host: Arc<Host>,
    pub(super) charge: Charge,
    pub(super) kind: ResponseKind,
    /// When the request came to the router.
    pub(super) routed: Instant,
    pub(super) guard: RequestGuard,
    pub(super) ended: bool,
}

impl ResponseBody {
    /// The upstream has said everything.
    fn complete(&mut self, trailers: Option<&http::HeaderMap>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.guard.ended(None);
        if self.charge.grpc {
            self.charge.grpc_end(&self.host, trailers);
        }
        self.info.borrow_mut().received_upstream(false);
        let taken = upstream_time(&self.info.borrow(), self.routed);
        self.charge.complete(self.kind, taken);
    }

    /// Ready when the upstream has taken too long.
    fn poll_deadlines(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let stats = self.charge.cluster.stats();
        if self.global.poll(&self.info, cx).is_ready() {
            stats.upstream_rq_timeout.inc();
            return Poll::Ready(self.timed_out("response_timeout"));
        }
        if self.idle.poll(&self.info, cx).is_ready() {
            stats.upstream_rq_per_try_idle_timeout.inc();
            return Poll::Ready(self.timed_out("upstream_per_try_idle_timeout"));
        }
        if self.stream_limit.poll_since(true, cx).is_ready() {
            stats.upstream_rq_max_duration_reached.inc();
            let flag = ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED;
            return Poll::Ready(self.ended_by(MAX_DURATION, flag));
        }
        Poll::Pending
    }

    fn timed_out(&mut self, details: &'static str) -> BodyError {
        count(&self.host.stats.rq_timeout);
        self.ended_by(details, ResponseFlags::UPSTREAM_REQUEST_TIMEOUT)
    }

    /// We end the stream.
    fn ended_by(&mut self, details: &'static str, flag: ResponseFlags) -> BodyError {
        self.ended = true;
        self.guard.ended(Some(ResetReason::LocalReset));
        let mut info = self.info.borrow_mut();
        info.flags.insert(flag);
        info.details = Some(details.into());
        BodyError {
            reason: ResetReason::Timeout,
            details: Some(details),
        }
    }

    fn failed(&mut self, reason: ResetReason) {
        self.ended = true;
        self.guard.ended(Some(reason));
        if self.charge.grpc {
            count(&self.host.stats.rq_error);
        }
        let mut info = self.info.borrow_mut();
        info.flags.insert(super::forward::flags_of(reason));
        let reason = reason.as_str().replace(' ', "_");
        info.details = Some(format!("upstream_reset_after_response_started{{{reason}}}").into());
    }
}

impl BodyStream for ResponseBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let polled = self.body.poll_frame(cx);
        match &polled {
            // A tunnel also fails with its client's half, which is not the upstream's doing.
            Poll::Ready(Some(Err(_))) if self.info.borrow().request_error.is_some() => {}
            Poll::Ready(Some(Err(error))) => self.failed(error.reason),
            Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => self.complete(Some(trailers)),
            Poll::Ready(Some(Ok(Frame::Data(_)))) => {
                let mut info = self.info.borrow_mut();
                info.moments.mark_first(Moment::UpstreamBodyBegin);
                drop(info);
                if self.body.is_end() {
                    self.complete(None);
                }
            }
            Poll::Ready(_) => self.complete(None),
            Poll::Pending => return self.poll_deadlines(cx).map(|error| Some(Err(error))),
        }
        polled
    }

    fn remaining(&self) -> Option<u64> {
        self.body.remaining()
    }

    fn is_end(&self) -> bool {
        self.body.is_end()
    }

    fn poll_progress(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        if let Poll::Ready(error) = self.body.poll_progress(cx) {
            // As above: the end of the request is not the upstream's doing.
            if self.info.borrow().request_error.is_none() {
                self.failed(error.reason);
            }
            return Poll::Ready(error);
        }
        match self.ended {
            true => Poll::Pending,
            false => self.poll_deadlines(cx),
        }
    }
}
