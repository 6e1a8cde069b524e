//! One request and its response, from the codec to the codec.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use filters::body::{Body, BodyError, BodyStream, Frame, ResetReason};
use filters::chain::{StreamFilters, local_response};
use filters::filter::{Flow, LocalReply, SharedInfo};
use filters::flags::ResponseFlags;
use filters::head::{RequestHead, ResponseHead};
use filters::local_reply::ReplyShape;
use filters::stream::{ConnectionInfo, Protocol, StreamInfo};
use http::{HeaderValue, Method, StatusCode, header};
use tokio::time::{Instant, Sleep, sleep};

use super::config::HcmConfig;
use super::path::Outcome;
use super::request_mutation::{Sender, mutate};
use super::{names, response};
use crate::http::service::{ConnectionControl, EarlyResponses, Rejection, Request, Response};
use crate::router::forward::{Exchange, Forwarded, forward};

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
    let mut end = StreamEnd::begin(config.clone(), info.clone(), &head);
    count_request(&config, protocol);
    let mut shape = ReplyShape::of(&head);
    let outcome = match prepare(&mut head, &config, &connection, &info) {
        Ok(sender) => {
            end.remember(&head);
            body = observe_request(body, &config, &info);
            let deadline = Deadline::new(&config);
            let stream = run(
                &mut head, &mut body, &config, &info, &sender, &early, &mut end,
            );
            deadline.race(stream, &config, &info).await
        }
        Err(reply) => Err(Stop::Reply(reply)),
    };
    shape.head = head.method == Method::HEAD || shape.head;
    let mut close = false;
    let (mut response_head, mut response_body) = match outcome {
        Ok(parts) => parts,
        Err(Stop::Reply(mut reply)) => {
            // To Envoy any 400 of its own is an error in the messages of an HTTP/1 connection.
            close = reply.status == StatusCode::BAD_REQUEST
                && protocol != Protocol::Http2
                && !config.stream_error_on_invalid_http1;
            rewrite_reply(&config, &mut reply, Some(&head), &info);
            local_response(*reply, shape, &info)
        }
        Err(Stop::Reset(error)) => {
            end.reset(&error);
            return Err(error);
        }
    };
    if let Some(filters) = &mut end.filters
        && let Flow::Reset(error) = filters
            .run_response_with(&mut response_head, &mut response_body, |reply| {
                rewrite_reply(&config, reply, Some(&head), &info);
            })
            .await
    {
        end.reset(&error);
        return Err(error);
    }
    let request_id = config
        .always_set_request_id
        .then(|| head.headers.get(names::REQUEST_ID));
    response::finish(&mut response_head, &config, request_id.flatten());
    close |= control.asks_to_close();
    Ok(Response {
        body: end.attach(&response_head, response_body),
        head: response_head,
        close,
    })
}

/// Applies `local_reply_config` to a reply, whoever made it.
pub(super) fn rewrite_reply(
    config: &HcmConfig,
    reply: &mut LocalReply,
    request: Option<&RequestHead>,
    info: &SharedInfo,
) {
    if let Some(replies) = &config.local_replies {
        replies.rewrite(reply, request, info);
    }
}

/// Why a stream does not get its upstream's response.
pub(super) enum Stop {
    /// It gets this one instead.
    Reply(Box<LocalReply>),
    /// It gets none.
    Reset(BodyError),
}

fn reply(status: StatusCode, body: &'static str, details: &'static str) -> Box<LocalReply> {
    Box::new(LocalReply::new(
        status,
        Bytes::from_static(body.as_bytes()),
        details,
    ))
}

