//! Configuration that comes, changes and goes while the process runs.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use envoy_types::pb::google::protobuf::Any;

use crate::client::Http1;
use crate::control_plane::{ControlPlane, resource};
use crate::fairway::{
    self, BINARY, Fairway, Home, assignment, cluster, listener_with, until, untyped,
};
use crate::upstream;

const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const PROTOCOLS: [&str; 2] = ["GRPC", "DELTA_GRPC"];

/// A bootstrap whose only static resource is the cluster of the control plane.
fn bootstrap(socket: &Path, protocol: &str, fetch_timeout: &str, more: &str) -> String {
    let source =
        format!("{{ads: {{}}, resource_api_version: V3, initial_fetch_timeout: {fetch_timeout}}}");
    format!(
        r#"
node: {{id: node-1, cluster: cluster-1, metadata: {{kind: test}}}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
dynamic_resources:
  ads_config:
    api_type: {protocol}
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]
  lds_config: {source}
  cds_config: {source}
static_resources:
  clusters:
  - name: xds
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: xds
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: {socket}}}}}}}}}]}}]
{more}
"#,
        socket = socket.display()
    )
}

fn main_listener() -> Any {
    let routes = r#""rds": {"route_config_name": "routes", "config_source": {"ads": {}, "resource_api_version": "V3"}}"#;
    resource(&listener_with("main", 0, routes, None))
}

fn routes(path: &str) -> Any {
    resource(&format!(
        r#"{{"@type": "{RDS}", "name": "routes", "virtual_hosts": [{{"name": "all", "domains": ["*"],
        "routes": [{{"match": {{"prefix": "{path}"}}, "route": {{"cluster": "up"}}}}]}}]}}"#
    ))
}

fn eds_cluster() -> Any {
    resource(&format!(
        r#"{{"@type": "{CDS}", "name": "up", "type": "EDS", "connect_timeout": "5s",
        "eds_cluster_config": {{"eds_config": {{"ads": {{}}, "resource_api_version": "V3"}}}}}}"#
    ))
}

