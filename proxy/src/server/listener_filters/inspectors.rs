//! `envoy.filters.listener.tls_inspector` and `envoy.filters.listener.http_inspector`: what a connection speaks.

use std::io;

use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector as Proto;
use envoy_types::pb::google::protobuf::BoolValue;
use xds_client::error::ConfigError;

use super::{Found, Refusal};
use crate::server::accepted::Accepted;
use crate::server::ja4;
use crate::server::listener_stats::stats;
use crate::server::sniff::{self, Sniff};
use crate::telemetry::stats::{Counter, Scope};

stats!(
    /// `tls_inspector.*`
    TlsInspectorStats {
        /// ClientHellos.
        tls_found: Counter counter,
        /// First bytes of something else.
        tls_not_found: Counter counter,
        /// ClientHellos with a server name.
        sni_found: Counter counter,
        /// ClientHellos without one.
        sni_not_found: Counter counter,
        /// ClientHellos with application protocols.
        alpn_found: Counter counter,
        /// ClientHellos without.
        alpn_not_found: Counter counter,
        /// ClientHellos over the limit; the connection is closed.
        client_hello_too_large: Counter counter,
    }
);

stats!(
    /// `http_inspector.*`
    HttpInspectorStats {
        /// Requests of HTTP/1.0.
        http10_found: Counter counter,
        /// Requests of HTTP/1.1.
        http11_found: Counter counter,
        /// HTTP/2 prefaces.
        http2_found: Counter counter,
        /// First bytes of something else.
        http_not_found: Counter counter,
        /// Failed reads.
        read_error: Counter counter,
    }
);

/// `TlsInspector`, compiled.
#[derive(Debug)]
pub(super) struct TlsInspector {
    stats: TlsInspectorStats,
    ja4: bool,
    /// Close what is no ClientHello.
    only_tls: bool,
}

impl TlsInspector {
    /// Compiles the filter; `root` is the scope of all stats.
    ///
    /// # Errors
    /// JA3 is asked for.
    pub(super) fn compile(proto: &Proto, root: &Scope) -> Result<Self, ConfigError> {
        let on = |v: &Option<BoolValue>| v.as_ref().is_some_and(|v| v.value);
        if on(&proto.enable_ja3_fingerprinting) {
            // A fingerprint of MD5, which is nowhere else in the process.
            return Err(ConfigError::unsupported("enable_ja3_fingerprinting"));
        }
        Ok(Self {
            stats: TlsInspectorStats::new(&root.scope("tls_inspector.")),
            ja4: on(&proto.enable_ja4_fingerprinting),
            only_tls: proto.close_connection_on_client_hello_parsing_errors,
        })
    }

    /// Looks for a ClientHello.
    pub(super) async fn run(&self, io: &mut Accepted, found: &mut Found) -> Result<(), Refusal> {
        let stats = &self.stats;
        loop {
            let message = match sniff::hello_message(&found.prefix) {
                Sniff::More => {
                    io.read(&mut found.prefix).await?;
                    continue;
                }
                Sniff::TooLarge => {
                    stats.client_hello_too_large.inc();
                    return Err(Refusal::Filter);
                }
                Sniff::No => None,
                Sniff::Yes(message) => Some(message),
            };
            let hello = message.as_deref().and_then(sniff::parse_hello);
            let (Some(message), Some(hello)) = (message, hello) else {
                stats.tls_not_found.inc();
                if self.only_tls {
                    return Err(Refusal::Filter);
                }
                found.transport = "raw_buffer";
                return Ok(());
            };
            let of = |found, yes, no| if found { yes } else { no };
            let (name, alpn) = (!hello.server_name.is_empty(), !hello.alpn.is_empty());
            stats.tls_found.inc();
            of(name, &stats.sni_found, &stats.sni_not_found).inc();
            of(alpn, &stats.alpn_found, &stats.alpn_not_found).inc();
            found.transport = "tls";
            found.server_name = hello.server_name;
            found.protocols = hello.alpn;
            if self.ja4 {
                found.ja4 = ja4::fingerprint(&message);
            }
            return Ok(());
        }
    }
}

/// Looks for plain-text HTTP, in what is not known to be TLS.
pub(super) async fn http(
    stats: &HttpInspectorStats,
    io: &mut Accepted,
    found: &mut Found,
) -> Result<(), Refusal> {
    if found.transport == "tls" {
        return Ok(());
    }
    loop {
        match sniff::http(&found.prefix) {
            Sniff::More => {
                let read = io.read(&mut found.prefix).await;
                read.inspect_err(|e| match e.kind() {
                    io::ErrorKind::UnexpectedEof => {}
                    _ => stats.read_error.inc(),
                })?;
            }
            Sniff::No | Sniff::TooLarge => {
                stats.http_not_found.inc();
                return Ok(());
            }
            Sniff::Yes(protocol) => {
                match protocol {
                    "h2c" => stats.http2_found.inc(),
                    "http/1.0" => stats.http10_found.inc(),
                    _ => stats.http11_found.inc(),
                }
                found.protocols = vec![protocol.to_owned()];
                return Ok(());
            }
        }
    }
}
