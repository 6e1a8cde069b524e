//! Facts about a TLS connection and the certificates shown on it, as text: what matchers, formatters, logs and
//! `x-forwarded-client-cert` read.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytestring::ByteString;

/// A certificate's facts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The subject in RFC 2253's form, most specific first.
    pub subject: String,
    /// The issuer in the same form.
    pub issuer: String,
    /// The serial number in lower-case hex.
    pub serial: String,
    /// URI subject alternative names.
    pub uri_sans: Vec<String>,
    /// DNS subject alternative names.
    pub dns_sans: Vec<String>,
    /// E-mail subject alternative names.
    pub email_sans: Vec<String>,
    /// IP subject alternative names.
    pub ip_sans: Vec<String>,
    /// Other names: what kind they are, as a dotted object identifier, and the text of their values.
    pub other_sans: Vec<(String, String)>,
    /// SHA-256 of the DER, in lower-case hex.
    pub sha256: String,
    /// SHA-1 of the DER, in lower-case hex.
    pub sha1: String,
    /// When it begins to be valid.
    pub not_before: Option<SystemTime>,
    /// When it ends to be valid.
    pub not_after: Option<SystemTime>,
}

/// Reads a certificate in DER; `None` if it is not one.
pub type Reader = fn(&[u8]) -> Option<CertificateFacts>;

/// A certificate shown by a peer.
#[derive(Debug, Default)]
pub struct PeerCertificate {
    /// What it says.
    pub facts: CertificateFacts,
    /// Its chain, the certificate itself first, in DER.
    pub chain: Vec<Vec<u8>>,
    /// Whether the configuration asked for a verification, and it passed.
    pub validated: bool,
    /// Reads the others of the chain, which few ask for.
    read: Option<Reader>,
    pem: OnceLock<String>,
}

impl PeerCertificate {
    /// A certificate with its chain. Boxed: most connections have none, and should not have room for one.
    pub fn new(facts: CertificateFacts, chain: Vec<Vec<u8>>, validated: bool) -> Box<Self> {
        Box::new(Self {
            facts,
            chain,
            validated,
            read: None,
            pem: OnceLock::new(),
        })
    }

    /// The same, with `read` for the rest of the chain.
    pub fn with_reader(mut self: Box<Self>, read: Reader) -> Box<Self> {
        self.read = Some(read);
        self
    }

    /// The facts of the whole chain, the certificate's own first; those that cannot be read are left out.
    pub fn chain_facts(&self) -> Vec<CertificateFacts> {
        let Some(read) = self.read else {
            return Vec::new();
        };
        self.chain.iter().filter_map(|der| read(der)).collect()
    }

    /// The certificate as PEM, URL encoded as `x-forwarded-client-cert` wants it. Made when first asked for.
    pub fn url_encoded_pem(&self) -> &str {
        self.pem.get_or_init(|| {
            self.chain
                .first()
                .map(|der| url_encoded_pem(der))
                .unwrap_or_default()
        })
    }

    /// The whole chain as PEM, URL encoded.
    pub fn url_encoded_chain(&self) -> String {
        self.chain.iter().map(|der| url_encoded_pem(der)).collect()
    }
}

/// What is known about a connection's TLS.
#[derive(Debug, Default)]
pub struct TlsInfo {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite by its OpenSSL name.
    pub cipher: &'static str,
    /// The group of the key exchange, by OpenSSL's name; empty if it was resumed without one.
    pub group: &'static str,
    /// The name that we asked for, of an upstream; may be empty.
    pub server_name: ByteString,
    /// The certificate shown to the peer.
    pub local: Option<Arc<CertificateFacts>>,
    /// The certificate that the peer has shown.
    pub peer: Option<Box<PeerCertificate>>,
}

fn url_encoded_pem(der: &[u8]) -> String {
    use base64::Engine as _;
    use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
    /// What Envoy escapes in a PEM: everything that has a meaning in the header or in a URL.
    const ESCAPED: &AsciiSet = &CONTROLS
        .add(b' ')
        .add(b'+')
        .add(b'/')
        .add(b'=')
        .add(b'"')
        .add(b'%')
        .add(b',')
        .add(b';');
    let base64 = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::with_capacity(base64.len() + 64);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    for line in base64.as_bytes().chunks(64) {
        pem.push_str(std::str::from_utf8(line).unwrap_or_default());
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    utf8_percent_encode(&pem, ESCAPED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_is_wrapped_and_escaped() {
        let certificate =
            PeerCertificate::new(CertificateFacts::default(), vec![vec![0xfb; 60]], true);
        let pem = certificate.url_encoded_pem();
        assert!(pem.starts_with("-----BEGIN%20CERTIFICATE-----%0A"));
        assert!(pem.ends_with("%0A-----END%20CERTIFICATE-----%0A"));
        assert!(pem.contains("%2B") && !pem.contains('+'));
        assert_eq!(pem.matches("%0A").count(), 4);
        assert_eq!(certificate.url_encoded_chain(), pem);
    }
}
