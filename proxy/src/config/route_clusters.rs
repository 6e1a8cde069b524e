//! `validate_clusters`: whether the clusters that routes name are there.

use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::{RouteAction, RouteConfiguration};
use xds_client::error::{At, ConfigError};

/// Refuses routes to clusters that are not `known`, where the configuration asks for that. `default` is what holds
/// when it says nothing: true for routes inside of a listener, false for RDS.
///
/// # Errors
/// The path of the first name that is not known.
pub fn check(
    config: &RouteConfiguration,
    default: bool,
    known: &dyn Fn(&str) -> bool,
) -> Result<(), ConfigError> {
    let wanted = config
        .validate_clusters
        .as_ref()
        .map_or(default, |v| v.value);
    if !wanted {
        return Ok(());
    }
    for (i, host) in config.virtual_hosts.iter().enumerate() {
        for (j, route) in host.routes.iter().enumerate() {
            if let Some(Action::Route(action)) = &route.action {
                let path = || format!("virtual_hosts[{i}].routes[{j}].route");
                check_action(action, known).map_err(|e| e.at(path()))?;
            }
        }
    }
    Ok(())
}

fn check_action(action: &RouteAction, known: &dyn Fn(&str) -> bool) -> Result<(), ConfigError> {
    let check = |name: &str| {
        let error = || ConfigError::new(format!("unknown cluster '{name}'"));
        known(name).then_some(()).ok_or_else(error)
    };
    match &action.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => check(name).at("cluster"),
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            for (i, cluster) in weighted.clusters.iter().enumerate() {
                // One without a name has it in a header.
                if !cluster.name.is_empty() {
                    check(&cluster.name).at(format!("weighted_clusters.clusters[{i}].name"))?;
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use xds_client::json::{Pool, UnknownFields};

    fn routes(validate: Option<bool>, action: &serde_json::Value) -> RouteConfiguration {
        let json = json!({"validate_clusters": validate, "virtual_hosts": [{"name": "v", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": action}]}]});
        let pool = Pool::load().unwrap();
        pool.parse_as(&json, UnknownFields::Reject).unwrap()
    }

    #[test]
    fn unknown_clusters_are_refused_where_asked_for() {
        let known = |name: &str| name == "here";
        let run = |validate, default, action: serde_json::Value| {
            check(&routes(validate, &action), default, &known).map_err(|e| e.path().to_owned())
        };
        let at = "virtual_hosts[0].routes[0].route";
        let gone = || json!({"cluster": "gone"});
        assert_eq!(run(None, true, json!({"cluster": "here"})), Ok(()));
        assert_eq!(run(None, true, gone()), Err(format!("{at}.cluster")));
        assert_eq!(run(None, false, gone()), Ok(()));
        assert_eq!(run(Some(false), true, gone()), Ok(()));
        assert_eq!(run(Some(true), false, gone()), Err(format!("{at}.cluster")));
        let weighted = json!({"weighted_clusters": {"clusters": [
            {"name": "here", "weight": 1}, {"cluster_header": "x", "weight": 1}, {"name": "gone", "weight": 1}]}});
        assert_eq!(
            run(None, true, weighted),
            Err(format!("{at}.weighted_clusters.clusters[2].name"))
        );
        assert_eq!(run(None, true, json!({"cluster_header": "x"})), Ok(()));
    }
}
