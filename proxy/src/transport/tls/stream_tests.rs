//! Connections with rustls's own buffered client, through pipes of any width.

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::downstream_tls_context::SessionTicketKeysType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext,
};
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsConnector, client};

use super::*;
use crate::telemetry::stats::Stats;
use crate::transport::tls::accept::ServerStream;
use crate::transport::tls::downstream::DownstreamTls;
use crate::transport::tls::secrets::SecretStore;
use crate::transport::tls::stats::TlsStats;
use crate::transport::tls::testing::Authority;

type Server = ServerStream<DuplexStream>;
type Client = client::TlsStream<DuplexStream>;

/// What goes through; no two parts of it are alike.
fn content(n: usize) -> Vec<u8> {
    (0..n).map(|at| (at / 7 + at % 251) as u8).collect()
}

/// Two ends that have shaken hands, `width` bytes apart.
async fn connected(width: usize) -> (Server, Client) {
    let (near, far) = tokio::io::duplex(width);
    ends(near, far).await
}

async fn ends(near: DuplexStream, far: DuplexStream) -> (Server, Client) {
    let authority = Authority::new("ca");
    let context = DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificates: vec![authority.issue(&["a.test"])],
            ..Default::default()
        }),
        // Nothing follows the handshake by itself.
        disable_stateful_session_resumption: true,
        session_ticket_keys_type: Some(SessionTicketKeysType::DisableStatelessSessionResumption(
            true,
        )),
        ..Default::default()
    };
    let stats = Arc::new(TlsStats::downstream(&Stats::new().scope("listener.a.")));
    let server = DownstreamTls::compile(&context, &SecretStore::default(), stats).unwrap();
    let mut roots = RootCertStore::empty();
    let root = rustls::pki_types::CertificateDer::from_pem_slice(authority.pem().as_bytes());
    roots.add(root.unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(super::super::PROVIDER.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("a.test").unwrap();
    let (accepted, connected) = tokio::join!(
        server.accept(bytes::Bytes::new(), far),
        connector.connect(name, near)
    );
    (accepted.unwrap().0, connected.unwrap())
}

/// Memory that the connection holds.
fn held(server: &mut Server) -> (usize, usize, usize) {
    let records = &mut server.records;
    let (incoming, outgoing) = (&mut records.incoming, &mut records.outgoing);
    (
        incoming.memory(),
        outgoing.memory(),
        server.content.capacity(),
    )
}

#[tokio::test]
async fn bytes_arrive_whole_in_any_pieces_both_ways() {
    for width in [1, 5, 300, 5000, 1 << 17] {
        let sent = content(if width < 100 { 20_000 } else { 300_000 });
        let (mut server, mut client) = connected(width).await;
        let ours = async {
            let mut got = Vec::new();
            // Its end is the client's `close_notify`.
            server.read_to_end(&mut got).await.unwrap();
            for part in got.chunks(70_001) {
                let (a, b) = part.split_at(part.len() / 3);
                let mut pieces = [io::IoSlice::new(a), io::IoSlice::new(b)];
                let mut pieces = &mut pieces[..];
                while !pieces.is_empty() {
                    let n = server.write_vectored(pieces).await.unwrap();
                    io::IoSlice::advance_slices(&mut pieces, n);
                }
            }
            server.shutdown().await.unwrap();
            assert!(server.write(b"late").await.is_err());
        };
        let theirs = async {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            assert!(got == sent, "width {width}");
        };
        tokio::join!(ours, theirs);
    }
}

#[tokio::test]
async fn nothing_is_held_while_nothing_moves() {
    let (mut server, mut client) = connected(1 << 16).await;
    client.write_all(b"hello").await.unwrap();
    let mut got = [0; 3];
    server.read_exact(&mut got).await.unwrap();
    assert!(held(&mut server).2 > 0, "the rest of a record is kept");
    server.read_exact(&mut got[..2]).await.unwrap();
    server.write_all(b"world").await.unwrap();
    let waits = tokio::time::timeout(std::time::Duration::ZERO, server.read(&mut got));
    assert!(waits.await.is_err());
    assert_eq!(held(&mut server), (0, 0, 0));
}

#[tokio::test]
async fn an_end_without_notice_is_an_error() {
    let (mut server, client) = connected(1 << 16).await;
    drop(client);
    let error = server.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn a_changed_record_ends_the_connection_with_an_alert() {
    // The client's bytes pass through our hands.
    let (near, mut their_end) = tokio::io::duplex(1 << 16);
    let (mut our_end, far) = tokio::io::duplex(1 << 16);
    let shaking = ends(near, far);
    tokio::pin!(shaking);
    let (mut server, mut client) = tokio::select! {
        both = &mut shaking => both,
        _ = tokio::io::copy_bidirectional(&mut their_end, &mut our_end) => unreachable!(),
    };
    client.write_all(b"hello").await.unwrap();
    let mut record = [0; 1024];
    let n = their_end.read(&mut record).await.unwrap();
    record[n - 1] ^= 1;
    our_end.write_all(&record[..n]).await.unwrap();
    let error = server.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(error.to_string().contains("decrypt"), "{error}");
    // Nothing works any more, and nothing panics.
    assert!(server.write(b"x").await.is_err());
    assert!(server.read(&mut [0; 8]).await.is_err());
    drop(server);
    let mut alert = Vec::new();
    our_end.read_to_end(&mut alert).await.unwrap();
    their_end.write_all(&alert).await.unwrap();
    drop(their_end);
    let error = client.read(&mut [0; 8]).await.unwrap_err();
    assert!(error.to_string().contains("BadRecordMac"), "{error}");
}

#[tokio::test]
async fn keys_change_under_way() {
    let (mut server, mut client) = connected(1 << 16).await;
    for round in 0..5 {
        client.get_mut().1.refresh_traffic_keys().unwrap();
        client.write_all(&[round; 100]).await.unwrap();
        let mut got = [0; 100];
        server.read_exact(&mut got).await.unwrap();
        server.write_all(&got).await.unwrap();
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(got, [round; 100]);
    }
}

#[tokio::test]
async fn a_peer_that_does_not_read_stops_who_writes() {
    let (mut server, mut client) = connected(1000).await;
    let sent = content(1 << 20);
    let mut taken = 0;
    let stopped = std::future::poll_fn(|cx| {
        loop {
            let rest = sent.get(taken..).unwrap();
            match Pin::new(&mut server).poll_write(cx, rest) {
                Poll::Ready(n) => taken += n.unwrap(),
                Poll::Pending => return Poll::Ready(()),
            }
        }
    });
    stopped.await;
    assert!(taken <= WRITE, "{taken}");
    assert!(server.records.outgoing.len() <= WRITE + 1024);
    let (flushed, read) = tokio::join!(server.flush(), async {
        let mut got = vec![0; taken];
        client.read_exact(&mut got).await.map(|_| got)
    });
    flushed.unwrap();
    assert!(read.unwrap() == sent[..taken]);
}