fn endpoints(name: &'static str) -> Any {
    let up = upstream::start(name, Duration::ZERO);
    let json = assignment("up", &[up]);
    resource(&json.replacen('{', &format!(r#"{{"@type": "{EDS}", "#), 1))
}

/// Everything `main` needs to answer with `name`.
fn world(name: &'static str) -> [(&'static str, Any); 4] {
    [
        ("up", eds_cluster()),
        ("up", endpoints(name)),
        ("main", main_listener()),
        ("routes", routes("/")),
    ]
}

fn get(fairway: &Fairway, path: &str) -> (u16, String) {
    let answer = Http1::connect(fairway.listener("main")).and_then(|mut c| c.get(path));
    let answer = answer.expect("a request was lost");
    (answer.status, answer.body)
}

fn answers(fairway: &Fairway, name: &str) {
    until(&format!("an answer of {name}"), || {
        get(fairway, "/").1 == name
    });
}

#[test]
fn resources_arrive_change_and_go() {
    for protocol in PROTOCOLS {
        let home = Home::new();
        let control = ControlPlane::start(&home.path("xds"));
        control.set(&world("one"));
        let text = bootstrap(&control.socket, protocol, "0s", "");
        let fairway = Fairway::start(&home, &text, &["--drain-time-s", "1"]);
        assert_eq!(get(&fairway, "/"), (200, "one".into()));
        assert_eq!(fairway.stat("cluster_manager.cds.update_success"), Some(1));
        assert_eq!(fairway.stat("control_plane.connected_state"), Some(1));

        control.set(&[("up", endpoints("two"))]);
        answers(&fairway, "two");
        // A cluster that is sent again waits for its endpoints; the old one serves meanwhile.
        control.set(&[("up", eds_cluster())]);
        control.set(&[("routes", routes("/only"))]);
        until("the new routes", || get(&fairway, "/").0 == 404);
        assert_eq!(get(&fairway, "/only").1, "two");

        // With the state of the world only clusters and listeners go by not being there.
        control.remove(RDS, "routes");
        control.remove(EDS, "up");
        control.set(&[(
            "other",
            resource(&cluster("other", "127.0.0.1:1".parse().unwrap())),
        )]);
        until("the other cluster", || {
            fairway.get("/clusters").1.contains("other::")
        });
        let kept = get(&fairway, "/only").0;
        match protocol {
            "GRPC" => assert_eq!(kept, 200),
            _ => until("the routes' end", || get(&fairway, "/only").0 == 404),
        }
        control.remove(LDS, "main");
        until("the listener's end", || {
            fairway.find_listener("main").is_none()
        });
        control.remove(CDS, "other");
        until("the cluster's end", || {
            !fairway.get("/clusters").1.contains("other::")
        });
    }
}

#[test]
fn the_node_is_told_as_envoy_tells_it_and_only_once() {
    let home = Home::new();
    let control = ControlPlane::start(&home.path("xds"));
    control.set(&world("one"));
    let text = bootstrap(&control.socket, "GRPC", "0s", "");
    let fairway = Fairway::start(&home, &text, &["--service-zone", "zone-1"]);
    answers(&fairway, "one");
    let requests = control.requests(CDS);
    let node = requests[0].node.clone().unwrap();
    assert_eq!(
        (node.id.as_str(), node.cluster.as_str()),
        ("node-1", "cluster-1")
    );
    assert_eq!(node.locality.unwrap().zone, "zone-1");
    assert!(node.metadata.unwrap().fields.contains_key("kind"));
    assert_eq!(node.user_agent_name, "envoy");
    assert!(node.user_agent_version_type.is_some());
    let router = "envoy.filters.http.router";
    assert!(
        node.extensions.iter().any(|e| e.name == router),
        "{:?}",
        node.extensions
    );
    assert!(!node.client_features.is_empty());
    assert!(requests[1..].iter().all(|r| r.node.is_none()));
    assert!(control.requests(LDS).iter().all(|r| r.node.is_none()));
}

#[test]
fn a_control_plane_that_dies_stops_nothing_and_is_found_again() {
    for protocol in PROTOCOLS {
        let home = Home::new();
        let mut control = ControlPlane::start(&home.path("xds"));
        control.set(&world("one"));
        let fairway = Fairway::start(&home, &bootstrap(&control.socket, protocol, "0s", ""), &[]);
        answers(&fairway, "one");
        control.kill();
        until("the stream's end", || {
            fairway.stat("control_plane.connected_state") == Some(0)
        });
        for _ in 0..20 {
            assert_eq!(get(&fairway, "/"), (200, "one".into()));
        }
        let before = (control.requests(CDS).len(), control.deltas(CDS).len());
        control.set(&[("up", endpoints("two"))]);
        control.revive();
        answers(&fairway, "two");
        assert!(control.streams() >= 2);
        if protocol == "GRPC" {
            let first = &control.requests(CDS)[before.0];
            assert!(first.node.is_some() && first.response_nonce.is_empty());
            assert!(!first.version_info.is_empty());
        } else {
            let first = &control.deltas(CDS)[before.1];
            assert!(first.node.is_some());
            assert!(first.initial_resource_versions.contains_key("up"));
        }
    }
}

#[test]
fn what_cannot_be_used_is_refused_and_the_last_good_serves_on() {
    for protocol in PROTOCOLS {
        let home = Home::new();
        let control = ControlPlane::start(&home.path("xds"));
        control.set(&world("one"));
        let fairway = Fairway::start(&home, &bootstrap(&control.socket, protocol, "0s", ""), &[]);
        answers(&fairway, "one");
        let nacks = |url: &str| -> Vec<String> {
            let (sotw, delta) = (control.requests(url), control.deltas(url));
            let sotw = sotw.into_iter().filter_map(|r| r.error_detail);
            let errors = sotw.chain(delta.into_iter().filter_map(|r| r.error_detail));
            errors.map(|e| e.message).collect()
        };
        let garbage = |url: &str| Any {
            type_url: url.into(),
            value: b"\x0a\x04main\xff\xff\xff".to_vec(),
        };
        let no_regex = routes("/").value;
        let bad_route = resource(&format!(
            r#"{{"@type": "{RDS}", "name": "routes", "virtual_hosts": [{{"name": "all", "domains": ["*"],
            "routes": [{{"match": {{"safe_regex": {{"regex": "("}}}}, "route": {{"cluster": "up"}}}}]}}]}}"#
        ));
        assert_ne!(no_regex, bad_route.value);
        control.set(&[("routes", bad_route)]);
        until("the routes' NACK", || !nacks(RDS).is_empty());
        let nack = nacks(RDS).join("\n");
        assert!(
            nack.contains("routes[0].match") && nack.contains("regex"),
            "{nack}"
        );
        control.set(&[("main", garbage(LDS))]);
        until("the listener's NACK", || !nacks(LDS).is_empty());
        let mut wrong = endpoints("one");
        wrong.type_url = CDS.into();
        control.set(&[(
            "x",
            Any {
                type_url: CDS.into(),
                ..wrong
            },
        )]);
        control.set(&[("up", garbage(EDS))]);
        until("the endpoints' NACK", || !nacks(EDS).is_empty());
        for _ in 0..20 {
            assert_eq!(get(&fairway, "/"), (200, "one".into()));
        }
        let (_, dump) = fairway.get("/config_dump?resource=dynamic_route_configs");
        assert!(
            dump.contains("error_state") && dump.contains("last_update_attempt"),
            "{dump}"
        );
        assert_eq!(
            fairway.stat("listener_manager.lds.update_rejected"),
            Some(1)
        );
        control.set(&[
            ("routes", routes("/")),
            ("main", main_listener()),
            ("up", endpoints("two")),
        ]);
        answers(&fairway, "two");
        until("no error", || {
            let (_, dump) = fairway.get("/config_dump?resource=dynamic_route_configs");
            !dump.contains("error_state")
        });
    }
}

