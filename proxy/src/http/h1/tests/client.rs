use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use filters::body::{Body, BodyError, Collected, Frame, ResetReason};
use filters::head::RequestHead;
use http::{HeaderMap, Method};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::{Echo, run, settings};
use crate::http::h1::client::{ClientConnection, ExchangeOptions, Recycle};
use crate::http::h1::server::serve;
use crate::http::service::ConnectionControl;

#[derive(Default)]
struct Pool(RefCell<Vec<ClientConnection<DuplexStream>>>);

impl Recycle<DuplexStream> for Pool {
    fn recycle(&self, connection: ClientConnection<DuplexStream>) {
        self.0.borrow_mut().push(connection);
    }
}

/// One GET against these response bytes: status, body and whether the connection came back.
async fn fetch(response: &[u8], step: usize) -> Result<(u16, Vec<u8>, bool), ResetReason> {
    let (mut server, client) = tokio::io::duplex(1 << 16);
    let pool = Rc::new(Pool::default());
    let options = ExchangeOptions {
        recycle: Some(pool.clone() as Rc<_>),
        early: None,
    };
    let response = response.to_vec();
    tokio::task::spawn_local(async move {
        let mut request = [0; 1024];
        let _ = server.read(&mut request).await;
        for piece in response.chunks(step) {
            let _ = server.write_all(piece).await;
            tokio::task::yield_now().await;
        }
    });
    let mut head = RequestHead::new(Method::GET, "/");
    head.authority = "h".into();
    let connection = ClientConnection::new(client, Rc::new(settings()));
    let mut answer = connection
        .exchange(&head, Body::Empty, options)
        .await
        .map_err(|e| e.reason)?;
    let body = answer.body.collect(1 << 20).await.map_err(|e| e.reason)?;
    let returned = !pool.0.borrow().is_empty();
    Ok((answer.head.status.as_u16(), body.data.to_vec(), returned))
}

#[test]
fn responses_at_every_split() {
    for (bytes, want) in [
        (&b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"[..], Ok((200, b"abc".to_vec(), true))),
        (
            b"HTTP/1.1 103 E\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            Ok((200, b"abc".to_vec(), true)),
        ),
        (b"HTTP/1.1 204 No\r\n\r\n", Ok((204, vec![], true))),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", Ok((200, b"abc".to_vec(), false))),
        (
            b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            Ok((200, vec![], false)),
        ),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabc", Err(ResetReason::ProtocolError)),
        (b"", Err(ResetReason::ConnectionTermination)),
        (b"HTTP/1.1 101 S\r\n\r\n", Err(ResetReason::ProtocolError)),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\na",
            Err(ResetReason::ProtocolError),
        ),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            Err(ResetReason::ProtocolError),
        ),
    ] {
        for step in 1..=bytes.len().max(1) {
            assert_eq!(run(fetch(bytes, step)), want, "{}/{step}", bytes.escape_ascii());
        }
    }
}

#[test]
fn client_and_server_together_with_trailers() {
    run(async {
        let (server, client) = tokio::io::duplex(100);
        tokio::task::spawn_local(serve(
            server,
            Bytes::new(),
            Rc::new(settings()),
            Rc::new(Echo),
            ConnectionControl::default(),
        ));
        let mut trailers = HeaderMap::new();
        trailers.insert("x-t", "1".parse().unwrap());
        let sent = Collected {
            data: vec![b'x'; 100_000].into(),
            trailers: Some(trailers),
        };
        let mut head = RequestHead::new(Method::POST, "/stream");
        head.authority = "h".into();
        head.headers.insert("x-a", "b".parse().unwrap());
        // No length: chunked, so that the trailers can travel.
        struct Unsized(Collected);
        impl filters::body::BodyStream for Unsized {
            fn poll_frame(
                &mut self,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<Result<Frame, BodyError>>> {
                self.0.poll_frame(cx)
            }
        }
        let connection = ClientConnection::new(client, Rc::new(settings()));
        let body = Body::stream(Unsized(sent.clone()));
        let mut answer = connection
            .exchange(&head, body, ExchangeOptions::default())
            .await
            .unwrap();
        assert_eq!(answer.body.collect(1 << 20).await.unwrap(), sent);
    });
}
