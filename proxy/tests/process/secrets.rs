//! Many secrets: how long until all serve, and whether anybody waits while many change at once. `conformance/run secrets`
//! runs the same with 5,000 of which 1,000 change.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
use envoy_types::pb::envoy::config::core::v3::{DataSource, TransportSocket};
use envoy_types::pb::envoy::config::listener::v3::{FilterChainMatch, Listener};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::client::read_head;
use crate::control_plane::{ControlPlane, resource};
use crate::fairway::{Fairway, Home, LONG, listener_with, until};
use crate::xds;

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.";

/// How many secrets there are (`FAIRWAY_SECRETS`, or 100), and how many of them change at once.
fn sizes() -> (usize, usize) {
    let all = std::env::var("FAIRWAY_SECRETS").ok();
    let all = all.map_or(100, |n| n.parse().unwrap());
    (all, all / 5)
}

/// A certificate authority, with one key for all of its certificates: making keys is not what is measured.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    key: KeyPair,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
            key: KeyPair::generate().unwrap(),
        }
    }

    /// The secret `n`, for the name `s<n>.test`; another certificate each time.
    fn secret(&self, n: usize) -> (String, Any) {
        let params = CertificateParams::new(vec![format!("s{n}.test")]).unwrap();
        let certificate = params.signed_by(&self.key, &self.issuer).unwrap();
        let text = |text: String| {
            Some(DataSource {
                specifier: Some(Specifier::InlineString(text)),
                ..Default::default()
            })
        };
        let name = format!("secret-{n}");
        let secret = tls::Secret {
            name: name.clone(),
            r#type: Some(tls::secret::Type::TlsCertificate(tls::TlsCertificate {
                certificate_chain: text(certificate.pem()),
                private_key: text(self.key.serialize_pem()),
                ..Default::default()
            })),
        };
        (name, packed("Secret", &secret))
    }

    /// The settings of a client that trusts this authority, and resumes nothing.
    fn client(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        Arc::new(config)
    }
}

fn packed(name: &str, message: &impl Message) -> Any {
    Any {
        type_url: format!("{TLS}{name}"),
        value: message.encode_to_vec(),
    }
}

/// A listener `main` with a filter chain and a secret for each of the names.
/// `wait`: how long for each secret.
fn main_listener(count: usize, wait: &str) -> Any {
    let routes = r#""route_config": {"name": "local", "virtual_hosts": [{"name": "all", "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}]}]}"#;
    let any = resource(&listener_with("main", 0, routes, None));
    let mut listener = Listener::decode(any.value.as_slice()).unwrap();
    let inspector = r#"{"@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "name": "x", "listener_filters": [
        {"name": "tls", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"}}]}"#;
    let inspector = Listener::decode(resource(inspector).value.as_slice()).unwrap();
    listener.listener_filters = inspector.listener_filters;
    let chain = listener.filter_chains.remove(0);
    let ads = format!(
        r#"{{"@type": "{TLS}SdsSecretConfig", "name": "x",
        "sds_config": {{"ads": {{}}, "resource_api_version": "V3", "initial_fetch_timeout": "{wait}"}}}}"#
    );
    let ads = tls::SdsSecretConfig::decode(resource(&ads).value.as_slice()).unwrap();
    for n in 0..count {
        let mut chain = chain.clone();
        chain.name = format!("chain-{n}");
        chain.filter_chain_match = Some(FilterChainMatch {
            server_names: vec![format!("s{n}.test")],
            ..Default::default()
        });
        let common = tls::CommonTlsContext {
            tls_certificate_sds_secret_configs: vec![tls::SdsSecretConfig {
                name: format!("secret-{n}"),
                ..ads.clone()
            }],
            ..Default::default()
        };
        let context = tls::DownstreamTlsContext {
            common_tls_context: Some(common),
            ..Default::default()
        };
        chain.transport_socket = Some(TransportSocket {
            name: "tls".to_owned(),
            config_type: Some(ConfigType::TypedConfig(packed(
                "DownstreamTlsContext",
                &context,
            ))),
        });
        listener.filter_chains.push(chain);
    }
    Any {
        type_url: any.type_url,
        value: listener.encode_to_vec(),
    }
}

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// A connection to the chain `n`, whose certificate is verified.
fn connect(to: SocketAddr, config: &Arc<ClientConfig>, n: usize) -> Stream {
    let io = TcpStream::connect_timeout(&to, LONG).unwrap();
    io.set_nodelay(true).unwrap();
    io.set_read_timeout(Some(LONG)).unwrap();
    let name = ServerName::try_from(format!("s{n}.test")).unwrap();
    StreamOwned::new(ClientConnection::new(config.clone(), name).unwrap(), io)
}

