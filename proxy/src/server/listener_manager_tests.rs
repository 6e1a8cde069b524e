//! Real sockets, real workers; a handler that greets with its chain's name and echoes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3::{self as pb, FilterChain};
use envoy_types::pb::google::protobuf::UInt32Value;
use filters::stream::ConnectionInfo;
use futures_util::future::LocalBoxFuture;
use std::rc::Rc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::super::compiled::FilterChainHandler;
use super::super::drain::DrainStrategy;
use super::*;
use crate::http::service::ConnectionControl;
use crate::telemetry::http_log::AccessLog;
use crate::telemetry::stats::Stats;
use crate::transport::Incoming;

#[path = "internal_listener_tests.rs"]
mod internal;

#[path = "hand_over_tests.rs"]
mod hand_over;

struct Echo;

impl FilterChainHandler for Echo {
    fn serve(
        &self,
        io: Incoming,
        prefix: Bytes,
        info: Rc<ConnectionInfo>,
        control: ConnectionControl,
    ) -> LocalBoxFuture<'static, ()> {
        let mut io = io.boxed();
        Box::pin(async move {
            let hello = format!("{}:", info.filter_chain);
            io.write_all(hello.as_bytes()).await.unwrap();
            io.write_all(&prefix).await.unwrap();
            io.flush().await.unwrap();
            let drained = std::future::poll_fn(|cx| {
                control.register(cx.waker());
                if control.is_draining() {
                    std::task::Poll::Ready(())
                } else {
                    std::task::Poll::Pending
                }
            });
            tokio::pin!(drained);
            let mut buffer = [0; 256];
            loop {
                tokio::select! {
                    () = &mut drained => {
                        io.write_all(b"drained").await.unwrap();
                        io.flush().await.unwrap();
                        if &*info.filter_chain == "stubborn" {
                            std::future::pending::<()>().await;
                        }
                        return;
                    }
                    n = io.read(&mut buffer) => match n {
                        Ok(n) if n > 0 => {
                            assert!(&buffer[..n] != b"panic", "asked to");
                            io.write_all(&buffer[..n]).await.unwrap();
                            io.flush().await.unwrap();
                        }
                        _ => return,
                    },
                }
            }
        })
    }
}

#[derive(Default)]
struct Compiler(AtomicUsize);

impl FilterChainCompiler for Compiler {
    fn compile(
        &self,
        _: &Listener,
        chain: &FilterChain,
    ) -> Result<Arc<dyn FilterChainHandler>, ConfigError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        if chain.name == "bad" {
            return Err(ConfigError::unsupported("filters[0]"));
        }
        Ok(Arc::new(Echo))
    }

    fn access_logs(&self, _: &Listener) -> Result<Vec<AccessLog>, ConfigError> {
        Ok(Vec::new())
    }
}

fn manager(drain: Duration, limit: u64, global: u64) -> ListenerManager {
    let mut manager = ListenerManager::new(
        2,
        Arc::new(ListenerContext::new(global, &Stats::new())),
        Arc::new(DrainManager::new(drain, DrainStrategy::Immediate)),
        Arc::new(Compiler::default()),
        Arc::new(move |key| {
            (key == "envoy.resource_limits.listener.limited.connection_limit").then_some(limit)
        }),
    );
    manager.start_workers().unwrap();
    manager
}

const LONG: Duration = Duration::from_secs(600);

fn tcp(port: u16) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: "127.0.0.1".into(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port.into())),
            ..Default::default()
        })),
    }
}

fn chain(name: &str) -> FilterChain {
    FilterChain {
        name: name.into(),
        ..Default::default()
    }
}

fn listener(name: &str, chains: &[&str]) -> Listener {
    Listener {
        name: name.into(),
        // Port 0 is all their addresses have in common.
        stat_prefix: name.into(),
        address: Some(tcp(0)),
        filter_chains: chains
            .iter()
            .enumerate()
            .map(|(i, name)| FilterChain {
                // Different, so that they may stand side by side; the first matches all.
                filter_chain_match: (i > 0).then(|| pb::FilterChainMatch {
                    server_names: vec![(*name).to_owned()],
                    ..Default::default()
                }),
                ..chain(name)
            })
            .collect(),
        ..Default::default()
    }
}

