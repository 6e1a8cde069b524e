//! `envoy.filters.http.fault`: fixed delays and aborts, for a share of the requests that the runtime may change.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/fault_filter>

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::{
    FaultAbort, HttpFault, fault_abort::ErrorType,
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
use crate::matcher::HeaderMatcher;
use crate::registry::{FactoryContext, FilterCounter, FilterGauge, FilterStats, HttpFilterFactory};
use crate::runtime::{Fraction, Live, RuntimeKeys};
use crate::stream::{FilterId, RouteFilterConfig};

/// Compiles [`FaultFilter`]s.
pub struct FaultFactory;

struct FaultFilter {
    id: FilterId,
    fault: Arc<Fault>,
    stats: Arc<Stats>,
}

/// `http.<stat_prefix>.fault.*`
struct Stats {
    /// The requests that a fault has met and that have not ended, over all workers.
    active: AtomicU64,
    active_faults: Arc<dyn FilterGauge>,
    aborts_injected: Arc<dyn FilterCounter>,
    delays_injected: Arc<dyn FilterCounter>,
    faults_overflow: Arc<dyn FilterCounter>,
}

impl Stats {
    fn new(stats: &dyn FilterStats) -> Arc<Self> {
        let counter = |name: &str| stats.counter(&format!("fault.{name}"));
        Arc::new(Self {
            active: AtomicU64::new(0),
            active_faults: stats.gauge("fault.active_faults"),
            aborts_injected: counter("aborts_injected"),
            delays_injected: counter("delays_injected"),
            faults_overflow: counter("faults_overflow"),
        })
    }
}

/// A request that a fault has met; in its slot to its end.
struct Active(Arc<Stats>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
        self.0.active_faults.dec();
    }
}

/// A share of requests, none by default, and its key.
fn share(
    percent: Option<&FractionalPercent>,
    key: &str,
    runtime: &dyn RuntimeKeys,
) -> Result<Arc<Live<Fraction>>, ConfigError> {
    let default = percent.map(Fraction::compile).transpose();
    let default = default.at("percentage")?.unwrap_or(Fraction::NONE);
    Ok(runtime.fraction(key, default))
}

fn hits(share: &Live<Fraction>) -> bool {
    share.get().takes(fastrand::u64(..))
}

/// The key of a setting: its own, or Envoy's.
fn key<'a>(own: &'a str, usual: &'a str) -> &'a str {
    if own.is_empty() { usual } else { own }
}

struct Delay {
    share: Arc<Live<Fraction>>,
    /// Milliseconds; 0 is none.
    time: Arc<Live<u64>>,
}

struct Abort {
    share: Arc<Live<Fraction>>,
    status: Arc<Live<u64>>,
    grpc_status: Option<Arc<Live<u64>>>,
    body: Bytes,
}

struct Fault {
    headers: Vec<HeaderMatcher>,
    delay: Option<Delay>,
    abort: Option<Abort>,
    max_active: Arc<Live<u64>>,
}

fn compile(any: &Any, runtime: &dyn RuntimeKeys) -> Result<Fault, ConfigError> {
    let proto: HttpFault = unpack(any)?;
    let unsupported = [
        ("upstream_cluster", !proto.upstream_cluster.is_empty()),
        ("downstream_nodes", !proto.downstream_nodes.is_empty()),
        ("response_rate_limit", proto.response_rate_limit.is_some()),
    ];
    if let Some((field, _)) = unsupported.iter().find(|(_, set)| *set) {
        return Err(ConfigError::unsupported(field));
    }
    let delay = match &proto.delay {
        None => None,
        Some(delay) => {
            let usual = "fault.http.delay.fixed_delay_percent";
            let name = key(&proto.delay_percent_runtime, usual);
            let share = share(delay.percentage.as_ref(), name, runtime).at("delay")?;
            let Some(FaultDelaySecifier::FixedDelay(fixed)) = &delay.fault_delay_secifier else {
                return Err(ConfigError::unsupported("delay.header_delay"));
            };
            let fixed = duration::read(fixed).at("delay.fixed_delay")?;
            let usual = "fault.http.delay.fixed_duration_ms";
            let name = key(&proto.delay_duration_runtime, usual);
            let fixed = u64::try_from(fixed.as_millis()).unwrap_or(u64::MAX);
            Some(Delay {
                share,
                time: runtime.number(name, fixed),
            })
        }
    };
    let abort = proto.abort.as_ref();
    let abort = abort.map(|abort| Abort::compile(abort, &proto, runtime).at("abort"));
    let headers = proto.headers.iter().enumerate().map(|(i, header)| {
        let compiled = HeaderMatcher::compile(header);
        compiled.at(format!("headers[{i}]"))
    });
    let most = proto.max_active_faults.as_ref();
    let usual = "fault.http.max_active_faults";
    Ok(Fault {
        headers: headers.collect::<Result<_, _>>()?,
        delay,
        abort: abort.transpose()?,
        max_active: runtime.number(
            key(&proto.max_active_faults_runtime, usual),
            most.map_or(u64::MAX, |most| most.value.into()),
        ),
    })
}

