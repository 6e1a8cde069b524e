//! TLS: contexts of filter chains and clusters, compiled from Envoy's messages onto rustls.
//!
//! Envoy: `extensions.transport_sockets.tls.v3`. Certificates and validation contexts come inline or from
//! [`secrets`]; a context is compiled again when one of them changes, and connections take the newest one.

pub mod accept;
pub mod certificate;
mod chain;
pub mod context;
mod digest;
pub mod downstream;
mod facts;
pub mod failure;
pub mod files;
#[cfg(test)]
mod fuzz_tests;
mod ocsp;
mod parameters;
mod records;
mod refusal;
pub mod secrets;
mod session;
mod sessions;
pub mod stats;
pub mod stream;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod upstream;
mod validation;
mod verifier;

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{CipherSuite, ProtocolVersion, SupportedCipherSuite};

/// The cryptography of the process: aws-lc, with the post-quantum key exchange first.
static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));

/// As Envoy's `%DOWNSTREAM_TLS_VERSION%` has it.
fn version_name(version: Option<ProtocolVersion>) -> &'static str {
    match version {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "",
    }
}

/// As Envoy's `%DOWNSTREAM_TLS_GROUP%` has it.
fn group_name(group: Option<&dyn SupportedKxGroup>) -> &'static str {
    group.map_or("", |group| parameters::group_name(group.name()))
}

/// As Envoy's `%DOWNSTREAM_TLS_CIPHER%` has it: OpenSSL's name.
fn suite_name(suite: Option<SupportedCipherSuite>) -> &'static str {
    let Some(suite) = suite else { return "" };
    match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        _ => parameters::name_of(suite),
    }
}
