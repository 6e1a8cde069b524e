//! `CertificateValidationContext`: what a peer's certificate must be.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytestring::ByteString;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::CertificateValidationContext;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::certificate_validation_context::TrustChainVerification;
use filters::matcher::san::{self, SanMatcher};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, SignatureVerificationAlgorithm, TrustAnchor,
    UnixTime,
};
use rustls::{CertificateError, DistinguishedName, Error, OtherError};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptionsBuilder, VerifiedPath,
};
use xds_client::data_source;
use xds_client::error::{At, ConfigError};

use super::chain;
use super::digest::{Sha256, parse_base64, parse_hex, sha256};
use super::facts;
use super::upstream::Rules;

/// The most certificates above a peer's, the anchor among them, unless `max_verify_depth` says less.
const MAX_DEPTH: usize = 100;

/// Whose certificate is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    Client,
    Server,
}

/// Which step refused a certificate, for the stats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Chain,
    Name,
    Hash,
}

/// A refused certificate.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Refused {
    pub(super) step: Step,
    /// Chooses the alert.
    pub(super) error: Error,
    /// As Envoy logs it.
    pub(super) why: String,
}

/// A refusal in Envoy's words.
#[derive(Debug)]
struct Reason(String);

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Reason {}

fn refuse(step: Step, what: &str) -> Refused {
    let why = format!("verify cert failed: {what}");
    let reason = OtherError(Arc::new(Reason(why.clone())));
    Refused {
        step,
        error: CertificateError::Other(reason).into(),
        why,
    }
}

/// A compiled validation context.
#[derive(Debug, Default)]
pub(super) struct Validation {
    anchors: Vec<TrustAnchor<'static>>,
    /// The anchors' certificates by hash: one that a peer shows itself needs no chain.
    trusted: Vec<Sha256>,
    /// Names of the anchors, for the list that a server sends with its request for a certificate.
    pub(super) hints: Vec<DistinguishedName>,
    crls: Vec<CertRevocationList<'static>>,
    crl_of_leaf_only: bool,
    names: Vec<SanMatcher>,
    hashes: Vec<Sha256>,
    keys: Vec<Sha256>,
    allow_expired: bool,
    accept_untrusted: bool,
    max_depth: usize,
}

impl Validation {
    /// Compiles the context. An empty one accepts any certificate, as Envoy does.
    ///
    /// # Errors
    /// What is not valid, not supported, or, as Envoy has it, insecure: names without an authority.
    pub(super) fn compile(proto: &CertificateValidationContext) -> Result<Self, ConfigError> {
        for (set, field) in [
            (
                proto.ca_certificate_provider_instance.is_some(),
                "ca_certificate_provider_instance",
            ),
            (
                proto.custom_validator_config.is_some(),
                "custom_validator_config",
            ),
            (
                proto
                    .require_signed_certificate_timestamp
                    .is_some_and(|v| v.value),
                "require_signed_certificate_timestamp",
            ),
        ] {
            if set {
                return Err(ConfigError::unsupported(field));
            }
        }
        let mut validation = Self {
            crl_of_leaf_only: proto.only_verify_leaf_cert_crl,
            allow_expired: proto.allow_expired_certificate,
            accept_untrusted: proto.trust_chain_verification()
                == TrustChainVerification::AcceptUntrusted,
            max_depth: proto
                .max_verify_depth
                .map_or(MAX_DEPTH, |d| usize::try_from(d.value).unwrap_or(MAX_DEPTH)),
            ..Self::default()
        };
        if let Some(source) = &proto.trusted_ca {
            let pem = data_source::read(source).at("trusted_ca")?;
            let from = data_source::location(source);
            validation
                .trust(
                    CertificateDer::pem_slice_iter(&pem)
                        .collect::<Result<Vec<_>, _>>()
                        .ok(),
                    from,
                )
                .at("trusted_ca")?;
        } else if proto.system_root_certs.is_some() {
            let found = rustls_native_certs::load_native_certs();
            validation
                .trust(Some(found.certs), "the system's store")
                .at("system_root_certs")?;
        }
        let crls = proto.crl.as_ref().map(|source| {
            let pem = data_source::read(source).at("crl")?;
            Ok((source, pem))
        });
        // istiod gives every injected sidecar a file of lists, which is empty where its authority has none.
        if let Some((source, pem)) = crls.transpose()?.filter(|(_, pem)| !pem.is_empty()) {
            let failed = || {
                let from = data_source::location(source);
                ConfigError::new(format!("Failed to load CRL from {from}")).at("crl")
            };
            for crl in CertificateRevocationListDer::pem_slice_iter(&pem) {
                let crl = crl.map_err(|_| failed())?;
                let crl = OwnedCertRevocationList::from_der(&crl).map_err(|_| failed())?;
                validation.crls.push(CertRevocationList::Owned(crl));
            }
            if validation.crls.is_empty() {
                return Err(failed());
            }
            if validation.anchors.is_empty() {
                let from = data_source::location(source);
                let reason = format!("Failed to load CRL from {from} without trusted CA");
                return Err(ConfigError::new(reason).at("crl"));
            }
        }
        for (i, text) in proto.verify_certificate_hash.iter().enumerate() {
            let hash = parse_hex(text).ok_or_else(|| {
                ConfigError::new(format!("Invalid hex-encoded SHA-256 {}", beginning(text)))
                    .at(format!("verify_certificate_hash[{i}]"))
            })?;
            validation.hashes.push(hash);
        }
        for (i, text) in proto.verify_certificate_spki.iter().enumerate() {
            let hash = parse_base64(text).ok_or_else(|| {
                ConfigError::new(format!(
                    "Invalid base64-encoded SHA-256 {}",
                    beginning(text)
                ))
                .at(format!("verify_certificate_spki[{i}]"))
            })?;
            validation.keys.push(hash);
        }
        for (i, matcher) in proto.match_typed_subject_alt_names.iter().enumerate() {
            let path = format!("match_typed_subject_alt_names[{i}]");
            validation
                .names
                .push(SanMatcher::compile(matcher).at(path)?);
        }
        #[expect(deprecated, reason = "istiod still sends it to gateways")]
        for (i, matcher) in proto.match_subject_alt_names.iter().enumerate() {
            let path = format!("match_subject_alt_names[{i}]");
            validation
                .names
                .push(SanMatcher::compile_untyped(matcher).at(path)?);
        }
        if !validation.names.is_empty() && validation.anchors.is_empty() {
            return Err(ConfigError::new(
                "SAN-based verification of peer certificates without trusted CA is insecure and not allowed",
            ));
        }
        Ok(validation)
    }

