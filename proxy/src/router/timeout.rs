//! The timeouts of one request (Envoy: `FilterUtility::finalTimeout`) and the futures that enforce them.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use filters::body::{Body, BodyError, BodyStream, Frame, ResetReason};
use filters::filter::SharedInfo;
use filters::flags::ResponseFlags;
use filters::head::RequestHead;
use http::HeaderValue;
use tokio::time::{Instant, Sleep, sleep_until};

use super::forward::milliseconds;
use super::route::Route;
use crate::http::conn_manager::names;
use crate::upstream::request::RequestGuard;

/// What bounds a request in time. `None` is no bound.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// All attempts together, from the moment that the whole request has been received.
    pub(super) global: Option<Duration>,
    /// One attempt.
    pub(super) per_try: Option<Duration>,
    /// Answer 204 instead of 504 (`x-envoy-upstream-rq-timeout-alt-response`).
    pub(super) alternative: bool,
}

impl Timeouts {
    /// From the route, the retry policy and, if the sender may, the request's headers.
    pub(super) fn of(head: &mut RequestHead, route: &Route, internal: bool) -> Self {
        let mut global = route.timeout();
        if head.is_grpc()
            && let Some(max) = route.max_grpc_timeout()
        {
            // Zero is "no limit" both in the header's absence and as a maximum.
            let asked = grpc_timeout(head);
            global = match (asked, max.is_zero()) {
                (asked, true) => asked,
                (Some(asked), false) => Some(asked.min(max)),
                (None, false) => Some(max),
            };
        }
        let mut per_try = route
            .retry_policy()
            .and_then(|policy| policy.per_try_timeout);
        let mut alternative = false;
        if internal {
            if let Some(asked) = milliseconds(head, &names::UPSTREAM_TIMEOUT) {
                global = (!asked.is_zero()).then_some(asked);
            }
            if let Some(asked) = milliseconds(head, &names::PER_TRY_TIMEOUT) {
                per_try = (!asked.is_zero()).then_some(asked);
            }
            alternative = head.headers.remove(names::TIMEOUT_ALT_RESPONSE).is_some();
            head.headers.remove(names::ALT_STAT_NAME);
            head.headers.remove(names::UPSTREAM_TIMEOUT);
            head.headers.remove(names::PER_TRY_TIMEOUT);
        }
        if let (Some(one), Some(all)) = (per_try, global)
            && one >= all
        {
            per_try = None;
        }
        Self {
            global,
            per_try,
            alternative,
        }
    }

    /// Tells the upstream how long it has.
    pub(super) fn write_expected(&self, head: &mut RequestHead) {
        if let Some(expected) = self.per_try.or(self.global) {
            let millis = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX);
            head.headers
                .insert(names::EXPECTED_TIMEOUT, HeaderValue::from(millis));
        }
    }
}

/// `grpc-timeout`: at most eight digits and a unit (gRPC over HTTP/2, "Requests").
pub(crate) fn grpc_timeout(head: &RequestHead) -> Option<Duration> {
    let text = head.headers.get(names::GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// A timer that starts when the whole request has been received.
pub(super) struct AfterRequest {
    length: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl AfterRequest {
    pub(super) fn new(length: Option<Duration>) -> Self {
        Self {
            length,
            timer: None,
        }
    }

    /// Ready once the time is over.
    pub(super) fn poll(&mut self, info: &SharedInfo, cx: &mut Context<'_>) -> Poll<()> {
        let Some(length) = self.length else {
            return Poll::Pending;
        };
        let timer = match &mut self.timer {
            Some(timer) => timer,
            None if info.borrow().request_complete => self
                .timer
                .insert(Box::pin(sleep_until(Instant::now() + length))),
            None => return Poll::Pending,
        };
        timer.as_mut().poll(cx)
    }
}

/// A response body under the global timeout. When it strikes, the response has begun: the stream is reset.
pub(super) struct TimedBody {
    pub(super) body: Body,
    pub(super) timer: AfterRequest,
    pub(super) info: SharedInfo,
    pub(super) _guard: RequestGuard,
}

impl BodyStream for TimedBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let polled = self.body.poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Err(error))) => {
                let mut info = self.info.borrow_mut();
                info.flags.insert(super::forward::flags_of(error.reason));
                let reason = error.reason.as_str().replace(' ', "_");
                info.details =
                    Some(format!("upstream_reset_after_response_started{{{reason}}}").into());
            }
            Poll::Pending if self.timer.poll(&self.info, cx).is_ready() => {
                let mut info = self.info.borrow_mut();
                info.flags.insert(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT);
                info.details = Some("response_timeout".into());
                return Poll::Ready(Some(Err(BodyError {
                    reason: ResetReason::Timeout,
                    details: Some("response_timeout"),
                })));
            }
            _ => {}
        }
        polled
    }

    fn remaining(&self) -> Option<u64> {
        self.body.remaining()
    }

    fn is_end(&self) -> bool {
        self.body.is_end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    #[test]
    fn grpc_timeouts_are_parsed_and_bounded() {
        let mut head = RequestHead::new(Method::POST, "/");
        for (text, want) in [
            ("5S", Some(Duration::from_secs(5))),
            ("100m", Some(Duration::from_millis(100))),
            ("7u", Some(Duration::from_micros(7))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("999999999S", None),
            ("S", None),
            ("", None),
            ("5x", None),
            ("-5S", None),
        ] {
            head.headers
                .insert(names::GRPC_TIMEOUT, HeaderValue::from_static(text));
            assert_eq!(grpc_timeout(&head), want, "{text}");
        }
    }
}
