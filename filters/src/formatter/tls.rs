//! Operators that read the TLS of the downstream or the upstream connection.

use std::borrow::Cow;

use xds_client::error::ConfigError;

use super::time::TimeFormat;
use crate::stream::StreamInfo;
use crate::tls::{CertificateFacts, TlsInfo};

/// Of an upstream connection Envoy prints no more.
const UPSTREAM: &[&str] = &[
    "SERVER_NAME",
    "TLS_VERSION",
    "TLS_CIPHER",
    "TLS_GROUP",
    "PEER_CERT",
    "PEER_CERT_V_START",
    "PEER_CERT_V_END",
    "PEER_SUBJECT",
    "PEER_ISSUER",
    "PEER_DNS_SAN",
    "PEER_IP_SAN",
    "PEER_URI_SAN",
    "LOCAL_DNS_SAN",
    "LOCAL_IP_SAN",
    "LOCAL_URI_SAN",
];

/// Which connection's TLS is printed, and what of it.
#[derive(Debug, Clone)]
pub(super) struct TlsFact {
    upstream: bool,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    ServerName,
    Version,
    Cipher,
    Group,
    /// Of the certificate that the peer has shown.
    Peer(CertificateFact),
    /// Of ours.
    Local(CertificateFact),
    /// The peer's certificate as URL encoded PEM.
    PeerPem,
    PeerBegins(TimeFormat),
    PeerEnds(TimeFormat),
    /// Of the certificate that the peer has shown behind its own.
    PeerIssuer(CertificateFact),
    /// Of all certificates that the peer has shown, its own first.
    PeerChain(CertificateFact),
}

#[derive(Debug, Clone, Copy)]
enum CertificateFact {
    Subject,
    Issuer,
    Serial,
    UriSan,
    DnsSan,
    EmailSan,
    IpSan,
    OtherSan,
    Fingerprint,
    Fingerprint1,
}

impl TlsFact {
    /// Compiles an operator; `None` if it is not one of these.
    pub(super) fn compile(name: &str, argument: Option<&str>) -> Result<Option<Self>, ConfigError> {
        let (upstream, rest) = match name.strip_prefix("DOWNSTREAM_") {
            Some(rest) => (false, rest),
            None => match name.strip_prefix("UPSTREAM_") {
                Some(rest) if UPSTREAM.contains(&rest) => (true, rest),
                _ => return Ok(None),
            },
        };
        let what = What::compile(rest, argument)?;
        Ok(what.map(|what| Self { upstream, what }))
    }

    pub(super) fn value<'a>(&self, info: &'a StreamInfo) -> Option<Cow<'a, [u8]>> {
        let tls = match self.upstream {
            true => info.upstream.tls.as_deref()?,
            false => info.connection.tls.as_deref()?,
        };
        let text = self.what.text(tls).filter(|text| !text.is_empty())?;
        Some(match text {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        })
    }
}

impl What {
    fn compile(name: &str, argument: Option<&str>) -> Result<Option<Self>, ConfigError> {
        let time = || TimeFormat::or_default(argument);
        Ok(Some(match name {
            "SERVER_NAME" => Self::ServerName,
            "TLS_VERSION" => Self::Version,
            "TLS_CIPHER" => Self::Cipher,
            "TLS_GROUP" => Self::Group,
            "PEER_CERT" => Self::PeerPem,
            "PEER_CERT_V_START" => Self::PeerBegins(time()?),
            "PEER_CERT_V_END" => Self::PeerEnds(time()?),
            "PEER_CHAIN_FINGERPRINTS_256" => Self::PeerChain(CertificateFact::Fingerprint),
            "PEER_CHAIN_FINGERPRINTS_1" => Self::PeerChain(CertificateFact::Fingerprint1),
            "PEER_ISSUER_FINGERPRINT_256" => Self::PeerIssuer(CertificateFact::Fingerprint),
            "PEER_ISSUER_SERIAL" => Self::PeerIssuer(CertificateFact::Serial),
            "PEER_CHAIN_SERIALS" => Self::PeerChain(CertificateFact::Serial),
            _ => {
                let peer = name.strip_prefix("PEER_");
                let local = name.strip_prefix("LOCAL_");
                return Ok(peer
                    .and_then(CertificateFact::compile)
                    .map(Self::Peer)
                    .or_else(|| local.and_then(CertificateFact::compile).map(Self::Local)));
            }
        }))
    }

