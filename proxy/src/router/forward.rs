//! The router: takes a routed request to an upstream, with timeouts and retries, or answers it itself.
//!
//! Envoy: "Router" (HTTP filter). Local replies have Envoy's status, body, flags and details.

use std::time::Duration;

use bytes::Bytes;
use filters::body::{Body, ResetReason};
use filters::filter::{LocalReply, SharedInfo};
use filters::flags::ResponseFlags;
use filters::head::{RequestHead, ResponseHead};
use filters::stream::Protocol;
use http::{HeaderValue, StatusCode, header};

use super::action::Action;
use super::attempt;
use super::charge::Charge;
use super::hash::RequestHash;
use super::options::RouterOptions;
use super::redirect::Redirect;
use super::retry_state::RetryState;
use super::route::Route;
use super::table::RouteOutcome;
use super::timeout::Timeouts;
use crate::http::conn_manager::names;
use crate::http::service::EarlyResponses;
use crate::transport::options::TransportOptions;
use crate::upstream::balance::LbPolicy;
use std::sync::Arc;

/// A request that is ready for its upstream.
pub(crate) struct Exchange<'a> {
    /// The head, after all filters.
    pub(crate) head: &'a mut RequestHead,
    /// The body, after all filters.
    pub(crate) body: Body,
    /// The route; `None` while the route configuration has not arrived.
    pub(crate) outcome: Option<RouteOutcome>,
    /// The stream's facts.
    pub(crate) info: &'a SharedInfo,
    /// Whether the sender may steer us by `x-envoy-*` headers.
    pub(crate) internal: bool,
    /// Where 1xx responses go.
    pub(crate) early: EarlyResponses,
    /// The stream's random number.
    pub(crate) random: u64,
    /// The router's own options.
    pub(crate) options: &'a RouterOptions,
}

/// What came of a request.
pub(crate) enum Forwarded {
    /// The upstream's response.
    Response(ResponseHead, Body),
    /// A response of our own.
    Reply(Box<LocalReply>),
}

impl Forwarded {
    pub(super) fn reply(reply: LocalReply) -> Self {
        Self::Reply(Box::new(reply))
    }
}

/// Takes a request to its end.
pub(crate) async fn forward(exchange: Exchange<'_>) -> Forwarded {
    let route = match &exchange.outcome {
        Some(RouteOutcome::Matched(route)) => route.clone(),
        Some(RouteOutcome::HttpsRedirect(_)) => return https_redirect(exchange.head),
        Some(RouteOutcome::NotFound) | None => return not_found(),
    };
    let slot = match route.action() {
        Action::Cluster(slot) => Some(slot.clone()),
        Action::Redirect(redirect) => {
            let location = redirect.location(exchange.head, route.matched_path());
            let mut reply = LocalReply::new(redirect.status(), Bytes::new(), "direct_response");
            reply.headers.insert(header::LOCATION, location);
            return own_response(reply, &route, exchange.head, exchange.info);
        }
        Action::DirectResponse(direct) => {
            let mut reply = LocalReply::new(direct.status, direct.body.clone(), "direct_response");
            // Envoy tells where, and that is here.
            if direct.status == StatusCode::CREATED || direct.status.is_redirection() {
                let here = Redirect::to_itself();
                let location = here.location(exchange.head, route.matched_path());
                reply.headers.insert(header::LOCATION, location);
            }
            return own_response(reply, &route, exchange.head, exchange.info);
        }
        Action::ClusterHeader(header, directory) => header
            .first_in_request(exchange.head)
            .and_then(|name| directory.find(std::str::from_utf8(name).ok()?)),
        Action::NonForwarding => return not_found(),
    };
    let Some(cluster) = slot.as_ref().and_then(|slot| slot.get()) else {
        return Forwarded::reply(
            LocalReply::new(
                route.cluster_not_found_status(),
                Bytes::new(),
                "cluster_not_found",
            )
            .with_flags(ResponseFlags::NO_CLUSTER_FOUND),
        );
    };
    cluster.note(&mut exchange.info.borrow_mut());
    let Exchange {
        head,
        body,
        info,
        internal,
        early,
        random,
        options,
        ..
    } = exchange;
    if let Some(reply) = options.check(head) {
        return Forwarded::reply(reply);
    }
    let timeouts = Timeouts::of(head, &route, internal, options);
    let retries = RetryState::new(&route, head);
    timeouts.write_expected(head, Duration::ZERO);
    // Only policies that hash need it, and only they make cookies.
    let hash = match cluster.config.lb {
        LbPolicy::Hash(_) => RequestHash::of(route.hash_policies(), head, &info.borrow()),
        _ => RequestHash::default(),
    };
    let keep_original = !options.suppress_envoy_headers;
    route.prepare_request(head, &info.borrow(), keep_original);
    let transport = {
        let info = info.borrow();
        let downstream = info.protocol.unwrap_or(Protocol::Http11);
        let alpn = info.upstream_alpn.as_deref();
        let asked = TransportOptions::of_state(&info.filter_state);
        cluster
            .config
            .transport_options(head, downstream, alpn, asked)
    };
    let buffer_limit = route.buffer_limit().unwrap_or(cluster.config.buffer_limit);
    let tell_attempts = route.include_attempt_count_in_response();
    let mut forwarded = attempt::run(attempt::Upstreaming {
        charge: Charge {
            cluster,
            internal,
            grpc: head.is_grpc(),
        },
        route,
        head,
        body,
        info,
        early,
        random,
        timeouts,
        hash,
        retries: Some(retries),
        buffer_limit: buffer_limit as usize,
        transport,
        suppress_envoy_headers: options.suppress_envoy_headers,
    })
    .await;
    if let Forwarded::Reply(reply) = &mut forwarded {
        let headers = &mut reply.headers;
        if tell_attempts {
            let attempts = info.borrow().upstream.attempts;
            headers.insert(names::ATTEMPT_COUNT, names::number(attempts.into()));
        }
        if options.suppress_envoy_headers {
            headers.remove(names::OVERLOADED);
        }
    }
    forwarded
}

