//! Drives the properties of the look for a ClientHello on mutated ones.

#[path = "../../../fuzz/src/client_hello.rs"]
mod client_hello;

use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::sniff;
use crate::fuzz_driver::drive;

const TOKENS: &[&[u8]] = &[
    b"\x16\x03\x01",
    b"\x16\x03\x03\x00\x01",
    b"\x01\x00\x00\x10",
    b"\x00\x00",
    b"\xff\xff",
    b"\x00\x10\x00\x05\x00\x03\x02h2",
    b"\x00\x00\x00\x0b\x00\x09\x00\x00\x06a.test",
    b"\x0a\x0a\x00\x00",
    b"\0",
    b"\xc3\xa9",
];

/// What a client sends first.
fn hello(name: &str, protocols: &[&str]) -> Vec<u8> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_root_certificates(RootCertStore::empty())
    .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    let name = name.to_owned().try_into().unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut sent = Vec::new();
    connection.write_tls(&mut sent).unwrap();
    sent
}

/// The same message in records of at most `size` bytes.
fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| {
        let length = u16::try_from(part.len()).unwrap().to_be_bytes();
        [&[22, 3, 1][..], &length, part].concat()
    };
    hello[5..].chunks(size).flat_map(record).collect()
}

#[test]
fn what_is_found_is_what_the_handshake_is_for() {
    let plain = hello("a.test", &[]);
    let full = hello("Some.Longer.Name.test", &["h2", "http/1.1"]);
    // Like most of what GREASE and old clients send, cut down to what fits a mutation.
    let small = b"\x16\x03\x01\x00\x47\x01\x00\x00\x43\x03\x03rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr\x00\x00\x04\x13\x01\x0a\x0a\x01\x00\x00\x16\x0a\x0a\x00\x00\x00\x00\x00\x0e\x00\x0c\x00\x00\x09some.test";
    // Once taken for no TLS: a list of names with one of an unknown kind behind the host's.
    let odd = b"\x16\x03\x01\x00\x48\x01\x00\x00\x44\x03\x03rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr\x00\x00\x04\x13\x01\x0a\x0a\x01\x00\x00\x17\x0a\x0a\x00\x00\x00\x00\x00\x0f\x00\x0d\x00\x00\x06a.testLong";
    assert!(
        matches!(sniff::client_hello(odd), sniff::Sniff::Yes(hello) if hello.server_name == "a.test")
    );
    let (parted, address) = (in_records(&full, 50), hello("10.0.0.1", &["h2"]));
    let corpus: [&[u8]; 6] = [&plain, &full, &parted, &address, small, odd];
    corpus.iter().for_each(|hello| client_hello::found(hello));
    drive("ClientHello", client_hello::found, &corpus, TOKENS, 0);
}
