//! Attempts over real sockets: pools, limits, dead connections, GOAWAY, hosts that go.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as eds;
use envoy_types::pb::google::protobuf as wkt;
use http::{Method, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{LocalSet, spawn_local};

use super::*;
use crate::upstream::balance::LbContext;
use crate::upstream::manager::ClusterManager;
use crate::upstream::slot::ClusterSlot;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const LAST: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";

/// What a server does with a request.
#[derive(Clone, Copy)]
enum Act {
    /// Answers.
    Say(&'static [u8]),
    /// Answers when it is told to.
    Wait,
    /// Closes without an answer.
    Close,
    /// Answers and closes.
    SayAndClose,
}

/// An HTTP/1 server whose requests have no bodies, or bodies that come with the head.
struct Server {
    port: u16,
    accepted: Cell<usize>,
    requests: Cell<usize>,
    open: Cell<usize>,
    go: Semaphore,
}

impl Server {
    /// Does with the n-th request of all what `script` says; the last entry goes on.
    async fn start(script: &'static [Act]) -> Rc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Rc::new(Self {
            port: listener.local_addr().unwrap().port(),
            accepted: Cell::new(0),
            requests: Cell::new(0),
            open: Cell::new(0),
            go: Semaphore::new(0),
        });
        let me = server.clone();
        spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                me.accepted.set(me.accepted.get() + 1);
                me.open.set(me.open.get() + 1);
                let me = me.clone();
                spawn_local(async move {
                    me.serve(stream, script).await;
                    me.open.set(me.open.get() - 1);
                });
            }
        });
        server
    }

    async fn serve(&self, mut stream: TcpStream, script: &[Act]) {
        let mut buf = Vec::new();
        loop {
            while !buf.windows(4).any(|w| w == b"\r\n\r\n") {
                if stream.read_buf(&mut buf).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            buf.clear();
            let n = self.requests.get();
            self.requests.set(n + 1);
            let say = match script[n.min(script.len() - 1)] {
                Act::Say(bytes) => bytes,
                Act::Wait => {
                    self.go.acquire().await.unwrap().forget();
                    OK
                }
                Act::Close => return,
                Act::SayAndClose => {
                    stream.write_all(OK).await.unwrap();
                    return;
                }
            };
            stream.write_all(say).await.unwrap();
        }
    }
}

/// Runs a test on a worker's runtime.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let limited = async {
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, test)
            .await
            .expect("a test hangs");
    };
    LocalSet::new().block_on(&runtime, limited);
}

