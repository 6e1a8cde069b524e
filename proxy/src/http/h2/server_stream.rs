//! One stream of a server connection: from the request that `h2` hands over to the response's last frame.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use filters::body::{Body, BodyError, BodyStream, Frame, ResetReason};
use filters::flags::ResponseFlags;
use filters::head::ResponseHead;
use filters::stream::Protocol;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use tokio::time::Instant;

use super::body::{Pump, RecvBody};
use super::request::{Refusal, head_of};
use super::server::Shared;
use super::stats::Http2Stats;
use super::watch::{BAD_MESSAGING, Fault, Watch};
use super::windows::Tunnel;
use crate::http::service::{ConnectionControl, EarlyResponses, HttpService, Request, Response};

const REMOTE_RESET: Fault = ("http2.remote_reset", ResponseFlags::DOWNSTREAM_REMOTE_RESET);
const REMOTE_REFUSE: Fault = (
    "http2.remote_refuse",
    ResponseFlags::DOWNSTREAM_REMOTE_RESET,
);

/// A stream that ends this soon without a response, by its client's wish, was opened for nothing.
const PREMATURE: Duration = Duration::from_secs(1);

/// Serves one stream.
pub(super) async fn serve<S: HttpService>(
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    shared: Rc<Shared<S>>,
    _tunnel: Option<Tunnel>,
) {
    let _active = Active::new(&shared.control, &shared.settings.stats);
    let began = Instant::now();
    let (head, stream) = match head_of(request, &shared.settings) {
        Ok(parts) => parts,
        Err(refusal) => return refuse(refusal, respond, &shared),
    };
    let early = EarlyResponses::default();
    let stream = RecvBody::new(stream, shared.settings.limits);
    let body = if stream.is_end() {
        Body::Empty
    } else {
        Body::stream(RequestBody {
            stream,
            early: early.clone(),
            watch: shared.watch.clone(),
        })
    };
    let request = Request {
        head,
        body,
        protocol: Protocol::Http2,
        early: early.clone(),
    };
    // RFC 9113, 8.5: the failure of a CONNECT's connection has a code of its own.
    let broken = match request.head.method == http::Method::CONNECT {
        true => Reason::CONNECT_ERROR,
        false => Reason::INTERNAL_ERROR,
    };
    let mut handling = shared.service.call(request);
    let outcome = poll_fn(|cx| {
        let polled = handling.as_mut().poll(cx);
        while let Some(head) = early.pop(cx.waker()) {
            let _ = respond.send_informational(response_parts(head));
        }
        match polled {
            Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
            Poll::Pending => respond.poll_reset(cx).map(|reset| {
                tell(&early, &shared, &reset);
                None
            }),
        }
    })
    .await;
    // A reset by the peer drops the service's future here, which is how the service learns of it.
    drop(handling);
    shared.ended(outcome.is_none() && began.elapsed() <= PREMATURE);
    match outcome {
        None => {}
        Some(Ok(response)) => {
            if response.close {
                shared.control.drain();
            }
            send_response(respond, response, broken, &early, &shared).await;
        }
        Some(Err(error)) => respond.send_reset(reset_code(&error)),
    }
}

/// Says why a stream ends under the service.
fn tell<S>(early: &EarlyResponses, shared: &Shared<S>, reset: &Result<Reason, h2::Error>) {
    match (shared.watch.fault(), reset) {
        (Some((details, flags)), _) => early.end(details, flags),
        // A client has little cause to say this of a response: it is the library, of the request.
        (None, Ok(Reason::PROTOCOL_ERROR)) => early.end(BAD_MESSAGING.0, BAD_MESSAGING.1),
        (None, Ok(Reason::REFUSED_STREAM)) => early.end(REMOTE_REFUSE.0, REMOTE_REFUSE.1),
        (None, Ok(_)) => early.end(REMOTE_RESET.0, REMOTE_RESET.1),
        (None, Err(error)) if error.is_library() => early.end(BAD_MESSAGING.0, BAD_MESSAGING.1),
        (None, Err(error)) if error.is_reset() => early.end(REMOTE_RESET.0, REMOTE_RESET.1),
        // The connection is gone, which is what a service takes a silent end for.
        (None, Err(_)) => {}
    }
}

