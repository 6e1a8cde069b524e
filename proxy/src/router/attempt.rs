//! The attempts of one request: host choice, deadlines, retries.
//!
//! Envoy: "Router", "x-envoy-retry-on", "x-envoy-max-retries"; `RetryStateImpl`.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use filters::body::{Body, ResetReason};
use filters::filter::{LocalReply, SharedInfo};
use filters::flags::ResponseFlags;
use filters::head::{RequestHead, ResponseHead};
use filters::moments::{Moment, Moments};
use filters::stream::Protocol;
use http::StatusCode;
use smallvec::SmallVec;

use super::charge::{Charge, upstream_time};
use super::forward::{Forwarded, failure_reply, timeout_reply};
use super::hash::RequestHash;
use super::mirror::{self, Mirroring};
use super::replay::ReplayBuffer;
use super::response_body::{MAX_DURATION, ResponseBody};
use super::retry_state::{RetryState, Verdict};
use super::route::Route;
use super::timeout::{AfterRequest, Idle, Timeouts};
use super::upgrade::failed_handshake;
use crate::http::conn_manager::names;
use crate::http::service::EarlyResponses;
use crate::transport::options::{Purpose, TransportOptions};
use crate::upstream::balance::LbContext;
use crate::upstream::host::{Host, count};
use crate::upstream::request::{self, Ready, SendOptions, UpstreamError, UpstreamResponse};
use crate::upstream::tunnel::terminate;

/// A request on its way to a cluster.
pub(super) struct Upstreaming<'a> {
    pub(super) charge: Charge,
    pub(super) route: Arc<Route>,
    pub(super) head: &'a mut RequestHead,
    pub(super) body: Body,
    pub(super) info: &'a SharedInfo,
    pub(super) early: EarlyResponses,
    pub(super) random: u64,
    pub(super) timeouts: Timeouts,
    /// For the choice of the host.
    pub(super) hash: RequestHash,
    /// None once the request cannot be sent again.
    pub(super) retries: Option<RetryState>,
    /// How much of the body may be kept, bytes.
    pub(super) buffer_limit: usize,
    /// What is asked of the transport.
    pub(super) transport: TransportOptions,
    /// No `x-envoy-*` headers are added.
    pub(super) suppress_envoy_headers: bool,
}

/// What one attempt came to.
enum Outcome {
    Response(Box<UpstreamResponse>),
    Failed(UpstreamError),
    /// With its details.
    PerTryTimeout(&'static str),
    /// The stream has taken longer than its cluster allows.
    MaxDuration,
    GlobalTimeout,
}

impl Outcome {
    fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Response(response) => Some(response.head.status),
            _ => None,
        }
    }
}

/// Tries until there is something to say.
pub(super) async fn run(mut request: Upstreaming<'_>) -> Forwarded {
    let routed = Instant::now();
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
            let stats = request.charge.cluster.stats();
            stats.upstream_cx_none_healthy.inc();
            return no_healthy_upstream(&request);
        };
        host.note(&mut request.info.borrow_mut());
        if request.route.include_request_attempt_count() {
            request
                .head
                .headers
                .insert(names::ATTEMPT_COUNT, names::number(attempt.into()));
        }
        let keep_original = !request.suppress_envoy_headers;
        request
            .route
            .set_upstream_host(request.head, &host.hostname, keep_original);
        let body = replay.body(&mut request.body);
        let mut stream_limit = AfterRequest::new(request.charge.cluster.config.max_stream_duration);
        let outcome = one(&request, &host, body, &mut global, &mut stream_limit).await;
        if matches!(&outcome, Outcome::Failed(error) if error.no_pool) {
            // As in Envoy: such a host is as good as none.
            request.info.borrow_mut().upstream.host = None;
            return no_healthy_upstream(&request);
        }
        let verdict = if replay.can_replay() {
            judge(&mut request, &outcome)
        } else {
            if request.retries.take().is_some() && replay.is_overflowed() {
                let stats = request.charge.cluster.stats();
                stats.retry_or_shadow_abandoned.inc();
            }
            Verdict::No
        };
        match verdict {
            Verdict::Retry => {
                request.charge.retried(&host, outcome.status());
                drop(outcome);
                tried.push(host);
                let random = request.random.rotate_left(attempt);
                let pause = request.retries.as_mut().map_or(Duration::ZERO, |r| {
                    r.back_off(&request.charge.cluster, random)
                });
                if !wait(&mut global, request.info, pause).await {
                    return global_timeout(&request, None);
                }
                attempt += 1;
                request
                    .timeouts
                    .write_expected(request.head, routed.elapsed());
                next = choose(&request, &tried, attempt);
            }
            other => {
                match other {
                    Verdict::LimitExceeded => {
                        flag(&request, ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
                    }
                    Verdict::Overflow => flag(&request, ResponseFlags::UPSTREAM_OVERFLOW),
                    _ => {}
                }
                replay.release();
                let limits = [global, stream_limit];
                return conclude(request, &host, outcome, limits, attempt, routed);
            }
        }
    }
}