/// Lets everything happen that can happen until `done`.
async fn until(done: impl Fn() -> bool) {
    while !done() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn value(value: u32) -> Option<wkt::UInt32Value> {
    Some(wkt::UInt32Value { value })
}

fn assignment(ports: &[u16]) -> eds::ClusterLoadAssignment {
    use core::socket_address::PortSpecifier;
    let endpoint = |port: &u16| eds::LbEndpoint {
        host_identifier: Some(eds::lb_endpoint::HostIdentifier::Endpoint(eds::Endpoint {
            address: Some(core::Address {
                address: Some(core::address::Address::SocketAddress(core::SocketAddress {
                    address: "127.0.0.1".into(),
                    port_specifier: Some(PortSpecifier::PortValue((*port).into())),
                    ..Default::default()
                })),
            }),
            ..Default::default()
        })),
        ..Default::default()
    };
    eds::ClusterLoadAssignment {
        cluster_name: "a".into(),
        endpoints: vec![eds::LocalityLbEndpoints {
            lb_endpoints: ports.iter().map(endpoint).collect(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn proto(port: u16) -> pb::Cluster {
    pb::Cluster {
        name: "a".into(),
        load_assignment: Some(assignment(&[port])),
        ..Default::default()
    }
}

fn limited(port: u16, threshold: Thresholds) -> pb::Cluster {
    pb::Cluster {
        circuit_breakers: Some(pb::CircuitBreakers {
            thresholds: vec![threshold],
            ..Default::default()
        }),
        ..proto(port)
    }
}

#[allow(deprecated)] // the short form of the HTTP/2 settings
fn http2(cluster: pb::Cluster) -> pb::Cluster {
    pb::Cluster {
        http2_protocol_options: Some(core::Http2ProtocolOptions::default()),
        ..cluster
    }
}

struct Client {
    manager: RefCell<ClusterManager>,
    slot: Arc<ClusterSlot<Cluster>>,
}

impl Client {
    fn new(proto: &pb::Cluster) -> Rc<Self> {
        let mut manager = ClusterManager::new();
        manager.set_scope(crate::telemetry::stats::Stats::new().scope(""));
        manager.apply_cluster(proto, "1").unwrap();
        Rc::new(Self {
            slot: manager.slot("a"),
            manager: RefCell::new(manager),
        })
    }

    fn cluster(&self) -> Arc<Cluster> {
        self.slot.get().unwrap()
    }

    async fn send(
        &self,
        method: Method,
        body: &'static str,
    ) -> Result<(StatusCode, Bytes), UpstreamError> {
        let mut head = RequestHead::new(method, "/");
        head.authority = "a.test".into();
        self.send_head(&head, body).await
    }

    async fn send_head(
        &self,
        head: &RequestHead,
        body: &'static str,
    ) -> Result<(StatusCode, Bytes), UpstreamError> {
        let cluster = self.cluster();
        let host = cluster.choose_host(&LbContext::default()).unwrap();
        let options = SendOptions {
            downstream: Protocol::Http11,
            priority: Priority::Default,
            early: EarlyResponses::default(),
            transport: cluster.config.transport_options_of(head, Protocol::Http11),
        };
        let body = Body::from(Bytes::from_static(body.as_bytes()));
        let mut response = send(&cluster, &host, head, body, options).await?;
        let body = response.body.collect(1 << 20).await;
        let failed = body.as_ref().err().map(|error| error.reason);
        response.guard.ended(failed);
        body.map(|body| (response.head.status, body.data))
            .map_err(|error| UpstreamError {
                reason: error.reason,
                transport_failure: None,
                request_sent: true,
                host_tried: true,
            })
    }

    async fn get(&self) -> Result<StatusCode, ResetReason> {
        let done = self.send(Method::GET, "").await;
        done.map(|done| done.0).map_err(|error| error.reason)
    }

    async fn get_from(&self, host: &str) -> Result<StatusCode, ResetReason> {
        let mut head = RequestHead::new(Method::GET, "/");
        head.authority = host.into();
        let done = self.send_head(&head, "").await;
        done.map(|done| done.0).map_err(|error| error.reason)
    }
}

#[test]
fn a_connection_is_used_again_up_to_its_limit_of_requests() {
    run(async {
        let server = Server::start(&[Act::Say(OK)]).await;
        let client = Client::new(&proto(server.port));
        for _ in 0..3 {
            assert_eq!(client.get().await, Ok(StatusCode::OK));
        }
        assert_eq!(server.accepted.get(), 1);
        #[allow(deprecated)] // the field is still sent
        let twice = pb::Cluster {
            max_requests_per_connection: value(2),
            ..proto(server.port)
        };
        let client = Client::new(&twice);
        for _ in 0..4 {
            assert_eq!(client.get().await, Ok(StatusCode::OK));
        }
        assert_eq!(server.accepted.get(), 3);
        let stats = client.cluster();
        assert_eq!(stats.stats().upstream_cx_max_requests.value(), 2);
    });
}

#[test]
fn requests_wait_for_a_connection_in_their_order_and_only_so_many() {
    run(async {
        let server = Server::start(&[Act::Wait]).await;
        let client = Client::new(&limited(
            server.port,
            Thresholds {
                max_connections: value(1),
                max_pending_requests: value(2),
                ..Default::default()
            },
        ));
        let waiting = client.cluster();
        let order = Rc::new(RefCell::new(Vec::new()));
        let mut tasks = Vec::new();
        for n in 0..3 {
            let (client, done) = (client.clone(), order.clone());
            tasks.push(spawn_local(async move {
                assert_eq!(client.get().await, Ok(StatusCode::OK));
                done.borrow_mut().push(n);
            }));
            // The first must have its connection before the others begin to wait.
            let pending = &waiting.breakers.default.pending;
            until(|| server.requests.get() == 1 && pending.used() == n).await;
        }
        assert_eq!(client.get().await, Err(ResetReason::Overflow));
        server.go.add_permits(3);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(
            (server.accepted.get(), &*order.borrow()),
            (1, &vec![0, 1, 2])
        );
        let breaker = &waiting.breakers.default;
        assert_eq!((breaker.pending.used(), breaker.requests.used()), (0, 0));
    });
}

#[test]
fn requests_in_flight_are_limited_and_the_connection_is_kept() {
    run(async {
        let server = Server::start(&[Act::Wait, Act::Say(OK)]).await;
        let client = Client::new(&limited(
            server.port,
            Thresholds {
                max_requests: value(1),
                ..Default::default()
            },
        ));
        let first = spawn_local({
            let client = client.clone();
            async move { client.get().await }
        });
        until(|| server.requests.get() == 1).await;
        assert_eq!(client.get().await, Err(ResetReason::Overflow));
        server.go.add_permits(1);
        assert_eq!(first.await.unwrap(), Ok(StatusCode::OK));
        // Both connections are there, the one that the second request made and did not use too.
        assert_eq!(client.get().await, Ok(StatusCode::OK));
        assert_eq!(server.accepted.get(), 2);
    });
}

#[test]
fn a_cancelled_request_leaves_its_place_and_its_connection_to_others() {
    run(async {
        let server = Server::start(&[Act::Wait, Act::Say(OK)]).await;
        let client = Client::new(&limited(
            server.port,
            Thresholds {
                max_connections: value(1),
                ..Default::default()
            },
        ));
        let first = spawn_local({
            let client = client.clone();
            async move { client.get().await }
        });
        until(|| server.requests.get() == 1).await;
        let second = spawn_local({
            let client = client.clone();
            async move { client.get().await }
        });
        let third = spawn_local({
            let client = client.clone();
            async move { client.get().await }
        });
        let cluster = client.cluster();
        until(|| cluster.breakers.default.pending.used() == 2).await;
        second.abort();
        until(|| cluster.breakers.default.pending.used() == 1).await;
        first.abort();
        assert_eq!(third.await.unwrap(), Ok(StatusCode::OK));
        assert_eq!(cluster.breakers.default.requests.used(), 0);
        assert_eq!(cluster.stats().upstream_rq_cancelled.value(), 1);
    });
}

#[test]
fn a_connection_that_closed_while_idle_fails_no_request() {
    run(async {
        let server = Server::start(&[Act::SayAndClose, Act::Say(OK)]).await;
        let client = Client::new(&proto(server.port));
        assert_eq!(client.get().await, Ok(StatusCode::OK));
        until(|| server.open.get() == 0).await;
        let (status, _) = client.send(Method::POST, "body").await.unwrap();
        assert_eq!((status, server.accepted.get()), (StatusCode::OK, 2));
    });
}

#[test]
fn only_requests_that_are_safe_to_repeat_are_sent_again_when_the_connection_dies() {
    for (method, body, again) in [
        (Method::GET, "", true),
        (Method::DELETE, "", true),
        (Method::POST, "", false),
        (Method::PUT, "body", false),
    ] {
        run(async {
            let server = Server::start(&[Act::Say(OK), Act::Close, Act::Say(OK)]).await;
            let client = Client::new(&proto(server.port));
            assert_eq!(client.get().await, Ok(StatusCode::OK));
            let done = client.send(method.clone(), body).await;
            let requests = server.requests.get();
            if again {
                assert_eq!((done.unwrap().0, requests), (StatusCode::OK, 3));
            } else {
                let reason = done.unwrap_err().reason;
                assert_eq!((reason, requests), (ResetReason::ConnectionTermination, 2));
            }
        });
    }
}

#[test]
fn a_request_is_sent_again_only_once_and_never_on_a_fresh_connection() {
    run(async {
        let server = Server::start(&[Act::Close]).await;
        let client = Client::new(&proto(server.port));
        assert_eq!(client.get().await, Err(ResetReason::ConnectionTermination));
        assert_eq!(server.requests.get(), 1);
        let server = Server::start(&[Act::Say(OK), Act::Close]).await;
        let client = Client::new(&proto(server.port));
        assert_eq!(client.get().await, Ok(StatusCode::OK));
        assert_eq!(client.get().await, Err(ResetReason::ConnectionTermination));
        assert_eq!(server.requests.get(), 3);
    });
}

#[test]
fn connections_that_the_server_ends_are_not_kept() {
    run(async {
        let server = Server::start(&[Act::Say(LAST)]).await;
        let client = Client::new(&proto(server.port));
        for _ in 0..2 {
            assert_eq!(client.get().await, Ok(StatusCode::OK));
        }
        let cluster = client.cluster();
        let stats = cluster.stats();
        assert_eq!(server.accepted.get(), 2);
        assert_eq!(stats.upstream_cx_close_notify.value(), 2);
        assert_eq!(stats.upstream_cx_destroy_local.value(), 2);
        assert_eq!(stats.upstream_cx_destroy_with_active_rq.value(), 0);
    });
}

#[test]
fn idle_and_old_connections_are_closed() {
    for (idle, max_age, counted) in [(Some(1), None, 0), (None, Some(1), 1)] {
        run(async {
            let server = Server::start(&[Act::Say(OK)]).await;
            let ms = |ms: i32| wkt::Duration {
                seconds: 0,
                nanos: ms * 1_000_000,
            };
            #[allow(deprecated)] // the short form of these settings
            let cluster = pb::Cluster {
                common_http_protocol_options: Some(core::HttpProtocolOptions {
                    idle_timeout: idle.map(ms),
                    max_connection_duration: max_age.map(ms),
                    ..Default::default()
                }),
                ..proto(server.port)
            };
            let client = Client::new(&cluster);
            assert_eq!(client.get().await, Ok(StatusCode::OK));
            std::thread::sleep(Duration::from_millis(5));
            let cluster = client.cluster();
            let host = cluster.choose_host(&LbContext::default()).unwrap();
            pool::of(&cluster, &host, Priority::Default, Default::default())
                .unwrap()
                .http1
                .sweep(false);
            until(|| server.open.get() == 0).await;
            let stats = cluster.stats();
            assert_eq!(stats.upstream_cx_idle_timeout.value(), 1 - counted);
            assert_eq!(stats.upstream_cx_max_duration_reached.value(), counted);
        });
    }
}

#[test]
fn everyone_who_waits_learns_that_the_host_refuses() {
    run(async {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        for cluster in [proto(port), http2(proto(port))] {
            let client = Client::new(&cluster);
            let both = futures_util::future::join(client.get(), client.get()).await;
            let refused = Err(ResetReason::RemoteConnectionFailure);
            assert_eq!(both, (refused, refused));
            let cluster = client.cluster();
            let stats = cluster.stats();
            assert_eq!(stats.upstream_rq_pending_failure_eject.value(), 2);
            assert_eq!(stats.upstream_cx_active.value(), 0);
            assert_eq!(cluster.breakers.default.connections.used(), 0);
        }
    });
}

#[test]
fn a_request_in_flight_outlives_its_host_and_its_cluster() {
    run(async {
        let old = Server::start(&[Act::Wait]).await;
        let new = Server::start(&[Act::Say(OK)]).await;
        let client = Client::new(&proto(old.port));
        let in_flight = |client: &Rc<Client>| {
            let client = client.clone();
            spawn_local(async move { client.get().await })
        };
        let first = in_flight(&client);
        until(|| old.requests.get() == 1).await;
        let changed = client
            .manager
            .borrow_mut()
            .apply_cluster(&proto(new.port), "2");
        changed.unwrap();
        assert_eq!(client.get().await, Ok(StatusCode::OK));
        assert_eq!(new.requests.get(), 1);
        old.go.add_permits(1);
        assert_eq!(first.await.unwrap(), Ok(StatusCode::OK));
        // Nobody comes back to a host that is gone.
        until(|| old.open.get() == 0).await;

        let client = Client::new(&proto(old.port));
        let second = in_flight(&client);
        until(|| old.requests.get() == 2).await;
        assert!(client.manager.borrow_mut().remove_cluster("a"));
        assert!(client.slot.get().is_none());
        old.go.add_permits(1);
        assert_eq!(second.await.unwrap(), Ok(StatusCode::OK));
    });
}

/// An HTTP/2 server that answers a stream when `go` lets it, and says GOAWAY after so many streams.
async fn http2_server(
    streams: u32,
    goaway_after: usize,
) -> (u16, Rc<Cell<usize>>, Rc<Cell<usize>>, Rc<Semaphore>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (accepted, requests) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let go = Rc::new(Semaphore::new(0));
    let (connections, seen, allowed) = (accepted.clone(), requests.clone(), go.clone());
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            connections.set(connections.get() + 1);
            let (seen, allowed) = (seen.clone(), allowed.clone());
            spawn_local(async move {
                let mut builder = h2::server::Builder::new();
                builder.max_concurrent_streams(streams);
                let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
                let mut count = 0;
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    seen.set(seen.get() + 1);
                    count += 1;
                    let allowed = allowed.clone();
                    spawn_local(async move {
                        allowed.acquire().await.unwrap().forget();
                        let _ = respond.send_response(Response::new(()), true);
                    });
                    if count == goaway_after {
                        connection.graceful_shutdown();
                    }
                }
            });
        }
    });
    (port, accepted, requests, go)
}

#[test]
fn after_goaway_requests_go_to_another_connection_and_those_in_flight_finish() {
    run(async {
        let (port, accepted, requests, go) = http2_server(100, 1).await;
        let client = Client::new(&http2(proto(port)));
        let first = spawn_local({
            let client = client.clone();
            async move { client.get().await }
        });
        until(|| requests.get() == 1).await;
        // GOAWAY may overtake the second request or not: it must not fail either way.
        let second = spawn_local({
            let client = client.clone();
            async move { client.get().await }
        });
        until(|| requests.get() == 2).await;
        go.add_permits(1);
        go.add_permits(1);
        assert_eq!(first.await.unwrap(), Ok(StatusCode::OK));
        go.add_permits(1);
        assert_eq!(second.await.unwrap(), Ok(StatusCode::OK));
        go.add_permits(1);
        assert_eq!(client.get().await, Ok(StatusCode::OK));
        assert!(accepted.get() >= 2);
    });
}

#[test]
fn streams_beyond_the_server_s_limit_get_a_connection_or_wait() {
    for (connections, accepted_at_last) in [(10, 2), (1, 1)] {
        run(async {
            let (port, accepted, requests, go) = http2_server(1, 0).await;
            let client = Client::new(&http2(limited(
                port,
                Thresholds {
                    max_connections: value(connections),
                    ..Default::default()
                },
            )));
            // The server's limit is known once it has answered.
            go.add_permits(1);
            assert_eq!(client.get().await, Ok(StatusCode::OK));
            let tasks: Vec<_> = (0..2)
                .map(|_| {
                    let client = client.clone();
                    spawn_local(async move { client.get().await })
                })
                .collect();
            until(|| requests.get() == 1 + accepted_at_last).await;
            go.add_permits(1);
            if accepted_at_last == 1 {
                until(|| requests.get() == 3).await;
            }
            go.add_permits(1);
            for task in tasks {
                assert_eq!(task.await.unwrap(), Ok(StatusCode::OK));
            }
            assert_eq!(accepted.get(), accepted_at_last);
        });
    }
}

#[path = "tls_tests.rs"]
mod over_tls;
