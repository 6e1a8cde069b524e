//! The gRPC methods of the discovery services.

use super::Protocol;
use crate::json::name_of;

/// The method of the aggregated discovery service.
pub fn ads_method(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Delta => {
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
        }
        Protocol::StateOfTheWorld => {
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
        }
    }
}

/// The method of a type's own service (an `api_config_source`), `None` for a type that has none here.
pub fn method(type_url: &str, protocol: Protocol) -> Option<&'static str> {
    let delta = protocol == Protocol::Delta;
    Some(match (name_of(type_url), delta) {
        ("envoy.config.cluster.v3.Cluster", true) => {
            "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters"
        }
        ("envoy.config.cluster.v3.Cluster", false) => {
            "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters"
        }
        ("envoy.config.endpoint.v3.ClusterLoadAssignment", true) => {
            "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints"
        }
        ("envoy.config.endpoint.v3.ClusterLoadAssignment", false) => {
            "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints"
        }
        ("envoy.config.listener.v3.Listener", true) => {
            "/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners"
        }
        ("envoy.config.listener.v3.Listener", false) => {
            "/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners"
        }
        ("envoy.config.route.v3.RouteConfiguration", true) => {
            "/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes"
        }
        ("envoy.config.route.v3.RouteConfiguration", false) => {
            "/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes"
        }
        ("envoy.extensions.transport_sockets.tls.v3.Secret", true) => {
            "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets"
        }
        ("envoy.extensions.transport_sockets.tls.v3.Secret", false) => {
            "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"
        }
        ("envoy.service.runtime.v3.Runtime", true) => {
            "/envoy.service.runtime.v3.RuntimeDiscoveryService/DeltaRuntime"
        }
        ("envoy.service.runtime.v3.Runtime", false) => {
            "/envoy.service.runtime.v3.RuntimeDiscoveryService/StreamRuntime"
        }
        ("envoy.config.core.v3.TypedExtensionConfig", true) => {
            "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/DeltaExtensionConfigs"
        }
        ("envoy.config.core.v3.TypedExtensionConfig", false) => {
            "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs"
        }
        _ => return None,
    })
}
