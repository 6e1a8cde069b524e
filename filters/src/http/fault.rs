//! Fault injection: delays and aborts for a share of requests
//! (`envoy.extensions.filters.http.fault.v3`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::{
    HttpFault, fault_abort::ErrorType,
};
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::google::protobuf::Any;
use http::StatusCode;
use xds_client::any::unpack;
use xds_client::duration;
use xds_client::error::{At, ConfigError};

use crate::body::Body;
use crate::chain::route_config;
use crate::filter::{Flow, HttpFilter, LocalReply, SharedInfo, Slot, Step};
use crate::flags::ResponseFlags;
use crate::head::RequestHead;
use crate::registry::{FactoryContext, HttpFilterFactory};
use crate::stream::{FilterId, RouteFilterConfig};

/// Compiles the fault filter.
pub struct FaultFactory;

struct FaultFilter {
    id: FilterId,
    fault: Arc<Fault>,
}

/// Parts of a million.
#[derive(Debug, Clone, Copy)]
struct Share(u32);

impl Share {
    const MILLION: u32 = 1_000_000;

    fn compile(percent: Option<&FractionalPercent>) -> Result<Self, ConfigError> {
        let Some(percent) = percent else {
            return Ok(Self(0));
        };
        let scale = match percent.denominator {
            0 => 10_000,
            1 => 100,
            2 => 1,
            _ => return Err(ConfigError::new("unknown value").at("percentage.denominator")),
        };
        Ok(Self(percent.numerator.saturating_mul(scale)))
    }

    fn hits(self) -> bool {
        self.0 > 0 && fastrand::u32(0..Self::MILLION) < self.0
    }
}

#[derive(Debug)]
struct Abort {
    share: Share,
    status: StatusCode,
    grpc_status: Option<u8>,
    body: Bytes,
}

#[derive(Debug)]
struct Fault {
    delay: Option<(Share, Duration)>,
    abort: Option<Abort>,
}

fn compile(any: &Any) -> Result<Fault, ConfigError> {
    let proto: HttpFault = unpack(any)?;
    let unsupported = [
        ("upstream_cluster", !proto.upstream_cluster.is_empty()),
        ("headers", !proto.headers.is_empty()),
        ("downstream_nodes", !proto.downstream_nodes.is_empty()),
        ("max_active_faults", proto.max_active_faults.is_some()),
        ("response_rate_limit", proto.response_rate_limit.is_some()),
    ];
    if let Some((field, _)) = unsupported.iter().find(|(_, set)| *set) {
        return Err(ConfigError::unsupported(field));
    }
    let delay = match &proto.delay {
        None => None,
        Some(delay) => {
            let share = Share::compile(delay.percentage.as_ref()).at("delay")?;
            let Some(FaultDelaySecifier::FixedDelay(fixed)) = &delay.fault_delay_secifier else {
                return Err(ConfigError::unsupported("delay.header_delay"));
            };
            Some((share, duration::read(fixed).at("delay.fixed_delay")?))
        }
    };
    let abort = match proto.abort {
        None => None,
        Some(abort) => {
            let share = Share::compile(abort.percentage.as_ref()).at("abort")?;
            let (status, grpc_status) = match abort.error_type {
                Some(ErrorType::HttpStatus(code)) => {
                    let status = u16::try_from(code).ok().filter(|c| (200..600).contains(c));
                    let status = status.and_then(|c| StatusCode::from_u16(c).ok());
                    let error = || ConfigError::new("must be in 200..600").at("abort.http_status");
                    (status.ok_or_else(error)?, None)
                }
                // As in Envoy, a gRPC abort of a request that is not gRPC answers 200.
                Some(ErrorType::GrpcStatus(code)) => {
                    let error = |_| ConfigError::new("too large").at("abort.grpc_status");
                    (StatusCode::OK, Some(u8::try_from(code).map_err(error)?))
                }
                _ => return Err(ConfigError::unsupported("abort.header_abort")),
            };
            let body = match abort.response_body.is_empty() {
                true => Bytes::from_static(b"fault filter abort"),
                false => Bytes::from(abort.response_body),
            };
            Some(Abort {
                share,
                status,
                grpc_status,
                body,
            })
        }
    };
    Ok(Fault { delay, abort })
}

impl HttpFilterFactory for FaultFactory {
    fn compile(&self, any: &Any, cx: &FactoryContext) -> Result<Arc<dyn HttpFilter>, ConfigError> {
        let fault = Arc::new(compile(any)?);
        Ok(Arc::new(FaultFilter { id: cx.id, fault }))
    }

    fn compile_route(
        &self,
        any: &Any,
        _: &FactoryContext,
    ) -> Result<RouteFilterConfig, ConfigError> {
        Ok(RouteFilterConfig::Config(Arc::new(compile(any)?)))
    }
}

fn abort(fault: &Fault) -> Flow {
    match fault.abort.as_ref().filter(|a| a.share.hits()) {
        None => Flow::Continue,
        Some(abort) => {
            let body = abort.body.clone();
            let mut reply = LocalReply::new(abort.status, body, "fault_filter_abort")
                .with_flags(ResponseFlags::FAULT_INJECTED);
            reply.grpc_status = abort.grpc_status;
            Flow::Reply(Box::new(reply))
        }
    }
}

impl HttpFilter for FaultFilter {
    fn on_request<'a>(
        &'a self,
        _: &'a mut RequestHead,
        _: &'a mut Body,
        _: &'a mut Slot,
        info: &'a SharedInfo,
    ) -> Step<'a> {
        let fault = route_config(info, self.id).unwrap_or_else(|| Arc::clone(&self.fault));
        match fault.delay.filter(|(share, _)| share.hits()) {
            None => Step::Ready(abort(&fault)),
            Some((_, delay)) => {
                info.borrow_mut()
                    .flags
                    .insert(ResponseFlags::DELAY_INJECTED);
                Step::Wait(Box::pin(async move {
                    tokio::time::sleep(delay).await;
                    abort(&fault)
                }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::chain::tests::info;

    #[tokio::test]
    async fn delays_then_aborts() {
        for (share, delay) in [(1_000_000, true), (1_000_000, false), (0, true)] {
            let fault = Arc::new(Fault {
                delay: delay.then_some((Share(Share::MILLION), Duration::from_millis(1))),
                abort: Some(Abort {
                    share: Share(share),
                    status: StatusCode::IM_A_TEAPOT,
                    grpc_status: None,
                    body: Bytes::new(),
                }),
            });
            let id = FilterId(0);
            let filter = FaultFilter { id, fault };
            let facts = info();
            let mut head = RequestHead::new(Method::GET, "/");
            let (mut body, mut slot) = (Body::Empty, None);
            let flow = match filter.on_request(&mut head, &mut body, &mut slot, &facts) {
                Step::Ready(flow) => flow,
                Step::Wait(future) => future.await,
            };
            assert_eq!(matches!(flow, Flow::Reply(_)), share > 0);
            let flags = facts.borrow().flags;
            assert_eq!(flags.contains(ResponseFlags::DELAY_INJECTED), delay);
        }
    }

    #[test]
    fn empty_is_accepted_and_scope_is_refused() {
        assert!(compile(&xds_client::any::pack(&HttpFault::default())).is_ok());
        let scoped = HttpFault {
            upstream_cluster: "c".into(),
            ..HttpFault::default()
        };
        let any = xds_client::any::pack(&scoped);
        assert_eq!(compile(&any).unwrap_err().path(), "upstream_cluster");
    }
}
