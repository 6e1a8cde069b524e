//! The timeouts of one request (Envoy: `FilterUtility::finalTimeout`) and the futures that enforce them.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use filters::filter::SharedInfo;
use filters::head::RequestHead;
use http::{HeaderName, HeaderValue};
use tokio::time::{Instant, Sleep, sleep_until};

use super::forward::milliseconds;
use super::options::RouterOptions;
use super::route::Route;
use crate::http::conn_manager::names;

/// What bounds a request in time. `None` is no bound.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// All attempts together, from the moment that the whole request has been received.
    pub(super) global: Option<Duration>,
    /// One attempt.
    pub(super) per_try: Option<Duration>,
    /// How long one attempt may be silent.
    pub(super) per_try_idle: Option<Duration>,
    /// Whether the upstream learns its deadline by `x-envoy-expected-rq-timeout-ms`.
    tell: bool,
    /// Whether it learns it by `grpc-timeout` too.
    grpc: bool,
    /// Answer 204 instead of 504 (`x-envoy-upstream-rq-timeout-alt-response`).
    pub(super) alternative: bool,
}

impl Timeouts {
    /// From the route, the retry policy and, if the sender may, the request's headers.
    pub(super) fn of(
        head: &mut RequestHead,
        route: &Route,
        internal: bool,
        options: &RouterOptions,
    ) -> Self {
        let mut global = route.timeout();
        // Asked of the route first: most have no such limit, and the request's headers are hashed.
        let max_grpc = route.max_grpc_timeout().filter(|_| head.is_grpc());
        let grpc = max_grpc.is_some();
        if let Some(max) = max_grpc {
            // Zero is "no limit" both in the header's absence and as a maximum.
            let offset = route.grpc_timeout_offset().unwrap_or_default();
            let asked = grpc_timeout(head).map(|asked| less(asked, offset));
            global = match (asked, max.is_zero()) {
                (asked, true) => asked,
                (Some(asked), false) => Some(asked.min(max)),
                (None, false) => Some(max),
            };
        }
        let policy = route.retry_policy();
        let mut per_try = policy.and_then(|policy| policy.per_try_timeout);
        let mut alternative = false;
        // One pass over the names that are there, for what nearly no request has.
        let steers = |name: &HeaderName| {
            name.as_str().starts_with("x-envoy-upstream-") || *name == names::EXPECTED_TIMEOUT
        };
        if internal && head.headers.keys().any(steers) {
            let expected = &names::EXPECTED_TIMEOUT;
            if options.respect_expected_timeout && head.headers.contains_key(expected) {
                // Another Envoy's deadline goes before what its client asked for, which goes on.
                if let Some(asked) = milliseconds(head, expected) {
                    global = (!asked.is_zero()).then_some(asked);
                }
            } else {
                if let Some(asked) = milliseconds(head, &names::UPSTREAM_TIMEOUT) {
                    global = (!asked.is_zero()).then_some(asked);
                }
                head.headers.remove(names::UPSTREAM_TIMEOUT);
            }
            if let Some(asked) = milliseconds(head, &names::PER_TRY_TIMEOUT) {
                per_try = (!asked.is_zero()).then_some(asked);
            }
            alternative = head.headers.remove(names::TIMEOUT_ALT_RESPONSE).is_some();
            head.headers.remove(names::ALT_STAT_NAME);
            head.headers.remove(names::HEDGE);
            head.headers.remove(names::STREAM_DURATION);
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
            per_try_idle: policy.and_then(|policy| policy.per_try_idle_timeout),
            tell: !options.suppress_envoy_headers,
            grpc,
            alternative,
        }
    }

    /// Tells the upstream how long it has; `elapsed` is what earlier attempts took.
    pub(super) fn write_expected(&self, head: &mut RequestHead, elapsed: Duration) {
        let Some(mut expected) = self.per_try.or(self.global) else {
            return;
        };
        if let Some(global) = self.global {
            // Zero would be no limit; the timer is about to strike.
            let left = global.saturating_sub(elapsed).max(Duration::from_millis(1));
            expected = expected.min(left);
        }
        let millis = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX);
        if self.tell {
            head.headers
                .insert(names::EXPECTED_TIMEOUT, HeaderValue::from(millis));
        }
        if self.grpc
            && let Ok(value) = HeaderValue::try_from(grpc_timeout_text(millis))
        {
            head.headers.insert(names::GRPC_TIMEOUT, value);
        }
    }
}

/// An offset applies only if it leaves something.
fn less(asked: Duration, offset: Duration) -> Duration {
    if offset < asked {
        asked - offset
    } else {
        asked
    }
}

/// A `grpc-timeout` in the finest unit, from milliseconds up, that eight digits can hold.
fn grpc_timeout_text(millis: u64) -> String {
    const MAX: u64 = 99_999_999;
    if millis <= MAX {
        format!("{millis}m")
    } else if millis / 1000 <= MAX {
        format!("{}S", millis / 1000)
    } else {
        format!("{}M", (millis / 60_000).min(MAX))
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
        match self.length {
            Some(_) => self.poll_since(info.borrow().request_complete(), cx),
            None => Poll::Pending,
        }
    }

    /// The same for a timer that starts when `begun` is told.
    pub(super) fn poll_since(&mut self, begun: bool, cx: &mut Context<'_>) -> Poll<()> {
        let Some(length) = self.length else {
            return Poll::Pending;
        };
        let timer = match &mut self.timer {
            Some(timer) => timer,
            None if begun => self
                .timer
                .insert(Box::pin(sleep_until(Instant::now() + length))),
            None => return Poll::Pending,
        };
        timer.as_mut().poll(cx)
    }
}

/// A timer that strikes when nothing has moved on the stream for a time.
pub(super) struct Idle {
    length: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    pub(super) fn new(length: Option<Duration>) -> Self {
        Self {
            length,
            timer: None,
        }
    }

    /// Ready once nothing has moved for as long, counted from the first call at the earliest.
    pub(super) fn poll(&mut self, info: &SharedInfo, cx: &mut Context<'_>) -> Poll<()> {
        let Some(length) = self.length else {
            return Poll::Pending;
        };
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + length)));
        while timer.as_mut().poll(cx).is_ready() {
            let due = Instant::from_std(info.borrow().last_activity) + length;
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
        Poll::Pending
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
