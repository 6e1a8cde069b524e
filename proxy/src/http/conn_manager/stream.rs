//! One request and its response, from the codec to the codec.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use filters::body::{Body, BodyError};
use filters::chain::{StreamFilters, local_response};
use filters::filter::{Flow, LocalReply, SharedInfo};
use filters::head::{RequestHead, ResponseHead};
use filters::local_reply::ReplyShape;
use filters::stream::{ConnectionInfo, Protocol, StreamInfo};
use http::{HeaderValue, Method, StatusCode, header};

use super::client_address::Client;
use super::config::HcmConfig;
use super::deadline::{Clock, Limits};
use super::path::Outcome;
use super::reply::{self, Stop, reply};
use super::request_mutation::mutate;
use super::stream_end::StreamEnd;
use super::{request_body, response};
use crate::http::service::{ConnectionControl, EarlyResponses, Request, Response};
use crate::router::RouteTable;
use crate::router::action::Action;
use crate::router::forward::{Exchange, Forwarded, forward};
use crate::router::table::RouteOutcome;

/// Serves one request.
pub(super) async fn serve(
    config: Arc<HcmConfig>,
    connection: Rc<ConnectionInfo>,
    control: ConnectionControl,
    request: Request,
) -> Result<Response, BodyError> {
    let Request {
        mut head,
        mut body,
        protocol,
        early,
    } = request;
    let info: SharedInfo = Rc::new(RefCell::new(StreamInfo::new(connection.clone(), protocol)));
    let mut end = StreamEnd::begin(config.clone(), info.clone(), &head, early.clone());
    count_request(&config, protocol);
    let mut shape = ReplyShape::of(&head);
    let clock = Clock::new(Limits::of(&config, None, &head), &info);
    // The snapshot that this request keeps to its end.
    let routes = config.routes.get();
    let (observed, ahead) = request_body::observe(body, &info);
    body = observed;
    let outcome = match prepare(&mut head, &config, &connection, &info, routes.as_deref()) {
        Ok(client) => {
            end.remember(&head);
            let stream = Stream {
                config: &config,
                info: &info,
                clock: &clock,
                routes,
                early,
                internal: client.internal,
            };
            let running = pin!(stream.run(&mut head, &mut body, &mut end));
            let mut racing = pin!(clock.race(running, &config.stats, &info));
            poll_fn(|cx| {
                let polled = racing.as_mut().poll(cx);
                if polled.is_pending() && ahead.poll(cx) {
                    // The request is complete now, and there are clocks to start.
                    return racing.as_mut().poll(cx);
                }
                polled
            })
            .await
        }
        Err(reply) => Err(Stop::Reply(reply)),
    };
    shape.head = head.method == Method::HEAD || shape.head;
    let mut close = false;
    let (mut response_head, mut response_body) = match outcome {
        Ok(parts) => parts,
        Err(Stop::Reply(reply)) => {
            // To Envoy any 400 of its own is an error in the messages of an HTTP/1 connection, and a body that was
            // too large had not ended.
            close = match reply.status {
                StatusCode::BAD_REQUEST => !config.stream_error_on_invalid_http1,
                StatusCode::PAYLOAD_TOO_LARGE => reply.details == "request_payload_too_large",
                _ => false,
            } && protocol != Protocol::Http2;
            let reply = reply::shape(*reply, &config, end.route.as_deref(), &head, &info);
            local_response(reply, shape, &info)
        }
        Err(Stop::Reset(error)) => {
            end.reset(&error);
            return Err(error);
        }
    };
    let filters = end
        .filters
        .get_or_insert_with(|| StreamFilters::new(config.chain.clone(), &info));
    if let Flow::Reset(error) = filters
        .run_response_with(&mut response_head, &mut response_body, |reply| {
            reply::rewrite(&config, reply, Some(&head), &info);
        })
        .await
    {
        end.reset(&error);
        return Err(error);
    }
    let request_id = config.request_ids.for_response(&head.headers);
    response::finish(&mut response_head, &config, request_id);
    close |= control.asks_to_close();
    // Envoy does not wait for the rest of a request that has its answer, but for the next connection.
    close |= protocol != Protocol::Http2 && !info.borrow().request_complete();
    Ok(Response {
        body: end.attach(&mut head, &response_head, response_body, clock),
        head: response_head,
        close,
    })
}