fn port(manager: &ListenerManager, name: &str) -> u16 {
    let (_, bound, _) = manager
        .listeners()
        .find(|(c, ..)| *c.name == *name)
        .unwrap();
    match &bound[0] {
        BindAddress::Tcp { address, .. } => address.port(),
        BindAddress::Pipe { .. } => panic!("not TCP"),
    }
}

async fn connect(manager: &ListenerManager, name: &str) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port(manager, name)))
        .await
        .unwrap()
}

/// Reads exactly `text`; the timeout only keeps a broken build from hanging.
async fn expect(io: &mut (impl tokio::io::AsyncRead + Unpin), text: &str) {
    let mut buffer = vec![0; text.len()];
    tokio::time::timeout(Duration::from_secs(20), io.read_exact(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&buffer), text);
}

async fn expect_end(io: &mut (impl tokio::io::AsyncRead + Unpin)) {
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(20), io.read_to_end(&mut rest))
        .await
        .unwrap();
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn an_update_in_place_drains_only_the_changed_chain() {
    let mut manager = manager(LONG, 0, u64::MAX);
    let mut config = listener("l", &["one", "two"]);
    config.listener_filters = vec![pb::ListenerFilter {
        name: "envoy.filters.listener.http_inspector".into(),
        ..Default::default()
    }];
    config.filter_chains[1].filter_chain_match = Some(pb::FilterChainMatch {
        application_protocols: vec!["http/1.0".into()],
        ..Default::default()
    });
    manager.apply(&config, "1").unwrap();
    let before = port(&manager, "l");
    let mut one = connect(&manager, "l").await;
    one.write_all(b"GET / HTTP/1.1\n").await.unwrap();
    expect(&mut one, "one:GET / HTTP/1.1\n").await;
    let mut two = connect(&manager, "l").await;
    two.write_all(b"GET / HTTP/1.0\n").await.unwrap();
    expect(&mut two, "two:GET / HTTP/1.0\n").await;

    config.filter_chains[1].name = "three".into();
    manager.apply(&config, "2").unwrap();
    assert_eq!(port(&manager, "l"), before);
    expect(&mut two, "drained").await;
    expect_end(&mut two).await;
    one.write_all(b"still here").await.unwrap();
    expect(&mut one, "still here").await;
    let mut three = connect(&manager, "l").await;
    three.write_all(b"GET / HTTP/1.0\n").await.unwrap();
    expect(&mut three, "three:").await;
    assert_eq!(manager.context().stats.listener_in_place_updated.value(), 1);
    let draining = &manager.context().stats.total_filter_chains_draining;
    while draining.value() != 0 {
        tokio::time::sleep(Duration::from_millis(5)).await; // for ever if a chain is not counted out
    }

    // A bad update leaves everything as it was.
    config.filter_chains[0].name = "bad".into();
    let error = manager.apply(&config, "3").unwrap_err();
    assert_eq!(error.path(), "filter_chains[0].filters[0]");
    one.write_all(b"and still").await.unwrap();
    expect(&mut one, "and still").await;
}

#[tokio::test]
async fn removal_stops_accepting_drains_and_closes_the_rest() {
    let mut manager = manager(Duration::from_millis(300), 0, u64::MAX);
    manager.apply(&listener("l", &["stubborn"]), "1").unwrap();
    let port = port(&manager, "l");
    let mut io = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    expect(&mut io, "stubborn:").await;
    assert!(manager.remove("l"));
    assert!(!manager.remove("l"));
    expect(&mut io, "drained").await;
    expect_end(&mut io).await;
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
}

