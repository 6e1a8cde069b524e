//! A server's handshake, from the first byte on.

use std::future::poll_fn;
use std::io;

use bytes::{Bytes, BytesMut};
use filters::tls::TlsInfo;
use rustls::CommonState;
use rustls::server::{Accepted, Acceptor, ClientHello, UnbufferedServerConnection};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::certificate::Certificate;
use super::downstream::{Compiled, DownstreamTls};
use super::failure::{self, Failure, Kind};
use super::refusal::{self, Refusal};
use super::stream::TlsStream;
use super::{facts, group_name, suite_name, version_name};
use crate::transport::buffer::Buffer;

/// Where the length of a record begins to be known; less says nothing.
const RECORD_HEADER: usize = 5;
/// What most ClientHellos fit in.
const FIRST_READ: usize = 2048;
/// How much of a ClientHello is read at a time.
const READ: usize = 4096;
/// A fatal alert: protocol_version.
const ALERT: [u8; 7] = [21, 3, 1, 0, 2, 2, 70];

/// The server's side of a connection in TLS.
pub type ServerStream<IO> = Box<TlsStream<IO, UnbufferedServerConnection>>;

/// A handshake that failed. The peer has been sent an alert, and the failure is counted.
#[derive(Debug)]
pub struct HandshakeFailure {
    /// `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`; empty if the peer just left.
    pub text: String,
    /// What is known of the connection.
    pub info: TlsInfo,
}

impl std::fmt::Display for HandshakeFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.text.as_str() {
            "" => "closed by the peer",
            text => text,
        })
    }
}

impl DownstreamTls {
    /// Shakes hands as a server; `prefix` has been read from `io` already.
    ///
    /// # Errors
    /// The peer failed, or the context has no secrets yet.
    pub async fn accept<IO>(
        &self,
        prefix: Bytes,
        mut io: IO,
    ) -> Result<(ServerStream<IO>, TlsInfo), HandshakeFailure>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let Some(compiled) = self.current() else {
            self.stats.context_secrets_not_ready.inc();
            return Err(HandshakeFailure {
                text: "TLS error: Secret is not supplied by SDS".to_owned(),
                info: unknown(),
            });
        };
        let failed = |error: &io::Error, version, refusal: Option<Refusal>| {
            let failure = Failure::new(error, version, refusal.as_ref());
            self.failed(failure, version, refusal)
        };
        let prefix = match first_bytes(prefix, &mut io).await {
            Ok(bytes) => bytes,
            Err(error) => return Err(failed(&error, "", None)),
        };
        if let Some((failure, alert)) = failure::first_bytes(&prefix) {
            if alert {
                // Nobody waits for it any more if it fails.
                let _ = io.write_all(&ALERT).await;
                let _ = io.shutdown().await;
            }
            return Err(self.failed(failure, "", None));
        }
        let mut incoming = Buffer::from(&*prefix);
        drop(prefix);
        let start = match client_hello(&mut incoming, &mut io).await {
            Ok(start) => start,
            Err(error) => return Err(failed(&error, "", None)),
        };
        let hello = start.client_hello();
        let version = compiled.version_for(&hello);
        let shown = compiled.shown(hello.server_name()).cloned();
        let session = compiled.config_for(&hello);
        drop(start);
        let session = match session.and_then(UnbufferedServerConnection::new) {
            Ok(session) => session,
            Err(error) => return Err(failed(&io::Error::other(error), version, None)),
        };
        let stream = TlsStream::new(io, session, incoming);
        match refusal::watched(stream.handshake()).await {
            (Ok(stream), _) => {
                let info = self.info(&compiled, shown.as_deref(), stream.session());
                Ok((stream, info))
            }
            (Err(error), refusal) => Err(failed(&error, version, refusal)),
        }
    }

    fn failed(
        &self,
        failure: Failure,
        version: &'static str,
        refusal: Option<Refusal>,
    ) -> HandshakeFailure {
        match failure.kind {
            Kind::Gone | Kind::Refused => {}
            Kind::NoCertificate => self.stats.fail_verify_no_cert.inc(),
            Kind::Protocol | Kind::Rejected => self.stats.connection_error.inc(),
        }
        let mut info = unknown();
        // Nothing is agreed on where the certificate is missing.
        if !version.is_empty() && failure.kind != Kind::Rejected {
            info.version = version;
        }
        info.peer = refusal.and_then(|refusal| refusal.peer);
        HandshakeFailure {
            text: failure.text,
            info,
        }
    }

    fn info(
        &self,
        compiled: &Compiled,
        shown: Option<&Certificate>,
        connection: &CommonState,
    ) -> TlsInfo {
        let chain = connection.peer_certificates().unwrap_or_default();
        let peer = facts::peer(chain, compiled.verifies());
        self.stats.shook_hands(connection);
        TlsInfo {
            version: version_name(connection.protocol_version()),
            cipher: suite_name(connection.negotiated_cipher_suite()),
            group: group_name(connection.negotiated_key_exchange_group()),
            server_name: Default::default(),
            local: shown.map(|c| c.facts.clone()),
            peer,
        }
    }
}

/// What Envoy tells of a connection before anything is agreed on.
pub(crate) fn unknown() -> TlsInfo {
    TlsInfo {
        version: "TLSv1.2",
        ..TlsInfo::default()
    }
}

impl Compiled {
    /// The version that a handshake with this client will have, as far as its suites tell.
    fn version_for(&self, hello: &ClientHello<'_>) -> &'static str {
        let modern = |suite: &rustls::CipherSuite| u16::from(*suite) >> 8 == 0x13;
        match self.speaks_tls13() && hello.cipher_suites().iter().any(modern) {
            true => "TLSv1.3",
            false => "TLSv1.2",
        }
    }
}

/// Reads until a record's header is there.
async fn first_bytes<IO: AsyncRead + Unpin>(prefix: Bytes, io: &mut IO) -> io::Result<Bytes> {
    if prefix.len() >= RECORD_HEADER {
        return Ok(prefix);
    }
    let mut buffer = BytesMut::from(prefix);
    while buffer.len() < RECORD_HEADER {
        buffer.reserve(FIRST_READ);
        if io.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(buffer.freeze())
}

/// Reads a ClientHello, and leaves its bytes, and what came with it, in `incoming`: which certificate and settings a
/// session begins with depends on it.
pub(super) async fn client_hello<IO>(incoming: &mut Buffer, io: &mut IO) -> io::Result<Accepted>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut acceptor = Acceptor::default();
    let mut looked_at = 0;
    loop {
        while let Some(mut fresh) = incoming.filled().get(looked_at..).filter(|f| !f.is_empty()) {
            looked_at += acceptor.read_tls(&mut fresh)?;
            match acceptor.accept() {
                Ok(Some(accepted)) => return Ok(accepted),
                Ok(None) => {}
                Err((error, mut alert)) => {
                    let mut bytes = Vec::new();
                    alert.write_all(&mut bytes)?;
                    // Nobody waits for it any more if it fails.
                    let _ = io.write_all(&bytes).await;
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            }
        }
        if poll_fn(|cx| incoming.poll_fill(io, cx, READ)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_whole_header_is_waited_for() {
        let bytes = b"\x16\x03\x01\x00\x05hello";
        for at in 0..bytes.len() {
            let (prefix, mut rest) = bytes.split_at(at);
            let read = first_bytes(Bytes::copy_from_slice(prefix), &mut rest).await;
            assert!(bytes.starts_with(&read.unwrap()), "{at}");
        }
        let cut = first_bytes(Bytes::new(), &mut &b"\x16\x03"[..]).await;
        assert!(cut.is_err());
    }
}