/// Everything before the filters that can refuse a request.
fn prepare(
    head: &mut RequestHead,
    config: &HcmConfig,
    connection: &ConnectionInfo,
    info: &SharedInfo,
    routes: Option<&RouteTable>,
) -> Result<Client, Box<LocalReply>> {
    if head.authority.is_empty() {
        if config.default_host.is_empty() || info.borrow().protocol != Some(Protocol::Http10) {
            return Err(reply(StatusCode::BAD_REQUEST, "", "missing_host_header"));
        }
        head.authority = config.default_host.clone();
    }
    if !head.path.starts_with('/') && head.method != Method::CONNECT {
        config.stats.downstream_rq_non_relative_path.inc();
        return Err(reply(StatusCode::NOT_FOUND, "", "absolute_path_rejected"));
    }
    if head.method.as_str() == "QUERY" && !head.headers.contains_key(header::CONTENT_TYPE) {
        // Its content is its meaning, and without a type has none (RFC 10008, section 2).
        return Err(reply(
            StatusCode::BAD_REQUEST,
            "",
            "query_missing_content_type",
        ));
    }
    match config.path.apply(&head.path) {
        Outcome::Unchanged => {}
        Outcome::Changed(path) => head.path = path,
        Outcome::Redirect(path) => {
            let mut redirect = reply(
                StatusCode::TEMPORARY_REDIRECT,
                "",
                "path_normalization_failed",
            );
            if let Ok(location) = HeaderValue::from_str(&path) {
                redirect.headers.insert(header::LOCATION, location);
            }
            return Err(redirect);
        }
        Outcome::Reject => {
            return Err(reply(
                StatusCode::BAD_REQUEST,
                "",
                "path_normalization_failed",
            ));
        }
    }
    let local = connection.local.ip();
    config.host.apply(head, local.map(|a| a.port()));
    for mutations in &config.early_mutations {
        mutations.apply_to_request(head, &info.borrow());
    }
    let internal_only = routes.map(RouteTable::internal_only_headers);
    match mutate(head, config, connection, internal_only.unwrap_or_default()) {
        Ok(client) => {
            info.borrow_mut().remote = client.remote.clone();
            Ok(client)
        }
        Err(status) => Err(reply(status, "", "rejecting_because_detection_failed")),
    }
}

/// A request that has passed the connection manager's own checks.
struct Stream<'a> {
    config: &'a Arc<HcmConfig>,
    info: &'a SharedInfo,
    clock: &'a Clock,
    routes: Option<Arc<RouteTable>>,
    early: EarlyResponses,
    internal: bool,
}

