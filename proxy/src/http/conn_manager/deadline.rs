//! The timers that end a request before its response has begun.

use std::time::Duration;

use filters::filter::SharedInfo;
use filters::flags::ResponseFlags;
use http::StatusCode;
use tokio::time::Instant;

use super::config::HcmConfig;
use super::reply::{Stop, reply};

/// The timers that end a request as a whole: `request_timeout` (until it has been received) and
/// `max_stream_duration`. None is armed unless it is configured.
pub(super) struct Deadline {
    request: Option<Duration>,
    stream: Option<Duration>,
    idle: Option<Duration>,
}

impl Deadline {
    pub(super) fn new(config: &HcmConfig) -> Self {
        Self {
            request: config.request_timeout,
            stream: config.max_stream_duration,
            idle: config.stream_idle_timeout,
        }
    }

    pub(super) async fn race<T>(
        self,
        stream: impl Future<Output = Result<T, Stop>>,
        config: &HcmConfig,
        info: &SharedInfo,
    ) -> Result<T, Stop> {
        let Self {
            request,
            stream: whole,
            idle,
        } = self;
        let shortest = [request, whole, idle].into_iter().flatten().min();
        let Some(shortest) = shortest else {
            return stream.await;
        };
        tokio::pin!(stream);
        let start = Instant::now();
        let mut wait = shortest;
        loop {
            match tokio::time::timeout(wait, &mut stream).await {
                Ok(outcome) => return outcome,
                Err(_) => {
                    let now = Instant::now();
                    let age = now - start;
                    let (received_all, quiet) = {
                        let info = info.borrow();
                        (
                            info.request_complete,
                            now.saturating_duration_since(info.last_activity.into()),
                        )
                    };
                    if let Some(limit) = whole
                        && age >= limit
                    {
                        config.stats.downstream_rq_max_duration_reached.inc();
                        info.borrow_mut()
                            .flags
                            .insert(ResponseFlags::DURATION_TIMEOUT);
                        return Err(timed_out(
                            received_all,
                            "downstream duration timeout",
                            "max_duration_timeout",
                        ));
                    }
                    if let Some(limit) = request
                        && !received_all
                        && age >= limit
                    {
                        config.stats.downstream_rq_timeout.inc();
                        return Err(timed_out(
                            received_all,
                            "request timeout",
                            "request_overall_timeout",
                        ));
                    }
                    if let Some(limit) = idle
                        && quiet >= limit
                    {
                        config.stats.downstream_rq_idle_timeout.inc();
                        info.borrow_mut()
                            .flags
                            .insert(ResponseFlags::STREAM_IDLE_TIMEOUT);
                        return Err(timed_out(
                            received_all,
                            "stream timeout",
                            "stream_idle_timeout",
                        ));
                    }
                    wait = [
                        whole.map(|l| l.saturating_sub(age)),
                        request
                            .filter(|_| !received_all)
                            .map(|l| l.saturating_sub(age)),
                        idle.map(|l| l.saturating_sub(quiet)),
                    ]
                    .into_iter()
                    .flatten()
                    .min()
                    .unwrap_or(Duration::from_secs(3600))
                    .max(Duration::from_millis(1));
                }
            }
        }
    }
}

/// Envoy answers 408 to a request that is still coming in and 504 to one that waits for its upstream.
fn timed_out(received_all: bool, body: &'static str, details: &'static str) -> Stop {
    let status = if received_all {
        StatusCode::GATEWAY_TIMEOUT
    } else {
        StatusCode::REQUEST_TIMEOUT
    };
    Stop::Reply(reply(status, body, details))
}
