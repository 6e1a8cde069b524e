//! Attempts over TLS: the server chooses the version of HTTP, requests choose names and protocols.

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as context;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as options;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::UpstreamProtocolOptions;
use prost::Name;
use tokio::io::{AsyncRead, AsyncWrite};
use xds_client::any::pack;

use super::*;
use crate::telemetry::stats::Stats;
use crate::transport::tls::downstream::DownstreamTls;
use crate::transport::tls::secrets::SecretStore;
use crate::transport::tls::stats::TlsStats;
use crate::transport::tls::testing::{Authority, requested_name};

/// A TLS server that speaks what its ALPN says.
struct TlsServer {
    port: u16,
    /// The server's name and the protocol of every connection.
    seen: RefCell<Vec<String>>,
    protocols: RefCell<Vec<&'static str>>,
    /// Clients must show a certificate.
    strict: Cell<bool>,
    authority: Authority,
}

impl TlsServer {
    async fn start(protocols: &[&'static str]) -> Rc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Rc::new(Self {
            port: listener.local_addr().unwrap().port(),
            seen: RefCell::default(),
            protocols: RefCell::new(protocols.to_vec()),
            strict: Cell::new(false),
            authority: Authority::new("ca"),
        });
        let me = server.clone();
        spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let accepting = me.acceptor();
                let Ok((name, hello)) = requested_name(&mut stream).await else {
                    continue;
                };
                if let Ok((io, _)) = accepting.accept(hello, stream).await {
                    let session = io.session();
                    let alpn = session.alpn_protocol().unwrap_or(b"-");
                    let alpn = String::from_utf8_lossy(alpn).into_owned();
                    me.seen.borrow_mut().push(format!("{name} {alpn}"));
                    spawn_local(serve(io, alpn == "h2" || alpn == "istio-h2"));
                }
            }
        });
        server
    }

    fn acceptor(&self) -> Arc<DownstreamTls> {
        let context = context::DownstreamTlsContext {
            common_tls_context: Some(context::CommonTlsContext {
                tls_certificates: vec![self.authority.issue(&["a.test", "b.test"])],
                alpn_protocols: self
                    .protocols
                    .borrow()
                    .iter()
                    .map(|p| (*p).into())
                    .collect(),
                validation_context_type: Some(
                    context::common_tls_context::ValidationContextType::ValidationContext(
                        self.authority.trusted(),
                    ),
                ),
                ..Default::default()
            }),
            require_client_certificate: Some(wkt::BoolValue {
                value: self.strict.get(),
            }),
            ..Default::default()
        };
        let stats = Arc::new(TlsStats::downstream(&Stats::new().scope("")));
        DownstreamTls::compile(&context, &SecretStore::default(), stats).unwrap()
    }

    /// A cluster of this server.
    fn cluster(
        &self,
        protocol: UpstreamProtocolOptions,
        names: core::UpstreamHttpProtocolOptions,
    ) -> pb::Cluster {
        let context = context::UpstreamTlsContext {
            common_tls_context: Some(context::CommonTlsContext {
                validation_context_type: Some(
                    context::common_tls_context::ValidationContextType::ValidationContext(
                        self.authority.trusted(),
                    ),
                ),
                ..Default::default()
            }),
            sni: "fixed.test".into(),
            ..Default::default()
        };
        let options = options::HttpProtocolOptions {
            upstream_protocol_options: Some(protocol),
            upstream_http_protocol_options: Some(names),
            ..Default::default()
        };
        pb::Cluster {
            transport_socket: Some(core::TransportSocket {
                name: "tls".into(),
                config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(
                    &context,
                ))),
            }),
            typed_extension_protocol_options: [(
                options::HttpProtocolOptions::full_name(),
                pack(&options),
            )]
            .into(),
            ..proto(self.port)
        }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.borrow().clone()
    }
}

async fn serve(mut io: impl AsyncRead + AsyncWrite + Unpin + 'static, http2: bool) {
    if http2 {
        let mut connection = h2::server::handshake(io).await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let _ = respond.send_response(Response::new(()), true);
        }
        return;
    }
    let mut buf = Vec::new();
    loop {
        while !buf.windows(4).any(|w| w == b"\r\n\r\n") {
            if io.read_buf(&mut buf).await.unwrap_or(0) == 0 {
                return;
            }
        }
        buf.clear();
        io.write_all(OK).await.unwrap();
        io.flush().await.unwrap();
    }
}

