//! Load while everything changes ten times a second, through files. `conformance/run churn` does the same for longer
//! and over ADS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::client::{Http1, Http2};
use crate::fairway::{Fairway, Home, assignment, cluster, listener_with};
use crate::upstream;

const TIME: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(100);

fn resources(home: &Home, name: &str, all: &[String]) {
    home.write(name, &format!("{{\"resources\": [{}]}}", all.join(",\n")));
}

/// Writes the configuration as it is at step `n`.
fn write(home: &Home, n: usize, ups: &[SocketAddr; 3]) {
    let file = |name: &str| home.path(name).display().to_string();
    let typed = |url: &str, json: String| {
        json.replacen(
            '{',
            &format!("{{\"@type\": \"type.googleapis.com/{url}\", "),
            1,
        )
    };
    // Endpoints come and go; at least one stays over each step.
    let some = [&ups[n % 3..n % 3 + 1], &ups[..], &ups[1..]][n % 3];
    let endpoints = assignment("up", some);
    resources(
        home,
        "eds.json",
        &[typed(
            "envoy.config.endpoint.v3.ClusterLoadAssignment",
            endpoints,
        )],
    );
    let eds = format!(
        r#"{{"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "up", "type": "EDS",
        "connect_timeout": "{}s", "eds_cluster_config": {{"eds_config": {{"path_config_source": {{"path": "{}"}}}}}}}}"#,
        5 + n / 4 % 2,
        file("eds.json")
    );
    let mut clusters = vec![eds, cluster("fixed", ups[0])];
    if n.is_multiple_of(2) {
        clusters.push(cluster("now-and-then", ups[1]));
    }
    resources(home, "cds.json", &clusters);
    let target = ["up", "fixed"][n / 3 % 2];
    let routes = format!(
        r#"{{"@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration", "name": "routes",
        "virtual_hosts": [{{"name": "all", "domains": ["*"], "routes": [
        {{"match": {{"path": "/step-{n}"}}, "route": {{"cluster": "now-and-then"}}}},
        {{"match": {{"prefix": "/"}}, "route": {{"cluster": "{target}"}}}}]}}]}}"#
    );
    resources(home, "rds.json", &[routes]);
    let rds = |prefix: &str| {
        format!(
            r#""server_name": "{prefix}", "rds": {{"route_config_name": "routes", "config_source": {{"path_config_source": {{"path": "{}"}}}}}}"#,
            file("rds.json")
        )
    };
    // Every third step exchanges the filter chain of `main`, and its connections drain.
    let mut listeners = vec![listener_with("main", 0, &rds(&format!("v{}", n / 3)), None)];
    if n % 2 == 1 {
        listeners.push(listener_with("now-and-then", 0, &rds("x"), None));
    }
    resources(home, "lds.json", &listeners);
}

fn http1_load(to: SocketAddr, stop: &AtomicBool) -> u32 {
    let mut served = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut connection = Http1::connect(to).expect("connect");
        while !stop.load(Ordering::Relaxed) {
            let answer = connection.get("/").expect("a request was lost");
            assert_eq!(answer.status, 200, "{answer:?}");
            served += 1;
            if answer.close {
                break;
            }
        }
    }
    served
}

fn http2_load(to: SocketAddr, stop: &AtomicBool) -> u32 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut served = 0;
        while !stop.load(Ordering::Relaxed) {
            let mut connection = Http2::connect(to).await.expect("connect");
            while !stop.load(Ordering::Relaxed) {
                match connection.get("/").await {
                    Some(answer) => assert_eq!(answer.expect("a stream was lost"), 200),
                    None => break,
                }
                served += 1;
            }
        }
        served
    })
}

#[test]
fn no_request_fails_while_everything_changes() {
    let home = Home::new();
    let ups = ["a", "b", "c"].map(|name| upstream::start(name, Duration::from_millis(1)));
    write(&home, 0, &ups);
    let source = |name: &str| {
        let path = home.path(name);
        format!("{{path_config_source: {{path: {}}}}}", path.display())
    };
    let text = format!(
        "node: {{id: n, cluster: c}}\n\
         admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n\
         dynamic_resources: {{lds_config: {}, cds_config: {}}}\n",
        source("lds.json"),
        source("cds.json")
    );
    let drain = ["--drain-time-s", "5", "--drain-strategy", "immediate"];
    let fairway = Fairway::start(&home, &text, &drain);
    let to = fairway.listener("main");
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|i| {
            let stop = stop.clone();
            std::thread::spawn(move || match i % 2 {
                0 => http1_load(to, &stop),
                _ => http2_load(to, &stop),
            })
        })
        .collect();
    let steps = TIME.as_millis() / STEP.as_millis();
    for n in 1..=steps as usize {
        std::thread::sleep(STEP);
        write(&home, n, &ups);
    }
    let applied = fairway.stat("listener_manager.lds.update_success").unwrap();
    let rejected = fairway.stat("listener_manager.lds.update_rejected");
    stop.store(true, Ordering::Relaxed);
    let served: u32 = clients.into_iter().map(|c| c.join().unwrap()).sum();
    assert!(applied >= 3 && served > 100, "{applied} {served}");
    assert_eq!(rejected, Some(0));
    assert_eq!(fairway.listener("main"), to, "changed in place");
}
