use super::*;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use prost::Message as _;

#[test]
fn sections_filters_and_errors() {
    let store = ConfigStore::default();
    let cluster = |name: &str| Resource {
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".into(),
        value: Cluster {
            name: name.into(),
            ..Default::default()
        }
        .encode_to_vec()
        .into(),
    };
    store.set_bootstrap(Bytes::new());
    store.accepted(Kind::Cluster, "s", "", cluster("s"), true);
    store.accepted(Kind::Cluster, "d", "7", cluster("d"), false);
    store.rejected(Kind::Cluster, "d", "8", cluster("d"), "no good");
    let dump = |r: DumpRequest| store.dump(&r);
    let all = dump(DumpRequest::default()).unwrap();
    assert_eq!(all["configs"].as_array().unwrap().len(), 6);
    let clusters = &all["configs"][1];
    assert_eq!(clusters["version_info"], "7");
    assert_eq!(clusters["static_clusters"][0]["cluster"]["name"], "s");
    let active = &clusters["dynamic_active_clusters"][0];
    assert_eq!(active["error_state"]["details"], "no good");
    let ask = |resource: &str, mask: Option<&str>| {
        dump(DumpRequest {
            resource: Some(resource.into()),
            mask: mask.map(Into::into),
            ..Default::default()
        })
    };
    let one = ask("dynamic_active_clusters", Some("cluster.name")).unwrap();
    assert_eq!(one["configs"][0]["cluster"]["name"], "d");
    assert!(one["configs"][0].get("last_updated").is_none());
    assert_eq!(
        ask("nope", None).unwrap_err().message,
        "nope not found in config dump"
    );
    assert_eq!(ask("bootstrap", None).unwrap_err().status, 400);
    let named = dump(DumpRequest {
        name_regex: Some("s".into()),
        ..Default::default()
    })
    .unwrap();
    assert!(named["configs"][1].get("dynamic_active_clusters").is_none());
    assert!(
        dump(DumpRequest {
            name_regex: Some("(".into()),
            ..Default::default()
        })
        .is_err()
    );
}

#[test]
fn routes_inside_of_listeners_are_shown_as_static_ones() {
    use envoy_types::pb::envoy::config::listener::v3::{
        Filter, FilterChain, Listener, filter::ConfigType,
    };
    use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
    use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
    let manager = hcm::HttpConnectionManager {
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::RouteConfig(
            RouteConfiguration {
                name: "inline".into(),
                ..Default::default()
            },
        )),
        ..Default::default()
    };
    let listener = Listener {
        name: "l".into(),
        filter_chains: vec![FilterChain {
            filters: vec![Filter {
                config_type: Some(ConfigType::TypedConfig(xds_client::any::pack(&manager))),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    };
    let store = ConfigStore::default();
    let resource = Resource {
        type_url: "type.googleapis.com/envoy.config.listener.v3.Listener".into(),
        value: listener.encode_to_vec().into(),
    };
    store.accepted(Kind::Listener, "l", "3", resource, false);
    let ask = |regex: &str| {
        let request = DumpRequest {
            resource: Some("static_route_configs".into()),
            name_regex: Some(regex.into()),
            ..Default::default()
        };
        store.dump(&request).unwrap()["configs"].clone()
    };
    assert_eq!(ask("in.*")[0]["route_config"]["name"], "inline");
    assert_eq!(ask("other"), json!([]));
}
