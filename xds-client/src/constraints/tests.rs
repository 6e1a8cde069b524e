use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use prost::Name;
use serde_json::json;

use super::*;
use crate::json::{Pool, UnknownFields};

fn of<M: Name>(json: &serde_json::Value) -> Result<()> {
    let pool = Pool::load().unwrap();
    let message = pool.parse(&M::full_name(), json, UnknownFields::Reject);
    check(&M::full_name(), &message.unwrap().encode_to_vec())
}

fn error<M: Name>(json: &serde_json::Value) -> String {
    of::<M>(json).unwrap_err().to_string()
}

#[test]
fn required_fields_and_lengths() {
    assert_eq!(
        error::<Cluster>(&json!({})),
        "name: value must have at least 1 characters"
    );
    of::<Cluster>(&json!({"name": "c"})).unwrap();
    let route = |r: serde_json::Value| json!({"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [r]}]});
    let at = "virtual_hosts[0].routes[0]";
    assert_eq!(
        error::<RouteConfiguration>(&route(json!({"route": {"cluster": "c"}}))),
        format!("{at}.match: value is required")
    );
    assert_eq!(
        error::<RouteConfiguration>(&route(json!({"match": {}}))),
        format!("{at}.action: value is required")
    );
    assert_eq!(
        error::<RouteConfiguration>(&json!({"virtual_hosts": [{"name": "v"}]})),
        "virtual_hosts[0].domains: value must have at least 1 item(s)"
    );
    of::<RouteConfiguration>(&route(json!({"match": {"prefix": ""}, "redirect": {}}))).unwrap();
}

#[test]
fn ranges_of_numbers_durations_and_wrappers() {
    let bad = |field: &str, value: serde_json::Value| {
        error::<Cluster>(&json!({"name": "c", field: value}))
    };
    assert_eq!(
        bad("connect_timeout", json!("0s")),
        "connect_timeout: value must be greater than 0s"
    );
    assert_eq!(
        bad("connect_timeout", json!("-1s")),
        "connect_timeout: value must be greater than 0s"
    );
    assert_eq!(
        bad("dns_refresh_rate", json!("0.0005s")),
        "dns_refresh_rate: value must be greater than 0.001s"
    );
    let http2 = json!({"initial_stream_window_size": 65_534});
    assert_eq!(
        bad("http2_protocol_options", http2),
        "http2_protocol_options.initial_stream_window_size: value must be greater than or equal \
         to 65535 and less than or equal to 2147483647"
    );
    of::<Cluster>(&json!({"name": "c", "connect_timeout": "0.25s", "dns_refresh_rate": "0.002s"}))
        .unwrap();
    let weighted = |percent: f64| json!({"name": "c", "common_lb_config": {"healthy_panic_threshold": {"value": percent}}});
    of::<Cluster>(&weighted(100.0)).unwrap();
    assert!(error::<Cluster>(&weighted(100.5)).ends_with("less than or equal to 100"));
    assert!(error::<Cluster>(&weighted(-1.0)).contains("healthy_panic_threshold.value"));
}

#[test]
fn enums_headers_and_elements() {
    let listener = |direction: i32| json!({"traffic_direction": direction});
    of::<Listener>(&listener(1)).unwrap();
    let rows = json!({"response_headers_to_remove": ["a b", "c\n"], "name": "r"});
    assert_eq!(
        error::<RouteConfiguration>(&rows),
        "response_headers_to_remove[1]: value must be a valid header name"
    );
    // As istiod sends them: the name of the cluster, and no header.
    let weighted = json!({"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"},
        "route": {"weighted_clusters": {"clusters": [{"name": "c", "weight": 1}]}}}]}]});
    of::<RouteConfiguration>(&weighted).unwrap();
    let policy = json!({"name": "c", "lb_policy": 99});
    assert_eq!(
        error::<Cluster>(&policy),
        "lb_policy: value must be one of the defined enum values"
    );
}

#[test]
fn what_any_and_typed_structs_carry_is_checked() {
    let name = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let with = |config: serde_json::Value| json!({"filter_chains": [{"filters": [{"name": "h", "typed_config": config}]}]});
    let manager = json!({"@type": format!("type.googleapis.com/{name}"), "route_config": {}});
    let at = "filter_chains[0].filters[0].typed_config";
    assert_eq!(
        error::<Listener>(&with(manager)),
        format!("{at}.stat_prefix: value must have at least 1 characters")
    );
    for wrapper in ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"] {
        let manager = json!({"@type": format!("type.googleapis.com/{wrapper}"),
            "type_url": format!("type.googleapis.com/{name}"), "value": {"stat_prefix": "s"}});
        assert_eq!(
            error::<Listener>(&with(manager)),
            format!("{at}.value.route_specifier: value is required")
        );
    }
    let unknown = json!({"@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
        "type_url": "type.googleapis.com/no.such.Type", "value": {"a": 1}});
    of::<Listener>(&with(unknown)).unwrap();
}

#[test]
fn refused_fields_are_found_wherever_they_are() {
    let refused: Refused = [
        ("envoy.config.route.v3.Route", vec!["decorator"]),
        (
            "envoy.config.listener.v3.Listener",
            vec!["freebind", "stat_prefix"],
        ),
    ]
    .into();
    let pool = Pool::load().unwrap();
    let run = |json: serde_json::Value| {
        let message = pool.parse(&Listener::full_name(), &json, UnknownFields::Reject);
        check_with(
            &Listener::full_name(),
            &message.unwrap().encode_to_vec(),
            &refused,
        )
        .map_err(|e| e.to_string())
    };
    run(json!({"freebind": false})).unwrap();
    assert_eq!(
        run(json!({"freebind": true})).unwrap_err(),
        "freebind: not supported"
    );
    assert_eq!(
        run(json!({"stat_prefix": "x"})).unwrap_err(),
        "stat_prefix: not supported"
    );
    let name = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let manager = json!({"@type": format!("type.googleapis.com/{name}"), "stat_prefix": "s", "route_config": {
        "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "redirect": {}, "decorator": {"operation": "o"}}]}]}});
    let chain = json!({"filter_chains": [{"filters": [{"name": "h", "typed_config": manager}]}]});
    assert_eq!(
        run(chain).unwrap_err(),
        "filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].decorator: not supported"
    );
}

#[test]
fn damaged_bytes_and_endless_nesting_are_errors() {
    let name = Listener::full_name();
    for bytes in [
        &[0x0a, 0x05, b'a'][..],
        &[0xff; 12],
        &[0x0b],
        &[0x1a, 1, 0xff],
    ] {
        assert!(check(&name, bytes).is_err(), "{bytes:x?}");
    }
    let mut any = Any::default();
    for _ in 0..300 {
        any = Any {
            type_url: "t/envoy.config.core.v3.TypedExtensionConfig".into(),
            value: envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig {
                name: "n".into(),
                typed_config: Some(any),
            }
            .encode_to_vec(),
        };
    }
    let error = check("envoy.config.core.v3.TypedExtensionConfig", &any.value).unwrap_err();
    assert_eq!(error.reason(), "nested too deeply");
}

#[test]
fn every_line_of_the_table_is_found_and_compiles() {
    let mut seen = 0;
    for text in TABLE.lines() {
        let name = text.split('\t').next().unwrap();
        compile(name, line(name).unwrap()).unwrap();
        seen += 1;
    }
    assert!(seen > 500, "{seen}");
    assert!(line("envoy.config.cluster.v3.Clust").is_none());
    assert!(line("zzz").is_none() && line("").is_none());
}
