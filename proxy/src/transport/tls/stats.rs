//! `ssl.*` stats of a listener or cluster.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use rustls::{CommonState, HandshakeKind, SignatureScheme};

use super::{parameters, suite_name, version_name};
use crate::telemetry::stats::{Counter, Scope};

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
    /// Handshakes whose certificate could not be shown for want of a current staple.
    pub ocsp_staple_failed: Counter,
    /// Connections that came before their secrets did.
    pub context_secrets_not_ready: Counter,
    /// Contexts compiled again because a secret has changed.
    pub context_updated_by_sds: Counter,
    ciphers: Tally,
    curves: Tally,
    signatures: Tally,
    versions: Tally,
}

/// Counters by one of a few names, each made when it is first needed.
#[derive(Default)]
struct Tally {
    scope: Option<Scope>,
    counters: RwLock<BTreeMap<&'static str, Counter>>,
}

impl Tally {
    fn new(scope: &Scope, kind: &str) -> Self {
        Self {
            scope: Some(scope.scope(&format!("ssl.{kind}."))),
            counters: RwLock::default(),
        }
    }

    /// A lock for reading, but for a name's first time: once in a handshake it does not count.
    fn count(&self, name: &'static str) {
        let Some(scope) = self.scope.as_ref().filter(|_| !name.is_empty()) else {
            return;
        };
        let counters = self.counters.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(counter) = counters.get(name) {
            return counter.inc();
        }
        drop(counters);
        let mut counters = self
            .counters
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        counters
            .entry(name)
            .or_insert_with(|| scope.counter(name))
            .inc();
    }
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
            ocsp_staple_failed: ssl("ocsp_staple_failed"),
            context_secrets_not_ready: made(format!("{side}_context_secrets_not_ready")),
            context_updated_by_sds: made("ssl_context_update_by_sds".to_owned()),
            ciphers: Tally::new(scope, "ciphers"),
            curves: Tally::new(scope, "curves"),
            signatures: Tally::new(scope, "sigalgs"),
            versions: Tally::new(scope, "versions"),
        }
    }

    /// A handshake succeeded.
    pub(super) fn shook_hands(&self, connection: &CommonState) {
        self.handshake.inc();
        if connection.handshake_kind() == Some(HandshakeKind::Resumed) {
            self.session_reused.inc();
        }
        if connection.peer_certificates().is_none_or(<[_]>::is_empty) {
            self.no_certificate.inc();
        }
        self.ciphers
            .count(suite_name(connection.negotiated_cipher_suite()));
        self.versions
            .count(version_name(connection.protocol_version()));
        if let Some(group) = connection.negotiated_key_exchange_group() {
            self.curves.count(parameters::group_name(group.name()));
        }
    }

    /// A peer has signed with this.
    pub(super) fn signed(&self, scheme: SignatureScheme) {
        self.signatures.count(signature_name(scheme));
    }
}

/// As BoringSSL has it: RFC 8446's name.
fn signature_name(scheme: SignatureScheme) -> &'static str {
    match scheme {
        SignatureScheme::ECDSA_NISTP256_SHA256 => "ecdsa_secp256r1_sha256",
        SignatureScheme::ECDSA_NISTP384_SHA384 => "ecdsa_secp384r1_sha384",
        SignatureScheme::ECDSA_NISTP521_SHA512 => "ecdsa_secp521r1_sha512",
        SignatureScheme::RSA_PSS_SHA256 => "rsa_pss_rsae_sha256",
        SignatureScheme::RSA_PSS_SHA384 => "rsa_pss_rsae_sha384",
        SignatureScheme::RSA_PSS_SHA512 => "rsa_pss_rsae_sha512",
        SignatureScheme::RSA_PKCS1_SHA256 => "rsa_pkcs1_sha256",
        SignatureScheme::RSA_PKCS1_SHA384 => "rsa_pkcs1_sha384",
        SignatureScheme::RSA_PKCS1_SHA512 => "rsa_pkcs1_sha512",
        SignatureScheme::ED25519 => "ed25519",
        _ => "",
    }
}

impl std::fmt::Debug for TlsStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsStats")
    }
}
