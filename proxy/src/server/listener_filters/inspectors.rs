//! `envoy.filters.listener.tls_inspector` and `envoy.filters.listener.http_inspector`: what a connection speaks.

use std::io;

use super::{Found, Refusal};
use crate::server::accepted::Accepted;
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

/// Looks for a ClientHello.
pub(super) async fn tls(
    stats: &TlsInspectorStats,
    io: &mut Accepted,
    found: &mut Found,
) -> Result<(), Refusal> {
    loop {
        match sniff::client_hello(&found.prefix) {
            Sniff::More => io.read(&mut found.prefix).await?,
            Sniff::No => {
                found.transport = "raw_buffer";
                stats.tls_not_found.inc();
                return Ok(());
            }
            Sniff::TooLarge => {
                stats.client_hello_too_large.inc();
                return Err(Refusal::Filter);
            }
            Sniff::Yes(hello) => {
                let of = |found, yes, no| if found { yes } else { no };
                let (name, alpn) = (!hello.server_name.is_empty(), !hello.alpn.is_empty());
                stats.tls_found.inc();
                of(name, &stats.sni_found, &stats.sni_not_found).inc();
                of(alpn, &stats.alpn_found, &stats.alpn_not_found).inc();
                found.transport = "tls";
                found.server_name = hello.server_name;
                found.protocols = hello.alpn;
                return Ok(());
            }
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
