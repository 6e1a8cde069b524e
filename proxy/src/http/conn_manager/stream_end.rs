//! What watches a stream's response body, and the end of a stream: stats, filters, access log.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use filters::body::{Body, BodyError, BodyStream, Frame, ResetReason};
use filters::chain::StreamFilters;
use filters::filter::SharedInfo;
use filters::flags::ResponseFlags;
use filters::head::{RequestHead, ResponseHead};
use filters::moments::Moment;
use filters::stream::AccessLogType;
use tokio::time::{Sleep, sleep_until};

use super::config::HcmConfig;
use super::deadline::Clock;
use crate::http::service::EarlyResponses;
use crate::router::route::Route;

/// The end of a stream, however it comes: stats, filters, access log. Runs when it is dropped.
pub(super) struct StreamEnd {
    config: Arc<HcmConfig>,
    info: SharedInfo,
    pub(super) filters: Option<StreamFilters>,
    /// The route, if it forwards.
    pub(super) route: Option<Arc<Route>>,
    early: EarlyResponses,
    /// Kept only if an access log will want it.
    request: Option<RequestHead>,
    response: Option<ResponseHead>,
    trailers: Option<http::HeaderMap>,
    complete: bool,
}

impl StreamEnd {
    pub(super) fn begin(
        config: Arc<HcmConfig>,
        info: SharedInfo,
        head: &RequestHead,
        early: EarlyResponses,
    ) -> Self {
        let request = (!config.access_logs.is_empty()).then(|| head.clone());
        Self {
            config,
            info,
            filters: None,
            route: None,
            early,
            request,
            response: None,
            trailers: None,
            complete: false,
        }
    }

    /// Takes the head again, as it is after mutation.
    pub(super) fn remember(&mut self, head: &RequestHead) {
        if let Some(request) = &mut self.request {
            request.clone_from(head);
        }
    }

    pub(super) fn reset(&mut self, error: &BodyError) {
        let mut info = self.info.borrow_mut();
        if info.request_error.is_some() {
            // The client's doing: told as such when this is dropped.
            return;
        }
        self.config.stats.downstream_rq_tx_reset.inc();
        if info.details.is_none() {
            info.details = Some(error.details.unwrap_or(error.reason.as_str()).into());
        }
        self.complete = true;
    }

    /// Ends with the response's last byte: the body carries this to where the codec finishes or drops it. `request` is
    /// what became of the request's head, and nobody's any more.
    pub(super) fn attach(
        mut self,
        request: &mut RequestHead,
        head: &ResponseHead,
        body: Body,
        clock: Clock,
    ) -> Body {
        if let Some(kept) = &mut self.request {
            std::mem::swap(kept, request);
        }
        let status = head.status.as_u16();
        {
            let mut info = self.info.borrow_mut();
            info.response_code = Some(status);
            info.moments.mark(Moment::DownstreamSendBegin);
        }
        self.config.stats.count_response(status);
        if self.request.is_some() {
            self.response = Some(head.clone());
        }
        if body.is_end() {
            self.complete = true;
            return Body::Empty;
        }
        if let Body::Full(bytes) = &body
            && self.request.is_none()
        {
            // Nothing is left to observe.
            self.info.borrow_mut().bytes_sent = bytes.len() as u64;
            self.complete = true;
            return body;
        }
        Body::stream(ResponseBody {
            body,
            end: self,
            clock,
            timer: None,
        })
    }
}

impl Drop for StreamEnd {
    fn drop(&mut self) {
        let stats = &self.config.stats;
        stats.downstream_rq_active.dec();
        if !self.complete {
            stats.downstream_rq_rx_reset.inc();
            let mut info = self.info.borrow_mut();
            let (details, flags) = self.early.ended().unwrap_or((
                "downstream_remote_disconnect",
                ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION,
            ));
            info.flags.insert(flags);
            info.details = Some(details.into());
        }
        if let Some(filters) = &mut self.filters {
            filters.complete();
        }
        let elapsed = self.info.borrow().start.elapsed();
        stats
            .downstream_rq_time
            .record(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
        {
            let mut info = self.info.borrow_mut();
            info.log_type = AccessLogType::DownstreamEnd;
            info.sent_upstream();
            if self.complete {
                info.moments.mark(Moment::DownstreamSendEnd);
            }
        }
        for log in &self.config.access_logs {
            log.record(
                &self.info.borrow(),
                self.request.as_ref(),
                self.response.as_ref(),
                self.trailers.as_ref(),
            );
        }
    }
}

struct ResponseBody {
    body: Body,
    end: StreamEnd,
    clock: Clock,
    /// Made when the body first has to be waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl ResponseBody {
    /// Ready when a limit of the stream strikes: the response has begun, so that only a reset is left.
    fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let end = &mut self.end;
        loop {
            if let Some(timer) = &mut self.timer
                && timer.as_mut().poll(cx).is_pending()
            {
                return Poll::Pending;
            }
            match self.clock.look(&end.info) {
                Ok(None) => return Poll::Pending,
                Ok(Some(next)) => match &mut self.timer {
                    Some(timer) => timer.as_mut().reset(next),
                    None => self.timer = Some(Box::pin(sleep_until(next))),
                },
                Err(struck) => {
                    struck.note(&end.config.stats, &end.info);
                    end.complete = true;
                    let details = struck.details();
                    end.info.borrow_mut().details = Some(details.into());
                    return Poll::Ready(BodyError {
                        reason: ResetReason::Timeout,
                        details: Some(details),
                    });
                }
            }
        }
    }
}

impl BodyStream for ResponseBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let polled = self.body.poll_frame(cx);
        match &polled {
            Poll::Ready(frame) => {
                let mut info = self.end.info.borrow_mut();
                info.touch();
                match frame {
                    Some(Ok(Frame::Data(data))) => info.bytes_sent += data.len() as u64,
                    Some(Ok(Frame::Trailers(trailers))) => {
                        self.end.complete = true;
                        if self.end.request.is_some() {
                            self.end.trailers = Some(trailers.clone());
                        }
                    }
                    // The end of the request took the response with it: told when this is dropped.
                    None | Some(Err(_)) if info.request_error.is_some() => {}
                    None => self.end.complete = true,
                    Some(Err(_)) => {
                        self.end.complete = true;
                        self.end.config.stats.downstream_rq_tx_reset.inc();
                    }
                }
                self.end.complete |= self.body.is_end() && info.request_error.is_none();
            }
            Poll::Pending => {
                if let Poll::Ready(error) = self.poll_limits(cx) {
                    return Poll::Ready(Some(Err(error)));
                }
            }
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
            if self.end.info.borrow().request_error.is_none() {
                self.end.complete = true;
                self.end.config.stats.downstream_rq_tx_reset.inc();
            }
            return Poll::Ready(error);
        }
        self.poll_limits(cx)
    }
}
