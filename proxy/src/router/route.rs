//! A compiled route: what it does to a request and its response.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use filters::formatter::FormatContext;
use filters::head::{RequestHead, ResponseHead};
use filters::header_mutation::{HeaderMutations, MessageMutations};
use filters::metadata::ConfiguredMetadata;
use filters::stream::{FilterId, RouteFilterConfig, RouteView, StreamInfo};
use http::StatusCode;

use crate::router::action::{Action, HashPolicy, Mirror};
use crate::router::context::{FilterConfigs, RouteConfigInfo, VirtualHostInfo};
use crate::router::forwarding::Forward;
use crate::router::retry_policy::RetryPolicy;
use crate::router::rewrite::{HostRewrite, MatchedPath, replace_host};
use crate::upstream::circuit_breaker::Priority;

/// What all weighted clusters of a route share.
pub(super) struct Shared {
    pub(super) name: ByteString,
    pub(super) virtual_host: Arc<VirtualHostInfo>,
    pub(super) config: Arc<RouteConfigInfo>,
    pub(super) matched: MatchedPath,
    pub(super) headers: MessageMutations,
    pub(super) filter_configs: FilterConfigs,
    pub(super) metadata: ConfiguredMetadata,
    pub(super) buffer_limit: Option<u32>,
    pub(super) forward: Forward,
}

/// What a weighted cluster adds to its route.
#[derive(Default)]
pub(super) struct Weighted {
    pub(super) headers: MessageMutations,
    pub(super) filter_configs: FilterConfigs,
    pub(super) host: Option<HostRewrite>,
}

/// A compiled route.
pub struct Route {
    pub(super) action: Action,
    pub(super) shared: Arc<Shared>,
    pub(super) weighted: Option<Weighted>,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Route");
        out.field("name", &self.shared.name);
        out.field("virtual_host", &self.shared.virtual_host.name);
        out.finish_non_exhaustive()
    }
}

impl Route {
    /// What to do with the request.
    pub fn action(&self) -> &Action {
        &self.action
    }

    /// The route's name.
    pub fn name(&self) -> &ByteString {
        &self.shared.name
    }

    /// Its virtual host.
    pub fn virtual_host(&self) -> &Arc<VirtualHostInfo> {
        &self.shared.virtual_host
    }

    /// Its route configuration.
    pub fn config(&self) -> &Arc<RouteConfigInfo> {
        &self.shared.config
    }

    /// What its match takes of the path.
    pub fn matched_path(&self) -> &MatchedPath {
        &self.shared.matched
    }

    /// The limit of the whole response, retries included; 15 s by default, None is none. A route with
    /// `max_stream_duration` has none.
    pub fn timeout(&self) -> Option<Duration> {
        self.shared.forward.timeout
    }

    /// The stream's idle timeout; None leaves the connection manager's, zero is none.
    pub fn idle_timeout(&self) -> Option<Duration> {
        self.shared.forward.idle_timeout
    }

    /// The stream's longest life; None leaves the connection manager's, zero is none.
    pub fn max_stream_duration(&self) -> Option<Duration> {
        self.shared.forward.max_stream_duration
    }

    /// `max_stream_duration.grpc_timeout_header_max`: if set, `grpc-timeout` is the stream's longest life,
    /// up to this; zero is no cap.
    pub fn grpc_timeout_header_max(&self) -> Option<Duration> {
        self.shared.forward.grpc_timeout_header_max
    }

    /// What is subtracted from the `grpc-timeout` that the above uses.
    pub fn grpc_timeout_header_offset(&self) -> Option<Duration> {
        self.shared.forward.grpc_timeout_header_offset
    }

    /// Deprecated `max_grpc_timeout`: if set, `grpc-timeout` takes the place of [`timeout`](Self::timeout),
    /// up to this; zero is no cap.
    pub fn max_grpc_timeout(&self) -> Option<Duration> {
        self.shared.forward.max_grpc_timeout
    }

    /// What is subtracted from the `grpc-timeout` that `max_grpc_timeout` uses.
    pub fn grpc_timeout_offset(&self) -> Option<Duration> {
        self.shared.forward.grpc_timeout_offset
    }

    /// The route's retry policy, else the virtual host's.
    pub fn retry_policy(&self) -> Option<&Arc<RetryPolicy>> {
        let own = self.shared.forward.retry_policy.as_ref();
        own.or(self.shared.virtual_host.retry_policy.as_ref())
    }

    /// The mirrors: the route's, else the virtual host's, else the configuration's.
    pub fn mirrors(&self) -> &[Mirror] {
        &self.shared.forward.mirrors
    }

    /// What requests are hashed by.
    pub fn hash_policies(&self) -> &[HashPolicy] {
        &self.shared.forward.hash_policies
    }

    /// The answer if the cluster does not exist.
    pub fn cluster_not_found_status(&self) -> StatusCode {
        self.shared.forward.cluster_not_found
    }

    /// Which of the cluster's circuit breakers apply.
    pub fn priority(&self) -> Priority {
        self.shared.forward.priority
    }