/// Every connection that was made is served, whenever its listener is taken away; closing a socket resets those
/// that wait in its queue.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn removal_resets_no_connection_that_was_made() {
    for _ in 0..10 {
        let mut manager = manager(LONG, 0, u64::MAX);
        manager.apply(&listener("l", &["one"]), "1").unwrap();
        let port = port(&manager, "l");
        let gone = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicUsize::new(0));
        let clients: Vec<_> = (0..8)
            .map(|_| {
                let (gone, served) = (gone.clone(), served.clone());
                tokio::spawn(async move {
                    loop {
                        let connect = TcpStream::connect(("127.0.0.1", port));
                        // A handshake that begins now is not answered: as good as refused.
                        let wait = match gone.load(Ordering::SeqCst) {
                            true => Duration::from_millis(200),
                            false => Duration::from_secs(20),
                        };
                        match tokio::time::timeout(wait, connect).await {
                            Ok(Ok(mut io)) => expect(&mut io, "one:").await,
                            _ if gone.load(Ordering::SeqCst) => return,
                            other => panic!("{other:?} while it listens"),
                        }
                        served.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        while served.load(Ordering::SeqCst) < 16 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        gone.store(true, Ordering::SeqCst);
        manager.remove("l");
        for client in clients {
            client.await.unwrap();
        }
    }
}

#[tokio::test]
async fn stopping_leaves_the_open_connections_alone() {
    let mut manager = manager(LONG, 0, u64::MAX);
    manager.apply(&listener("l", &["one"]), "1").unwrap();
    let port = port(&manager, "l");
    let mut io = connect(&manager, "l").await;
    expect(&mut io, "one:").await;
    manager.stop_all(true);
    manager.flush().await;
    let mut other = connect(&manager, "l").await;
    expect(&mut other, "one:").await;
    manager.stop_all(false);
    let refused = async { while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {} };
    let most = Duration::from_secs(20);
    tokio::time::timeout(most, refused).await.unwrap();
    for io in [&mut io, &mut other] {
        io.write_all(b"still here").await.unwrap();
        expect(io, "still here").await;
    }
}

#[tokio::test]
async fn a_drain_without_end_asks_newcomers_too() {
    let mut manager = manager(Duration::from_millis(100), 0, u64::MAX);
    manager.apply(&listener("l", &["one"]), "1").unwrap();
    drop(manager.drain_all(manager.drain.plan(), false, DrainEnd::Never));
    tokio::time::sleep(Duration::from_millis(150)).await;
    for _ in 0..2 {
        let mut io = connect(&manager, "l").await;
        expect(&mut io, "one:").await;
        expect(&mut io, "drained").await;
    }
}

#[tokio::test]
async fn a_server_drain_ends_when_the_last_connection_does() {
    let mut manager = manager(LONG, 0, u64::MAX);
    manager.apply(&listener("l", &["one"]), "1").unwrap();
    let mut io = connect(&manager, "l").await;
    expect(&mut io, "one:").await;
    let drained = manager.drain_all(manager.drain.start(true), false, DrainEnd::Idle);
    expect(&mut io, "drained").await;
    tokio::time::timeout(Duration::from_secs(20), drained.wait())
        .await
        .unwrap();
}

#[tokio::test]
async fn bind_conflicts_and_duplicates_are_errors() {
    let mut manager = manager(LONG, 0, u64::MAX);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().port();
    let mut config = listener("l", &["one"]);
    config.address = Some(tcp(taken));
    let error = manager.apply(&config, "1").unwrap_err().to_string();
    assert_eq!(
        error,
        format!("address: cannot bind '127.0.0.1:{taken}': Address already in use")
    );
    config.address = Some(tcp(0));
    manager.apply(&config, "2").unwrap();
    let mut other = listener("other", &["one"]);
    other.address = Some(tcp(port(&manager, "l")));
    let error = manager.apply(&other, "3").unwrap_err().to_string();
    assert!(error.contains("has duplicate address"), "{error}");
    assert_eq!(manager.context().stats.listener_create_failure.value(), 2);
}

#[tokio::test]
async fn listens_on_unix_sockets_and_replaces_stale_ones() {
    let mut manager = manager(LONG, 0, u64::MAX);
    let path = std::env::temp_dir().join(format!("fairway-{}.sock", std::process::id()));
    let path = path.to_str().unwrap().to_owned();
    let _ = std::fs::remove_file(&path);
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let mut config = listener("l", &["pipe"]);
    config.address = Some(core::Address {
        address: Some(core::address::Address::Pipe(core::Pipe {
            path: path.clone(),
            mode: 0o600,
        })),
    });
    manager.apply(&config, "1").unwrap();
    let mut io = UnixStream::connect(&path).await.unwrap();
    expect(&mut io, "pipe:").await;
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test]
async fn connections_above_a_limit_are_closed_and_counted() {
    let mut manager = manager(LONG, 1, 2);
    manager.apply(&listener("limited", &["a"]), "1").unwrap();
    manager.apply(&listener("free", &["b"]), "1").unwrap();
    let mut first = connect(&manager, "limited").await;
    expect(&mut first, "a:").await;
    expect_end(&mut connect(&manager, "limited").await).await;
    let mut second = connect(&manager, "free").await;
    expect(&mut second, "b:").await;
    expect_end(&mut connect(&manager, "free").await).await;
    let overflow: Vec<_> = manager
        .listeners()
        .map(|(_, _, s)| {
            let (own, global) = (&s.downstream_cx_overflow, &s.downstream_global_cx_overflow);
            (own.value(), global.value())
        })
        .collect();
    assert_eq!(overflow, [(1, 0), (0, 1)]);
}

#[tokio::test]
async fn a_panic_ends_one_connection_only() {
    let mut manager = manager(LONG, 0, u64::MAX);
    manager.apply(&listener("l", &["one"]), "1").unwrap();
    let mut others = Vec::new();
    for _ in 0..8 {
        let mut io = connect(&manager, "l").await;
        expect(&mut io, "one:").await;
        others.push(io);
    }
    let mut io = connect(&manager, "l").await;
    expect(&mut io, "one:").await;
    io.write_all(b"panic").await.unwrap();
    expect_end(&mut io).await;
    for other in &mut others {
        other.write_all(b"fine").await.unwrap();
        expect(other, "fine").await;
    }
    assert_eq!(manager.context().connection_panics.value(), 1);
    let (_, _, stats) = manager.listeners().next().unwrap();
    assert_eq!(stats.downstream_cx_active.value(), 8);
}

#[tokio::test]
async fn a_socket_without_a_chain_is_reset_if_it_has_sent_and_closed_if_not() {
    let mut manager = manager(LONG, 0, u64::MAX);
    let mut config = listener("l", &["one"]);
    config.listener_filters = vec![pb::ListenerFilter {
        name: "envoy.filters.listener.http_inspector".into(),
        ..Default::default()
    }];
    config.filter_chains[0].filter_chain_match = Some(pb::FilterChainMatch {
        application_protocols: vec!["h2c".into()],
        ..Default::default()
    });
    manager.apply(&config, "1").unwrap();
    let mut io = connect(&manager, "l").await;
    io.write_all(b"GET / HTTP/1.1\n").await.unwrap();
    let end = io.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
    config.listener_filters.clear();
    manager.apply(&config, "2").unwrap();
    manager.flush().await;
    expect_end(&mut connect(&manager, "l").await).await;
    manager.flush().await;
    let (_, _, stats) = manager.listeners().next().unwrap();
    assert_eq!(stats.no_filter_chain_match.value(), 2);
    assert_eq!(
        stats.downstream_cx_total.value(),
        0,
        "sockets, no connections"
    );
}

#[tokio::test]
async fn silent_clients_time_out_or_fall_through() {
    let mut manager = manager(LONG, 0, u64::MAX);
    let mut config = listener("l", &["one"]);
    config.listener_filters = vec![pb::ListenerFilter {
        name: "envoy.filters.listener.tls_inspector".into(),
        ..Default::default()
    }];
    config.listener_filters_timeout = Some(envoy_types::pb::google::protobuf::Duration {
        seconds: 0,
        nanos: 20_000_000,
    });
    manager.apply(&config, "1").unwrap();
    expect_end(&mut connect(&manager, "l").await).await;
    config.continue_on_listener_filters_timeout = true;
    manager.apply(&config, "2").unwrap();
    manager.flush().await;
    expect(&mut connect(&manager, "l").await, "one:").await;
}

#[test]
fn what_would_change_behaviour_unseen_is_refused() {
    let manager = ListenerManager::new(
        1,
        Arc::new(ListenerContext::new(1, &Stats::new())),
        Arc::new(DrainManager::new(LONG, DrainStrategy::Gradual)),
        Arc::new(Compiler::default()),
        Arc::new(|_| None),
    );
    let path = |change: &dyn Fn(&mut Listener)| {
        let mut config = listener("l", &["one"]);
        change(&mut config);
        manager.validate(&config).unwrap_err().path().to_owned()
    };
    assert_eq!(
        path(&|l| l.max_connections_to_accept_per_socket_event = Some(UInt32Value { value: 0 })),
        "max_connections_to_accept_per_socket_event"
    );
    assert_eq!(
        path(&|l| l.listener_filters = vec![pb::ListenerFilter {
            name: "envoy.filters.listener.local_ratelimit".into(),
            ..Default::default()
        }]),
        "listener_filters[0]"
    );
    assert_eq!(path(&|l| l.address = None), "address");
}