    fn trust(
        &mut self,
        certificates: Option<Vec<CertificateDer<'static>>>,
        from: &str,
    ) -> Result<(), ConfigError> {
        let failed = || {
            ConfigError::new(format!(
                "Failed to load trusted CA certificates from {from}"
            ))
        };
        for der in certificates.ok_or_else(failed)? {
            let anchor = webpki::anchor_from_trusted_cert(&der).map_err(|_| failed())?;
            let name = DistinguishedName::in_sequence(anchor.subject.as_ref());
            self.hints.push(name);
            self.anchors.push(anchor.to_owned());
            self.trusted.push(sha256(&der));
        }
        if self.anchors.is_empty() {
            return Err(failed());
        }
        Ok(())
    }

    /// Whether a certificate that is refused is accepted all the same, and only counted.
    pub(super) fn accepts_untrusted(&self) -> bool {
        self.accept_untrusted
    }

    /// Whether it refuses anything.
    pub(super) fn verifies(&self) -> bool {
        let nothing = self.anchors.is_empty() && self.hashes.is_empty() && self.keys.is_empty();
        !(self.accept_untrusted || nothing)
    }

    /// Whether it asks for more than an authority's signature: a client without a certificate cannot have that.
    pub(super) fn demands(&self) -> bool {
        let listed = [
            self.names.is_empty(),
            self.hashes.is_empty(),
            self.keys.is_empty(),
        ];
        !self.accept_untrusted && listed.contains(&false)
    }

    /// Whether it trusts any authority.
    pub(super) fn has_anchors(&self) -> bool {
        !self.anchors.is_empty()
    }

