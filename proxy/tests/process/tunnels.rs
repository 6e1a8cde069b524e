//! Tunnels into the process, many of them in one connection.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use crate::fairway::{Fairway, Home, LONG};

/// CONNECT ends at `main`; what it carries goes on as HTTP at the internal listener `inner`.
const BOOTSTRAP: &str = r#"
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
bootstrap_extensions:
- name: internal_listener
  typed_config: {"@type": type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener}
static_resources:
  listeners:
  - name: main
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: outer
          codec_type: HTTP2
          http2_protocol_options: {allow_connect: true}
          upgrade_configs: [{upgrade_type: CONNECT}]
          http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {connect_matcher: {}}
                route: {cluster: inner, timeout: 0s, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}
  - name: inner
    internal_listener: {}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: inner
          http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{match: {prefix: /}, direct_response: {status: 200}}]
  clusters:
  - name: inner
    load_assignment:
      cluster_name: inner
      endpoints: [{lb_endpoints: [{endpoint: {address: {envoy_internal_address: {server_listener_name: inner}}}}]}]
"#;

const TUNNELS: u64 = 100;

type Requests = h2::client::SendRequest<Bytes>;
type Tunnel = (h2::SendStream<Bytes>, h2::RecvStream);

async fn connect(to: SocketAddr) -> Requests {
    let io = tokio::net::TcpStream::connect(to).await.unwrap();
    let (requests, connection) = h2::client::handshake(io).await.unwrap();
    tokio::spawn(connection);
    requests
}

async fn open(requests: &Requests) -> Tunnel {
    let mut requests = requests.clone().ready().await.unwrap();
    let request = http::Request::connect("10.0.0.1:80").body(()).unwrap();
    let (response, send) = requests.send_request(request, false).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    (send, response.into_body())
}

async fn is_served((send, received): &mut Tunnel) -> bool {
    let request = Bytes::from("GET / HTTP/1.1\r\nhost: a.test\r\n\r\n");
    send.send_data(request, false).unwrap();
    let answer = received.data().await.unwrap().unwrap();
    answer.starts_with(b"HTTP/1.1 200 OK\r\n")
}

#[tokio::test]
async fn those_of_one_connection_are_spread_over_the_workers() {
    let home = Home::new();
    let fairway = Fairway::start(&home, BOOTSTRAP, &[]);
    let requests = connect(fairway.listener("main")).await;
    let mut tunnels = Vec::new();
    for _ in 0..TUNNELS {
        let mut tunnel = open(&requests).await;
        assert!(is_served(&mut tunnel).await);
        tunnels.push(tunnel);
    }
    let active = |worker: u32| {
        let name = format!("listener.envoy_internal_inner.worker_{worker}.downstream_cx_active");
        fairway.stat(&name).unwrap()
    };
    let (one, other) = (active(0), active(1));
    assert_eq!(one + other, TUNNELS);
    assert!(one.min(other) >= TUNNELS / 3, "{one} and {other}");
    // Those that stay go on when others end, and what comes then goes where there is less.
    tunnels.truncate(10);
    let ended = async {
        // Here the client says so.
        while active(0) + active(1) != 10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, ended).await.unwrap();
    for tunnel in &mut tunnels {
        assert!(is_served(tunnel).await);
    }
}