/// The same, from what a body met.
fn fault_of(error: &BodyError, watch: &Watch) -> Option<Fault> {
    if let (None, Some(details)) = (watch.fault(), error.details) {
        return Some((details, ResponseFlags::DOWNSTREAM_REMOTE_RESET));
    }
    match (watch.fault(), error.reason) {
        (Some(fault), _) => Some(fault),
        (None, ResetReason::ProtocolError) => Some(BAD_MESSAGING),
        (None, ResetReason::RemoteReset) => Some(REMOTE_RESET),
        (None, ResetReason::RemoteRefusedStreamReset) => Some(REMOTE_REFUSE),
        (None, _) => None,
    }
}

fn refuse<S: HttpService>(refusal: Refusal, mut respond: SendResponse<Bytes>, shared: &Shared<S>) {
    let stats = &shared.settings.stats;
    let (fault, reason) = match refusal {
        Refusal::Unwanted(fault) => (fault, Reason::INTERNAL_ERROR),
        Refusal::Malformed(fault) => {
            stats.rx_messaging_error.inc();
            if !shared.watch.keeps_connection() {
                shared.watch.fail(fault);
                shared.control.abort();
            }
            (fault, Reason::PROTOCOL_ERROR)
        }
    };
    shared.service.refuse(fault.0, fault.1, Protocol::Http2);
    respond.send_reset(reason);
}

/// A request's body, which tells the service why it ended early.
struct RequestBody {
    stream: RecvBody,
    early: EarlyResponses,
    watch: Rc<Watch>,
}

impl BodyStream for RequestBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let polled = self.stream.poll_frame(cx);
        if let Poll::Ready(Some(Err(error))) = &polled
            && let Some((details, flags)) = fault_of(error, &self.watch)
        {
            self.early.end(details, flags);
        }
        polled
    }

    fn is_end(&self) -> bool {
        self.stream.is_end()
    }
}

/// Counts a stream as active for as long as it lives.
struct Active(ConnectionControl, Arc<Http2Stats>);

impl Active {
    fn new(control: &ConnectionControl, stats: &Arc<Http2Stats>) -> Self {
        control.add_active(1);
        stats.streams_active.inc();
        Self(control.clone(), stats.clone())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.add_active(-1);
        self.1.streams_active.dec();
        self.0.count_panic();
    }
}

fn reset_code(error: &BodyError) -> Reason {
    match error.reason {
        ResetReason::LocalRefusedStreamReset => Reason::REFUSED_STREAM,
        ResetReason::ConnectError => Reason::CONNECT_ERROR,
        _ => Reason::INTERNAL_ERROR,
    }
}

async fn send_response<S>(
    mut respond: SendResponse<Bytes>,
    response: Response,
    broken: Reason,
    early: &EarlyResponses,
    shared: &Shared<S>,
) {
    let end = response.body.is_end();
    // Fails only if the stream is gone; dropping the body tells the service.
    let sent = respond.send_response(response_parts(response.head), end);
    let mut stream = match sent {
        Ok(stream) if !end => stream,
        Ok(_) => return,
        Err(_) => {
            let reset = poll_fn(|cx| Poll::Ready(respond.poll_reset(cx))).await;
            if let Poll::Ready(reset) = &reset {
                tell(early, shared, reset);
            }
            return;
        }
    };
    let mut pump = Pump::flushing(response.body, broken);
    let sent = poll_fn(|cx| pump.poll(&mut stream, cx)).await;
    if let Err(error) = sent
        && let Some((details, flags)) = fault_of(&error, &shared.watch)
    {
        early.end(details, flags);
    }
}

fn response_parts(head: ResponseHead) -> http::Response<()> {
    let mut response = http::Response::new(());
    // HTTP/2 has no 101; an accepted extended CONNECT is a 200 (RFC 8441).
    *response.status_mut() = match head.status {
        http::StatusCode::SWITCHING_PROTOCOLS => http::StatusCode::OK,
        status => status,
    };
    *response.headers_mut() = head.headers;
    response
}