impl Stream<'_> {
    /// Route, filters, upstream.
    async fn run(
        self,
        head: &mut RequestHead,
        body: &mut Body,
        end: &mut StreamEnd,
    ) -> Result<(ResponseHead, Body), Stop> {
        let Self {
            config,
            info,
            clock,
            routes,
            early,
            internal,
        } = self;
        let random = fastrand::u64(..);
        let choose = |head: &RequestHead| {
            let table = routes.as_ref();
            table.map(|table| table.route(head, &info.borrow(), random))
        };
        let note = |chosen: Option<&RouteOutcome>, head: &RequestHead, end: &mut StreamEnd| {
            note_route(chosen, info, end);
            let limits = Limits::of(config, end.route.as_deref(), head);
            clock.limits.set(limits);
        };
        let mut chosen = choose(head);
        note(chosen.as_ref(), head, end);
        if !allows_upgrade(config, head, chosen.as_ref()) {
            return Err(Stop::Reply(reply(
                StatusCode::FORBIDDEN,
                "",
                "upgrade_failed",
            )));
        }
        if !config.proxy_100_continue {
            let expect = head.headers.get(header::EXPECT);
            if expect.is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
                head.headers.remove(header::EXPECT);
                early.send(ResponseHead::new(StatusCode::CONTINUE));
            }
            // Whatever the upstream sends before its response stays here: to the client it could be a
            // second answer to what we have answered.
            early.close();
        }
        let rerouted = std::cell::Cell::new(false);
        let filters = end
            .filters
            .insert(StreamFilters::new(config.chain.clone(), info));
        let flow = filters
            .run_request(head, body, |head, info| {
                let outcome = choose(head);
                info.borrow_mut().route = outcome.as_ref().and_then(|o| o.view());
                rerouted.set(true);
            })
            .await;
        if rerouted.get() {
            chosen = choose(head);
            note(chosen.as_ref(), head, end);
        }
        match flow {
            Flow::Continue => {}
            Flow::Reply(reply) => {
                return Err(body_failed(info).unwrap_or(Stop::Reply(reply)));
            }
            Flow::Reset(error) => return Err(body_failed(info).unwrap_or(Stop::Reset(error))),
        }
        let exchange = Exchange {
            head,
            body: std::mem::take(body),
            outcome: chosen,
            info,
            internal,
            early,
            random,
            options: &config.router,
        };
        match forward(exchange).await {
            Forwarded::Response(head, body) => Ok((head, body)),
            Forwarded::Reply(reply) => {
                if let Some(stop) = body_failed(info) {
                    return Err(stop);
                }
                reply::count(config, &reply);
                Err(Stop::Reply(reply))
            }
        }
    }
}

/// What a failed request body makes of the stream: the answer that a filter left when it ended the body, or no
/// answer if the client did.
fn body_failed(info: &SharedInfo) -> Option<Stop> {
    let mut info = info.borrow_mut();
    match info.body_reply.take() {
        Some(reply) => {
            // Answered, it is a stream like any other: its response ends it, not the client.
            info.request_error = None;
            Some(Stop::Reply(reply))
        }
        None => info.request_error.clone().map(Stop::Reset),
    }
}

/// Keeps what filters, logs and local replies want of the chosen route.
fn note_route(chosen: Option<&RouteOutcome>, info: &SharedInfo, end: &mut StreamEnd) {
    let mut info = info.borrow_mut();
    info.route = chosen.and_then(RouteOutcome::view);
    info.upstream.cluster = None;
    end.route = None;
    let Some(RouteOutcome::Matched(route)) = chosen else {
        return;
    };
    match route.action() {
        Action::Cluster(slot) => {
            if let Some(cluster) = slot.get() {
                cluster.note(&mut info);
            }
        }
        Action::ClusterHeader(..) => {}
        Action::Redirect(_) | Action::DirectResponse(_) | Action::NonForwarding => return,
    }
    end.route = Some(route.clone());
}

/// Whether this request may become a tunnel, if it asks for one: the route's word goes before the connection
/// manager's.
fn allows_upgrade(config: &HcmConfig, head: &RequestHead, chosen: Option<&RouteOutcome>) -> bool {
    let name: &str = match &head.upgrade {
        Some(name) => name,
        None if head.method == Method::CONNECT => "connect",
        None => return true,
    };
    match chosen {
        Some(RouteOutcome::Matched(route)) => route.allows_upgrade(name),
        // A CONNECT that no route takes is simply not found.
        _ if head.upgrade.is_none() => Some(true),
        _ => None,
    }
    .unwrap_or_else(|| config.upgrades.iter().any(|u| u.eq_ignore_ascii_case(name)))
}

fn count_request(config: &HcmConfig, protocol: Protocol) {
    let stats = &config.stats;
    stats.downstream_rq_total.inc();
    stats.downstream_rq_active.inc();
    match protocol {
        Protocol::Http2 => stats.downstream_rq_http2_total.inc(),
        _ => stats.downstream_rq_http1_total.inc(),
    }
}
