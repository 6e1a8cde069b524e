//! The HTTP connection manager: what happens to a request between the codec and the router, and to the
//! response on its way back.
//!
//! One [`ConnectionManager`] serves one connection; one [`stream`](self) is one future, boxed once.

pub mod byte_counter;
mod client_address;
mod client_certificate;
pub mod config;
mod deadline;
mod host;
mod local_reply_config;
pub(crate) mod names;
mod path;
mod reply;
mod request_body;
mod request_id;
mod request_mutation;
mod response;
pub mod stats;
mod stream;
mod stream_end;

pub(crate) use self::client_address::append_to_xff;

use std::rc::Rc;
use std::sync::Arc;

use filters::body::BodyError;
use filters::filter::LocalReply;
use filters::flags::ResponseFlags;
use filters::local_reply::{ReplyShape, render};
use filters::stream::{ConnectionInfo, Protocol};
use futures_util::future::LocalBoxFuture;
use http::StatusCode;
use std::cell::Cell;

use self::config::HcmConfig;
use super::service::{ConnectionControl, HttpService, Rejection, Request, Response};

/// Serves the requests of one connection.
pub struct ConnectionManager {
    config: Arc<HcmConfig>,
    connection: Rc<ConnectionInfo>,
    control: ConnectionControl,
    requests: Cell<u32>,
}

impl ConnectionManager {
    /// A manager for a connection, which it counts for as long as it lives.
    pub fn start(
        config: Arc<HcmConfig>,
        connection: Rc<ConnectionInfo>,
        control: ConnectionControl,
        http2: bool,
    ) -> CountedManager {
        let stats = &config.stats;
        stats.downstream_cx_total.inc();
        stats.downstream_cx_active.inc();
        if connection.tls.is_some() {
            stats.downstream_cx_ssl_total.inc();
            stats.downstream_cx_ssl_active.inc();
        }
        let (total, active) = if http2 {
            (
                &stats.downstream_cx_http2_total,
                &stats.downstream_cx_http2_active,
            )
        } else {
            (
                &stats.downstream_cx_http1_total,
                &stats.downstream_cx_http1_active,
            )
        };
        total.inc();
        active.inc();
        let manager = Self {
            config,
            connection,
            control,
            requests: Cell::new(0),
        };
        CountedManager { manager, http2 }
    }
}

/// A [`ConnectionManager`] that takes its connection off the gauges when it is dropped.
pub struct CountedManager {
    manager: ConnectionManager,
    http2: bool,
}

impl Drop for CountedManager {
    fn drop(&mut self) {
        let stats = &self.manager.config.stats;
        stats.downstream_cx_active.dec();
        if self.manager.connection.tls.is_some() {
            stats.downstream_cx_ssl_active.dec();
        }
        if self.http2 {
            stats.downstream_cx_http2_active.dec();
        } else {
            stats.downstream_cx_http1_active.dec();
        }
    }
}

impl HttpService for CountedManager {
    fn call(&self, request: Request) -> LocalBoxFuture<'static, Result<Response, BodyError>> {
        let manager = &self.manager;
        let served = manager.requests.get().saturating_add(1);
        manager.requests.set(served);
        if manager.config.max_requests.is_some_and(|max| served >= max) {
            manager.control.drain();
        }
        // The one allocation that a request always costs: the future must outlive this call, and inlined
        // into the connection's it would make idle connections as large as busy ones.
        Box::pin(stream::serve(
            manager.config.clone(),
            manager.connection.clone(),
            manager.control.clone(),
            request,
        ))
    }

    fn reject(&self, rejection: &Rejection, protocol: Protocol) -> Response {
        let manager = &self.manager;
        let stats = &manager.config.stats;
        stats.downstream_rq_total.inc();
        if rejection.status != StatusCode::REQUEST_TIMEOUT.as_u16() {
            stats.downstream_cx_protocol_error.inc();
            manager.connection.note(|notes| {
                notes.flags.insert(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR);
            });
        }
        let status = StatusCode::from_u16(rejection.status).unwrap_or(StatusCode::BAD_REQUEST);
        let body = bytes::Bytes::from_static(rejection.body.as_bytes());
        let mut reply = LocalReply::new(status, body, rejection.details);
        reply::finish_rejection(
            &manager.config,
            &manager.connection,
            rejection,
            protocol,
            &mut reply,
        );
        stats.count_response(reply.status.as_u16());
        let (mut head, body) = render(reply, ReplyShape::default());
        response::finish(&mut head, &manager.config, None);
        Response {
            head,
            body,
            close: true,
        }
    }

    fn refuse(&self, details: &'static str, flags: ResponseFlags, protocol: Protocol) {
        let manager = &self.manager;
        reply::log_refusal(
            &manager.config,
            &manager.connection,
            details,
            flags,
            protocol,
        );
    }

    fn too_many_premature_resets(&self) {
        let stats = &self.manager.config.stats;
        stats.downstream_rq_too_many_premature_resets.inc();
    }
}
