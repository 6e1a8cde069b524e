//! Finds the route configurations inside of a listener.

use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use hcm::http_connection_manager::RouteSpecifier;
use prost::Message as _;

/// Those of all its connection managers. `listener` is an encoded listener that is in force.
pub(super) fn of_listener(listener: &[u8]) -> Vec<RouteConfiguration> {
    let Ok(listener) = Listener::decode(listener) else {
        return Vec::new();
    };
    let chains = listener.filter_chains.into_iter();
    let chains = chains.chain(listener.default_filter_chain);
    let filters = chains.flat_map(|chain| chain.filters);
    filters
        .filter_map(|filter| match filter.config_type {
            Some(ConfigType::TypedConfig(any)) => {
                xds_client::any::unpack::<hcm::HttpConnectionManager>(&any).ok()
            }
            _ => None,
        })
        .filter_map(|manager| match manager.route_specifier {
            Some(RouteSpecifier::RouteConfig(routes)) => Some(routes),
            _ => None,
        })
        .collect()
}
