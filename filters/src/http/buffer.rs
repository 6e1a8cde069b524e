//! Buffering: reads the whole request body before the request goes on
//! (`envoy.extensions.filters.http.buffer.v3`).

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::filters::http::buffer::v3::{
    Buffer, BufferPerRoute, buffer_per_route::Override,
};
use envoy_types::pb::google::protobuf::Any;
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, StatusCode};
use xds_client::any::unpack;
use xds_client::error::{At, ConfigError};

use crate::body::{Body, ResetReason};
use crate::chain::route_config;
use crate::filter::{Flow, HttpFilter, LocalReply, SharedInfo, Slot, Step};
use crate::head::RequestHead;
use crate::registry::{FactoryContext, HttpFilterFactory};
use crate::stream::{FilterId, RouteFilterConfig};

/// Compiles the buffer filter.
pub struct BufferFactory;

struct BufferFilter {
    id: FilterId,
    limit: usize,
}

/// The per-route limit, in bytes.
struct Limit(usize);

fn limit(config: &Buffer) -> Result<usize, ConfigError> {
    match config.max_request_bytes {
        Some(value) if value.value > 0 => Ok(value.value as usize),
        _ => Err(ConfigError::new("must be greater than 0").at("max_request_bytes")),
    }
}

impl HttpFilterFactory for BufferFactory {
    fn compile(&self, any: &Any, cx: &FactoryContext) -> Result<Arc<dyn HttpFilter>, ConfigError> {
        Ok(Arc::new(BufferFilter {
            id: cx.id,
            limit: limit(&unpack(any)?)?,
        }))
    }

    fn compile_route(
        &self,
        any: &Any,
        _: &FactoryContext,
    ) -> Result<RouteFilterConfig, ConfigError> {
        match unpack::<BufferPerRoute>(any)?.r#override {
            Some(Override::Disabled(true)) => Ok(RouteFilterConfig::Disabled),
            Some(Override::Buffer(config)) => {
                let limit = limit(&config).at("buffer")?;
                Ok(RouteFilterConfig::Config(Arc::new(Limit(limit))))
            }
            _ => Err(ConfigError::new("is required").at("override")),
        }
    }
}

impl HttpFilter for BufferFilter {
    fn on_request<'a>(
        &'a self,
        head: &'a mut RequestHead,
        body: &'a mut Body,
        _: &'a mut Slot,
        info: &'a SharedInfo,
    ) -> Step<'a> {
        // A tunnel's bytes have no end to wait for.
        if body.is_end() || head.is_tunnel() {
            return Step::CONTINUE;
        }
        let limit = route_config::<Limit>(info, self.id).map_or(self.limit, |l| l.0);
        Step::Wait(Box::pin(async move {
            match body.collect(limit).await {
                Ok(all) => {
                    head.headers
                        .insert(CONTENT_LENGTH, HeaderValue::from(all.data.len()));
                    *body = all.into();
                    Flow::Continue
                }
                Err(error) if error.reason == ResetReason::PayloadTooLarge => {
                    Flow::Reply(Box::new(LocalReply::new(
                        StatusCode::PAYLOAD_TOO_LARGE,
                        "Payload Too Large",
                        "request_payload_too_large",
                    )))
                }
                Err(error) => Flow::Reset(error),
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::{Context, Poll};

    use bytes::Bytes;
    use envoy_types::pb::google::protobuf::UInt32Value;
    use http::Method;

    use super::*;
    use crate::body::{BodyError, BodyStream, Frame};
    use crate::chain::tests::info;

    /// Frames with a `Pending` before each.
    struct Slow(VecDeque<Result<Frame, BodyError>>, bool);
    impl BodyStream for Slow {
        fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
            self.1 = !self.1;
            if self.1 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(self.0.pop_front())
        }
    }

    async fn run(frames: Vec<Result<Frame, BodyError>>, limit: usize) -> (Flow, RequestHead, Body) {
        let filter = BufferFilter {
            id: FilterId(0),
            limit,
        };
        let mut head = RequestHead::new(Method::POST, "/");
        let mut body = Body::stream(Slow(frames.into(), false));
        let facts = info();
        let flow = match filter.on_request(&mut head, &mut body, &mut None, &facts) {
            Step::Ready(flow) => flow,
            Step::Wait(future) => future.await,
        };
        (flow, head, body)
    }

    #[test]
    fn the_chain_and_the_routes_have_their_own_types() {
        let cx = crate::registry::tests::cx();
        let buffer = Buffer {
            max_request_bytes: Some(UInt32Value { value: 9 }),
        };
        let chain = xds_client::any::pack(&buffer);
        let route = xds_client::any::pack(&BufferPerRoute {
            r#override: Some(Override::Buffer(buffer)),
        });
        assert!(BufferFactory.compile(&chain, &cx).is_ok());
        assert!(BufferFactory.compile(&route, &cx).is_err());
        assert!(BufferFactory.compile_route(&route, &cx).is_ok());
        assert!(BufferFactory.compile_route(&chain, &cx).is_err());
    }

    #[tokio::test]
    async fn random_chunks_within_and_beyond_the_limit_and_resets() {
        let data: Vec<u8> = (0..200u8).collect();
        for _ in 0..50 {
            let mut frames = Vec::new();
            let mut rest = data.as_slice();
            while !rest.is_empty() {
                let (a, b) = rest.split_at(fastrand::usize(0..=rest.len()));
                frames.push(Ok(Frame::Data(Bytes::copy_from_slice(a))));
                rest = b;
            }
            let (flow, head, mut body) = run(frames.clone(), 200).await;
            assert!(matches!(flow, Flow::Continue));
            assert_eq!(head.headers[CONTENT_LENGTH], "200");
            assert_eq!(body.collect(999).await.unwrap().data, data);
            let (flow, ..) = run(frames.clone(), 199).await;
            assert!(matches!(flow, Flow::Reply(r) if r.status == 413));
            let error = BodyError::new(ResetReason::RemoteReset);
            frames.insert(fastrand::usize(0..=frames.len()), Err(error.clone()));
            let (flow, ..) = run(frames, 200).await;
            assert!(matches!(flow, Flow::Reset(e) if e == error));
        }
    }
}