impl Abort {
    fn compile(
        abort: &FaultAbort,
        proto: &HttpFault,
        runtime: &dyn RuntimeKeys,
    ) -> Result<Self, ConfigError> {
        let usual = "fault.http.abort.abort_percent";
        let name = key(&proto.abort_percent_runtime, usual);
        let share = share(abort.percentage.as_ref(), name, runtime)?;
        let (status, grpc_status) = match abort.error_type {
            Some(ErrorType::HttpStatus(code)) => {
                if !(200..600).contains(&code) {
                    return Err(ConfigError::new("must be in 200..600").at("http_status"));
                }
                (code, None)
            }
            // As in Envoy, a gRPC abort of a request that is not gRPC answers 200.
            Some(ErrorType::GrpcStatus(code)) => {
                let error = |_| ConfigError::new("too large").at("grpc_status");
                let code = u8::try_from(code).map_err(error)?;
                let usual = "fault.http.abort.grpc_status";
                let name = key(&proto.abort_grpc_status_runtime, usual);
                (200, Some(runtime.number(name, code.into())))
            }
            _ => return Err(ConfigError::unsupported("header_abort")),
        };
        let usual = "fault.http.abort.http_status";
        let name = key(&proto.abort_http_status_runtime, usual);
        Ok(Self {
            share,
            status: match grpc_status {
                None => runtime.number(name, status.into()),
                Some(_) => Arc::new(Live::new(status.into())),
            },
            grpc_status,
            body: match abort.response_body.is_empty() {
                true => Bytes::from_static(b"fault filter abort"),
                false => Bytes::copy_from_slice(abort.response_body.as_bytes()),
            },
        })
    }

    /// The runtime may say what is no status; then the configuration's holds.
    fn status(&self) -> StatusCode {
        let of = |code: u64| {
            let code = u16::try_from(code)
                .ok()
                .filter(|c| (200..600).contains(c))?;
            StatusCode::from_u16(code).ok()
        };
        of(self.status.get())
            .or_else(|| of(self.status.default_value()))
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn grpc_status(&self) -> Option<u8> {
        let status = self.grpc_status.as_ref()?;
        let now = u8::try_from(status.get()).ok();
        now.or_else(|| u8::try_from(status.default_value()).ok())
    }
}

impl HttpFilterFactory for FaultFactory {
    fn compile(&self, any: &Any, cx: &FactoryContext) -> Result<Arc<dyn HttpFilter>, ConfigError> {
        Ok(Arc::new(FaultFilter {
            id: cx.id,
            fault: Arc::new(compile(any, &*cx.runtime)?),
            stats: Stats::new(&*cx.stats),
        }))
    }

