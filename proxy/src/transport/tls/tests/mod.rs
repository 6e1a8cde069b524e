//! Handshakes of both sides with each other.

mod names;
mod requests;

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::ConfigSource;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::*;
use envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::google::protobuf::BoolValue;
use filters::tls::TlsInfo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::downstream::DownstreamTls;
use super::secrets::SecretStore;
use super::stats::TlsStats;
use super::testing::{Authority, requested_name};
use super::upstream::{Connecting, UpstreamTls};
use crate::telemetry::stats::Stats;
use crate::transport::options::TransportOptions;

fn stats() -> Arc<TlsStats> {
    Arc::new(TlsStats::downstream(&Stats::new().scope("listener.a.")))
}

fn common(
    certificate: Option<TlsCertificate>,
    validation: Option<CertificateValidationContext>,
) -> CommonTlsContext {
    CommonTlsContext {
        tls_certificates: certificate.into_iter().collect(),
        validation_context_type: validation.map(ValidationContextType::ValidationContext),
        ..Default::default()
    }
}

fn server(common: CommonTlsContext, required: bool) -> DownstreamTlsContext {
    DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: required.then_some(BoolValue { value: true }),
        ..Default::default()
    }
}

fn client(common: CommonTlsContext, sni: &str) -> UpstreamTlsContext {
    UpstreamTlsContext {
        common_tls_context: Some(common),
        sni: sni.into(),
        ..Default::default()
    }
}

/// One handshake and one message each way; what each side knows then, or the first error of either.
async fn meet(server: &DownstreamTls, client: &UpstreamTls) -> Result<(TlsInfo, TlsInfo), String> {
    let options = TransportOptions::default();
    meet_with(server, client, "", &options)
        .await
        .map(|(down, up, _)| (down, up))
}

/// [`meet`] with an endpoint's host name and what a request asks for; also the name that the server was asked for,
/// and the protocol.
async fn meet_with(
    server: &DownstreamTls,
    client: &UpstreamTls,
    hostname: &str,
    options: &TransportOptions,
) -> Result<(TlsInfo, TlsInfo, String), String> {
    let (near, mut far) = tokio::io::duplex(1 << 16);
    let serving = async {
        let (name, hello) = requested_name(&mut far)
            .await
            .map_err(|e| format!("server: {e}"))?;
        let (mut io, info) = server
            .accept(hello, far)
            .await
            .map_err(|e| format!("server: {e}"))?;
        io.write_all(b"hello").await.map_err(|e| e.to_string())?;
        io.flush().await.map_err(|e| e.to_string())?;
        Ok::<_, String>((info, io, name))
    };
    let asking = async {
        let (mut io, info) = client
            .connect(
                near,
                Connecting {
                    address: None,
                    hostname,
                    options,
                    protocols: &["h2"],
                },
            )
            .await
            .map_err(|e| format!("client: {e}"))?;
        let mut read = [0; 5];
        io.read_exact(&mut read)
            .await
            .map_err(|e| format!("client: {e}"))?;
        assert_eq!(&read, b"hello");
        Ok::<_, String>(info)
    };
    let (served, asked) = tokio::join!(serving, asking);
    let ((down, io, name), asked) = match (served, asked) {
        (Ok(served), Ok(asked)) => (served, asked),
        (Err(a), Err(b)) => return Err(format!("{a}; {b}")),
        (Err(a), _) | (_, Err(a)) => return Err(a),
    };
    let session = io.session();
    let protocol = session.alpn_protocol().unwrap_or_default();
    let told = format!(
        "{name} {} {:?}",
        String::from_utf8_lossy(protocol),
        session.handshake_kind().unwrap(),
    );
    Ok((down, asked, told))
}

fn compile(proto: &DownstreamTlsContext) -> Arc<DownstreamTls> {
    DownstreamTls::compile(proto, &SecretStore::default(), stats()).unwrap()
}

fn connector(proto: &UpstreamTlsContext) -> Arc<UpstreamTls> {
    UpstreamTls::compile(proto, &SecretStore::default(), None).unwrap()
}

#[tokio::test]
async fn mutual_tls_shows_each_side_the_others_certificate() {
    let authority = Authority::new("ca");
    let server = compile(&server(
        common(
            Some(authority.issue(&["a.example"])),
            Some(authority.trusted()),
        ),
        true,
    ));
    let certificate = authority.issue(&["spiffe://td/ns/a/sa/b"]);
    let client = connector(&client(
        common(Some(certificate), Some(authority.trusted())),
        "a.example",
    ));
    let (down, up) = meet(&server, &client).await.unwrap();
    assert_eq!(down.version, "TLSv1.3");
    assert!(down.cipher.starts_with("TLS_AES"));
    let peer = down.peer.unwrap();
    assert_eq!(peer.facts.uri_sans, ["spiffe://td/ns/a/sa/b"]);
    assert!(peer.validated);
    assert_eq!(down.local.unwrap().dns_sans, ["a.example"]);
    assert_eq!(up.peer.unwrap().facts.dns_sans, ["a.example"]);
    assert_eq!(up.local.unwrap().uri_sans, ["spiffe://td/ns/a/sa/b"]);
}