fn ask(io: &mut Stream) {
    io.write_all(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n")
        .unwrap();
    let head = read_head(io, &mut Vec::new()).unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}

/// The certificate that the chain `n` shows.
fn shown(to: SocketAddr, config: &Arc<ClientConfig>, n: usize) -> Vec<u8> {
    let mut io = connect(to, config, n);
    ask(&mut io);
    io.conn.peer_certificates().unwrap()[0].to_vec()
}

/// The slowest request on kept connections while `meanwhile` runs.
fn slowest(to: SocketAddr, config: &Arc<ClientConfig>, meanwhile: impl FnOnce()) -> Duration {
    let mut kept: Vec<Stream> = (0..4).map(|n| connect(to, config, n)).collect();
    kept.iter_mut().for_each(ask);
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let load = threads.spawn(|| {
            let mut slowest = Duration::ZERO;
            while !stop.load(Ordering::Relaxed) {
                for io in &mut kept {
                    let begun = Instant::now();
                    ask(io);
                    slowest = slowest.max(begun.elapsed());
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            slowest
        });
        meanwhile();
        stop.store(true, Ordering::Relaxed);
        load.join().unwrap()
    })
}

fn many(protocol: &str) {
    let (count, changing) = sizes();
    let (home, authority) = (Home::new(), Authority::new());
    let control = ControlPlane::start(&home.path("xds"));
    let secrets: Vec<_> = (0..count).map(|n| authority.secret(n)).collect();
    let mut all: Vec<(&str, Any)> = secrets
        .iter()
        .map(|(n, any)| (n.as_str(), any.clone()))
        .collect();
    all.push(("main", main_listener(count, "0s")));
    control.set(&all);
    let text = xds::bootstrap(&control.socket, protocol, "0s", "");
    let begun = Instant::now();
    let fairway = Fairway::start(&home, &text, &[]);
    let client = authority.client();
    let to = fairway.listener("main");
    let last = shown(to, &client, count - 1);
    println!(
        "{protocol}: {count} secrets serve after {:?}",
        begun.elapsed()
    );
    let before: Vec<_> = (0..changing)
        .step_by(changing.div_ceil(10))
        .map(|n| (n, shown(to, &client, n)))
        .collect();
    let fresh: Vec<_> = (0..changing).map(|n| authority.secret(n)).collect();
    let fresh: Vec<_> = fresh
        .iter()
        .map(|(n, any)| (n.as_str(), any.clone()))
        .collect();
    let quiet = slowest(to, &client, || std::thread::sleep(Duration::from_secs(1)));
    let updates = "listener.127.0.0.1_0.server_ssl_socket_factory.ssl_context_update_by_sds";
    let updated = || fairway.stat(updates).unwrap_or(0);
    let (first, begun) = (updated(), Instant::now());
    let mut took = Duration::ZERO;
    let rotating = slowest(to, &client, || {
        control.set(&fresh);
        let wanted = first + u64::try_from(changing).unwrap();
        until("every new certificate", || updated() >= wanted);
        took = begun.elapsed();
    });
    println!(
        "{protocol}: {changing} certificates change within {took:?}; the slowest request takes {rotating:?}, and {quiet:?} while nothing changes"
    );
    // One chain more: the others stay, with their sessions and connections.
    let (name, more) = authority.secret(count);
    let listener = main_listener(count + 1, "0s");
    let begun = Instant::now();
    control.set(&[(name.as_str(), more), ("main", listener)]);
    let modified = || fairway.stat("listener_manager.listener_in_place_updated");
    until("one more chain", || modified() == Some(1));
    println!(
        "{protocol}: one more chain serves after {:?}",
        begun.elapsed()
    );
    shown(to, &client, count);
    for (n, old) in before {
        assert_ne!(shown(to, &client, n), old, "{n}");
    }
    assert_eq!(shown(to, &client, count - 1), last);
}

#[test]
fn many_secrets_come_and_change_with_the_state_of_the_world() {
    many("GRPC");
}

#[test]
fn many_secrets_come_and_change_with_deltas() {
    many("DELTA_GRPC");
}

#[test]
fn many_secrets_that_never_come_hold_nobody_for_long() {
    let (count, _) = sizes();
    let home = Home::new();
    let control = ControlPlane::start(&home.path("xds"));
    control.set(&[("main", main_listener(count, "1s"))]);
    let text = xds::bootstrap(&control.socket, "DELTA_GRPC", "0s", "");
    let begun = Instant::now();
    let fairway = Fairway::start(&home, &text, &[]);
    println!("{count} secrets are given up after {:?}", begun.elapsed());
    assert!(fairway.find_listener("main").is_some());
}
