//! The messages of the two protocols.

use std::collections::{BTreeSet, HashMap};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::rpc::Status as RpcStatus;

use crate::subscription::{Outcome, ResourceHandler, Subscription};

/// A type of a stream.
pub(super) struct TypeState {
    pub(super) subscription: Subscription,
    /// What this stream was told; `None` before the first request.
    pub(super) sent: Option<BTreeSet<String>>,
    pub(super) nonce: String,
    pub(super) paused: bool,
}

/// The two protocols differ in messages alone.
pub(super) trait Wire: Send + 'static {
    type Request: prost::Message + Default + Send + Sync + 'static;
    type Response: prost::Message + Default + Send + Sync + 'static;
    /// A request for what changed since the last, if something did.
    fn request(state: &mut TypeState) -> Option<Self::Request>;
    fn set_node(request: &mut Self::Request, node: Node);
    fn answer(state: &TypeState, nonce: String, error: Option<RpcStatus>) -> Self::Request;
    fn head(response: &Self::Response) -> (&str, &str);
    /// Names that the response answers besides those it makes known: removed or refused ones.
    fn answered(response: &Self::Response) -> BTreeSet<String>;
    fn accept(s: &mut Subscription, r: Self::Response, h: &mut dyn ResourceHandler) -> Outcome;
}

pub(super) struct Delta;
pub(super) struct Sotw;

impl Wire for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn request(state: &mut TypeState) -> Option<Self::Request> {
        let s = &state.subscription;
        let first = state.sent.is_none();
        let old = state.sent.take().unwrap_or_default();
        state.sent = Some(s.names.clone());
        let request = DeltaDiscoveryRequest {
            type_url: s.type_url.clone(),
            resource_names_subscribe: s.names.difference(&old).cloned().collect(),
            resource_names_unsubscribe: old.difference(&s.names).cloned().collect(),
            initial_resource_versions: if first {
                s.known
                    .iter()
                    .map(|(n, r)| (n.clone(), r.version.clone()))
                    .collect()
            } else {
                HashMap::new()
            },
            ..Self::Request::default()
        };
        if first && !s.wildcard && s.names.is_empty() {
            state.sent = None; // would be taken for a wildcard
            return None;
        }
        (first
            || !request.resource_names_subscribe.is_empty()
            || !request.resource_names_unsubscribe.is_empty())
        .then_some(request)
    }

    fn set_node(request: &mut Self::Request, node: Node) {
        request.node = Some(node);
    }

    fn answer(state: &TypeState, nonce: String, error: Option<RpcStatus>) -> Self::Request {
        DeltaDiscoveryRequest {
            type_url: state.subscription.type_url.clone(),
            response_nonce: nonce,
            error_detail: error,
            ..Self::Request::default()
        }
    }

    fn head(response: &Self::Response) -> (&str, &str) {
        (&response.type_url, &response.nonce)
    }

    fn answered(response: &Self::Response) -> BTreeSet<String> {
        let resources = response.resources.iter().map(|r| &r.name);
        resources
            .chain(&response.removed_resources)
            .cloned()
            .collect()
    }

    fn accept(s: &mut Subscription, r: Self::Response, h: &mut dyn ResourceHandler) -> Outcome {
        s.accept_delta(r, h)
    }
}

impl Wire for Sotw {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn request(state: &mut TypeState) -> Option<Self::Request> {
        let s = &state.subscription;
        let unchanged = match &state.sent {
            Some(sent) => *sent == s.names,
            // An empty first request would be taken for a wildcard.
            None => !s.wildcard && s.names.is_empty(),
        };
        if unchanged {
            return None;
        }
        state.sent = Some(s.names.clone());
        Some(Self::answer(state, state.nonce.clone(), None))
    }

    fn set_node(request: &mut Self::Request, node: Node) {
        request.node = Some(node);
    }

    fn answer(state: &TypeState, nonce: String, error: Option<RpcStatus>) -> Self::Request {
        let s = &state.subscription;
        DiscoveryRequest {
            type_url: s.type_url.clone(),
            version_info: s.version.clone(),
            // What was asked for before, so that a change is a request of its own.
            resource_names: state.sent.iter().flatten().cloned().collect(),
            response_nonce: nonce,
            error_detail: error,
            ..Self::Request::default()
        }
    }

    fn head(response: &Self::Response) -> (&str, &str) {
        (&response.type_url, &response.nonce)
    }

    fn answered(_: &Self::Response) -> BTreeSet<String> {
        BTreeSet::new()
    }

    fn accept(s: &mut Subscription, r: Self::Response, h: &mut dyn ResourceHandler) -> Outcome {
        s.accept_sotw(r, h)
    }
}
