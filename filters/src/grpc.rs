//! gRPC: calls of filters, over whatever way the proxy has to a service, and how a call that was proxied has ended.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::LocalBoxFuture;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};

use crate::head::ResponseHead;
use crate::local_reply::grpc_status;

/// The status of a call as it is known at its end: from the trailers, the head, or the HTTP status.
pub fn status_of(
    trailers: Option<&http::HeaderMap>,
    response: Option<&ResponseHead>,
    http_status: Option<u16>,
) -> Option<u32> {
    let read = |headers: &http::HeaderMap| headers.get("grpc-status")?.to_str().ok()?.parse().ok();
    let told = trailers.and_then(read);
    told.or_else(|| read(&response?.headers)).or_else(|| {
        let status = http::StatusCode::from_u16(http_status?).ok()?;
        Some(grpc_status(status).into())
    })
}

/// The future of one call, up to the response's head.
pub type Calling = LocalBoxFuture<'static, Result<http::Response<Body>, Status>>;

/// Carries calls to one service.
pub trait GrpcTransport: Send + Sync {
    /// Begins a call on the current worker. The request is sent whether or not the future is polled;
    /// dropping the future, or later the response's body, cancels the call.
    fn call(&self, request: http::Request<Body>) -> Calling;
}

/// A [`GrpcTransport`] in the form that generated clients take. Cheap to clone.
#[derive(Clone)]
pub struct GrpcChannel(Arc<dyn GrpcTransport>);

impl GrpcChannel {
    /// A channel over a transport.
    pub fn new(transport: impl GrpcTransport + 'static) -> Self {
        Self(Arc::new(transport))
    }
}

impl Service<http::Request<Body>> for GrpcChannel {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = Calling;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Calling {
        self.0.call(request)
    }
}
