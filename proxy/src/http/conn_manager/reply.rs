//! Local replies of the connection manager: what they say, and what configuration makes of them.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use filters::body::BodyError;
use filters::filter::{LocalReply, SharedInfo};
use filters::flags::ResponseFlags;
use filters::head::{RequestHead, ResponseHead};
use filters::stream::{AccessLogType, ConnectionInfo, Protocol, StreamInfo};
use http::StatusCode;

use super::config::HcmConfig;
use crate::http::service::Rejection;
use crate::router::route::Route;

/// Why a stream does not get its upstream's response.
pub(super) enum Stop {
    /// It gets this one instead.
    Reply(Box<LocalReply>),
    /// It gets none.
    Reset(BodyError),
}

pub(super) fn reply(
    status: StatusCode,
    body: &'static str,
    details: &'static str,
) -> Box<LocalReply> {
    Box::new(LocalReply::new(
        status,
        Bytes::from_static(body.as_bytes()),
        details,
    ))
}

/// Completes a reply as Envoy does: the forwarding route's response headers first, then `local_reply_config`.
pub(super) fn shape(
    mut reply: LocalReply,
    config: &HcmConfig,
    route: Option<&Route>,
    request: &RequestHead,
    info: &SharedInfo,
) -> LocalReply {
    if let Some(route) = route {
        let headers = std::mem::take(&mut reply.headers);
        let mut response = ResponseHead::with_headers(reply.status, headers);
        route.finish_response(&mut response, Some(request), &info.borrow());
        reply.headers = response.headers;
    }
    rewrite(config, &mut reply, Some(request), info);
    reply
}

/// Applies `local_reply_config` to a reply, whoever made it.
pub(super) fn rewrite(
    config: &HcmConfig,
    reply: &mut LocalReply,
    request: Option<&RequestHead>,
    info: &SharedInfo,
) {
    if let Some(replies) = &config.local_replies {
        replies.rewrite(reply, request, info);
    }
}

/// Counts the router's own replies.
pub(super) fn count(config: &HcmConfig, reply: &LocalReply) {
    let stats = &config.stats;
    match reply.details.as_ref() {
        "route_not_found" => stats.no_route.inc(),
        "cluster_not_found" => stats.no_cluster.inc(),
        "direct_response" if reply.status.is_redirection() => stats.rq_redirect.inc(),
        "direct_response" => stats.rq_direct_response.inc(),
        _ => stats.rq_total.inc(),
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
    // Being late is no error of the protocol.
    if rejection.status != StatusCode::REQUEST_TIMEOUT.as_u16() {
        info.flags.insert(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR);
    }
    let info = Rc::new(RefCell::new(info));
    // As in Envoy, nothing of a head that was not understood is told.
    rewrite(config, reply, None, &info);
    {
        let mut info = info.borrow_mut();
        info.response_code = Some(reply.status.as_u16());
        info.bytes_sent = reply.body.len() as u64;
        info.log_type = AccessLogType::DownstreamEnd;
    }
    for log in &config.access_logs {
        log.record(&info.borrow(), None, None, None);
    }
}

/// Counts and logs a message that was refused without an answer.
pub(super) fn log_refusal(
    config: &HcmConfig,
    connection: &Rc<ConnectionInfo>,
    details: &'static str,
    flags: ResponseFlags,
    protocol: Protocol,
) {
    let stats = &config.stats;
    stats.downstream_rq_total.inc();
    match protocol {
        Protocol::Http2 => stats.downstream_rq_http2_total.inc(),
        _ => stats.downstream_rq_http1_total.inc(),
    }
    stats.downstream_rq_rx_reset.inc();
    if flags.contains(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR) {
        stats.downstream_cx_protocol_error.inc();
    }
    if config.access_logs.is_empty() {
        return;
    }
    let mut info = StreamInfo::new(connection.clone(), protocol);
    info.details = Some(details.into());
    info.flags.insert(flags);
    info.log_type = AccessLogType::DownstreamEnd;
    for log in &config.access_logs {
        log.record(&info, None, None, None);
    }
}