#[test]
fn a_control_plane_that_says_nothing_is_waited_for_as_long_as_told() {
    for (timeout, live) in [("0.3s", true), ("0s", false)] {
        let home = Home::new();
        let up = upstream::start("static", Duration::ZERO);
        let _silent = UnixListener::bind(home.path("xds")).unwrap();
        let more = format!(
            "  - {}\n  listeners: [{}]",
            untyped(&cluster("static", up)),
            untyped(&fairway::listener("main", 0, "static", None))
        );
        let text = bootstrap(&home.path("xds"), "DELTA_GRPC", timeout, &more);
        let fairway = Fairway::spawn(&home, &text, &[]);
        if live {
            until("ready", || fairway.get("/ready").0 == 200);
            assert_eq!(get(&fairway, "/").1, "static");
            assert_eq!(
                fairway.stat("cluster_manager.cds.init_fetch_timeout"),
                Some(1)
            );
        } else {
            assert_eq!(fairway.get("/ready"), (503, "PRE_INITIALIZING\n".into()));
            assert!(fairway.get("/init_dump").0 == 200);
        }
    }
}

#[test]
fn runtime_layers_come_over_ads() {
    let home = Home::new();
    let control = ControlPlane::start(&home.path("xds"));
    let layer = |limit: u32| {
        resource(&format!(
            r#"{{"@type": "type.googleapis.com/envoy.service.runtime.v3.Runtime", "name": "dynamic",
            "layer": {{"overload": {{"global_downstream_max_connections": {limit}}}}}}}"#
        ))
    };
    control.set(&world("one"));
    let more = "layered_runtime: {layers: [{name: dynamic, rtds_layer: {name: dynamic, rtds_config: {ads: {}, resource_api_version: V3}}}]}";
    let text = bootstrap(&control.socket, "DELTA_GRPC", "0s", more);
    let fairway = Fairway::spawn(&home, &text, &[]);
    until("the clusters", || {
        fairway.stat("cluster_manager.cds.update_success") == Some(1)
    });
    assert_eq!(fairway.get("/ready").0, 503, "waits for its runtime");
    control.set(&[("dynamic", layer(7))]);
    until("ready", || fairway.get("/ready").0 == 200);
    assert!(fairway.get("/runtime").1.contains("\"final_value\": \"7\""));
    let to = fairway.listener("main");
    assert_eq!(Http1::connect(to).unwrap().get("/").unwrap().status, 200);
    control.set(&[("dynamic", layer(0))]);
    until("the limit", || {
        Http1::connect(to).and_then(|mut c| c.get("/")).is_err()
    });
}

#[test]
fn sources_that_are_not_supported_are_refused_by_name() {
    let home = Home::new();
    let rest = bootstrap(&home.path("xds"), "REST", "0s", "");
    let no_file = bootstrap(&home.path("xds"), "GRPC", "0s", "").replacen(
        "lds_config: {ads: {}",
        "lds_config: {path_config_source: {path: /nowhere.json}",
        1,
    );
    for (text, said) in [
        (rest, "ads_config.api_type: REST"),
        (no_file, "/nowhere.json"),
    ] {
        let path = home.write("refused.yaml", &text);
        let output = Command::new("timeout")
            .arg("20")
            .arg(BINARY)
            .arg("-c")
            .arg(path)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(said), "{error}");
    }
}