/// Everything before the filters that can refuse a request.
fn prepare(
    head: &mut RequestHead,
    config: &HcmConfig,
    connection: &ConnectionInfo,
    info: &SharedInfo,
) -> Result<Sender, Box<LocalReply>> {
    if head.authority.is_empty() {
        if config.default_host.is_empty() || info.borrow().protocol != Protocol::Http10 {
            return Err(reply(StatusCode::BAD_REQUEST, "", "missing_host_header"));
        }
        head.authority = config.default_host.clone();
    }
    if !head.path.starts_with('/') && head.method != Method::CONNECT {
        config.stats.downstream_rq_non_relative_path.inc();
        return Err(reply(StatusCode::NOT_FOUND, "", "absolute_path_rejected"));
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
    let sender = mutate(head, config, connection);
    info.borrow_mut().remote = sender.remote.clone();
    Ok(sender)
}

/// Route, filters, upstream.
async fn run(
    head: &mut RequestHead,
    body: &mut Body,
    config: &Arc<HcmConfig>,
    info: &SharedInfo,
    sender: &Sender,
    early: &EarlyResponses,
    end: &mut StreamEnd,
) -> Result<(ResponseHead, Body), Stop> {
    let random = fastrand::u64(..);
    // The snapshot that this request keeps to its end.
    let routes = config.routes.get();
    let mut chosen = routes
        .as_ref()
        .map(|table| table.route(head, &info.borrow(), random));
    if let Some(outcome) = &chosen {
        info.borrow_mut().route = outcome.view();
    }
    if let Some(upgrade) = &head.upgrade
        && !config.upgrades.contains(upgrade)
        && !chosen.as_ref().is_some_and(|c| c.allows_upgrade(upgrade))
    {
        return Err(Stop::Reply(reply(
            StatusCode::FORBIDDEN,
            "",
            "upgrade_failed",
        )));
    }
    if head.method == Method::CONNECT && !config.upgrades.iter().any(|u| &**u == "connect") {
        return Err(Stop::Reply(reply(
            StatusCode::FORBIDDEN,
            "",
            "upgrade_failed",
        )));
    }
    if !config.proxy_100_continue
        && head
            .headers
            .get(header::EXPECT)
            .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    {
        head.headers.remove(header::EXPECT);
        early.send(ResponseHead::new(StatusCode::CONTINUE));
    }
    let rerouted = std::cell::Cell::new(false);
    let filters = end
        .filters
        .insert(StreamFilters::new(config.chain.clone(), info));
    let flow = filters
        .run_request(head, body, |head, info| {
            let outcome = routes
                .as_ref()
                .map(|t| t.route(head, &info.borrow(), random));
            info.borrow_mut().route = outcome.as_ref().and_then(|o| o.view());
            rerouted.set(true);
        })
        .await;
    match flow {
        Flow::Continue => {}
        Flow::Reply(reply) => return Err(Stop::Reply(reply)),
        Flow::Reset(error) => return Err(Stop::Reset(error)),
    }
    if rerouted.get() {
        chosen = routes
            .as_ref()
            .map(|table| table.route(head, &info.borrow(), random));
    }
    let exchange = Exchange {
        head,
        body: std::mem::take(body),
        outcome: chosen,
        info,
        internal: sender.internal,
        early: early.clone(),
        random,
    };
    match forward(exchange).await {
        Forwarded::Response(head, body) => Ok((head, body)),
        Forwarded::Reply(reply) => {
            count_reply(config, &reply);
            Err(Stop::Reply(reply))
        }
    }
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

fn count_reply(config: &HcmConfig, reply: &LocalReply) {
    let stats = &config.stats;
    match reply.details.as_ref() {
        "route_not_found" => stats.no_route.inc(),
        "cluster_not_found" => stats.no_cluster.inc(),
        "direct_response" if reply.status.is_redirection() => stats.rq_redirect.inc(),
        "direct_response" => stats.rq_direct_response.inc(),
        _ => stats.rq_total.inc(),
    }
}

/// The timers that end a request as a whole: `request_timeout` (until it has been received) and
/// `max_stream_duration`. None is armed unless it is configured.
struct Deadline {
    request: Option<Duration>,
    stream: Option<Duration>,
    idle: Option<Duration>,
}

impl Deadline {
    fn new(config: &HcmConfig) -> Self {
        Self {
            request: config.request_timeout,
            stream: config.max_stream_duration,
            idle: config.stream_idle_timeout,
        }
    }

    async fn race<T>(
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

/// Wraps a request body that is not empty, to count it and to note when it is complete.
fn observe_request(body: Body, _config: &HcmConfig, info: &SharedInfo) -> Body {
    if body.is_end() {
        info.borrow_mut().request_complete = true;
        return body;
    }
    Body::stream(RequestBody {
        body,
        info: info.clone(),
    })
}

struct RequestBody {
    body: Body,
    info: SharedInfo,
}

impl BodyStream for RequestBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let polled = self.body.poll_frame(cx);
        if let Poll::Ready(frame) = &polled {
            let mut info = self.info.borrow_mut();
            info.touch();
            if let Some(Ok(Frame::Data(data))) = frame {
                info.bytes_received += data.len() as u64;
            }
            if self.body.is_end() || !matches!(frame, Some(Ok(Frame::Data(_)))) {
                info.request_complete = true;
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
}

/// The end of a stream, however it comes: stats, filters, access log. Runs when it is dropped.
pub(super) struct StreamEnd {
    config: Arc<HcmConfig>,
    info: SharedInfo,
    filters: Option<StreamFilters>,
    /// Kept only if an access log will want it.
    request: Option<RequestHead>,
    response: Option<ResponseHead>,
    trailers: Option<http::HeaderMap>,
    complete: bool,
}

impl StreamEnd {
    fn begin(config: Arc<HcmConfig>, info: SharedInfo, head: &RequestHead) -> Self {
        let request = (!config.access_logs.is_empty()).then(|| head.clone());
        Self {
            config,
            info,
            filters: None,
            request,
            response: None,
            trailers: None,
            complete: false,
        }
    }

    /// Takes the head again, as it is after mutation.
    fn remember(&mut self, head: &RequestHead) {
        if let Some(request) = &mut self.request {
            request.clone_from(head);
        }
    }

    fn reset(&mut self, error: &BodyError) {
        self.config.stats.downstream_rq_tx_reset.inc();
        let mut info = self.info.borrow_mut();
        if info.details.is_none() {
            info.details = Some(error.details.unwrap_or(error.reason.as_str()).into());
        }
        self.complete = true;
    }

    /// Ends with the response's last byte: the body carries this to where the codec finishes or drops it.
    fn attach(mut self, head: &ResponseHead, body: Body) -> Body {
        let status = head.status.as_u16();
        self.info.borrow_mut().response_code = Some(status);
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
        let idle = self
            .config
            .stream_idle_timeout
            .map(|after| (after, Box::pin(sleep(after))));
        Body::stream(ResponseBody {
            body,
            end: self,
            idle,
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
            info.flags
                .insert(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION);
            if info.details.is_none() {
                info.details = Some("downstream_remote_disconnect".into());
            }
        }
        if let Some(filters) = &mut self.filters {
            filters.complete();
        }
        let elapsed = self.info.borrow().start.elapsed();
        stats
            .downstream_rq_time
            .record(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
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
    idle: Option<(Duration, std::pin::Pin<Box<Sleep>>)>,
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
                    None => self.end.complete = true,
                    Some(Err(_)) => {
                        self.end.complete = true;
                        self.end.config.stats.downstream_rq_tx_reset.inc();
                    }
                }
                self.end.complete |= self.body.is_end();
            }
            Poll::Pending => {
                if let Some((after, timer)) = &mut self.idle
                    && timer.as_mut().poll(cx).is_ready()
                {
                    let last: Instant = self.end.info.borrow().last_activity.into();
                    if last.elapsed() >= *after {
                        self.end.config.stats.downstream_rq_idle_timeout.inc();
                        self.end
                            .info
                            .borrow_mut()
                            .flags
                            .insert(ResponseFlags::STREAM_IDLE_TIMEOUT);
                        self.end.complete = true;
                        return Poll::Ready(Some(Err(BodyError {
                            reason: ResetReason::Timeout,
                            details: Some("stream_idle_timeout"),
                        })));
                    }
                    timer.as_mut().reset(last + *after);
                    let _ = timer.as_mut().poll(cx);
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
}

/// Applies `local_reply_config` to the answer to a message that never became a request, and logs it.
pub(super) fn finish_rejection(
    config: &Arc<HcmConfig>,
    connection: &Rc<ConnectionInfo>,
    rejection: &Rejection,
    protocol: Protocol,
    reply: &mut LocalReply,
) {
    if config.access_logs.is_empty() && config.local_replies.is_none() {
        return;
    }
    let mut info = StreamInfo::new(connection.clone(), protocol);
    info.details = Some(rejection.details.into());
    info.flags.insert(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR);
    let info = Rc::new(RefCell::new(info));
    let request = rejection.path.as_deref().map(|path| {
        let method = rejection.method.as_deref().and_then(|m| m.parse().ok());
        RequestHead::new(method.unwrap_or(Method::GET), path.to_owned())
    });
    rewrite_reply(config, reply, request.as_ref(), &info);
    info.borrow_mut().response_code = Some(reply.status.as_u16());
    for log in &config.access_logs {
        log.record(&info.borrow(), request.as_ref(), None, None);
    }
}
