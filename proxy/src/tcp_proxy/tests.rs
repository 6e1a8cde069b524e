//! Connections through a TCP proxy to real sockets.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as cds;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as eds;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, TcpAccessLogOptions, TunnelingConfig, WeightedCluster,
    weighted_cluster::ClusterWeight,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy, UpstreamConnectMode,
};
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf as wkt;
use filters::filter_state::keys;
use filters::stream::{FilterObject, StreamInfo};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpListener;
use tokio::task::{LocalSet, spawn_local};

use super::config::TcpProxyConfig;
use super::serve;
use crate::http::testing::connection;
use crate::telemetry::stats::Stats;
use crate::upstream::manager::ClusterManager;

fn proxy(specifier: ClusterSpecifier) -> TcpProxy {
    TcpProxy {
        stat_prefix: "a".into(),
        cluster_specifier: Some(specifier),
        ..Default::default()
    }
}

fn seconds(seconds: i64) -> Option<wkt::Duration> {
    Some(wkt::Duration { seconds, nanos: 0 })
}

struct World {
    clusters: ClusterManager,
    stats: Arc<Stats>,
    /// Stats live as long as what counts them.
    configs: Vec<Arc<TcpProxyConfig>>,
}

impl World {
    /// A static cluster `up` with one host.
    fn new(host: SocketAddr) -> Self {
        let stats = Stats::new();
        let mut clusters = ClusterManager::new();
        clusters.set_scope(stats.scope(""));
        let address = core::Address {
            address: Some(core::address::Address::SocketAddress(core::SocketAddress {
                address: host.ip().to_string(),
                port_specifier: Some(core::socket_address::PortSpecifier::PortValue(
                    host.port().into(),
                )),
                ..Default::default()
            })),
        };
        let endpoint = eds::LbEndpoint {
            host_identifier: Some(eds::lb_endpoint::HostIdentifier::Endpoint(eds::Endpoint {
                address: Some(address),
                ..Default::default()
            })),
            ..Default::default()
        };
        let proto = cds::Cluster {
            name: "up".into(),
            load_assignment: Some(eds::ClusterLoadAssignment {
                cluster_name: "up".into(),
                endpoints: vec![eds::LocalityLbEndpoints {
                    lb_endpoints: vec![endpoint],
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..Default::default()
        };
        clusters.apply_cluster(&proto, "").unwrap();
        Self {
            clusters,
            stats,
            configs: Vec::new(),
        }
    }

    fn compile(&mut self, proto: &TcpProxy) -> Result<Arc<TcpProxyConfig>, String> {
        let clusters = std::cell::RefCell::new(&mut self.clusters);
        let find = |name: &str| clusters.borrow_mut().slot(name);
        let directory = clusters.borrow().directory();
        let scope = self.stats.scope("");
        TcpProxyConfig::compile(proto, &find, &directory, Vec::new(), &scope)
            .map(Arc::new)
            .map_err(|e| e.to_string())
    }

    fn start(&mut self, proto: &TcpProxy) -> DuplexStream {
        let config = self.compile(proto).unwrap();
        self.configs.push(config.clone());
        let (near, far) = duplex(64 * 1024);
        spawn_local(serve(
            config,
            far,
            Default::default(),
            Rc::new(connection("127.0.0.1:1", "127.0.0.1:1")),
        ));
        near
    }

    fn counter(&self, name: &str) -> u64 {
        self.stats.scope("").counter(name).value()
    }
}

#[tokio::test]
async fn bytes_and_ends_pass_both_ways() {
    LocalSet::new()
        .run_until(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut world = World::new(listener.local_addr().unwrap());
            let mut client = world.start(&proxy(ClusterSpecifier::Cluster("up".into())));
            let sent: Vec<u8> = (0..1_000_000_u32).map(|i| i as u8).collect();
            let expected = sent.clone();
            let server = spawn_local(async move {
                let (mut io, _) = listener.accept().await.unwrap();
                let mut got = Vec::new();
                // The client's end arrives here, and the other direction still works.
                io.read_to_end(&mut got).await.unwrap();
                io.write_all(b"thanks").await.unwrap();
                got
            });
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"thanks");
            assert_eq!(server.await.unwrap(), expected);
            tokio::task::yield_now().await;
            assert_eq!(world.counter("tcp.a.downstream_cx_total"), 1);
            assert_eq!(
                world.counter("tcp.a.downstream_cx_rx_bytes_total"),
                1_000_000
            );
            assert_eq!(world.counter("tcp.a.downstream_cx_tx_bytes_total"), 6);
            assert_eq!(world.counter("cluster.up.upstream_cx_total"), 1);
        })
        .await;
}

#[tokio::test]
async fn a_refusal_and_a_missing_cluster_close_the_connection() {
    LocalSet::new()
        .run_until(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut world = World::new(listener.local_addr().unwrap());
            drop(listener);
            let mut proto = proxy(ClusterSpecifier::Cluster("up".into()));
            proto.max_connect_attempts = Some(wkt::UInt32Value { value: 3 });
            let mut client = world.start(&proto);
            assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
            assert_eq!(world.counter("cluster.up.upstream_cx_connect_fail"), 3);
            let mut client = world.start(&proxy(ClusterSpecifier::Cluster("missing".into())));
            assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
            assert_eq!(world.counter("tcp.a.downstream_cx_no_route"), 1);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn quiet_connections_end_and_busy_ones_do_not_until_their_time_is_over() {
    LocalSet::new()
        .run_until(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut world = World::new(listener.local_addr().unwrap());
            spawn_local(async move {
                let mut held = Vec::new();
                while let Ok((io, _)) = listener.accept().await {
                    held.push(io);
                }
            });
            let mut proto = proxy(ClusterSpecifier::Cluster("up".into()));
            proto.idle_timeout = seconds(10);
            proto.max_downstream_connection_duration = seconds(25);
            let mut client = world.start(&proto);
            for _ in 0..3 {
                client.write_all(b"x").await.unwrap();
                tokio::time::sleep(Duration::from_secs(8)).await;
            }
            assert_eq!(world.counter("tcp.a.idle_timeout"), 0);
            assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
            assert_eq!(world.counter("tcp.a.max_downstream_connection_duration"), 1);
            let mut quiet = world.start(&proto);
            quiet.write_all(b"x").await.unwrap();
            assert_eq!(quiet.read(&mut [0; 8]).await.unwrap(), 0);
            assert_eq!(world.counter("tcp.a.idle_timeout"), 1);
        })
        .await;
}

/// A connection with this filter state.
fn info(state: &[(&'static str, FilterObject)]) -> StreamInfo {
    let mut info = StreamInfo::for_connection(Rc::new(connection("127.0.0.1:1", "127.0.0.1:1")));
    for (key, object) in state {
        info.filter_state.set((*key).into(), object.clone());
    }
    info
}

#[test]
fn filter_state_has_a_say_in_where_a_connection_goes_and_for_how_long() {
    let mut world = World::new("127.0.0.1:1".parse().unwrap());
    let config = world.compile(&TcpProxy {
        idle_timeout: seconds(9),
        tunneling_config: Some(TunnelingConfig {
            hostname: "h:1".into(),
            ..Default::default()
        }),
        ..proxy(ClusterSpecifier::Cluster("other".into()))
    });
    let config = config.unwrap();
    let named = |name: &'static str| info(&[(keys::TCP_CLUSTER, FilterObject::Name(name.into()))]);
    let cluster = |info: &StreamInfo| config.cluster(info, 0).map(|slot| slot.name().to_string());
    assert_eq!(cluster(&info(&[])).as_deref(), Some("other"));
    assert_eq!(cluster(&named("up")).as_deref(), Some("up"));
    assert_eq!(cluster(&named("nowhere")), None);
    let text = FilterObject::Text("up".into());
    let text = info(&[(keys::TCP_CLUSTER, text)]);
    assert_eq!(cluster(&text).as_deref(), Some("other"));
    let flag = |flag| info(&[(keys::DISABLE_TUNNELING, FilterObject::Flag(flag))]);
    assert!(config.tunneling(&flag(true)).is_none());
    assert!(config.tunneling(&flag(false)).is_some());
    let idle = |ms| info(&[(keys::TCP_IDLE_TIMEOUT, FilterObject::Number(ms))]);
    let timeout = |info: &StreamInfo| config.idle_timeout(info).map(|d| d.as_millis());
    assert_eq!(timeout(&info(&[])), Some(9000));
    assert_eq!(timeout(&idle(300)), Some(300));
    // The longest that can be said overflows nothing.
    assert!(
        tokio::time::Instant::now() + config.idle_timeout(&idle(u64::MAX)).unwrap()
            > tokio::time::Instant::now()
    );
}

#[tokio::test]
async fn a_client_that_is_waited_for_is_connected_with_its_first_bytes() {
    LocalSet::new()
        .run_until(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut world = World::new(listener.local_addr().unwrap());
            let mut client = world.start(&TcpProxy {
                upstream_connect_mode: UpstreamConnectMode::OnDownstreamData as i32,
                max_early_data_bytes: Some(wkt::UInt32Value { value: 0 }),
                ..proxy(ClusterSpecifier::Cluster("up".into()))
            });
            let early = tokio::time::timeout(Duration::from_millis(50), listener.accept());
            assert!(early.await.is_err());
            client.write_all(b"hello").await.unwrap();
            let (mut server, _) = listener.accept().await.unwrap();
            let mut got = [0; 5];
            server.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"hello");
        })
        .await;
}

#[test]
fn weights_divide_and_what_cannot_be_honoured_is_named() {
    let mut world = World::new("127.0.0.1:1".parse().unwrap());
    let weighted = |weights: &[u32]| {
        let clusters = weights.iter().enumerate().map(|(i, weight)| ClusterWeight {
            name: format!("c{i}"),
            weight: *weight,
            ..Default::default()
        });
        proxy(ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: clusters.collect(),
        }))
    };
    let config = world.compile(&weighted(&[3, 1])).unwrap();
    let hits = |name: &str| {
        (0..400)
            .filter(|turn| config.cluster(&info(&[]), *turn).unwrap().name() == name)
            .count()
    };
    assert_eq!((hits("c0"), hits("c1")), (300, 100));
    for (bad, path) in [
        (weighted(&[]), "weighted_clusters.clusters"),
        (weighted(&[1, 0]), "weighted_clusters.clusters[1].weight"),
        (TcpProxy::default(), "stat_prefix"),
        (
            TcpProxy {
                backoff_options: Some(core::BackoffStrategy {
                    base_interval: seconds(2),
                    max_interval: seconds(1),
                }),
                ..weighted(&[1])
            },
            "backoff_options.max_interval",
        ),
        (
            TcpProxy {
                access_log_options: Some(TcpAccessLogOptions {
                    access_log_flush_interval: seconds(0),
                    ..Default::default()
                }),
                ..weighted(&[1])
            },
            "access_log_options.access_log_flush_interval",
        ),
        (
            TcpProxy {
                max_downstream_connection_duration_jitter_percentage: Some(Percent {
                    value: 101.0,
                }),
                ..weighted(&[1])
            },
            "max_downstream_connection_duration_jitter_percentage",
        ),
        (
            TcpProxy {
                upstream_connect_mode: UpstreamConnectMode::OnDownstreamData as i32,
                ..weighted(&[1])
            },
            "max_early_data_bytes",
        ),
        (
            TcpProxy {
                tunneling_config: Some(TunnelingConfig::default()),
                ..weighted(&[1])
            },
            "tunneling_config",
        ),
    ] {
        let error = world.compile(&bad).err().unwrap();
        assert!(error.contains(path), "{error}");
    }
}
