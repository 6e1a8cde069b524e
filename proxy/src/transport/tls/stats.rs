//! `ssl.*` stats of a listener or cluster.

use std::sync::OnceLock;

use filters::tls::TlsInfo;
use rustls::{NamedGroup, SignatureScheme};

use crate::telemetry::stats::{Counter, Scope};

/// Suites, versions, groups and signatures by Envoy's names.
const VERSIONS: [&str; 2] = ["TLSv1.2", "TLSv1.3"];
const CIPHERS: [&str; 9] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
];
const CURVES: [(NamedGroup, &str); 4] = [
    (NamedGroup::X25519, "X25519"),
    (NamedGroup::secp256r1, "P-256"),
    (NamedGroup::secp384r1, "P-384"),
    (NamedGroup::X25519MLKEM768, "X25519MLKEM768"),
];
const SIGNATURES: [(SignatureScheme, &str); 10] = [
    (
        SignatureScheme::ECDSA_NISTP256_SHA256,
        "ecdsa_secp256r1_sha256",
    ),
    (
        SignatureScheme::ECDSA_NISTP384_SHA384,
        "ecdsa_secp384r1_sha384",
    ),
    (
        SignatureScheme::ECDSA_NISTP521_SHA512,
        "ecdsa_secp521r1_sha512",
    ),
    (SignatureScheme::ED25519, "ed25519"),
    (SignatureScheme::RSA_PKCS1_SHA256, "rsa_pkcs1_sha256"),
    (SignatureScheme::RSA_PKCS1_SHA384, "rsa_pkcs1_sha384"),
    (SignatureScheme::RSA_PKCS1_SHA512, "rsa_pkcs1_sha512"),
    (SignatureScheme::RSA_PSS_SHA256, "rsa_pss_rsae_sha256"),
    (SignatureScheme::RSA_PSS_SHA384, "rsa_pss_rsae_sha384"),
    (SignatureScheme::RSA_PSS_SHA512, "rsa_pss_rsae_sha512"),
];

/// Counters of one family, each made with its first count.
#[derive(Default)]
struct Family<const N: usize>(Option<(Scope, &'static str, [OnceLock<Counter>; N])>);

impl<const N: usize> Family<N> {
    fn new(scope: &Scope, family: &'static str) -> Self {
        Self(Some((
            scope.clone(),
            family,
            std::array::from_fn(|_| OnceLock::new()),
        )))
    }

    fn inc(&self, position: Option<usize>, name: &str) {
        let Some((scope, family, counters)) = &self.0 else {
            return;
        };
        if let Some(counter) = position.and_then(|position| counters.get(position)) {
            let make = || scope.counter(&format!("ssl.{family}.{name}"));
            counter.get_or_init(make).inc();
        }
    }
}

/// Envoy's TLS statistics, as far as rustls lets them be known. The default ones count for nobody.
#[derive(Default)]
pub struct TlsStats {
    /// Handshakes that failed or were cut off.
    pub connection_error: Counter,
    /// Handshakes that succeeded.
    pub handshake: Counter,
    /// Handshakes that resumed a session.
    pub session_reused: Counter,
    /// Handshakes without a peer certificate.
    pub no_certificate: Counter,
    /// Peers that had to show a certificate and did not.
    pub fail_verify_no_cert: Counter,
    /// Peer certificates without a valid chain.
    pub fail_verify_error: Counter,
    /// Peer certificates with none of the names that are accepted.
    pub fail_verify_san: Counter,
    /// Peer certificates with none of the hashes that are accepted.
    pub fail_verify_cert_hash: Counter,
    /// Connections that came before their secrets did.
    pub context_secrets_not_ready: Counter,
    /// Contexts compiled again because a secret has changed.
    pub context_updated_by_sds: Counter,
    versions: Family<{ VERSIONS.len() }>,
    ciphers: Family<{ CIPHERS.len() }>,
    curves: Family<{ CURVES.len() }>,
    sigalgs: Family<{ SIGNATURES.len() }>,
}

impl TlsStats {
    /// The stats of a listener: `scope` is `listener.<address>.`.
    pub fn downstream(scope: &Scope) -> Self {
        Self::new(scope, "server_ssl_socket_factory", "downstream")
    }

    /// The stats of a cluster: `scope` is `cluster.<name>.`.
    pub fn upstream(scope: &Scope) -> Self {
        Self::new(scope, "client_ssl_socket_factory", "upstream")
    }

    fn new(scope: &Scope, factory: &str, side: &str) -> Self {
        let made = |name: String| scope.counter(&format!("{factory}.{name}"));
        let ssl = |name: &str| scope.counter(&format!("ssl.{name}"));
        Self {
            connection_error: ssl("connection_error"),
            handshake: ssl("handshake"),
            session_reused: ssl("session_reused"),
            no_certificate: ssl("no_certificate"),
            fail_verify_no_cert: ssl("fail_verify_no_cert"),
            fail_verify_error: ssl("fail_verify_error"),
            fail_verify_san: ssl("fail_verify_san"),
            fail_verify_cert_hash: ssl("fail_verify_cert_hash"),
            context_secrets_not_ready: made(format!("{side}_context_secrets_not_ready")),
            context_updated_by_sds: made("ssl_context_update_by_sds".to_owned()),
            versions: Family::new(scope, "versions"),
            ciphers: Family::new(scope, "ciphers"),
            curves: Family::new(scope, "curves"),
            sigalgs: Family::new(scope, "sigalgs"),
        }
    }

    /// A handshake is done.
    pub(super) fn shaken(&self, info: &TlsInfo, group: Option<NamedGroup>) {
        self.handshake.inc();
        if info.peer.is_none() {
            self.no_certificate.inc();
        }
        let version = VERSIONS.iter().position(|v| *v == info.version);
        self.versions.inc(version, info.version);
        let cipher = CIPHERS.iter().position(|c| *c == info.cipher);
        self.ciphers.inc(cipher, info.cipher);
        let curve = CURVES.iter().position(|(g, _)| Some(*g) == group);
        let name = curve.and_then(|at| CURVES.get(at)).map_or("", |c| c.1);
        self.curves.inc(curve, name);
    }

    /// The peer has signed the handshake.
    pub(super) fn signed_with(&self, scheme: SignatureScheme) {
        let at = SIGNATURES.iter().position(|(s, _)| *s == scheme);
        let name = at.and_then(|at| SIGNATURES.get(at)).map_or("", |s| s.1);
        self.sigalgs.inc(at, name);
    }
}

impl std::fmt::Debug for TlsStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsStats")
    }
}
