//! The attempts of one request: host choice, deadlines, retries.
//!
//! Envoy: "Router", "x-envoy-retry-on", "x-envoy-max-retries"; `RetryStateImpl`.

use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use filters::body::Body;
use filters::filter::{LocalReply, SharedInfo};
use filters::flags::ResponseFlags;
use filters::head::{RequestHead, ResponseHead};
use http::{HeaderValue, StatusCode};
use smallvec::SmallVec;

use super::forward::{Forwarded, failure_reply, timeout_reply};
use super::mirror::{self, Mirroring};
use super::replay::ReplayBuffer;
use super::retry_policy::RetryPolicy;
use super::route::Route;
use super::timeout::{AfterRequest, TimedBody, Timeouts};
use crate::http::conn_manager::names;
use crate::http::service::EarlyResponses;
use crate::upstream::balance::LbContext;
use crate::upstream::cluster::Cluster;
use crate::upstream::host::Host;
use crate::upstream::request::{self, UpstreamError, UpstreamResponse};

/// A request on its way to a cluster.
pub(super) struct Upstreaming<'a> {
    pub(super) cluster: Arc<Cluster>,
    pub(super) route: Arc<Route>,
    pub(super) head: &'a mut RequestHead,
    pub(super) body: Body,
    pub(super) info: &'a SharedInfo,
    pub(super) early: EarlyResponses,
    pub(super) random: u64,
    pub(super) timeouts: Timeouts,
    pub(super) attempts: Attempts,
}

/// How often and when a request may be tried again.
pub(super) struct Attempts {
    policy: Option<RetryPolicy>,
    left: u32,
    buffer_limit: usize,
}

impl Attempts {
    /// From the route and the request's `x-envoy-retry-*` headers, which are taken off. (External senders'
    /// were taken off before.)
    pub(super) fn new(route: &Route, head: &mut RequestHead, buffer_limit: u32) -> Self {
        let policy = RetryPolicy::for_request(route.retry_policy(), head).map(Cow::into_owned);
        Self {
            left: policy.as_ref().map_or(0, |policy| policy.num_retries),
            policy,
            buffer_limit: route.buffer_limit().unwrap_or(buffer_limit) as usize,
        }
    }