    /// Whether requests carry `x-envoy-attempt-count`.
    pub fn include_request_attempt_count(&self) -> bool {
        self.shared.virtual_host.include_request_attempt_count
    }

    /// Whether responses carry `x-envoy-attempt-count`.
    pub fn include_attempt_count_in_response(&self) -> bool {
        self.shared.virtual_host.include_attempt_count_in_response
    }

    /// Whether the route allows or forbids an upgrade (any case); None leaves it to the connection manager.
    pub fn allows_upgrade(&self, name: &str) -> Option<bool> {
        let upgrades = &self.shared.forward.upgrades;
        let mut found = upgrades.iter().filter(|u| u.0.eq_ignore_ascii_case(name));
        found.next().map(|u| u.1)
    }

    /// Whether CONNECT ends here, and its bytes go to the cluster as they are.
    pub fn ends_connect(&self) -> bool {
        self.shared.forward.ends_connect
    }

    /// How much of a request may be kept for a retry, bytes.
    pub fn buffer_limit(&self) -> Option<u32> {
        let outer = self.shared.virtual_host.per_request_buffer_limit;
        self.shared.buffer_limit.or(outer)
    }

    /// Whether the host is to be replaced by the upstream host's name, with
    /// [`set_upstream_host`](Self::set_upstream_host), once that host is chosen.
    pub fn auto_host_rewrite(&self) -> bool {
        matches!(self.shared.forward.host, Some(HostRewrite::Auto))
    }

    /// Replaces the request's host by the upstream host's name, if the route wants that.
    pub fn set_upstream_host(&self, head: &mut RequestHead, name: &str, keep_original: bool) {
        if self.auto_host_rewrite() && !name.is_empty() {
            let append_forwarded = self.shared.forward.append_forwarded_host;
            replace_host(head, name.into(), append_forwarded, keep_original);
        }
    }

    /// Changes a request on its way to the upstream: header mutations, then host, then path. To be called
    /// once for each request, before the first attempt. `keep_original` is whether the old host and path go
    /// along in `x-envoy-original-*`.
    pub fn prepare_request(&self, head: &mut RequestHead, info: &StreamInfo, keep_original: bool) {
        for mutations in self.order([
            self.weighted.as_ref().map(|w| &w.headers.request),
            Some(&self.shared.headers.request),
            Some(&self.shared.virtual_host.headers.request),
            Some(&self.shared.config.headers.request),
        ]) {
            mutations.remove(&mut head.headers);
            let values = mutations.values(&FormatContext {
                info,
                request: Some(head),
                response: None,
                trailers: None,
                local_reply: None,
            });
            mutations.write(values, &mut head.headers);
        }
        let forward = &self.shared.forward;
        // The route's word is the last, as in Envoy.
        let weighted = self.weighted.as_ref().and_then(|w| w.host.as_ref());
        for host in [weighted, forward.host.as_ref()].into_iter().flatten() {
            host.rewrite(head, forward.append_forwarded_host, keep_original);
        }
        if let Some(path) = &forward.path {
            path.rewrite(head, &self.shared.matched, keep_original);
        }
    }

    /// Changes a response on its way to the client; also direct responses and redirects.
    pub fn finish_response(
        &self,
        head: &mut ResponseHead,
        request: Option<&RequestHead>,
        info: &StreamInfo,
    ) {
        for mutations in self.order([
            self.weighted.as_ref().map(|w| &w.headers.response),
            Some(&self.shared.headers.response),
            Some(&self.shared.virtual_host.headers.response),
            Some(&self.shared.config.headers.response),
        ]) {
            mutations.remove(&mut head.headers);
            let values = mutations.values(&FormatContext {
                info,
                request,
                response: Some(head),
                trailers: None,
                local_reply: None,
            });
            mutations.write(values, &mut head.headers);
        }
    }

    /// Puts levels, from the most specific on, in the order in which they apply; the last one wins.
    fn order<'a>(
        &self,
        mut levels: [Option<&'a HeaderMutations>; 4],
    ) -> impl Iterator<Item = &'a HeaderMutations> {
        if self.shared.config.most_specific_wins {
            levels.reverse();
        }
        levels.into_iter().flatten().filter(|m| !m.is_empty())
    }
}

impl RouteView for Route {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn virtual_host(&self) -> &str {
        &self.shared.virtual_host.name
    }

    fn filter_config(&self, filter: FilterId) -> Option<&RouteFilterConfig> {
        let weighted = self.weighted.as_ref().map(|w| &w.filter_configs);
        let levels = [
            weighted,
            Some(&self.shared.filter_configs),
            Some(&self.shared.virtual_host.filter_configs),
            Some(&self.shared.config.filter_configs),
        ];
        let mut all = levels.into_iter().flatten().flatten();
        all.find(|(id, _)| *id == filter).map(|(_, config)| config)
    }

    fn metadata(&self, namespace: &str) -> Option<&serde_json::Value> {
        self.shared.metadata.get(namespace)
    }

    fn virtual_host_metadata(&self, namespace: &str) -> Option<&serde_json::Value> {
        self.shared.virtual_host.metadata.get(namespace)
    }
}