fn auto() -> UpstreamProtocolOptions {
    UpstreamProtocolOptions::AutoConfig(Default::default())
}

fn http1() -> UpstreamProtocolOptions {
    UpstreamProtocolOptions::ExplicitHttpConfig(Default::default())
}

fn http2() -> UpstreamProtocolOptions {
    use options::http_protocol_options::ExplicitHttpConfig;
    use options::http_protocol_options::explicit_http_config::ProtocolConfig;
    UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
        protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(Default::default())),
    })
}

#[test]
fn the_server_chooses_and_may_choose_anew() {
    run(async {
        let server = TlsServer::start(&["h2", "http/1.1"]).await;
        let client = Client::new(&server.cluster(auto(), Default::default()));
        let three = async || {
            let (a, b, c) = tokio::join!(client.get(), client.get(), client.get());
            assert_eq!(
                (a, b, c),
                (Ok(StatusCode::OK), Ok(StatusCode::OK), Ok(StatusCode::OK))
            );
        };
        three().await;
        three().await;
        assert_eq!(server.seen(), ["fixed.test h2"]);
        let cluster = client.cluster();
        let stats = cluster.stats();
        assert_eq!(stats.upstream_cx_http2_total.value(), 1);
        assert_eq!(stats.upstream_rq_pending_total.value(), 3);
        // The server is replaced by one that speaks HTTP/1 only.
        server.protocols.replace(vec!["http/1.1"]);
        let client = Client::new(&server.cluster(auto(), Default::default()));
        assert_eq!(client.get().await, Ok(StatusCode::OK));
        assert_eq!(client.get().await, Ok(StatusCode::OK));
        assert_eq!(server.seen()[1..], ["fixed.test http/1.1"]);
        let cluster = client.cluster();
        let stats = cluster.stats();
        assert_eq!(stats.upstream_cx_http1_total.value(), 1);
        assert_eq!(stats.upstream_cx_http2_total.value(), 0);
        assert_eq!(stats.upstream_rq_pending_total.value(), 1);
        assert_eq!(stats.upstream_rq_pending_failure_eject.value(), 0);
        // And back, when the next connection is made: the first is busy.
        server.protocols.replace(vec!["h2"]);
        let (a, b) = tokio::join!(client.get(), client.get());
        assert_eq!((a, b), (Ok(StatusCode::OK), Ok(StatusCode::OK)));
        until(|| server.seen().len() == 3).await;
        assert_eq!(client.get().await, Ok(StatusCode::OK));
        assert_eq!(stats.upstream_cx_http2_total.value(), 1);
        assert_eq!(stats.upstream_cx_active.value(), 2);
        let breaker = &cluster.breakers.default;
        assert_eq!((breaker.pending.used(), breaker.requests.used()), (0, 0));
    });
}

#[test]
fn a_server_without_alpn_speaks_http1_and_explicit_versions_are_offered_alone() {
    run(async {
        let server = TlsServer::start(&[]).await;
        let client = Client::new(&server.cluster(auto(), Default::default()));
        assert_eq!(client.get().await, Ok(StatusCode::OK));
        assert_eq!(server.seen(), ["fixed.test -"]);
        server.protocols.replace(vec!["http/1.1", "h2"]);
        let client = Client::new(&server.cluster(http2(), Default::default()));
        assert_eq!(client.get().await, Ok(StatusCode::OK));
        let client = Client::new(&server.cluster(http1(), Default::default()));
        assert_eq!(client.get().await, Ok(StatusCode::OK));
        assert_eq!(server.seen()[1..], ["fixed.test h2", "fixed.test http/1.1"]);
    });
}

#[test]
fn a_server_is_never_asked_in_plaintext_what_it_speaks() {
    let mut cluster = proto(1);
    let options = options::HttpProtocolOptions {
        upstream_protocol_options: Some(auto()),
        ..Default::default()
    };
    let name = options::HttpProtocolOptions::full_name();
    let options = [(name, pack(&options))].into();
    cluster.typed_extension_protocol_options = options;
    let error = crate::upstream::cluster::ClusterConfig::compile(&cluster, &Default::default());
    let error = error.unwrap_err();
    assert_eq!(error.path(), "transport_socket");
    assert!(error.reason().contains("non-ALPN"));
}