    /// Takes one retry if `wanted`; says why not otherwise.
    fn take(&mut self, wanted: bool, cluster: &Cluster) -> Verdict {
        if !wanted {
            return Verdict::No;
        }
        if self.left == 0 {
            return Verdict::LimitExceeded;
        }
        if !cluster.breakers.default.retries.try_take() {
            return Verdict::Overflow;
        }
        self.left -= 1;
        Verdict::Retry
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Retry,
    No,
    LimitExceeded,
    Overflow,
}

/// What one attempt came to.
enum Outcome {
    Response(Box<UpstreamResponse>),
    Failed(UpstreamError),
    PerTryTimeout,
    GlobalTimeout,
}

/// Tries until there is something to say.
pub(super) async fn run(mut request: Upstreaming<'_>) -> Forwarded {
    let started = Instant::now();
    let mut global = AfterRequest::new(request.timeouts.global);
    let mut tried: SmallVec<[Arc<Host>; 2]> = SmallVec::new();
    let mut attempt = 1;
    let mut next = choose(&request, &tried, attempt);
    if next.is_some() {
        mirror(&mut request);
    }
    let replay = Replay::new(&mut request);
    loop {
        request.info.borrow_mut().upstream.attempts = attempt;
        let Some(host) = next else {
            return no_healthy_upstream();
        };
        note_host(request.info, &host);
        if request.route.include_request_attempt_count() {
            request
                .head
                .headers
                .insert(names::ATTEMPT_COUNT, HeaderValue::from(attempt));
        }
        request
            .route
            .set_upstream_host(request.head, &host.hostname);
        let body = replay.body(&mut request.body);
        let outcome = one(&request, &host, body, &mut global).await;
        let replayable = replay.can_replay();
        let policy = request.attempts.policy.as_ref();
        let verdict = match &outcome {
            _ if !replayable => Verdict::No,
            Outcome::Response(response) => {
                let wanted = policy.is_some_and(|p| {
                    p.wants_retry_response(response.head.status, &response.head.headers)
                });
                request.attempts.take(wanted, &request.cluster)
            }
            Outcome::Failed(error) => {
                let wanted =
                    policy.is_some_and(|p| p.wants_retry_reset(error.reason, error.request_sent));
                request.attempts.take(wanted, &request.cluster)
            }
            Outcome::PerTryTimeout => {
                // Envoy retries a per-try timeout as if the upstream had answered 504.
                let wanted = policy.is_some_and(|p| {
                    p.wants_retry_response(StatusCode::GATEWAY_TIMEOUT, &http::HeaderMap::new())
                });
                request.attempts.take(wanted, &request.cluster)
            }
            Outcome::GlobalTimeout => Verdict::No,
        };
        match verdict {
            Verdict::Retry => {
                drop(outcome);
                tried.push(host);
                let pause = request
                    .attempts
                    .policy
                    .as_ref()
                    .map_or(Duration::ZERO, |p| {
                        p.back_off_delay(attempt, request.random.rotate_left(attempt))
                    });
                let waited = wait(&mut global, request.info, pause).await;
                request.cluster.breakers.default.retries.give();
                if !waited {
                    return timed_out(&request, "response_timeout");
                }
                attempt += 1;
                next = choose(&request, &tried, attempt);
            }
            other => {
                if other == Verdict::LimitExceeded {
                    let mut info = request.info.borrow_mut();
                    info.flags
                        .insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
                } else if other == Verdict::Overflow {
                    request
                        .info
                        .borrow_mut()
                        .flags
                        .insert(ResponseFlags::UPSTREAM_OVERFLOW);
                }
                return conclude(request, outcome, global, attempt, started);
            }
        }
    }
}

/// Starts the copies of a request that has a host to go to.
fn mirror(request: &mut Upstreaming<'_>) {
    let mirrors = request.route.mirrors();
    if mirrors.is_empty() {
        return;
    }
    let mirroring = Mirroring {
        head: request.head,
        attempt_count: request.route.include_request_attempt_count(),
        protocol: request.info.borrow().protocol,
        timeouts: request.timeouts,
        buffer_limit: request.attempts.buffer_limit,
        random: request.random,
    };
    request.body = mirror::start(mirrors, &mirroring, std::mem::take(&mut request.body));
}

fn no_healthy_upstream() -> Forwarded {
    Forwarded::reply(
        LocalReply::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "no healthy upstream",
            "no_healthy_upstream",
        )
        .with_flags(ResponseFlags::NO_HEALTHY_UPSTREAM),
    )
}

/// The request body across attempts: passed through if nothing will ever be retried.
enum Replay {
    Once,
    Buffer(ReplayBuffer),
}

impl Replay {
    fn new(request: &mut Upstreaming<'_>) -> Self {
        let retries = request.attempts.policy.is_some() && request.attempts.left > 0;
        if retries && !request.body.is_end() && !request.head.is_tunnel() {
            let body = std::mem::take(&mut request.body);
            Self::Buffer(ReplayBuffer::new(body, request.attempts.buffer_limit))
        } else {
            Self::Once
        }
    }

    fn body(&self, once: &mut Body) -> Body {
        match self {
            Self::Once => std::mem::take(once),
            Self::Buffer(buffer) => buffer.body(),
        }
    }

    /// A request without a body can always be sent again, and one that is not kept never.
    fn can_replay(&self) -> bool {
        match self {
            Self::Once => true,
            Self::Buffer(buffer) => buffer.can_replay(),
        }
    }
}

fn choose(
    request: &Upstreaming<'_>,
    tried: &SmallVec<[Arc<Host>; 2]>,
    attempt: u32,
) -> Option<Arc<Host>> {
    let policy = request
        .attempts
        .policy
        .as_ref()
        .filter(|p| p.previous_hosts && attempt > 1);
    let excluded: SmallVec<[&Arc<Host>; 2]> = match policy {
        Some(_) => tried.iter().collect(),
        None => SmallVec::new(),
    };
    request.cluster.choose_host(&LbContext {
        hash: None,
        excluded: &excluded,
        random: request.random.rotate_left(attempt * 8),
    })
}