fn flag(request: &Upstreaming<'_>, flag: ResponseFlags) {
    request.info.borrow_mut().flags.insert(flag);
}

/// Whether an attempt is to be tried again.
fn judge(request: &mut Upstreaming<'_>, outcome: &Outcome) -> Verdict {
    let Some(retries) = &mut request.retries else {
        return Verdict::No;
    };
    let cluster = &request.charge.cluster;
    match outcome {
        Outcome::Response(response) => {
            retries.on_response(cluster, response.head.status, &response.head.headers)
        }
        Outcome::Failed(error) => retries.on_reset(cluster, error.reason, error.request_sent),
        // We ended the attempt ourselves.
        Outcome::PerTryTimeout(_) | Outcome::MaxDuration => {
            retries.on_reset(cluster, ResetReason::LocalReset, true)
        }
        Outcome::GlobalTimeout => Verdict::No,
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
        info: request.info,
        attempt_count: request.route.include_request_attempt_count(),
        protocol: request.info.borrow().protocol.unwrap_or(Protocol::Http11),
        timeouts: request.timeouts,
        buffer_limit: request.buffer_limit,
        random: request.random,
    };
    request.body = mirror::start(mirrors, &mirroring, std::mem::take(&mut request.body));
}

fn no_healthy_upstream(request: &Upstreaming<'_>) -> Forwarded {
    request.charge.local(None, StatusCode::SERVICE_UNAVAILABLE);
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
        let retries = request.retries.as_ref();
        if retries.is_some_and(RetryState::is_enabled) && !request.body.is_end() {
            let body = std::mem::take(&mut request.body);
            Self::Buffer(ReplayBuffer::new(body, request.buffer_limit))
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

    fn is_overflowed(&self) -> bool {
        matches!(self, Self::Buffer(buffer) if buffer.is_overflowed())
    }

    /// There will be no other attempt.
    fn release(&self) {
        if let Self::Buffer(buffer) = self {
            buffer.release();
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
    let policy = request.retries.as_ref().and_then(|r| r.policy_of_retry());
    let excluded: SmallVec<[&Arc<Host>; 2]> = match policy {
        Some(policy) if policy.previous_hosts => tried.iter().collect(),
        _ => SmallVec::new(),
    };
    let cluster = &request.charge.cluster;
    cluster.choose_host(&LbContext {
        hash: request.hash.hash,
        excluded: &excluded,
        omit_canary: policy.is_some_and(|policy| policy.omit_canary),
        tries: policy.map_or(1, |policy| policy.host_selection_attempts.saturating_add(1)),
        random: request.random.rotate_left(attempt * 8),
        destination: cluster.destination(Some(request.head), &request.info.borrow()),
    })
}

/// One attempt under the per-try and the global timeout.
async fn one(
    request: &Upstreaming<'_>,
    host: &Arc<Host>,
    body: Body,
    global: &mut AfterRequest,
    stream_limit: &mut AfterRequest,
) -> Outcome {
    let begun = Moments::wanted().then(Instant::now);
    let ready = Ready::default();
    let bytes = request.route.ends_connect() && request.head.is_connect();
    let options = SendOptions {
        downstream: request.info.borrow().protocol.unwrap_or(Protocol::Http11),
        priority: request.route.priority(),
        early: request.early.clone(),
        purpose: Purpose {
            options: request.transport.clone(),
            client: host.transport.client(&request.info.borrow()),
            shared: match host.transport.internal() {
                Some(_) => request.info.borrow().filter_state.shared(),
                None => None,
            },
            spread: bytes,
        },
        ready: Some(&ready),
    };
    let cluster = &request.charge.cluster;
    let mut sending = pin!(async {
        if bytes {
            // Boxed: rarely needed, and large.
            let opening = terminate::open(cluster, host, options.purpose, body, options.ready);
            Box::pin(opening).await
        } else {
            request::send(cluster, host, request.head, body, options).await
        }
    });
    let mut per_try = AfterRequest::new(request.timeouts.per_try);
    let mut idle = Idle::new(request.timeouts.per_try_idle);
    let stats = request.charge.cluster.stats();
    let outcome = poll_fn(|cx| {
        if let Poll::Ready(sent) = sending.as_mut().poll(cx) {
            return Poll::Ready(match sent {
                Ok(response) => Outcome::Response(Box::new(response)),
                Err(error) => Outcome::Failed(error),
            });
        }
        if global.poll(request.info, cx).is_ready() {
            return Poll::Ready(Outcome::GlobalTimeout);
        }
        if stream_limit.poll_since(ready.is_set(), cx).is_ready() {
            stats.upstream_rq_max_duration_reached.inc();
            return Poll::Ready(Outcome::MaxDuration);
        }
        if per_try.poll(request.info, cx).is_ready() {
            stats.upstream_rq_per_try_timeout.inc();
            count(&host.stats.rq_timeout);
            return Poll::Ready(Outcome::PerTryTimeout("upstream_per_try_timeout"));
        }
        if idle.poll(request.info, cx).is_ready() {
            stats.upstream_rq_per_try_idle_timeout.inc();
            count(&host.stats.rq_timeout);
            let details = "upstream_per_try_idle_timeout";
            return Poll::Ready(Outcome::PerTryTimeout(details));
        }
        Poll::Pending
    })
    .await;
    ready.note(&mut request.info.borrow_mut(), begun);
    outcome
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

fn timed_out(request: &Upstreaming<'_>, host: Option<&Host>, details: &'static str) -> Forwarded {
    let reply = timeout_reply(details, request.timeouts.alternative);
    request.charge.local(host, reply.status);
    Forwarded::reply(reply)
}

/// The global timeout strikes; `host` is that of an attempt in flight.
fn global_timeout(request: &Upstreaming<'_>, host: Option<&Host>) -> Forwarded {
    request.charge.cluster.stats().upstream_rq_timeout.inc();
    if let Some(host) = host {
        count(&host.stats.rq_timeout);
    }
    timed_out(request, host, "response_timeout")
}

fn conclude(
    request: Upstreaming<'_>,
    host: &Arc<Host>,
    outcome: Outcome,
    limits: [AfterRequest; 2],
    attempt: u32,
    routed: Instant,
) -> Forwarded {
    match outcome {
        // Envoy counts no status here.
        Outcome::MaxDuration => Forwarded::reply(
            LocalReply::new(
                StatusCode::GATEWAY_TIMEOUT,
                "upstream max stream duration reached",
                MAX_DURATION,
            )
            .with_flags(ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED),
        ),
        Outcome::GlobalTimeout => global_timeout(&request, Some(host)),
        Outcome::PerTryTimeout(details) => timed_out(&request, Some(host), details),
        Outcome::Failed(error) => {
            let failure = error.transport_failure.as_deref();
            request.info.borrow_mut().upstream.transport_failure =
                failure.map(|text| text.to_owned().into());
            if error.reason == ResetReason::ProtocolError {
                let stats = request.charge.cluster.stats();
                stats.upstream_cx_protocol_error.inc();
            }
            let reply = failure_reply(error.reason, failure, attempt > 1);
            let tried = error.host_tried.then_some(&**host);
            request.charge.local(tried, reply.status);
            Forwarded::reply(reply)
        }
        Outcome::Response(response) => respond(request, host, *response, limits, attempt, routed),
    }
}

fn respond(
    request: Upstreaming<'_>,
    host: &Arc<Host>,
    response: UpstreamResponse,
    [global, stream_limit]: [AfterRequest; 2],
    attempt: u32,
    routed: Instant,
) -> Forwarded {
    let UpstreamResponse {
        mut head,
        body,
        protocol,
        mut guard,
    } = response;
    let at_hand = !matches!(body, Body::Stream(_));
    {
        let mut info = request.info.borrow_mut();
        info.upstream.protocol = protocol;
        info.details.get_or_insert("via_upstream".into());
        // Formatters in the route's response headers tell it.
        info.response_code = Some(head.status.as_u16());
        info.moments.mark(Moment::UpstreamReceiveBegin);
        if at_hand {
            info.received_upstream(!body.is_end());
        }
    }
    let charge = request.charge;
    let taken = upstream_time(&request.info.borrow(), routed);
    let kind = charge.response(host, head.status, &head.headers, at_hand);
    if let Some(reply) = failed_handshake(request.head, &mut head, protocol) {
        guard.ended(None);
        charge.complete(kind, taken);
        return Forwarded::reply(reply);
    }
    // As in Envoy, not for a response that overtakes its request, nor for a tunnel.
    if let Some(taken) = taken.filter(|_| !request.suppress_envoy_headers) {
        write_service_time(&mut head, taken);
    }
    if request.route.include_attempt_count_in_response() {
        head.headers
            .insert(names::ATTEMPT_COUNT, names::number(attempt.into()));
    }
    request
        .route
        .finish_response(&mut head, Some(request.head), &request.info.borrow());
    request.hash.set_cookies(&mut head);
    if at_hand {
        guard.ended(None);
        charge.complete(kind, taken);
        return Forwarded::Response(head, body);
    }
    // A tunnel is not a response that could be late.
    let tunnel = request.head.is_tunnel();
    let body = Body::stream(ResponseBody {
        body,
        global: if tunnel {
            AfterRequest::new(None)
        } else {
            global
        },
        idle: Idle::new(request.timeouts.per_try_idle.filter(|_| !tunnel)),
        stream_limit,
        info: request.info.clone(),
        host: host.clone(),
        charge,
        kind,
        routed,
        guard,
        ended: false,
    });
    Forwarded::Response(head, body)
}

fn write_service_time(head: &mut ResponseHead, taken: Duration) {
    let millis = u64::try_from(taken.as_millis()).unwrap_or(u64::MAX);
    let value = names::passing(names::number(millis));
    head.headers.insert(names::SERVICE_TIME, value);
}
