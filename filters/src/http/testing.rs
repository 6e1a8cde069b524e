//! What the tests of filters share: real gRPC servers in the process, and awkward bodies.

use std::cell::Cell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::GrpcService;
use tonic::codegen::{Service, http};
use tonic::transport::{Channel, Endpoint, Server};
use xds_client::error::ConfigError;

use crate::body::{BodyError, BodyStream, Frame};
use crate::grpc::{Calling, GrpcChannel, GrpcTransport};
use crate::registry::{FactoryContext, GrpcConnector};
use crate::stream::FilterId;

#[derive(Clone)]
struct To(Channel);

impl GrpcConnector for To {
    fn channel(&self, _: &GrpcService) -> Result<GrpcChannel, ConfigError> {
        Ok(GrpcChannel::new(self.clone()))
    }
}

impl GrpcTransport for To {
    fn call(&self, request: http::Request<tonic::body::Body>) -> Calling {
        let mut channel = self.0.clone();
        Box::pin(async move {
            let failed = |e: tonic::transport::Error| tonic::Status::from_error(e.into());
            poll_fn(|cx| channel.poll_ready(cx)).await.map_err(failed)?;
            channel.call(request).await.map_err(failed)
        })
    }
}

/// A context whose gRPC services are all at this port.
pub(super) fn context(port: u16) -> FactoryContext {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    FactoryContext {
        id: FilterId(0),
        grpc: Arc::new(To(endpoint.connect_lazy())),
        stats: Arc::new(crate::registry::tests::NoStats),
        runtime: Arc::new(crate::runtime::tests::NoRuntime),
    }
}

/// Serves a gRPC service on a port of its own.
pub(super) async fn serve<S>(service: S) -> FactoryContext
where
    S: Service<
            http::Request<tonic::body::Body>,
            Response = http::Response<tonic::body::Body>,
            Error = Infallible,
        > + tonic::server::NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(
        Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming),
    );
    context(port)
}

/// Frames with a `Pending` before each; counts those that were pulled.
pub(super) struct Slow {
    frames: VecDeque<Result<Frame, BodyError>>,
    pending: bool,
    pub(super) pulled: Rc<Cell<usize>>,
}

impl Slow {
    pub(super) fn new(frames: Vec<Result<Frame, BodyError>>) -> Self {
        Self {
            frames: frames.into(),
            pending: false,
            pulled: Rc::default(),
        }
    }
}

impl BodyStream for Slow {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        self.pending = !self.pending;
        if self.pending {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.pulled.set(self.pulled.get() + 1);
        Poll::Ready(self.frames.pop_front())
    }
}

/// Cuts data into frames of random sizes, empty ones too.
pub(super) fn chunks(data: &[u8]) -> Vec<Result<Frame, BodyError>> {
    let mut frames = Vec::new();
    let mut rest = data;
    while !rest.is_empty() {
        let (a, b) = rest.split_at(fastrand::usize(0..=rest.len()));
        frames.push(Ok(Frame::Data(Bytes::copy_from_slice(a))));
        rest = b;
    }
    frames
}
