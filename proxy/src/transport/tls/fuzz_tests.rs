//! Drives the properties of secrets on mutated ones, and those of peers' certificates.

#[path = "../../../../fuzz/src/secrets.rs"]
mod secrets;

use std::cell::RefCell;

use base64::Engine as _;
use envoy_types::pb::envoy::config::core::v3::DataSource;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::testing::Authority;
use super::upstream::Rules;
use super::validation::{Peer, Validation};
use super::{PROVIDER, facts};
use crate::fuzz_driver::drive;

const TOKENS: &[&[u8]] = &[
    b"-----BEGIN CERTIFICATE-----\n",
    b"-----END CERTIFICATE-----\n",
    b"-----BEGIN PRIVATE KEY-----\n",
    b"-----END PRIVATE KEY-----\n",
    b"-----BEGIN X509 CRL-----\n",
    b"\0",
    b"\r\n",
    b"=",
    b"=-=-=",
    b"AAAA",
    b"\x30\x82\xff\xff",
    b"\x30\x80",
    b"\x02\x01\x00",
];

fn text(source: &Option<DataSource>) -> Vec<u8> {
    match source.as_ref().and_then(|s| s.specifier.as_ref()) {
        Some(Specifier::InlineString(text)) => text.clone().into_bytes(),
        _ => Vec::new(),
    }
}

/// A certificate's bytes as PEM.
fn pem(der: &[u8]) -> Vec<u8> {
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n").into_bytes()
}

#[test]
fn secrets_of_any_content() {
    let authority = Authority::new("ca");
    let joined = |kind: u8, first: &[u8], second: &[u8]| {
        [&[kind][..], first, secrets::SEPARATOR, second].concat()
    };
    let (ec, rsa) = (
        authority.issue(&["a.example", "spiffe://td/a"]),
        authority.issue_rsa(&["b.example"]),
    );
    let mut corpus: Vec<Vec<u8>> = [&ec, &rsa]
        .map(|c| joined(0, &text(&c.certificate_chain), &text(&c.private_key)))
        .to_vec();
    let trusted = text(&authority.trusted().trusted_ca);
    corpus.push(joined(1, &trusted, &text(&Some(authority.crl(&[1, 2])))));
    corpus.push(joined(
        2,
        &[b'a'; 64],
        b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    ));
    corpus.push(joined(3, &[7; 80], &[8; 80]));
    // What is told of a hash that is none was as long as the hash.
    corpus.push(joined(2, &[b'x'; 2000], &[b'y'; 2000]));
    for entry in &corpus {
        secrets::loaded(entry);
    }
    let corpus: Vec<&[u8]> = corpus.iter().map(Vec::as_slice).collect();
    drive("secrets", secrets::loaded, &corpus, TOKENS, 0);
}

thread_local! {
    static TRUST: RefCell<Option<(Validation, CertificateDer<'static>)>> = const { RefCell::new(None) };
}

/// A certificate that was changed in any way is not accepted; reading it never fails badly.
fn changed_certificate(der: &[u8]) {
    secrets::loaded(&[&[0][..], &pem(der), secrets::SEPARATOR, b"key"].concat());
    secrets::loaded(&[&[1][..], &pem(der)].concat());
    let _ = facts::read(der);
    TRUST.with_borrow(|trust| {
        let (validation, good) = trust.as_ref().unwrap();
        let leaf = CertificateDer::from(der.to_vec());
        let algorithms = PROVIDER.signature_verification_algorithms.all;
        let now = UnixTime::now();
        for shown in [
            &[][..],
            std::slice::from_ref(&leaf),
            std::slice::from_ref(good),
        ] {
            let verified = validation
                .verify(&leaf, shown, Peer::Client, algorithms, now)
                .and_then(|()| validation.verify_names(&leaf, &Rules::default()));
            assert_eq!(verified.is_ok(), leaf == *good);
            // As an intermediate it changes nothing for the good one.
            assert!(
                validation
                    .verify(
                        good,
                        std::slice::from_ref(&leaf),
                        Peer::Client,
                        algorithms,
                        now
                    )
                    .is_ok()
            );
        }
    });
}

#[test]
fn certificates_that_were_changed_are_refused() {
    let authority = Authority::new("ca");
    let issued = authority.issue(&["a.example", "spiffe://td/ns/a/sa/b"]);
    let good = CertificateDer::from_pem_slice(&text(&issued.certificate_chain)).unwrap();
    let validation = Validation::compile(&authority.trusted()).unwrap();
    let der = good.to_vec();
    TRUST.set(Some((validation, good)));
    changed_certificate(&der);
    drive("certificate", changed_certificate, &[&der], TOKENS, 0);
}