#[tokio::test]
async fn clients_without_or_with_a_wrong_certificate_are_refused() {
    let (authority, other) = (Authority::new("ca"), Authority::new("other"));
    let tls = compile(&server(
        common(
            Some(authority.issue(&["a.example"])),
            Some(authority.trusted()),
        ),
        true,
    ));
    let bare = connector(&client(
        common(None, Some(authority.trusted())),
        "a.example",
    ));
    assert!(meet(&tls, &bare).await.is_err());
    let foreign = connector(&client(
        common(Some(other.issue(&["b.example"])), Some(authority.trusted())),
        "a.example",
    ));
    let error = meet(&tls, &foreign).await.unwrap_err();
    assert!(error.contains("unable to get local issuer"), "{error}");
    // Optional: none is fine, a wrong one is not.
    let tls = compile(&server(
        common(
            Some(authority.issue(&["a.example"])),
            Some(authority.trusted()),
        ),
        false,
    ));
    assert!(meet(&tls, &bare).await.unwrap().0.peer.is_none());
    assert!(meet(&tls, &foreign).await.is_err());
    // Accepted unverified where asked.
    let mut untrusted = authority.trusted();
    untrusted.trust_chain_verification =
        certificate_validation_context::TrustChainVerification::AcceptUntrusted.into();
    let tls = compile(&server(
        common(Some(authority.issue(&["a.example"])), Some(untrusted)),
        false,
    ));
    let peer = meet(&tls, &foreign).await.unwrap().0.peer.unwrap();
    assert!(!peer.validated);
}

#[tokio::test]
async fn a_server_that_signed_for_itself_is_trusted_if_it_is_the_anchor() {
    let (own, other) = (Authority::new("own"), Authority::new("other"));
    let tls = compile(&server(common(Some(own.own()), None), false));
    let trusting = |authority: &Authority| {
        connector(&client(
            common(None, Some(authority.trusted())),
            "a.example",
        ))
    };
    assert!(meet(&tls, &trusting(&own)).await.is_ok());
    assert!(meet(&tls, &trusting(&other)).await.is_err());
}

#[tokio::test]
async fn expired_revoked_and_misnamed_servers_are_refused() {
    let authority = Authority::new("ca");
    let trusting = |change: &dyn Fn(&mut CertificateValidationContext)| {
        let mut validation = authority.trusted();
        change(&mut validation);
        connector(&client(common(None, Some(validation)), "a.example"))
    };
    let serving = |certificate| compile(&server(common(Some(certificate), None), false));
    let expired = serving(authority.issue_with(&["a.example"], |p| {
        p.not_before = rcgen::date_time_ymd(2020, 1, 1);
        p.not_after = rcgen::date_time_ymd(2021, 1, 1);
    }));
    assert!(meet(&expired, &trusting(&|_| {})).await.is_err());
    assert!(
        meet(&expired, &trusting(&|v| v.allow_expired_certificate = true))
            .await
            .is_ok()
    );
    let future = serving(authority.issue_with(&["a.example"], |p| {
        p.not_before = rcgen::date_time_ymd(2120, 1, 1);
        p.not_after = rcgen::date_time_ymd(2121, 1, 1);
    }));
    assert!(meet(&future, &trusting(&|_| {})).await.is_err());
    let revoked = serving(authority.issue_with(&["a.example"], |p| {
        p.serial_number = Some(7.into());
    }));
    assert!(meet(&revoked, &trusting(&|_| {})).await.is_ok());
    let with_crl = |serial: u64| trusting(&|v| v.crl = Some(authority.crl(&[serial])));
    assert!(meet(&revoked, &with_crl(7)).await.is_err());
    assert!(meet(&revoked, &with_crl(8)).await.is_ok());
    // An empty list is none.
    let empty = trusting(&|v| v.crl = Some(Default::default()));
    assert!(meet(&revoked, &empty).await.is_ok());
    let named = |name: &str| {
        let matcher = SubjectAltNameMatcher {
            san_type: SanType::Dns.into(),
            matcher: Some(StringMatcher {
                match_pattern: Some(MatchPattern::Exact(name.into())),
                ..Default::default()
            }),
            ..Default::default()
        };
        trusting(&move |v| v.match_typed_subject_alt_names.push(matcher.clone()))
    };
    let good = serving(authority.issue(&["*.a.example"]));
    assert!(meet(&good, &named("x.a.example")).await.is_ok());
    assert!(meet(&good, &named("a.example")).await.is_err());
}

