//! Load while everything changes ten times a second, through files and through ADS. `conformance/run churn` runs the
//! same for 30 seconds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::client::{Http1, Http2};
use crate::control_plane::{ControlPlane, resource};
use crate::fairway::{Fairway, Home, assignment, cluster, listener_with};
use crate::upstream;
use crate::xds::{self, CDS, EDS, LDS, RDS};

const STEP: Duration = Duration::from_millis(100);

/// How long: `FAIRWAY_CHURN_SECONDS`, or three seconds.
fn time() -> Duration {
    let seconds = std::env::var("FAIRWAY_CHURN_SECONDS").ok();
    Duration::from_secs(seconds.and_then(|s| s.parse().ok()).unwrap_or(3))
}

/// The whole configuration at one step, each resource as JSON.
struct World {
    clusters: Vec<(&'static str, String)>,
    endpoints: String,
    routes: String,
    listeners: Vec<(&'static str, String)>,
}

/// The configuration at step `n`; `eds` and `rds` are the sources of endpoints and routes.
fn world(n: usize, ups: &[SocketAddr; 3], eds: &str, rds: &str) -> World {
    // Endpoints come and go; at least one stays over each step.
    let some = [&ups[n % 3..n % 3 + 1], &ups[..], &ups[1..]][n % 3];
    let endpoints = assignment("up", some).replacen('{', &format!(r#"{{"@type": "{EDS}", "#), 1);
    let timeout = 5 + n / 4 % 2;
    let changing = format!(
        r#"{{"@type": "{CDS}", "name": "up", "type": "EDS", "connect_timeout": "{timeout}s",
        "eds_cluster_config": {{"eds_config": {eds}}}}}"#
    );
    let mut clusters = vec![("up", changing), ("fixed", cluster("fixed", ups[0]))];
    if n.is_multiple_of(2) {
        clusters.push(("now-and-then", cluster("now-and-then", ups[1])));
    }
    let target = ["up", "fixed"][n / 3 % 2];
    let routes = format!(
        r#"{{"@type": "{RDS}", "name": "routes", "virtual_hosts": [{{"name": "all", "domains": ["*"], "routes": [
        {{"match": {{"path": "/step-{n}"}}, "route": {{"cluster": "now-and-then"}}}},
        {{"match": {{"prefix": "/"}}, "route": {{"cluster": "{target}"}}}}]}}]}}"#
    );
    let listener = |name: &'static str, version: usize| {
        let manager = format!(
            r#""server_name": "v{version}", "rds": {{"route_config_name": "routes", "config_source": {rds}}}"#
        );
        (name, listener_with(name, 0, &manager, None))
    };
    // Every third step exchanges the filter chain of `main`, and its connections drain.
    let mut listeners = vec![listener("main", n / 3)];
    if !n.is_multiple_of(2) {
        listeners.push(listener("now-and-then", 0));
    }
    World {
        clusters,
        endpoints,
        routes,
        listeners,
    }
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

/// Loads `main` while `change` makes the steps from 1 on.
fn run(fairway: &Fairway, mut change: impl FnMut(usize)) {
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
    let end = Instant::now() + time();
    let mut steps = 0;
    while Instant::now() < end && clients.iter().all(|c| !c.is_finished()) {
        std::thread::sleep(STEP);
        steps += 1;
        change(steps);
    }
    stop.store(true, Ordering::Relaxed);
    let served: u32 = clients.into_iter().map(|c| c.join().unwrap()).sum();
    let stat = |name: &str| fairway.stat(name).unwrap();
    let applied = stat("listener_manager.lds.update_success");
    println!("{served} requests, {steps} changes, {applied} updates of the listeners");
    assert!(applied >= 3 && served > 100, "{applied} {served}");
    assert_eq!(stat("listener_manager.lds.update_rejected"), 0);
    assert_eq!(stat("cluster_manager.cds.update_rejected"), 0);
    assert_eq!(fairway.listener("main"), to, "changed in place");
}

fn upstreams() -> [SocketAddr; 3] {
    ["a", "b", "c"].map(|name| upstream::start(name, Duration::from_millis(1)))
}

const DRAIN: [&str; 4] = ["--drain-time-s", "5", "--drain-strategy", "immediate"];

#[test]
fn no_request_fails_while_files_change() {
    let (home, ups) = (Home::new(), upstreams());
    let source = |name: &str| {
        let path = home.path(name);
        format!(
            r#"{{"path_config_source": {{"path": "{}"}}}}"#,
            path.display()
        )
    };
    let write = |n: usize| {
        let world = world(n, &ups, &source("eds.json"), &source("rds.json"));
        let write = |name: &str, all: Vec<String>| {
            home.write(name, &format!("{{\"resources\": [{}]}}", all.join(",\n")));
        };
        let text = |all: Vec<(&str, String)>| all.into_iter().map(|(_, json)| json).collect();
        write("eds.json", vec![world.endpoints]);
        write("cds.json", text(world.clusters));
        write("rds.json", vec![world.routes]);
        write("lds.json", text(world.listeners));
    };
    write(0);
    let text = format!(
        "node: {{id: n, cluster: c}}\n\
         admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n\
         dynamic_resources: {{lds_config: {}, cds_config: {}}}\n",
        source("lds.json"),
        source("cds.json")
    );
    let fairway = Fairway::start(&home, &text, &DRAIN);
    run(&fairway, write);
}

fn over_ads(protocol: &str) {
    let (home, ups) = (Home::new(), upstreams());
    let control = ControlPlane::start(&home.path("xds"));
    // Held, or every resource would load the descriptors anew.
    let _descriptors = xds_client::json::Pool::load().unwrap();
    let change = |n: usize| {
        let ads = r#"{"ads": {}, "resource_api_version": "V3"}"#;
        let world = world(n, &ups, ads, ads);
        let sometimes = |url: &str, present: bool| {
            if !present && n > 0 {
                control.remove(url, "now-and-then");
            }
        };
        sometimes(LDS, world.listeners.len() > 1);
        let mut all = vec![
            ("up", resource(&world.endpoints)),
            ("routes", resource(&world.routes)),
        ];
        let rest = world.clusters.iter().chain(&world.listeners);
        all.extend(rest.map(|(name, json)| (*name, resource(json))));
        control.set(&all);
        sometimes(CDS, world.clusters.len() > 2);
    };
    change(0);
    let text = xds::bootstrap(&control.socket, protocol, "0s", "");
    let fairway = Fairway::start(&home, &text, &DRAIN);
    run(&fairway, change);
}

#[test]
fn no_request_fails_while_a_state_of_the_world_changes() {
    over_ads("GRPC");
}

#[test]
fn no_request_fails_while_deltas_come() {
    over_ads("DELTA_GRPC");
}