    fn text<'a>(&self, tls: &'a TlsInfo) -> Option<Cow<'a, str>> {
        let facts = || tls.peer.as_ref().map(|p| &p.facts);
        Some(match self {
            Self::ServerName => Cow::Borrowed(&*tls.server_name),
            Self::Version => Cow::Borrowed(tls.version),
            Self::Cipher => Cow::Borrowed(tls.cipher),
            Self::Group => Cow::Borrowed(tls.group),
            Self::PeerPem => Cow::Borrowed(tls.peer.as_ref()?.url_encoded_pem()),
            Self::PeerBegins(format) => Cow::Owned(format.format(facts()?.not_before?)),
            Self::PeerEnds(format) => Cow::Owned(format.format(facts()?.not_after?)),
            Self::Peer(fact) => fact.text(facts()?),
            Self::PeerIssuer(fact) => {
                let chain = tls.peer.as_ref()?.chain_facts();
                Cow::Owned(fact.text(chain.get(1)?).into_owned())
            }
            Self::PeerChain(fact) => {
                let chain = tls.peer.as_ref()?.chain_facts();
                let texts = chain.iter().map(|facts| fact.text(facts));
                Cow::Owned(texts.collect::<Vec<_>>().join(","))
            }
            Self::Local(fact) => fact.text(tls.local.as_deref()?),
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
            "OTHERNAME_SAN" => Self::OtherSan,
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
            Self::OtherSan => {
                let texts = facts.other_sans.iter().map(|(_, text)| text.as_str());
                Cow::Owned(texts.collect::<Vec<_>>().join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::sync::Arc;

    use super::*;
    use crate::chain::tests::info;
    use crate::stream::{ConnectionInfo, Protocol};
    use crate::tls::PeerCertificate;

    fn connection(tls: Option<Rc<TlsInfo>>) -> ConnectionInfo {
        let info = info();
        let connection = info.borrow().connection.clone();
        ConnectionInfo {
            tls,
            ..Rc::unwrap_or_clone(connection)
        }
    }

    fn value(name: &str, info: &StreamInfo) -> Option<String> {
        let fact = TlsFact::compile(name, None).unwrap().expect(name);
        let bytes = fact.value(info)?.into_owned();
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
            server_name: Default::default(),
            version: "TLSv1.3",
            cipher: "TLS_AES_128_GCM_SHA256",
            group: "X25519",
            local: Some(Arc::new(local)),
            peer: Some(PeerCertificate::new(facts, vec![vec![1]], true)),
        };
        let mut upstream = StreamInfo::new(Rc::new(connection(None)), Protocol::Http11);
        let tls = Rc::new(tls);
        upstream.upstream.tls = Some(tls.clone());
        let text = |name| value(name, &upstream);
        assert_eq!(text("UPSTREAM_TLS_VERSION").unwrap(), "TLSv1.3");
        assert_eq!(text("UPSTREAM_TLS_GROUP").unwrap(), "X25519");
        assert_eq!(text("UPSTREAM_PEER_SUBJECT").unwrap(), "CN=a");
        assert_eq!(text("UPSTREAM_LOCAL_DNS_SAN").unwrap(), "b.example");
        assert_eq!(text("DOWNSTREAM_TLS_VERSION"), None);
        let info = StreamInfo::new(Rc::new(connection(Some(tls))), Protocol::Http11);
        let text = |name| value(name, &info);
        assert_eq!(text("UPSTREAM_TLS_VERSION"), None);
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
        let bare = connection(Some(Rc::default()));
        let bare = StreamInfo::new(Rc::new(bare), Protocol::Http11);
        assert!(value("DOWNSTREAM_PEER_SUBJECT", &bare).is_none());
        for name in ["DOWNSTREAM_LOCAL_ADDRESS", "UPSTREAM_LOCAL_SUBJECT"] {
            assert!(TlsFact::compile(name, None).unwrap().is_none(), "{name}");
        }
    }
}
