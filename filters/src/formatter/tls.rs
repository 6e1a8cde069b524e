//! Operators that read the downstream connection's TLS.

use std::borrow::Cow;

use xds_client::error::ConfigError;

use super::time::{DEFAULT, TimeFormat};
use crate::tls::{CertificateFacts, TlsInfo};

/// What of the connection's TLS is printed.
#[derive(Debug, Clone)]
pub(super) enum TlsFact {
    Version,
    Cipher,
    /// Of the certificate that the peer has shown.
    Peer(CertificateFact),
    /// Of ours.
    Local(CertificateFact),
    /// The peer's certificate as URL encoded PEM.
    PeerPem,
    PeerBegins(TimeFormat),
    PeerEnds(TimeFormat),
    /// Of all certificates that the peer has shown, its own first.
    PeerChain(CertificateFact),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum CertificateFact {
    Subject,
    Issuer,
    Serial,
    UriSan,
    DnsSan,
    EmailSan,
    IpSan,
    Fingerprint,
    Fingerprint1,
}

impl TlsFact {
    /// Compiles an operator; `None` if it is not one of these.
    pub(super) fn compile(name: &str, argument: Option<&str>) -> Result<Option<Self>, ConfigError> {
        let time = || TimeFormat::compile(argument.filter(|a| !a.is_empty()).unwrap_or(DEFAULT));
        Ok(Some(match name {
            "DOWNSTREAM_TLS_VERSION" => Self::Version,
            "DOWNSTREAM_TLS_CIPHER" => Self::Cipher,
            "DOWNSTREAM_PEER_CERT" => Self::PeerPem,
            "DOWNSTREAM_PEER_CERT_V_START" => Self::PeerBegins(time()?),
            "DOWNSTREAM_PEER_CERT_V_END" => Self::PeerEnds(time()?),
            "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256" => {
                Self::PeerChain(CertificateFact::Fingerprint)
            }
            "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1" => {
                Self::PeerChain(CertificateFact::Fingerprint1)
            }
            "DOWNSTREAM_PEER_CHAIN_SERIALS" => Self::PeerChain(CertificateFact::Serial),
            _ => {
                let peer = name.strip_prefix("DOWNSTREAM_PEER_");
                let local = name.strip_prefix("DOWNSTREAM_LOCAL_");
                return Ok(peer
                    .and_then(CertificateFact::compile)
                    .map(Self::Peer)
                    .or_else(|| local.and_then(CertificateFact::compile).map(Self::Local)));
            }
        }))
    }

    pub(super) fn value<'a>(&self, tls: &'a TlsInfo) -> Option<Cow<'a, [u8]>> {
        let facts = || tls.peer.as_ref().map(|p| &p.facts);
        let text = match self {
            Self::Version => Cow::Borrowed(tls.version),
            Self::Cipher => Cow::Borrowed(tls.cipher),
            Self::PeerPem => Cow::Borrowed(tls.peer.as_ref()?.url_encoded_pem()),
            Self::PeerBegins(format) => Cow::Owned(format.format(facts()?.not_before?)),
            Self::PeerEnds(format) => Cow::Owned(format.format(facts()?.not_after?)),
            Self::Peer(fact) => fact.text(facts()?),
            Self::PeerChain(fact) => {
                let chain = tls.peer.as_ref()?.chain_facts();
                let texts = chain.iter().map(|facts| fact.text(facts));
                Cow::Owned(texts.collect::<Vec<_>>().join(","))
            }
            Self::Local(fact) => fact.text(tls.local.as_deref()?),
        };
        (!text.is_empty()).then(|| match text {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        })
    }
}

impl CertificateFact {
    fn compile(name: &str) -> Option<Self> {
        Some(match name {
            "SUBJECT" => Self::Subject,
            "ISSUER" => Self::Issuer,
            "SERIAL" => Self::Serial,
            "URI_SAN" => Self::UriSan,
            "DNS_SAN" => Self::DnsSan,
            "EMAIL_SAN" => Self::EmailSan,
            "IP_SAN" => Self::IpSan,
            "FINGERPRINT_256" => Self::Fingerprint,
            "FINGERPRINT_1" => Self::Fingerprint1,
            _ => return None,
        })
    }

    fn text(self, facts: &CertificateFacts) -> Cow<'_, str> {
        let list = |names: &[String]| Cow::Owned(names.join(","));
        match self {
            Self::Subject => Cow::Borrowed(&facts.subject),
            Self::Issuer => Cow::Borrowed(&facts.issuer),
            Self::Serial => Cow::Borrowed(&facts.serial),
            Self::Fingerprint => Cow::Borrowed(&facts.sha256),
            Self::Fingerprint1 => Cow::Borrowed(&facts.sha1),
            Self::UriSan => list(&facts.uri_sans),
            Self::DnsSan => list(&facts.dns_sans),
            Self::EmailSan => list(&facts.email_sans),
            Self::IpSan => list(&facts.ip_sans),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::tls::PeerCertificate;

    fn value(name: &str, tls: &TlsInfo) -> Option<String> {
        let fact = TlsFact::compile(name, None).unwrap().expect(name);
        let bytes = fact.value(tls)?.into_owned();
        Some(String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn both_ends_and_the_connection_are_read() {
        let facts = CertificateFacts {
            subject: "CN=a".into(),
            uri_sans: vec!["spiffe://a".into(), "spiffe://b".into()],
            not_after: Some(std::time::UNIX_EPOCH),
            ..CertificateFacts::default()
        };
        let local = CertificateFacts {
            dns_sans: vec!["b.example".into()],
            ..CertificateFacts::default()
        };
        let tls = TlsInfo {
            version: "TLSv1.3",
            cipher: "TLS_AES_128_GCM_SHA256",
            local: Some(Arc::new(local)),
            peer: Some(PeerCertificate::new(facts, vec![vec![1]], true)),
        };
        let text = |name| value(name, &tls);
        assert_eq!(text("DOWNSTREAM_TLS_VERSION").unwrap(), "TLSv1.3");
        assert_eq!(text("DOWNSTREAM_PEER_SUBJECT").unwrap(), "CN=a");
        let names = text("DOWNSTREAM_PEER_URI_SAN").unwrap();
        assert_eq!(names, "spiffe://a,spiffe://b");
        assert_eq!(text("DOWNSTREAM_LOCAL_DNS_SAN").unwrap(), "b.example");
        assert_eq!(text("DOWNSTREAM_PEER_DNS_SAN"), None);
        let end = text("DOWNSTREAM_PEER_CERT_V_END").unwrap();
        assert_eq!(end, "1970-01-01T00:00:00.000Z");
        assert!(text("DOWNSTREAM_PEER_CERT").unwrap().contains("BEGIN%20"));
        assert!(text("DOWNSTREAM_PEER_CERT_V_START").is_none());
        assert!(value("DOWNSTREAM_PEER_SUBJECT", &TlsInfo::default()).is_none());
        let unknown = TlsFact::compile("DOWNSTREAM_LOCAL_ADDRESS", None).unwrap();
        assert!(unknown.is_none());
    }
}
