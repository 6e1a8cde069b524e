//! What the router counts about requests that go to a cluster (Envoy: `Filter::chargeUpstreamCode`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use filters::local_reply::is_server_error_grpc;
use filters::stream::StreamInfo;
use http::{HeaderMap, HeaderName, StatusCode};

use crate::upstream::cluster::Cluster;
use crate::upstream::code_stats::ResponseKind;
use crate::upstream::host::{Host, count};

const CANARY: HeaderName = HeaderName::from_static("x-envoy-upstream-canary");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// How the requests of one stream are counted.
#[derive(Clone)]
pub(crate) struct Charge {
    pub(super) cluster: Arc<Cluster>,
    /// Whether the request is internal.
    pub(super) internal: bool,
    /// Whether it is a gRPC request, whose success its trailers tell.
    pub(super) grpc: bool,
}

impl Charge {
    fn kind(&self, host: Option<&Host>, headers: Option<&HeaderMap>) -> ResponseKind {
        // A response has few headers: a look at each name is cheaper than the hash of this one.
        let header = headers.and_then(|h| h.iter().find(|(name, _)| **name == CANARY));
        ResponseKind {
            internal: self.internal,
            canary: header.is_some_and(|(_, v)| v == "true") || host.is_some_and(Host::is_canary),
        }
    }

    /// An upstream's response goes downstream. `end` says that it has no body.
    pub(super) fn response(
        &self,
        host: &Host,
        status: StatusCode,
        headers: &HeaderMap,
        end: bool,
    ) -> ResponseKind {
        let kind = self.kind(Some(host), Some(headers));
        self.cluster.stats().codes.count(status.as_u16(), kind);
        if status.is_server_error() {
            count(&host.stats.rq_error);
        } else if !self.grpc {
            count(&host.stats.rq_success);
        } else if end {
            self.grpc_end(host, Some(headers));
        }
        kind
    }

    /// A gRPC response came to its end with these trailers.
    pub(super) fn grpc_end(&self, host: &Host, trailers: Option<&HeaderMap>) {
        let status = trailers.and_then(|t| t.get(GRPC_STATUS));
        let failed = status.is_none_or(|status| is_server_error_grpc(status.as_bytes()));
        count(if failed {
            &host.stats.rq_error
        } else {
            &host.stats.rq_success
        });
    }

    /// The answer is our own, because no response came.
    pub(super) fn local(&self, host: Option<&Host>, status: StatusCode) {
        let kind = self.kind(host, None);
        self.cluster.stats().codes.count(status.as_u16(), kind);
        if let Some(host) = host {
            count(&host.stats.rq_error);
        }
    }

    /// An attempt failed and another takes its place.
    pub(super) fn retried(&self, host: &Host, status: Option<StatusCode>) {
        count(&host.stats.rq_error);
        if let Some(status) = status {
            self.cluster.stats().codes.count_retried(status.as_u16());
        }
    }

    /// The response has come to its end. Nothing is told of one that overtook its request.
    pub(super) fn complete(&self, kind: ResponseKind, taken: Option<Duration>) {
        if let Some(taken) = taken {
            let ms = u64::try_from(taken.as_millis()).unwrap_or(u64::MAX);
            self.cluster.stats().codes.time(ms, kind);
        }
    }
}

/// How long an upstream has had with a request, as Envoy counts: since all of it had come to the router, over all
/// attempts. `None` while the request is not complete.
pub(super) fn upstream_time(info: &StreamInfo, routed: Instant) -> Option<Duration> {
    Some(info.request_end?.max(routed).elapsed())
}