#[test]
fn connections_are_shared_by_requests_for_one_name_only() {
    run(async {
        let server = TlsServer::start(&["h2"]).await;
        let names = core::UpstreamHttpProtocolOptions {
            auto_sni: true,
            auto_san_validation: true,
            ..Default::default()
        };
        let client = Client::new(&server.cluster(http2(), names));
        for host in ["a.test", "b.test:81", "A.test"] {
            assert_eq!(client.get_from(host).await, Ok(StatusCode::OK), "{host}");
        }
        assert_eq!(server.seen(), ["a.test h2", "b.test h2"]);
        let failed = client.get_from("c.test").await;
        assert_eq!(failed, Err(ResetReason::RemoteConnectionFailure));
    });
}

#[test]
fn too_many_names_are_too_many_pools() {
    run(async {
        let server = TlsServer::start(&["h2"]).await;
        let names = core::UpstreamHttpProtocolOptions {
            auto_sni: true,
            ..Default::default()
        };
        let client = Client::new(&server.cluster(http2(), names));
        let cluster = client.cluster();
        let host = cluster.choose_host(&Default::default()).unwrap();
        let asking = |n: usize| crate::transport::options::TransportOptions {
            server_name: Some(format!("n{n}.test").into()),
            ..Default::default()
        };
        let of = |n| pool::of(&cluster, &host, Priority::Default, asking(n).into());
        let held: Vec<_> = (0..1024).map(|n| of(n).unwrap()).collect();
        assert!(of(1024).is_none() && of(0).is_some());
        assert_eq!(client.get_from("a.test").await, Err(ResetReason::Overflow));
        assert_eq!(cluster.stats().upstream_cx_pool_overflow.value(), 1);
        // One that nobody uses makes room.
        drop(held);
        assert_eq!(client.get_from("a.test").await, Ok(StatusCode::OK));
        assert_eq!(client.get_from("a.test").await, Ok(StatusCode::OK));
        assert_eq!(server.seen(), ["a.test h2"]);
    });
}

#[test]
fn pools_are_limited_and_one_that_nobody_uses_makes_room() {
    run(async {
        let server = TlsServer::start(&["h2"]).await;
        let mut proto = server.cluster(http2(), Default::default());
        let threshold = |max: u32| pb::circuit_breakers::Thresholds {
            max_connection_pools: Some(wkt::UInt32Value { value: max }),
            ..Default::default()
        };
        proto.circuit_breakers = Some(pb::CircuitBreakers {
            thresholds: vec![threshold(2)],
            ..Default::default()
        });
        let client = Client::new(&proto);
        let cluster = client.cluster();
        let host = cluster.choose_host(&Default::default()).unwrap();
        let asking = |n: usize| crate::transport::options::TransportOptions {
            server_name: Some(format!("n{n}.test").into()),
            ..Default::default()
        };
        let of = |n| pool::of(&cluster, &host, Priority::Default, asking(n).into());
        let open = || cluster.stats().breakers.cx_pool_open.value();
        let (one, _two) = (of(1).unwrap(), of(2).unwrap());
        assert_eq!(open(), 1);
        assert!(of(3).is_none() && of(1).is_some());
        assert!(pool::of(&cluster, &host, Priority::High, asking(3).into()).is_some());
        drop(one);
        let _three = of(3).unwrap();
        assert!(of(1).is_none());
        assert_eq!(open(), 1);
    });
}

#[test]
fn a_refusal_after_the_handshake_says_why() {
    run(async {
        let server = TlsServer::start(&["h2", "http/1.1"]).await;
        server.strict.set(true);
        for protocol in [http1(), http2()] {
            let client = Client::new(&server.cluster(protocol, Default::default()));
            let error = client.send(Method::GET, "").await.unwrap_err();
            let why = error.transport_failure.unwrap();
            assert!(why.contains("TLSV1_ALERT_CERTIFICATE_REQUIRED"), "{why}");
        }
    });
}