    fn compile_route(
        &self,
        any: &Any,
        cx: &FactoryContext,
    ) -> Result<RouteFilterConfig, ConfigError> {
        let fault = compile(any, &*cx.runtime)?;
        Ok(RouteFilterConfig::Config(Arc::new(fault)))
    }
}

/// Takes a place among the requests that a fault meets, once for a request; `false` if there are too many.
fn begin(stats: &Arc<Stats>, fault: &Fault, slot: &mut Slot) -> bool {
    if slot.is_some() {
        return true;
    }
    let most = fault.max_active.get();
    let next = |active: u64| (active < most).then(|| active.saturating_add(1));
    let order = Ordering::Relaxed;
    if stats.active.fetch_update(order, order, next).is_err() {
        stats.faults_overflow.inc();
        return false;
    }
    stats.active_faults.inc();
    *slot = Some(Box::new(Active(stats.clone())));
    true
}

fn abort(stats: &Arc<Stats>, fault: &Fault, slot: &mut Slot) -> Flow {
    let abort = fault.abort.as_ref().filter(|a| hits(&a.share));
    match abort {
        Some(abort) if begin(stats, fault, slot) => {
            stats.aborts_injected.inc();
            let body = abort.body.clone();
            let mut reply = LocalReply::new(abort.status(), body, "fault_filter_abort")
                .with_flags(ResponseFlags::FAULT_INJECTED);
            reply.grpc_status = abort.grpc_status();
            Flow::Reply(Box::new(reply))
        }
        _ => Flow::Continue,
    }
}

impl HttpFilter for FaultFilter {
    fn on_request<'a>(
        &'a self,
        head: &'a mut RequestHead,
        _: &'a mut Body,
        slot: &'a mut Slot,
        info: &'a SharedInfo,
    ) -> Step<'a> {
        let fault = route_config(info, self.id).unwrap_or_else(|| Arc::clone(&self.fault));
        if !fault.headers.iter().all(|matcher| matcher.matches(head)) {
            return Step::CONTINUE;
        }
        let delay = fault.delay.as_ref().filter(|delay| hits(&delay.share));
        let delay = delay.map_or(0, |delay| delay.time.get());
        if delay == 0 || !begin(&self.stats, &fault, slot) {
            return Step::Ready(abort(&self.stats, &fault, slot));
        }
        self.stats.delays_injected.inc();
        info.borrow_mut()
            .flags
            .insert(ResponseFlags::DELAY_INJECTED);
        Step::Wait(Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            abort(&self.stats, &fault, slot)
        }))
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::extensions::filters::common::fault::v3::FaultDelay;
    use envoy_types::pb::google::protobuf as wkt;
    use http::Method;

    use super::*;
    use crate::chain::tests::info;
    use crate::registry::tests::cx;

    fn percent(numerator: u32) -> Option<FractionalPercent> {
        Some(FractionalPercent {
            numerator,
            denominator: 0,
        })
    }

    fn teapot(share: u32) -> HttpFault {
        HttpFault {
            abort: Some(FaultAbort {
                percentage: percent(share),
                error_type: Some(ErrorType::HttpStatus(418)),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn filter(proto: &HttpFault) -> Arc<dyn HttpFilter> {
        let any = xds_client::any::pack(proto);
        FaultFactory.compile(&any, &cx()).unwrap()
    }

    /// What a request meets, whether it was delayed, and what it keeps.
    async fn meet(filter: &dyn HttpFilter) -> (Flow, bool, Slot) {
        let facts = info();
        let mut head = RequestHead::new(Method::GET, "/");
        let (mut body, mut slot) = (Body::Empty, None);
        let flow = match filter.on_request(&mut head, &mut body, &mut slot, &facts) {
            Step::Ready(flow) => flow,
            Step::Wait(future) => future.await,
        };
        let flags = facts.borrow().flags;
        (flow, flags.contains(ResponseFlags::DELAY_INJECTED), slot)
    }

    #[tokio::test]
    async fn delays_then_aborts() {
        for (share, delay) in [(100, true), (100, false), (0, true)] {
            let mut proto = teapot(share);
            proto.delay = delay.then(|| FaultDelay {
                percentage: percent(100),
                fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(wkt::Duration {
                    seconds: 0,
                    nanos: 1_000_000,
                })),
            });
            let (flow, delayed, _) = meet(&*filter(&proto)).await;
            assert_eq!(matches!(flow, Flow::Reply(_)), share > 0);
            assert_eq!(delayed, delay);
        }
    }

    #[tokio::test]
    async fn so_many_at_a_time_and_no_more() {
        let mut proto = teapot(100);
        proto.max_active_faults = Some(wkt::UInt32Value { value: 1 });
        let filter = filter(&proto);
        let (first, _, held) = meet(&*filter).await;
        assert!(matches!(first, Flow::Reply(reply) if reply.status == 418));
        assert!(matches!(meet(&*filter).await.0, Flow::Continue));
        drop(held);
        assert!(matches!(meet(&*filter).await.0, Flow::Reply(_)));
    }

    #[test]
    fn empty_is_accepted_and_scope_is_refused() {
        let runtime = crate::runtime::tests::NoRuntime;
        let compile = |proto: &HttpFault| compile(&xds_client::any::pack(proto), &runtime);
        assert!(compile(&HttpFault::default()).is_ok());
        let scoped = HttpFault {
            upstream_cluster: "c".into(),
            ..HttpFault::default()
        };
        assert_eq!(compile(&scoped).err().unwrap().path(), "upstream_cluster");
        let mut odd = teapot(1);
        odd.abort.as_mut().unwrap().error_type = Some(ErrorType::HttpStatus(99));
        assert_eq!(compile(&odd).err().unwrap().path(), "abort.http_status");
    }
}
