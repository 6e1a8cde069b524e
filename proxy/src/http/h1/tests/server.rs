use std::rc::Rc;

use bytes::Bytes;
use http::HeaderMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::{Echo, run, settings};
use crate::http::h1::Http1Settings;
use crate::http::h1::chunked::{ChunkedDecoder, Decoded};
use crate::http::h1::server::serve;
use crate::http::service::ConnectionControl;

/// Sends `input` in pieces of `step`, ends the direction if `close`, and returns all that comes back.
async fn talk(input: &[u8], step: usize, settings: Http1Settings) -> String {
    let (mut client, server) = tokio::io::duplex(1 << 16);
    let control = ConnectionControl::default();
    let task = tokio::task::spawn_local(serve(
        server,
        Bytes::new(),
        Rc::new(settings),
        Rc::new(Echo),
        control.clone(),
    ));
    for piece in input.chunks(step) {
        if client.write_all(piece).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    control.close_idle();
    // The peer closes only after it has seen everything, as a half-close counts as gone.
    let mut all = Vec::new();
    let mut part = [0; 4096];
    loop {
        let read = client.read(&mut part).await.unwrap_or(0);
        if read == 0 {
            break;
        }
        all.extend_from_slice(&part[..read]);
    }
    drop(client);
    task.await.unwrap();
    String::from_utf8(all).unwrap()
}

fn joined(chunks: &str) -> (Bytes, HeaderMap) {
    let mut buf = bytes::BytesMut::from(chunks);
    let mut decoder = ChunkedDecoder::default();
    let mut data = Vec::new();
    loop {
        match decoder.decode(&mut buf).unwrap() {
            Decoded::Data(part) => data.extend_from_slice(&part),
            Decoded::End(trailers) if buf.is_empty() => {
                return (data.into(), trailers);
            }
            other => panic!("{other:?} with {buf:?} left"),
        }
    }
}

#[test]
fn pipelined_requests_at_every_split() {
    let input = b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n\
        POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello\
        POST /stream HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-t: 1\r\n\r\n";
    let want = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n\
        HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello\
        HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-t: 1\r\n\r\n";
    for step in 1..=input.len() {
        // A streamed body keeps the chunks that reads made of it: only their joined data is the same.
        let got = run(talk(input, step, settings()));
        let (head, chunks) = got.split_once("chunked\r\n\r\n").unwrap();
        let (want_head, want_chunks) = want.split_once("chunked\r\n\r\n").unwrap();
        assert_eq!(head, want_head, "step {step}");
        assert_eq!(joined(chunks), joined(want_chunks), "step {step}");
    }
}

#[test]
fn strictness() {
    let codec = "http1.codec_error";
    for (request, status, details) in [
        ("GET / HTTP/1.1\nhost: h\r\n\r\n", 400, codec),
        ("GET / HTTP/1.1\r\nhost: h\n\r\n", 400, codec),
        ("GET / HTTP/1.1\r\nhost: h\rx\r\n\r\n", 400, codec),
        (
            "GET / HTTP/1.1\r\nhost: h\r\na: \0\r\n\r\n",
            400,
            "http1.invalid_characters",
        ),
        (
            "GET / HTTP/1.1\r\nhost: h\r\na: 1\r\n b\r\n\r\n",
            400,
            codec,
        ),
        ("GET / HTTP/1.1\r\nhost : h\r\n\r\n", 400, codec),
        ("GET / HTTP/1.1\r\nho(st: h\r\n\r\n", 400, codec),
        ("GET / HTTP/1.1\r\nhost: h\r\nhost: h\r\n\r\n", 400, codec),
        ("GET /a b HTTP/1.1\r\nhost: h\r\n\r\n", 400, codec),
        ("G(T / HTTP/1.1\r\nhost: h\r\n\r\n", 400, codec),
        ("GET /\r\n\r\n", 426, "low_version"),
        ("GET / HTTP/2.0\r\nhost: h\r\n\r\n", 426, "low_version"),
        ("GET / HTTP/x.0\r\nhost: h\r\n\r\n", 400, codec),
        ("BREW / HTTP/1.1\r\nhost: h\r\n\r\n", 400, codec),
        ("GET a HTTP/1.1\r\nhost: h\r\n\r\n", 400, codec),
        (
            "GET * HTTP/1.1\r\nhost: h\r\n\r\n",
            400,
            "http1.invalid_url",
        ),
        (
            "GET ftp://h/ HTTP/1.1\r\nhost: h\r\n\r\n",
            400,
            "http1.invalid_scheme",
        ),
        (
            "CONNECT h HTTP/1.1\r\nhost: h\r\n\r\n",
            400,
            "http1.invalid_url",
        ),
        (
            "CONNECT h:80 HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\n\r\n",
            400,
            "http1.body_disallowed",
        ),
        (
            "CONNECT h:80 HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n",
            501,
            "http1.invalid_transfer_encoding",
        ),
        (
            "GET http://u@h/ HTTP/1.1\r\nhost: h\r\n\r\n",
            400,
            "http.invalid_authority",
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: +2\r\n\r\n",
            400,
            codec,
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 2, 2\r\n\r\n",
            400,
            codec,
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\n",
            400,
            codec,
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n",
            400,
            "http1.content_length_and_chunked_not_allowed",
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            501,
            "http1.invalid_transfer_encoding",
        ),
        ("GET / HTTP/1.0\r\nhost: h\r\n\r\n", 426, "low_version"),
        (
            "GET / HTTP/1.1\r\nhost: h\r\nconnection: host\r\n\r\n",
            400,
            "http1.connection_header_rejected",
        ),
    ] {
        for step in [1, request.len()] {
            let got = run(talk(request.as_bytes(), step, settings()));
            assert!(
                got.starts_with(&format!("HTTP/1.1 {status} ")),
                "{request:?}: {got:?}"
            );
            assert!(
                got.contains("connection: close") && got.ends_with(details),
                "{request:?}: {got}"
            );
        }
    }
}

#[test]
fn limits() {
    let big = format!(
        "GET / HTTP/1.1\r\nhost: h\r\na: {}\r\n\r\n",
        "x".repeat(61_440)
    );
    assert!(run(talk(big.as_bytes(), 9000, settings())).contains("http1.headers_too_large"));
    let many = format!(
        "GET / HTTP/1.1\r\nhost: h\r\n{}\r\n",
        "a: 1\r\n".repeat(100)
    );
    let got = run(talk(many.as_bytes(), 9000, settings()));
    assert!(
        got.starts_with("HTTP/1.1 431 ") && got.ends_with("http1.too_many_headers"),
        "{got}"
    );
}

#[test]
fn head_early_unread_and_http_10() {
    let got = run(talk(b"HEAD / HTTP/1.1\r\nhost: h\r\n\r\n", 99, settings()));
    assert!(
        got.starts_with("HTTP/1.1 200 OK\r\n") && got.ends_with("\r\n\r\n"),
        "{got}"
    );
    let early =
        b"POST /early HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nok";
    let got = run(talk(early, 10, settings()));
    assert!(
        got.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"),
        "{got}"
    );
    let unread = b"POST /unread HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\n1";
    let got = run(talk(unread, 999, settings()));
    assert!(got.contains("connection: close"), "{got}");
    let old = Http1Settings {
        accept_http_10: true,
        ..settings()
    };
    let got = run(talk(
        b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
        9,
        old.clone(),
    ));
    assert!(got.starts_with("HTTP/1.0 200 OK\r\n") && got.contains("connection: keep-alive"));
    let got = run(talk(b"GET / HTTP/1.0\r\n\r\n", 9, old));
    assert!(got.contains("connection: close"), "{got}");
}

/// A client on a connection that is served, and the task that serves it.
fn served() -> (DuplexStream, tokio::task::JoinHandle<()>) {
    let (client, server) = tokio::io::duplex(1024);
    let task = tokio::task::spawn_local(serve(
        server,
        Bytes::new(),
        Rc::new(settings()),
        Rc::new(Echo),
        ConnectionControl::default(),
    ));
    (client, task)
}

async fn until(client: &mut DuplexStream, end: &str) -> String {
    let mut got = Vec::new();
    while !got.ends_with(end.as_bytes()) {
        let mut byte = [0];
        client.read_exact(&mut byte).await.unwrap();
        got.push(byte[0]);
    }
    String::from_utf8(got).unwrap()
}

#[test]
fn a_tunnel_is_raw_and_ends_with_the_client() {
    run(async {
        for (head, status) in [
            (
                "GET /up HTTP/1.1\r\nhost: h\r\nconnection: Upgrade\r\nupgrade: WebSocket\r\n\r\nraw",
                "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: WebSocket\r\n",
            ),
            (
                "CONNECT h:80 HTTP/1.1\r\nhost: h:80\r\n\r\nraw",
                "HTTP/1.1 200 OK\r\n",
            ),
        ] {
            let (mut client, task) = served();
            client.write_all(head.as_bytes()).await.unwrap();
            let got = until(&mut client, "\r\n\r\nraw").await;
            assert_eq!(got, format!("{status}\r\nraw"));
            client.write_all(b"more").await.unwrap();
            until(&mut client, "more").await;
            client.shutdown().await.unwrap();
            task.await.unwrap();
        }
    });
}

#[test]
fn a_client_that_leaves_ends_the_call() {
    run(async {
        for head in [
            "GET /hang HTTP/1.1\r\nhost: h\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\nhalf",
            "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n9\r\nhalf",
        ] {
            let (mut client, task) = served();
            client.write_all(head.as_bytes()).await.unwrap();
            client.shutdown().await.unwrap();
            let mut got = String::new();
            client.read_to_string(&mut got).await.unwrap();
            assert_eq!(got, "", "{head}");
            task.await.unwrap();
        }
    });
}

#[test]
fn nothing_behind_a_malformed_body_or_a_refused_tunnel_is_a_request() {
    let next = "GET /next HTTP/1.1\r\nhost: h\r\n\r\n";
    for (request, answers) in [
        (
            "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            0,
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
            0,
        ),
        (
            "POST /unread HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n",
            1,
        ),
        (
            "POST /unread HTTP/1.1\r\nhost: h\r\ncontent-length: 99\r\n\r\n",
            1,
        ),
        (
            "GET /unread HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
            1,
        ),
    ] {
        let input = format!("{request}{next}");
        for step in [1, 7, input.len()] {
            let got = run(talk(input.as_bytes(), step, settings()));
            assert_eq!(
                got.matches("HTTP/1.1 ").count(),
                answers,
                "{request:?}: {got}"
            );
        }
    }
}

#[test]
fn a_client_that_leaves_while_nobody_reads_its_body_is_noticed() {
    run(async {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let serving = tokio::task::spawn_local(serve(
            server,
            Bytes::new(),
            Rc::new(settings()),
            Rc::new(Echo),
            ConnectionControl::default(),
        ));
        let begun = b"POST /first HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\n0123";
        client.write_all(begun).await.unwrap();
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        client.write_all(b"4567").await.unwrap();
        drop(client);
        serving.await.unwrap();
    });
}
