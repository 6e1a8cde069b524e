//! rustls's verifiers of peers over [`Validation`].

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::facts;
use super::refusal::{self, Refusal};
use super::stats::TlsStats;
use super::upstream::Rules;
use super::validation::{Peer, Refused, Step, Validation};

/// Verifies the certificates of one side's peers.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) validation: Arc<Validation>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    pub(super) stats: Arc<TlsStats>,
    /// A client must show a certificate.
    pub(super) required: bool,
    /// Names of authorities that a client is told of.
    pub(super) hints: Vec<DistinguishedName>,
    /// What one connection's server must be beside.
    pub(super) rules: Rules,
}

impl Verifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        peer: Peer,
        now: UnixTime,
    ) -> Result<(), Error> {
        let verified = self
            .validation
            .verify(leaf, intermediates, peer, self.algorithms.all, now)
            .and_then(|()| self.validation.verify_names(leaf, &self.rules))
            .and_then(|()| self.validation.verify_hashes(leaf));
        let Err(Refused { step, error, why }) = verified else {
            return Ok(());
        };
        let counter = match step {
            Step::Chain => &self.stats.fail_verify_error,
            Step::Name => &self.stats.fail_verify_san,
            Step::Hash => &self.stats.fail_verify_cert_hash,
        };
        counter.inc();
        if self.validation.accepts_untrusted() {
            return Ok(());
        }
        refusal::leave(Refusal {
            why,
            peer: facts::peer(std::slice::from_ref(leaf), false),
        });
        Err(error)
    }

    /// Counts a handshake's signature that is sound.
    fn signed(
        &self,
        signature: &DigitallySignedStruct,
        verified: Result<HandshakeSignatureValid, Error>,
    ) -> Result<HandshakeSignatureValid, Error> {
        verified.inspect(|_| self.stats.signed(signature.scheme))
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, intermediates, Peer::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = verify_tls12_signature(message, certificate, signature, &self.algorithms);
        self.signed(signature, verified)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = verify_tls13_signature(message, certificate, signature, &self.algorithms);
        self.signed(signature, verified)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Verifier {
    /// The name that was asked for does not count by itself, as in Envoy: what is accepted is what the context and
    /// the rules say.
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, intermediates, Peer::Server, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = verify_tls12_signature(message, certificate, signature, &self.algorithms);
        self.signed(signature, verified)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = verify_tls13_signature(message, certificate, signature, &self.algorithms);
        self.signed(signature, verified)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
