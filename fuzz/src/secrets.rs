//! What must hold of secrets whatever they contain: certificates, keys, authorities, revocation lists, ticket keys.

use envoy_types::pb::envoy::config::core::v3::DataSource;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, TlsCertificate, TlsSessionTicketKeys,
};
use fairway::transport::tls::secrets::SecretStore;

/// What stands between the parts of an input.
pub const SEPARATOR: &[u8] = b"=-=-=";

/// The first byte says what the parts are. Nothing panics, and what is refused is refused without its key.
pub fn loaded(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else {
        return;
    };
    let at = memchr::memmem::find(data, SEPARATOR);
    let (first, second) = match at {
        Some(at) => (&data[..at], &data[at + SEPARATOR.len()..]),
        None => (data, &[][..]),
    };
    let secret = match kind % 4 {
        0 => Type::TlsCertificate(TlsCertificate {
            certificate_chain: source(first),
            private_key: source(second),
            ..Default::default()
        }),
        1 => Type::ValidationContext(CertificateValidationContext {
            trusted_ca: source(first),
            crl: source(second).filter(|_| !second.is_empty()),
            ..Default::default()
        }),
        2 => Type::ValidationContext(CertificateValidationContext {
            verify_certificate_hash: vec![String::from_utf8_lossy(first).into_owned()],
            verify_certificate_spki: vec![String::from_utf8_lossy(second).into_owned()],
            ..Default::default()
        }),
        _ => Type::SessionTicketKeys(TlsSessionTicketKeys {
            keys: source(first).into_iter().chain(source(second)).collect(),
        }),
    };
    let told = match SecretStore::default().load("a", &secret) {
        Ok(()) => return,
        Err(error) => error.to_string(),
    };
    assert!(told.len() < 1000, "{told}");
    // The lines of a key are longer than anything that is told of it.
    for line in second.split(|b| *b == b'\n').filter(|l| l.len() > 24) {
        let quoted = std::str::from_utf8(line).is_ok_and(|line| told.contains(line));
        assert!(kind % 4 != 0 || !quoted, "{told}");
    }
}

fn source(bytes: &[u8]) -> Option<DataSource> {
    Some(DataSource {
        specifier: Some(Specifier::InlineBytes(bytes.to_vec())),
        ..Default::default()
    })
}