    /// Verifies a peer's chain up to an authority.
    ///
    /// # Errors
    /// Why it is not to be trusted.
    pub(super) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        peer: Peer,
        algorithms: &[&dyn SignatureVerificationAlgorithm],
        now: UnixTime,
    ) -> Result<(), Refused> {
        if self.anchors.is_empty() {
            return Ok(());
        }
        let verified = self.verify_chain(leaf, intermediates, peer, algorithms, now);
        verified.map_err(|error| {
            let (error, what) = chain::describe(error, leaf, intermediates, self.max_depth, now);
            Refused {
                step: Step::Chain,
                error,
                why: format!("verify cert failed: {what}"),
            }
        })
    }

    /// Verifies a peer's names: against the context's list, and what one connection demands.
    ///
    /// # Errors
    /// It has none of the names.
    pub(super) fn verify_names(
        &self,
        leaf: &CertificateDer<'_>,
        rules: &Rules,
    ) -> Result<(), Refused> {
        // Access control may deny by name: one that is left out must not slip past it.
        if self.has_anchors() && facts::has_bad_name(leaf) {
            return Err(Refused {
                step: Step::Name,
                error: CertificateError::BadEncoding.into(),
                why: "verify cert failed: SAN with a control character".to_owned(),
            });
        }
        let asked = rules.server_name.as_deref().map(SanMatcher::dns);
        let names = asked.as_ref().map_or(&*self.names, std::slice::from_ref);
        if names.is_empty() && rules.subjects.is_empty() {
            return Ok(());
        }
        let facts = facts::read(leaf);
        let facts = facts.as_ref();
        let covers = |subject: &ByteString| facts.is_some_and(|f| san::names(f, subject));
        let shown = || facts::sans(leaf).join(", ");
        if !rules.subjects.is_empty() && !rules.subjects.iter().any(covers) {
            let (expected, shown) = (rules.subjects.join(", "), shown());
            let what = format!(
                "verify SAN list, expected SANs: [{expected}], certificate SANs: [{shown}]"
            );
            return Err(refuse(Step::Name, &what));
        }
        if facts.is_some_and(|f| san::accepted(names, f)) {
            return Ok(());
        }
        let what = format!("SAN matcher, certificate SANs are [{}]", shown());
        Err(refuse(Step::Name, &what))
    }

    /// Verifies a peer against the lists of certificates and keys.
    ///
    /// # Errors
    /// There are such lists, and it is on none.
    pub(super) fn verify_hashes(&self, leaf: &CertificateDer<'_>) -> Result<(), Refused> {
        if self.hashes.is_empty() && self.keys.is_empty() {
            return Ok(());
        }
        let by_hash = self.hashes.contains(&sha256(leaf));
        let by_key = || {
            !self.keys.is_empty()
                && facts::public_key(leaf).is_some_and(|k| self.keys.contains(&sha256(&k)))
        };
        if by_hash || by_key() {
            Ok(())
        } else {
            Err(refuse(Step::Hash, "cert hash and spki"))
        }
    }

    fn verify_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        peer: Peer,
        algorithms: &[&dyn SignatureVerificationAlgorithm],
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        if self.trusted.contains(&sha256(leaf)) {
            return self.verify_trusted(leaf, now);
        }
        let certificate = EndEntityCert::try_from(leaf)?;
        let verify = |now| {
            let usage = match peer {
                Peer::Client => KeyUsage::client_auth(),
                Peer::Server => KeyUsage::server_auth(),
            };
            let crls: Vec<&CertRevocationList<'_>> = self.crls.iter().collect();
            let revocation = RevocationOptionsBuilder::new(&crls).ok().map(|options| {
                // As OpenSSL has it: an authority without a list, or with an old one, cannot be trusted.
                options
                    .with_expiration_policy(ExpirationPolicy::Enforce)
                    .with_depth(if self.crl_of_leaf_only {
                        RevocationCheckDepth::EndEntity
                    } else {
                        RevocationCheckDepth::Chain
                    })
                    .build()
            });
            let within_depth = |path: &VerifiedPath<'_>| {
                // The limit counts the anchor, and one that is trusted directly needs no more room than 0 gives.
                let room = self.max_depth.saturating_sub(1);
                if path.intermediate_certificates().count() > room {
                    return Err(webpki::Error::MaximumPathDepthExceeded);
                }
                Ok(())
            };
            certificate
                .verify_for_usage(
                    algorithms,
                    &self.anchors,
                    intermediates,
                    now,
                    usage,
                    revocation,
                    Some(&within_depth),
                )
                .map(|_| ())
        };
        let error = match verify(now) {
            Err(
                error @ (webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. }),
            ) => error,
            other => return other,
        };
        // Whether time is all that is wrong with it.
        let then = valid_time(leaf, now).map_or(Err(error.clone()), &verify);
        match then {
            Ok(()) if self.allow_expired => Ok(()),
            Err(other @ webpki::Error::UnknownIssuer) => Err(other),
            Err(other) if self.allow_expired => Err(other),
            _ => Err(error),
        }
    }

    /// A certificate that is trusted by itself, self-signed as a rule: only its time counts.
    fn verify_trusted(
        &self,
        leaf: &CertificateDer<'_>,
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        if self.allow_expired {
            return Ok(());
        }
        chain::check_time(leaf, now)
    }
}

/// The time nearest to `now` at which the certificate is valid.
fn valid_time(leaf: &CertificateDer<'_>, now: UnixTime) -> Option<UnixTime> {
    let facts = facts::read(leaf)?;
    let since = |time: Option<SystemTime>| time?.duration_since(UNIX_EPOCH).ok();
    let (begin, end) = (since(facts.not_before)?, since(facts.not_after)?);
    let now = Duration::from_secs(now.as_secs());
    Some(UnixTime::since_unix_epoch(now.clamp(begin, end.max(begin))))
}

/// As much of a value as an error shows: whoever sent it may have sent a lot.
fn beginning(text: &str) -> &str {
    let end = text.char_indices().nth(100).map(|(at, _)| at);
    end.and_then(|end| text.get(..end)).unwrap_or(text)
}
