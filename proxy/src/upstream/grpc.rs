//! gRPC calls of filters over clusters: on the worker that asks, through its own pools.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use bytestring::ByteString;
use envoy_types::pb::envoy::config::core::v3::GrpcService;
use envoy_types::pb::envoy::config::core::v3::grpc_service::TargetSpecifier;
use filters::body::{Body, BodyError, BodyStream, Frame, ResetReason};
use filters::grpc::{Calling, GrpcChannel, GrpcTransport};
use filters::head::RequestHead;
use filters::registry::GrpcConnector;
use filters::stream::Protocol;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;
use tonic::body::Body as TonicBody;
use tonic::codegen::Body as HttpBody;
use xds_client::error::{At, ConfigError};

use super::balance::LbContext;
use super::circuit_breaker::Priority;
use super::cluster::Cluster;
use super::request::{self, RequestGuard, SendOptions, UpstreamResponse};
use super::slot::ClusterSlot;
use crate::http::conn_manager::append_to_xff;
use crate::http::local_address::local_address;
use crate::http::service::EarlyResponses;

/// Finds the slot of a cluster.
pub type FindCluster = Arc<dyn Fn(&str) -> Arc<ClusterSlot<Cluster>> + Send + Sync>;

/// Frames of a response that wait for their reader.
const WAITING_FRAMES: usize = 4;

/// Connects filters to the gRPC services that clusters lead to.
pub struct ClusterGrpc {
    clusters: FindCluster,
}

impl ClusterGrpc {
    /// A connector over these clusters.
    pub fn new(clusters: FindCluster) -> Self {
        Self { clusters }
    }
}

impl GrpcConnector for ClusterGrpc {
    fn channel(&self, service: &GrpcService) -> Result<GrpcChannel, ConfigError> {
        let target = match &service.target_specifier {
            Some(TargetSpecifier::EnvoyGrpc(target)) => target,
            Some(TargetSpecifier::GoogleGrpc(_)) => {
                return Err(ConfigError::unsupported("google_grpc"));
            }
            None => return Err(ConfigError::new("is required").at("target_specifier")),
        };
        if service.retry_policy.is_some() {
            return Err(ConfigError::unsupported("retry_policy"));
        }
        if target.retry_policy.is_some() {
            return Err(ConfigError::unsupported("envoy_grpc.retry_policy"));
        }
        if target.cluster_name.is_empty() {
            return Err(ConfigError::new("is required").at("envoy_grpc.cluster_name"));
        }
        let cluster = (self.clusters)(&target.cluster_name);
        let authority = match target.authority.as_str() {
            "" => cluster.name().clone(),
            authority => ByteString::from(authority),
        };
        Ok(GrpcChannel::new(ClusterTransport {
            cluster,
            authority,
            metadata: metadata(service).at("initial_metadata")?,
            envoy_headers: !target.skip_envoy_headers,
        }))
    }
}

fn metadata(service: &GrpcService) -> Result<HeaderMap, ConfigError> {
    let mut map = HeaderMap::new();
    for (i, entry) in service.initial_metadata.iter().enumerate() {
        let at = |e: ConfigError| e.at(format!("[{i}]"));
        let name = HeaderName::try_from(entry.key.as_str())
            .map_err(|_| at(ConfigError::new("not a header name").at("key")))?;
        let raw = match entry.raw_value.is_empty() {
            true => entry.value.as_bytes(),
            false => &entry.raw_value,
        };
        if raw.contains(&b'%') {
            return Err(at(
                ConfigError::new("substitutions are not supported").at("value")
            ));
        }
        let value = HeaderValue::from_bytes(raw)
            .map_err(|_| at(ConfigError::new("not a header value").at("value")))?;
        map.append(name, value);
    }
    Ok(map)
}

struct ClusterTransport {
    cluster: Arc<ClusterSlot<Cluster>>,
    authority: ByteString,
    metadata: HeaderMap,
    /// Whether to say who asks.
    envoy_headers: bool,
}