fn note_host(info: &SharedInfo, host: &Host) {
    let mut info = info.borrow_mut();
    info.upstream.host = Some(host.address.clone());
    info.upstream.transport_failure = None;
}

/// One attempt under the per-try and the global timeout.
async fn one(
    request: &Upstreaming<'_>,
    host: &Arc<Host>,
    body: Body,
    global: &mut AfterRequest,
) -> Outcome {
    let downstream = request.info.borrow().protocol;
    let sending = request::send(
        &request.cluster,
        host,
        request.head,
        body,
        downstream,
        request.early.clone(),
    );
    let mut sending = pin!(sending);
    let mut per_try = AfterRequest::new(request.timeouts.per_try);
    poll_fn(|cx| {
        if let Poll::Ready(sent) = sending.as_mut().poll(cx) {
            return Poll::Ready(match sent {
                Ok(response) => Outcome::Response(Box::new(response)),
                Err(error) => Outcome::Failed(error),
            });
        }
        if global.poll(request.info, cx).is_ready() {
            return Poll::Ready(Outcome::GlobalTimeout);
        }
        if per_try.poll(request.info, cx).is_ready() {
            return Poll::Ready(Outcome::PerTryTimeout);
        }
        Poll::Pending
    })
    .await
}

/// Waits out a back-off; false if the global timeout strikes first.
async fn wait(global: &mut AfterRequest, info: &SharedInfo, pause: Duration) -> bool {
    let mut pause = pin!(tokio::time::sleep(pause));
    poll_fn(|cx| {
        if global.poll(info, cx).is_ready() {
            return Poll::Ready(false);
        }
        pause.as_mut().poll(cx).map(|()| true)
    })
    .await
}

fn timed_out(request: &Upstreaming<'_>, details: &'static str) -> Forwarded {
    Forwarded::reply(timeout_reply(details, request.timeouts.alternative))
}

fn conclude(
    request: Upstreaming<'_>,
    outcome: Outcome,
    global: AfterRequest,
    attempt: u32,
    started: Instant,
) -> Forwarded {
    match outcome {
        Outcome::GlobalTimeout => timed_out(&request, "response_timeout"),
        Outcome::PerTryTimeout => timed_out(&request, "upstream_per_try_timeout"),
        Outcome::Failed(error) => {
            let failure = error.transport_failure.as_deref();
            request.info.borrow_mut().upstream.transport_failure =
                failure.map(|text| text.to_owned().into());
            Forwarded::reply(failure_reply(error.reason, failure, attempt > 1))
        }
        Outcome::Response(response) => respond(request, *response, global, attempt, started),
    }
}

fn respond(
    request: Upstreaming<'_>,
    response: UpstreamResponse,
    global: AfterRequest,
    attempt: u32,
    started: Instant,
) -> Forwarded {
    let UpstreamResponse {
        mut head,
        body,
        protocol,
        local,
        guard,
    } = response;
    {
        let mut info = request.info.borrow_mut();
        info.upstream.protocol = Some(protocol);
        info.upstream.local = local;
        info.details.get_or_insert("via_upstream".into());
        // Formatters in the route's response headers tell it.
        info.response_code = Some(head.status.as_u16());
    }
    // As in Envoy, not for a response that overtakes its request, nor for a tunnel.
    if request.info.borrow().request_complete {
        write_service_time(&mut head, started);
    }
    if request.route.include_attempt_count_in_response() {
        head.headers
            .insert(names::ATTEMPT_COUNT, HeaderValue::from(attempt));
    }
    request
        .route
        .finish_response(&mut head, Some(request.head), &request.info.borrow());
    // A tunnel is not a response that could be late.
    let global = if request.head.is_tunnel() {
        AfterRequest::new(None)
    } else {
        global
    };
    let body = match body {
        Body::Stream(_) => Body::stream(TimedBody {
            body,
            timer: global,
            info: request.info.clone(),
            _guard: guard,
        }),
        at_hand => at_hand,
    };
    Forwarded::Response(head, body)
}

fn write_service_time(head: &mut ResponseHead, started: Instant) {
    let millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    head.headers
        .insert(names::SERVICE_TIME, HeaderValue::from(millis));
}
