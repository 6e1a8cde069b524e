//! Our own certificates: chain, key, and the names that choose between them.

use std::sync::Arc;
use std::time::SystemTime;

use envoy_types::pb::envoy::config::core::v3::DataSource;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::TlsCertificate;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::downstream_tls_context::OcspStaplePolicy;
use filters::tls::CertificateFacts;
use rustls::SignatureAlgorithm;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use xds_client::data_source;
use xds_client::error::{At, ConfigError};

use super::ocsp::Staple;
use super::{PROVIDER, facts};

/// The most certificates that a chain may have.
const MAX_CHAIN: usize = 100;

/// A certificate with its key, ready for handshakes.
#[derive(Debug)]
pub struct Certificate {
    pub(super) key: Arc<CertifiedKey>,
    /// The same with the staple, as long as that is current.
    stapled: Option<(Arc<CertifiedKey>, Staple)>,
    /// The certificate tells clients to insist on a staple.
    must_staple: bool,
    /// What it says.
    pub facts: Arc<CertificateFacts>,
    /// Lower-case DNS names; those that begin with `*.` are wildcards.
    names: Vec<String>,
}

impl Certificate {
    /// Loads a `TlsCertificate`.
    ///
    /// # Errors
    /// A file that cannot be read, bytes that are no certificate or key, a key that is not the certificate's, or a
    /// field that is not supported.
    pub fn compile(proto: &TlsCertificate) -> Result<Self, ConfigError> {
        for (set, field) in [
            (proto.pkcs12.is_some(), "pkcs12"),
            (proto.private_key_provider.is_some(), "private_key_provider"),
            (proto.password.is_some(), "password"),
            (proto.tls_params.is_some(), "tls_params"),
            (
                !proto.signed_certificate_timestamp.is_empty(),
                "signed_certificate_timestamp",
            ),
        ] {
            if set {
                return Err(ConfigError::unsupported(field));
            }
        }
        let missing = || ConfigError::new("value is required");
        let source = proto.certificate_chain.as_ref();
        let source = source.ok_or_else(missing).at("certificate_chain")?;
        let chain = chain(&data_source::read(source).at("certificate_chain")?);
        let chain = chain
            .ok_or_else(|| {
                let from = data_source::location(source);
                ConfigError::new(format!("Failed to load certificate chain from {from}"))
            })
            .at("certificate_chain")?;
        let source = proto.private_key.as_ref();
        let source = source.ok_or_else(missing).at("private_key")?;
        let bytes = zeroize::Zeroizing::new(data_source::read(source).at("private_key")?);
        let refused = |why: String| {
            let from = data_source::location(source);
            ConfigError::new(format!(
                "Failed to load private key from {from}, Cause: {why}"
            ))
            .at("private_key")
        };
        let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|e| refused(e.to_string()))?;
        let leaf = chain.first().cloned().unwrap_or_else(|| Vec::new().into());
        let key =
            CertifiedKey::from_der(chain, key, &PROVIDER).map_err(|e| refused(e.to_string()))?;
        let stapled = match &proto.ocsp_staple {
            None => None,
            Some(source) => staple(source, &leaf, &key).at("ocsp_staple")?,
        };
        let facts = facts::read(&leaf)
            .ok_or_else(|| ConfigError::new("is no X.509 certificate").at("certificate_chain"))?;
        // RFC 6125, 6.4.4: the common name counts only if there is nothing else.
        let names = if facts.dns_sans.is_empty() {
            facts::common_name(&leaf).into_iter().collect()
        } else {
            facts.dns_sans.clone()
        };
        Ok(Self {
            key: Arc::new(key),
            stapled,
            must_staple: facts::must_staple(&leaf),
            facts: Arc::new(facts),
            names: names.iter().map(|n| n.to_ascii_lowercase()).collect(),
        })
    }

    /// Checks that there is a staple if there must be one.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn check_staple(&self, policy: OcspStaplePolicy) -> Result<(), ConfigError> {
        let missing = self.stapled.is_none();
        if missing && self.must_staple {
            return Err(ConfigError::new(
                "OCSP response is required for must-staple certificate",
            ));
        }
        if missing && policy == OcspStaplePolicy::MustStaple {
            return Err(ConfigError::new(
                "Required OCSP response is missing from TLS context",
            ));
        }
        Ok(())
    }

    /// What is shown at `now`: with its staple while that is current. `None` if the policy forbids to show it
    /// without. Which clients ask for a staple is not known here; one that does not is held to the same.
    pub(super) fn shown(
        &self,
        policy: OcspStaplePolicy,
        now: SystemTime,
    ) -> Option<&Arc<CertifiedKey>> {
        match &self.stapled {
            Some((key, staple)) if staple.is_current(now) => Some(key),
            _ if self.must_staple => None,
            stapled => match policy {
                OcspStaplePolicy::LenientStapling => Some(&self.key),
                OcspStaplePolicy::StrictStapling => stapled.is_none().then_some(&self.key),
                OcspStaplePolicy::MustStaple => None,
            },
        }
    }

    fn is_ecdsa(&self) -> bool {
        self.key.key.algorithm() == SignatureAlgorithm::ECDSA
    }

    fn has(&self, name: &str) -> bool {
        self.names.iter().any(|n| n == name)
    }
}