impl ClusterTransport {
    fn head(&self, parts: http::request::Parts) -> RequestHead {
        let mut head = RequestHead::new(Method::POST, parts.uri.path());
        head.authority = self.authority.clone();
        head.headers = parts.headers;
        let timeout = head.headers.get("grpc-timeout").map(HeaderValue::as_bytes);
        if let Some(millis) = timeout.and_then(|t| t.strip_suffix(b"m"))
            && let Ok(millis) = HeaderValue::from_bytes(millis)
        {
            head.headers
                .insert("x-envoy-expected-rq-timeout-ms", millis);
        }
        if self.envoy_headers {
            let yes = HeaderValue::from_static("true");
            head.headers.insert("x-envoy-internal", yes);
            append_to_xff(&mut head, local_address());
        }
        for (name, value) in &self.metadata {
            head.headers.append(name.clone(), value.clone());
        }
        head
    }
}

impl GrpcTransport for ClusterTransport {
    fn call(&self, request: http::Request<TonicBody>) -> Calling {
        let (parts, body) = request.into_parts();
        let head = self.head(parts);
        let cluster = self.cluster.get();
        let (answer, answered) = oneshot::channel();
        // A task: messages go out while nobody waits for answers. It ends with the call's other half.
        tokio::task::spawn_local(async move {
            let mut answer = answer;
            let calling = begin(cluster, head, Body::stream(Sent(body)));
            let response = tokio::select! {
                response = calling => response,
                () = answer.closed() => return,
            };
            match response {
                Err(status) => {
                    let _ = answer.send(Err(status));
                }
                Ok(response) => {
                    let (frames, reader) = mpsc::channel(WAITING_FRAMES);
                    let mut head = http::Response::new(TonicBody::new(Received(reader)));
                    *head.status_mut() = response.head.status;
                    *head.headers_mut() = response.head.headers;
                    if answer.send(Ok(head)).is_ok() {
                        relay(response.body, response.guard, frames).await;
                    }
                }
            }
        });
        Box::pin(async move {
            let lost = |_| Err(Status::unavailable("the worker is gone"));
            answered.await.unwrap_or_else(lost)
        })
    }
}

async fn begin(
    cluster: Option<Arc<Cluster>>,
    head: RequestHead,
    body: Body,
) -> Result<UpstreamResponse, Status> {
    let cluster = cluster.ok_or_else(|| Status::unavailable("Cluster not available"))?;
    let host = cluster.choose_host(&LbContext {
        hash: None,
        excluded: &[],
        omit_canary: false,
        tries: 0,
        random: fastrand::u64(..),
        destination: None,
    });
    let host = host.ok_or_else(|| Status::unavailable("no healthy upstream"))?;
    let options = SendOptions {
        downstream: Protocol::Http2,
        priority: Priority::Default,
        early: EarlyResponses::default(),
        purpose: cluster
            .config
            .transport_options(&head, Protocol::Http2, None, Default::default())
            .into(),
        ready: None,
    };
    let sent = request::send(&cluster, &host, &head, body, options).await;
    sent.map_err(|error| Status::unavailable(error.reason.as_str()))
}

/// Hands the response's frames to their reader, until either is at its end.
async fn relay(
    mut body: Body,
    mut guard: RequestGuard,
    frames: mpsc::Sender<Result<Frame, BodyError>>,
) {
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = frames.closed() => return,
        };
        let Some(frame) = frame else {
            return guard.ended(None);
        };
        if let Err(error) = &frame {
            guard.ended(Some(error.reason));
        }
        if frames.send(frame).await.is_err() {
            return;
        }
    }
}

/// A request's body, as a generated client makes it.
struct Sent(TonicBody);

impl BodyStream for Sent {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        Pin::new(&mut self.0).poll_frame(cx).map(|frame| {
            let frame = match frame? {
                Ok(frame) => frame,
                // The filter gave up.
                Err(_) => return Some(Err(BodyError::new(ResetReason::LocalReset))),
            };
            Some(Ok(match frame.into_data() {
                Ok(data) => Frame::Data(data),
                Err(frame) => Frame::Trailers(frame.into_trailers().unwrap_or_default()),
            }))
        })
    }

    fn is_end(&self) -> bool {
        self.0.is_end_stream()
    }
}

/// A response's body, as a generated client takes it: its frames have crossed a channel because it must be
/// `Send`.
struct Received(mpsc::Receiver<Result<Frame, BodyError>>);

impl HttpBody for Received {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        self.0.poll_recv(cx).map(|frame| {
            Some(match frame? {
                Ok(Frame::Data(data)) => Ok(http_body::Frame::data(data)),
                Ok(Frame::Trailers(trailers)) => Ok(http_body::Frame::trailers(trailers)),
                Err(error) => Err(Status::unavailable(error.reason.as_str())),
            })
        })
    }
}
