//! `ssl.*` stats of a listener or cluster.

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
    /// Connections that came before their secrets did.
    pub context_secrets_not_ready: Counter,
    /// Contexts compiled again because a secret has changed.
    pub context_updated_by_sds: Counter,
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
        }
    }
}

impl std::fmt::Debug for TlsStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsStats")
    }
}