fn chain(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    chain.ok().filter(|c| {
        !c.is_empty() && c.len() <= MAX_CHAIN && c.iter().all(|der| facts::is_certificate(der))
    })
}

/// The staple of a certificate with this key; an empty one is none.
fn staple(
    source: &DataSource,
    leaf: &[u8],
    key: &CertifiedKey,
) -> Result<Option<(Arc<CertifiedKey>, Staple)>, ConfigError> {
    if matches!(source.specifier, Some(Specifier::InlineString(_))) {
        return Err(ConfigError::new(
            "OCSP staple cannot be provided via inline_string",
        ));
    }
    let bytes = data_source::read(source)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let staple = Staple::load(bytes, &facts::serial(leaf))?;
    let mut key = key.clone();
    key.ocsp = Some(staple.der.clone());
    Ok(Some((Arc::new(key), staple)))
}

/// The certificate that a client gets, as Envoy's default selector chooses: by exact name, then by wildcard, and
/// without a match (or a name) the first. Among equals ECDSA comes first if the client can verify it.
pub(super) fn choose<'a>(
    certificates: &'a [Arc<Certificate>],
    server_name: Option<&str>,
    scan_on_mismatch: bool,
    can_verify: impl Fn(&Certificate) -> bool,
) -> Option<&'a Arc<Certificate>> {
    let best = |wanted: &dyn Fn(&Certificate) -> bool| {
        let fits = |c: &&Arc<Certificate>| wanted(c) && can_verify(c);
        certificates
            .iter()
            .filter(fits)
            .find(|c| c.is_ecdsa())
            .or_else(|| certificates.iter().find(fits))
    };
    let Some(name) = server_name else {
        return best(&|_| true).or_else(|| certificates.first());
    };
    let name = name.to_ascii_lowercase();
    let wildcard = name.split_once('.').map(|(_, rest)| format!("*.{rest}"));
    best(&|c| c.has(&name))
        .or_else(|| wildcard.and_then(|w| best(&|c| c.has(&w))))
        .or_else(|| scan_on_mismatch.then(|| best(&|_| true)).flatten())
        .or_else(|| certificates.first())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Authority, data};
    use super::*;

    fn certificate(names: &[&str], rsa: bool) -> Arc<Certificate> {
        let authority = Authority::new("ca");
        let proto = if rsa {
            authority.issue_rsa(names)
        } else {
            authority.issue(names)
        };
        Arc::new(Certificate::compile(&proto).unwrap())
    }

    #[test]
    fn the_name_chooses_exactly_then_by_wildcard_then_the_first() {
        let list = [
            certificate(&["first.example"], false),
            certificate(&["*.a.example"], false),
            certificate(&["x.a.example"], false),
        ];
        let chosen = |name| {
            let found = choose(&list, name, false, |_| true).unwrap();
            list.iter().position(|c| Arc::ptr_eq(c, found)).unwrap()
        };
        assert_eq!(chosen(Some("X.a.example")), 2);
        assert_eq!(chosen(Some("y.a.example")), 1);
        assert_eq!(chosen(Some("z.y.a.example")), 0);
        assert_eq!(chosen(None), 0);
    }

    #[test]
    fn the_clients_algorithms_choose_between_two_kinds_of_keys() {
        let list = [
            certificate(&["a.example"], true),
            certificate(&["a.example"], false),
        ];
        let found = choose(&list, Some("a.example"), false, |_| true).unwrap();
        assert!(found.is_ecdsa());
        let found = choose(&list, Some("a.example"), false, |c| !c.is_ecdsa()).unwrap();
        assert!(!found.is_ecdsa());
    }

    #[test]
    fn what_is_broken_is_named_and_never_quoted() {
        let authority = Authority::new("ca");
        let good = authority.issue(&["a.example"]);
        let mut bad = good.clone();
        bad.certificate_chain = Some(data("garbage"));
        let error = Certificate::compile(&bad).unwrap_err();
        assert_eq!(error.path(), "certificate_chain");
        assert_eq!(
            error.reason(),
            "Failed to load certificate chain from <inline>"
        );
        let mut bad = good.clone();
        bad.private_key = authority.issue(&["b.example"]).private_key;
        let error = Certificate::compile(&bad).unwrap_err();
        assert_eq!(error.path(), "private_key");
        assert!(!error.reason().contains("BEGIN"));
        let mut bad = good.clone();
        bad.private_key = None;
        assert_eq!(
            Certificate::compile(&bad).unwrap_err().path(),
            "private_key"
        );
        let mut bad = good;
        bad.password = Some(data("secret"));
        assert_eq!(Certificate::compile(&bad).unwrap_err().path(), "password");
        bad.password = None;
        bad.ocsp_staple = Some(data("text"));
        let error = Certificate::compile(&bad).unwrap_err();
        assert_eq!(error.path(), "ocsp_staple");
    }
}
