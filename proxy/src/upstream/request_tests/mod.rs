//! Attempts over real sockets.

mod http1;
mod http2;
mod tls;
mod tunnels;

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
            purpose: cluster
                .config
                .transport_options(head, Protocol::Http11, None, Default::default())
                .into(),
            ready: None,
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
                no_pool: false,
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
