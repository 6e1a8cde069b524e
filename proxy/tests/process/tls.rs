//! Control planes over TLS, secrets from files.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::client::Http1;
use crate::control_plane::{ControlPlane, resource};
use crate::fairway::{Fairway, Home, cluster, listener, until};
use crate::upstream;

/// A certificate authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// A certificate and its key, as PEM.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// A server of `xds.test` that asks for a certificate of this authority, and speaks HTTP/2 only.
    fn server(&self) -> ServerConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
        let (chain, key) = self.issue("xds.test");
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(
                chain.collect::<Result<_, _>>().unwrap(),
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

/// A cluster of a control plane, whose TLS is as Envoy Gateway's: its secrets are files, named by files.
fn secure_cluster(home: &Home, name: &str, port: u16) -> String {
    let sds = |secret: &str, file: &str| {
        let path = home.path(file);
        let path = path.display();
        format!(
            "{{name: {secret}, sds_config: {{path_config_source: {{path: {path}}}, resource_api_version: V3}}}}"
        )
    };
    format!(
        r#"
  - name: {name}
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: {name}
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: xds.test
        common_tls_context:
          tls_params: {{tls_maximum_protocol_version: TLSv1_3}}
          tls_certificate_sds_secret_configs: [{certificate}]
          validation_context_sds_secret_config: {authority}
"#,
        certificate = sds("xds_certificate", "sds-certificate.yaml"),
        authority = sds("xds_trusted_ca", "sds-ca.yaml"),
    )
}

/// Writes the secrets of [`secure_cluster`].
fn write_secrets(home: &Home, client: &Authority, trusted: &Authority) {
    let kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    let folder = home.path("");
    let folder = folder.display();
    let (certificate, key) = client.issue("fairway");
    home.write("tls.key", &key);
    home.write("tls.crt", &certificate);
    home.write("ca.crt", &trusted.0.pem());
    home.write(
        "sds-certificate.yaml",
        &format!(
            r#"resources: [{{"@type": {kind}, name: xds_certificate, tls_certificate: {{
            certificate_chain: {{filename: {folder}/tls.crt}}, private_key: {{filename: {folder}/tls.key}}}}}}]"#
        ),
    );
    home.write(
        "sds-ca.yaml",
        &format!(
            r#"resources: [{{"@type": {kind}, name: xds_trusted_ca, validation_context: {{
            trusted_ca: {{filename: {folder}/ca.crt}},
            match_typed_subject_alt_names: [{{san_type: DNS, matcher: {{exact: xds.test}}}}]}}}}]"#
        ),
    );
}

/// A bootstrap with these sources of clusters and listeners, and these clusters.
fn bootstrap(sources: &str, clusters: &str) -> String {
    format!(
        r#"
node: {{id: node-1, cluster: cluster-1}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
dynamic_resources: {sources}
static_resources:
  clusters:{clusters}
"#
    )
}

fn answers(fairway: &Fairway) {
    let answer = Http1::connect(fairway.listener("main")).and_then(|mut c| c.get("/"));
    let answer = answer.unwrap();
    assert_eq!((answer.status, answer.body), (200, "up".to_owned()));
}

fn world(control: &ControlPlane) {
    let up = upstream::start("up", Duration::ZERO);
    control.set(&[
        ("up", resource(&cluster("up", up))),
        ("main", resource(&listener("main", 0, "up", None))),
    ]);
}

const ADS: &str = r"{ads_config: {api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: xds}}]},
  lds_config: {ads: {}, resource_api_version: V3}, cds_config: {ads: {}, resource_api_version: V3}}";

#[test]
fn ads_comes_over_mutual_tls_with_certificates_that_rotate() {
    let (home, authority, other) = (Home::new(), Authority::new(), Authority::new());
    let mut control = ControlPlane::start(&home.path("xds"));
    world(&control);
    let port = control.also_over_tls(authority.server()).port();
    // The client's certificate is one that the server does not take.
    write_secrets(&home, &other, &authority);
    let text = bootstrap(ADS, &secure_cluster(&home, "xds", port));
    let fairway = Fairway::spawn(&home, &text, &[]);
    until("a refused certificate", || {
        let log = std::fs::read_to_string(&fairway.log).unwrap();
        fairway
            .stat("cluster.xds.ssl.handshake")
            .is_some_and(|n| n > 0)
            && !log.is_empty()
    });
    assert_ne!(fairway.get("/ready").0, 200);
    assert_eq!(control.streams(), 0);
    // Now one that it does.
    write_secrets(&home, &authority, &authority);
    until("ready", || fairway.get("/ready").0 == 200);
    answers(&fairway);
    assert_eq!(fairway.stat("control_plane.connected_state"), Some(1));
    control.kill();
    until("the stream's end", || {
        fairway.stat("control_plane.connected_state") == Some(0)
    });
    answers(&fairway);
}

#[test]
fn a_control_plane_that_cannot_be_trusted_is_never_asked() {
    let (home, authority, other) = (Home::new(), Authority::new(), Authority::new());
    let control = ControlPlane::start(&home.path("xds"));
    world(&control);
    let port = control.also_over_tls(authority.server()).port();
    write_secrets(&home, &authority, &other);
    let text = bootstrap(ADS, &secure_cluster(&home, "xds", port));
    let fairway = Fairway::spawn(&home, &text, &[]);
    until("a refused server", || {
        fairway
            .stat("cluster.xds.ssl.fail_verify_error")
            .is_some_and(|n| n > 0)
    });
    assert_eq!(control.streams(), 0);
    assert_ne!(fairway.get("/ready").0, 200);
}

#[test]
fn each_type_may_have_a_source_of_its_own() {
    let (home, authority) = (Home::new(), Authority::new());
    let control = ControlPlane::start(&home.path("xds"));
    world(&control);
    let port = control.also_over_tls(authority.server()).port();
    write_secrets(&home, &authority, &authority);
    let source = |kind: &str, cluster: &str| {
        format!(
            "{{resource_api_version: V3, api_config_source: {{api_type: {kind}, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: {cluster}}}}}]}}}}"
        )
    };
    let sources = format!(
        "{{cds_config: {}, lds_config: {}}}",
        source("GRPC", "secure"),
        source("DELTA_GRPC", "socket")
    );
    let socket = format!(
        r#"
  - name: socket
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: socket
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: {path}}}}}}}}}]}}]
"#,
        path = control.socket.display()
    );
    let clusters = secure_cluster(&home, "secure", port) + &socket;
    let fairway = Fairway::start(&home, &bootstrap(&sources, &clusters), &[]);
    answers(&fairway);
    assert_eq!(control.streams(), 2);
    let kinds = |requests: usize, deltas: usize| (requests > 0, deltas > 0);
    let clusters = crate::xds::CDS;
    let listeners = crate::xds::LDS;
    assert_eq!(
        kinds(
            control.requests(clusters).len(),
            control.deltas(clusters).len()
        ),
        (true, false)
    );
    assert_eq!(
        kinds(
            control.requests(listeners).len(),
            control.deltas(listeners).len()
        ),
        (false, true)
    );
}
