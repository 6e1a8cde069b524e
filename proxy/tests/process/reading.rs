//! Clients that do not read their responses.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;

use crate::client::read_head;
use crate::fairway::{Fairway, Home, LONG, bootstrap, until};

/// More than the buffers of all sockets on the way hold.
const RESPONSE: usize = 64 << 20;
const UPLOAD: usize = 16 << 20;

/// An upstream that begins a large response at once, and tells when it has read an upload.
fn talkative() -> (SocketAddr, mpsc::Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for mut io in listener.incoming().flatten() {
            let tell = tell.clone();
            std::thread::spawn(move || {
                let mut buffer = Vec::new();
                if read_head(&mut io, &mut buffer).is_err() {
                    return;
                }
                let mut out = io.try_clone().unwrap();
                std::thread::spawn(move || {
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {RESPONSE}\r\n\r\n");
                    let _ = out.write_all(head.as_bytes());
                    let _ = out.write_all(&vec![b'x'; RESPONSE]);
                });
                let mut read = buffer.len();
                let mut part = vec![0; 1 << 16];
                while read < UPLOAD {
                    match io.read(&mut part) {
                        Ok(n) if n > 0 => read += n,
                        _ => return,
                    }
                }
                let _ = tell.send(read);
            });
        }
    });
    (address, told)
}

fn http1(to: SocketAddr) -> TcpStream {
    let mut io = TcpStream::connect(to).unwrap();
    io.set_write_timeout(Some(LONG)).unwrap();
    let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {UPLOAD}\r\n\r\n");
    io.write_all(head.as_bytes()).unwrap();
    io
}

/// Opens a stream and begins its upload, whose response nobody reads. What it gives must be held.
async fn http2(to: SocketAddr) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
    let io = tokio::net::TcpStream::connect(to).await.unwrap();
    let (send, connection) = h2::client::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post("http://a.test/").body(()).unwrap();
    let mut send = send.ready().await.unwrap();
    send.send_request(request, false).unwrap()
}

#[test]
fn a_client_that_does_not_read_its_response_goes_on_sending_its_request() {
    let (up, uploaded) = talkative();
    let home = Home::new();
    let fairway = Fairway::start(&home, &bootstrap(&home, up), &[]);
    let to = fairway.listener("main");
    let mut io = http1(to);
    io.write_all(&vec![b'y'; UPLOAD])
        .expect("the upload is stuck");
    assert_eq!(uploaded.recv_timeout(LONG), Ok(UPLOAD));
    drop(io);

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (_response, mut stream) = http2(to).await;
        let upload = async {
            let mut left = Bytes::from(vec![b'y'; UPLOAD]);
            while !left.is_empty() {
                stream.reserve_capacity(left.len());
                let capacity = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
                let part = left.split_to(capacity.unwrap().unwrap());
                stream.send_data(part, left.is_empty()).unwrap();
            }
            // Taken by the client's library is not yet sent.
            while uploaded.try_recv().is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let done = tokio::time::timeout(LONG, upload).await;
        done.expect("the upload is stuck");
    });
}

#[test]
fn a_client_that_does_not_read_is_idle() {
    let (up, _uploaded) = talkative();
    let home = Home::new();
    let limited = bootstrap(&home, up).replace(
        r#""stat_prefix": "main","#,
        r#""stat_prefix": "main", "stream_idle_timeout": "0.2s","#,
    );
    let fairway = Fairway::start(&home, &limited, &[]);
    let to = fairway.listener("main");
    let timeouts = || fairway.stat("http.main.downstream_rq_idle_timeout");
    let mut io = http1(to);
    io.write_all(&vec![b'y'; UPLOAD])
        .expect("the upload is stuck");
    until("a timeout of HTTP/1", || timeouts() == Some(1));
    drop(io);

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (_response, mut stream) = http2(to).await;
        stream.send_data(Bytes::new(), true).unwrap();
        let end = std::time::Instant::now() + LONG;
        while timeouts() != Some(2) {
            assert!(std::time::Instant::now() < end, "no timeout of HTTP/2");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}