#[tokio::test]
async fn secrets_arrive_and_rotate_without_a_new_context() {
    let (authority, other) = (Authority::new("ca"), Authority::new("other"));
    let secrets = SecretStore::default();
    let sds = |name: &str| SdsSecretConfig {
        name: name.into(),
        sds_config: Some(ConfigSource::default()),
    };
    let proto = server(
        CommonTlsContext {
            tls_certificate_sds_secret_configs: vec![sds("certificate")],
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(
                CombinedCertificateValidationContext {
                    default_validation_context: Some(Default::default()),
                    validation_context_sds_secret_config: Some(sds("ca")),
                    ..Default::default()
                },
            )),
            ..Default::default()
        },
        true,
    );
    let tls = DownstreamTls::compile(&proto, &secrets, stats()).unwrap();
    let connect = |authority: &Authority, trusted: &Authority| {
        connector(&client(
            common(
                Some(authority.issue(&["client.example"])),
                Some(trusted.trusted()),
            ),
            "a.example",
        ))
    };
    let early = meet(&tls, &connect(&authority, &authority)).await;
    assert!(early.unwrap_err().contains("Secret is not supplied"));
    let load = |name: &str, secret: Type| secrets.load(name, &secret).unwrap();
    load(
        "certificate",
        Type::TlsCertificate(authority.issue(&["a.example"])),
    );
    load("ca", Type::ValidationContext(authority.trusted()));
    let before = connect(&authority, &authority);
    assert!(meet(&tls, &before).await.is_ok());
    assert!(meet(&tls, &before).await.is_ok(), "and again, resumed");
    // Other clients are trusted from now on; a session of the old rules is not taken up again.
    load("ca", Type::ValidationContext(other.trusted()));
    assert!(meet(&tls, &before).await.is_err());
    assert!(meet(&tls, &connect(&other, &authority)).await.is_ok());
}

#[tokio::test]
async fn versions_that_do_not_meet_fail() {
    let authority = Authority::new("ca");
    let mut old = common(Some(authority.issue(&["a.example"])), None);
    old.tls_params = Some(TlsParameters {
        tls_maximum_protocol_version: TlsProtocol::TlSv12.into(),
        ..Default::default()
    });
    let mut new = common(None, Some(authority.trusted()));
    new.tls_params = Some(TlsParameters {
        tls_minimum_protocol_version: TlsProtocol::TlSv13.into(),
        ..Default::default()
    });
    let old_server = compile(&server(old, false));
    assert!(
        meet(&old_server, &connector(&client(new, "a.example")))
            .await
            .is_err()
    );
    let any = connector(&client(
        common(None, Some(authority.trusted())),
        "a.example",
    ));
    let (down, _) = meet(&old_server, &any).await.unwrap();
    assert_eq!(down.version, "TLSv1.2");
    assert!(down.cipher.starts_with("ECDHE-ECDSA-"));
}

#[test]
fn contexts_that_cannot_be_honoured_are_refused() {
    let authority = Authority::new("ca");
    let refused = |proto: &DownstreamTlsContext| {
        DownstreamTls::compile(proto, &SecretStore::default(), stats())
            .unwrap_err()
            .to_string()
    };
    let none = refused(&server(common(None, None), false));
    assert!(none.contains("No TLS certificates found for server context"));
    let mut unknown = common(None, None);
    unknown.tls_certificate_sds_secret_configs = vec![SdsSecretConfig {
        name: "nowhere".into(),
        sds_config: None,
    }];
    assert!(refused(&server(unknown, false)).contains("Unknown static secret: nowhere"));
    let mut insecure = CertificateValidationContext::default();
    insecure
        .match_typed_subject_alt_names
        .push(SubjectAltNameMatcher {
            san_type: SanType::Dns.into(),
            matcher: Some(StringMatcher {
                match_pattern: Some(MatchPattern::Exact("a".into())),
                ..Default::default()
            }),
            ..Default::default()
        });
    let certificate = Some(authority.issue(&["a.example"]));
    let text = refused(&server(common(certificate, Some(insecure)), false));
    assert!(text.contains("without trusted CA is insecure"), "{text}");
}

#[tokio::test]
async fn a_secret_that_does_not_fit_its_context_leaves_the_one_of_before() {
    let authority = Authority::new("ca");
    let tls = compile(&server(
        common(Some(authority.issue(&["a.example"])), None),
        false,
    ));
    let secrets = SecretStore::default();
    let mut named = CertificateValidationContext::default();
    named
        .match_typed_subject_alt_names
        .push(SubjectAltNameMatcher {
            san_type: SanType::Dns.into(),
            matcher: Some(StringMatcher {
                match_pattern: Some(MatchPattern::Exact("a.example".into())),
                ..Default::default()
            }),
            ..Default::default()
        });
    let context = CommonTlsContext {
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(
            CombinedCertificateValidationContext {
                default_validation_context: Some(named),
                validation_context_sds_secret_config: Some(SdsSecretConfig {
                    name: "ca".into(),
                    sds_config: Some(ConfigSource::default()),
                }),
                ..Default::default()
            },
        )),
        ..Default::default()
    };
    let proto = client(context, "a.example");
    let client = UpstreamTls::compile(&proto, &secrets, None).unwrap();
    let load = |context| {
        secrets
            .load("ca", &Type::ValidationContext(context))
            .unwrap()
    };
    load(authority.trusted());
    assert!(meet(&tls, &client).await.is_ok());
    // Names without an authority are refused; nothing is accepted for want of one.
    load(CertificateValidationContext::default());
    assert!(meet(&tls, &client).await.is_ok());
    let foreign = compile(&server(
        common(Some(Authority::new("other").issue(&["a.example"])), None),
        false,
    ));
    assert!(meet(&foreign, &client).await.is_err());
}