/// A direct response or redirect: the route's response header mutations apply to it.
fn own_response(
    mut reply: LocalReply,
    route: &Arc<Route>,
    request: &RequestHead,
    info: &SharedInfo,
) -> Forwarded {
    let mut head = ResponseHead::new(reply.status);
    head.headers = std::mem::take(&mut reply.headers);
    route.finish_response(&mut head, Some(request), &info.borrow());
    reply.headers = head.headers;
    Forwarded::reply(reply)
}

fn not_found() -> Forwarded {
    Forwarded::reply(
        LocalReply::new(StatusCode::NOT_FOUND, Bytes::new(), "route_not_found")
            .with_flags(ResponseFlags::NO_ROUTE_FOUND),
    )
}

/// A virtual host that requires TLS sends plain requests to the same place over `https`.
fn https_redirect(head: &RequestHead) -> Forwarded {
    let mut reply = LocalReply::new(
        StatusCode::MOVED_PERMANENTLY,
        Bytes::new(),
        "direct_response",
    );
    if let Ok(to) = HeaderValue::try_from(format!("https://{}{}", head.authority, head.path)) {
        reply.headers.insert(header::LOCATION, to);
    }
    Forwarded::reply(reply)
}

/// What an attempt's failure becomes downstream, once nothing is retried.
pub(super) fn failure_reply(
    reason: ResetReason,
    transport_failure: Option<&str>,
    retried: bool,
) -> LocalReply {
    let mut body = String::from("upstream connect error or disconnect/reset before headers. ");
    if retried {
        body.push_str("retried and the latest ");
    }
    body.push_str("reset reason: ");
    body.push_str(reason.as_str());
    let mut details = format!(
        "upstream_reset_before_response_started{{{}",
        reason.as_str()
    );
    // Only the operator learns what the transport said.
    if let Some(text) = transport_failure {
        details.push('|');
        details.push_str(text);
    }
    details.push('}');
    let details = details.replace(' ', "_");
    let mut reply =
        LocalReply::new(failure_status(reason), body, details).with_flags(flags_of(reason));
    if reason == ResetReason::Overflow {
        reply
            .headers
            .insert(names::OVERLOADED, HeaderValue::from_static("true"));
    }
    reply
}

/// The status that stands for an attempt without a response.
pub(super) fn failure_status(reason: ResetReason) -> StatusCode {
    match reason {
        ResetReason::ProtocolError => StatusCode::BAD_GATEWAY,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The response flag of an upstream reset.
pub(super) fn flags_of(reason: ResetReason) -> ResponseFlags {
    match reason {
        ResetReason::RemoteConnectionFailure
        | ResetReason::LocalConnectionFailure
        | ResetReason::ConnectionTimeout => ResponseFlags::UPSTREAM_CONNECTION_FAILURE,
        ResetReason::ConnectionTermination => ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
        ResetReason::LocalReset | ResetReason::LocalRefusedStreamReset => {
            ResponseFlags::LOCAL_RESET
        }
        ResetReason::RemoteReset
        | ResetReason::RemoteRefusedStreamReset
        | ResetReason::ConnectError => ResponseFlags::UPSTREAM_REMOTE_RESET,
        ResetReason::Overflow => ResponseFlags::UPSTREAM_OVERFLOW,
        ResetReason::ProtocolError => ResponseFlags::UPSTREAM_PROTOCOL_ERROR,
        ResetReason::PayloadTooLarge => ResponseFlags::default(),
        ResetReason::Timeout => ResponseFlags::UPSTREAM_REQUEST_TIMEOUT,
    }
}

/// The reply to a global or per-try timeout.
pub(super) fn timeout_reply(details: &'static str, alternative: bool) -> LocalReply {
    let reply = if alternative {
        LocalReply::new(StatusCode::NO_CONTENT, Bytes::new(), details)
    } else {
        LocalReply::new(
            StatusCode::GATEWAY_TIMEOUT,
            "upstream request timeout",
            details,
        )
    };
    reply.with_flags(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT)
}

/// How long the sender may wait at most; a duration in a header, in milliseconds.
pub(super) fn milliseconds(head: &RequestHead, name: &http::HeaderName) -> Option<Duration> {
    let text = head.headers.get(name)?.to_str().ok()?;
    text.parse().ok().map(Duration::from_millis)
}
