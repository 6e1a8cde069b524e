//! The timers that end a stream: `request_timeout`, `max_stream_duration` and `stream_idle_timeout`, the
//! last two also as a route wants them.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use filters::filter::SharedInfo;
use filters::flags::ResponseFlags;
use filters::head::RequestHead;
use http::StatusCode;
use tokio::time::{Instant, sleep_until};

use super::config::HcmConfig;
use super::reply::{Stop, reply};
use super::stats::ConnectionManagerStats;
use crate::router::route::Route;
use crate::router::timeout::grpc_timeout;

const GRPC_DEADLINE_EXCEEDED: u8 = 4;

/// The limits of a stream. None is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Until the whole request has been received.
    pub(super) request: Option<Duration>,
    /// For all of it.
    pub(super) whole: Option<Duration>,
    /// Without a sign of life in either direction.
    pub(super) idle: Option<Duration>,
}

impl Limits {
    /// The connection manager's, where the route has none of its own.
    pub(super) fn of(config: &HcmConfig, route: Option<&Route>, head: &RequestHead) -> Self {
        let mut limits = Self {
            request: config.request_timeout,
            whole: config.max_stream_duration,
            idle: config.stream_idle_timeout,
        };
        let Some(route) = route else {
            return limits;
        };
        if let Some(idle) = route.idle_timeout() {
            limits.idle = (!idle.is_zero()).then_some(idle);
        }
        match (route.grpc_timeout_header_max(), route.max_stream_duration()) {
            // The client's deadline, within the route's; the offset leaves time for the answer.
            (Some(max), _) if let Some(asked) = grpc_timeout(head) => {
                let granted = if max.is_zero() { asked } else { asked.min(max) };
                let offset = route.grpc_timeout_header_offset().unwrap_or_default();
                limits.whole = Some(granted.saturating_sub(offset));
            }
            (_, Some(own)) => limits.whole = (!own.is_zero()).then_some(own),
            (_, None) => {}
        }
        limits
    }

    /// When the first limit strikes of a stream that began at `start`.
    fn next(&self, start: Instant, info: &SharedInfo) -> Option<Instant> {
        let info = info.borrow();
        let request = self.request.filter(|_| !info.request_complete());
        let active: Instant = info.last_activity.into();
        let all = [
            self.whole.map(|limit| start + limit),
            request.map(|limit| start + limit),
            self.idle.map(|limit| active + limit),
        ];
        all.into_iter().flatten().min()
    }

    /// The limit that has struck by `now`.
    fn struck(&self, start: Instant, now: Instant, info: &SharedInfo) -> Option<Struck> {
        let info = info.borrow();
        let age = now - start;
        let quiet = now.saturating_duration_since(info.last_activity.into());
        if self.whole.is_some_and(|limit| age >= limit) {
            Some(Struck::Whole)
        } else if !info.request_complete() && self.request.is_some_and(|limit| age >= limit) {
            Some(Struck::Request)
        } else if self.idle.is_some_and(|limit| quiet >= limit) {
            Some(Struck::Idle)
        } else {
            None
        }
    }
}

/// A limit that has struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Struck {
    Request,
    Whole,
    Idle,
}

impl Struck {
    /// `%RESPONSE_CODE_DETAILS%`.
    pub(super) fn details(self) -> &'static str {
        match self {
            Self::Request => "request_overall_timeout",
            Self::Whole => "max_duration_timeout",
            Self::Idle => "stream_idle_timeout",
        }
    }

    /// Counts and flags it.
    pub(super) fn note(self, stats: &ConnectionManagerStats, info: &SharedInfo) {
        match self {
            Self::Request => stats.downstream_rq_timeout.inc(),
            Self::Whole => stats.downstream_rq_max_duration_reached.inc(),
            Self::Idle => {
                stats.downstream_rq_idle_timeout.inc();
                let mut info = info.borrow_mut();
                info.flags.insert(ResponseFlags::STREAM_IDLE_TIMEOUT);
            }
        }
    }

    /// Envoy answers 408 to a request that is still coming in and 504 to one that waits for its upstream.
    fn answer(self, info: &SharedInfo) -> Stop {
        let status = if info.borrow().request_complete() {
            StatusCode::GATEWAY_TIMEOUT
        } else {
            StatusCode::REQUEST_TIMEOUT
        };
        let body = match self {
            Self::Request => "request timeout",
            Self::Whole => "downstream duration timeout",
            Self::Idle => "stream timeout",
        };
        let mut reply = reply(status, body, self.details());
        if self == Self::Whole {
            reply.grpc_status = Some(GRPC_DEADLINE_EXCEEDED);
        }
        Stop::Reply(reply)
    }
}

/// The clock of one stream. The limits change with its route.
pub(super) struct Clock {
    pub(super) start: Instant,
    pub(super) limits: Cell<Limits>,
}

impl Clock {
    /// The clock of the stream that these are the facts of.
    pub(super) fn new(limits: Limits, info: &SharedInfo) -> Self {
        Self {
            start: info.borrow().start.into(),
            limits: Cell::new(limits),
        }
    }

    /// When to look again, or what has struck.
    pub(super) fn look(&self, info: &SharedInfo) -> Result<Option<Instant>, Struck> {
        let limits = self.limits.get();
        match limits.struck(self.start, Instant::now(), info) {
            Some(struck) => Err(struck),
            None => Ok(limits.next(self.start, info)),
        }
    }

    /// Runs a stream up to its response, within its limits. The stream is pinned by the caller: passed by value,
    /// it would be there twice in the future of every request.
    pub(super) async fn race<T>(
        &self,
        mut stream: Pin<&mut impl Future<Output = Result<T, Stop>>>,
        stats: &ConnectionManagerStats,
        info: &SharedInfo,
    ) -> Result<T, Stop> {
        let mut timer = pin!(sleep_until(self.start));
        let mut armed = false;
        poll_fn(|cx| {
            if let Poll::Ready(outcome) = stream.as_mut().poll(cx) {
                return Poll::Ready(outcome);
            }
            // Activity only ever puts the end off: the timer is set anew when it fires. A route may bring
            // the end nearer.
            match self.limits.get().next(self.start, info) {
                None => return Poll::Pending,
                Some(next) if !armed || next < timer.deadline() => {
                    armed = true;
                    timer.as_mut().reset(next);
                }
                Some(_) => {}
            }
            while timer.as_mut().poll(cx).is_ready() {
                match self.look(info) {
                    Err(struck) => {
                        struck.note(stats, info);
                        return Poll::Ready(Err(struck.answer(info)));
                    }
                    Ok(None) => break,
                    Ok(Some(next)) => timer.as_mut().reset(next),
                }
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
#[path = "deadline_tests.rs"]
mod tests;
