//! Tunnels that share connections.

use super::*;
use crate::upstream::tunnel::originate::{self, TunnelIo};

/// An HTTP/2 server that opens every tunnel, echoes what comes in those that say `hi`, and leaves others as they are:
/// it reads nothing of them, and sends into them whatever it may.
async fn server() -> (u16, Rc<Cell<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let accepted = Rc::new(Cell::new(0));
    let connections = accepted.clone();
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            connections.set(connections.get() + 1);
            spawn_local(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    spawn_local(async move {
                        let echoes = request.headers().contains_key("echoes");
                        let mut send = respond.send_response(Response::new(()), false).unwrap();
                        let mut received = request.into_body();
                        if !echoes {
                            send.send_data(vec![b'x'; 1 << 20].into(), false).unwrap();
                            return std::future::pending().await;
                        }
                        while let Some(Ok(data)) = received.data().await {
                            send.send_data(data, false).unwrap();
                        }
                    });
                }
            });
        }
    });
    (port, accepted)
}

impl Client {
    async fn tunnel(&self, echoes: bool) -> TunnelIo {
        let mut head = RequestHead::new(Method::CONNECT, "");
        head.authority = "10.0.0.1:80".into();
        if echoes {
            let value = http::HeaderValue::from_static("yes");
            head.headers.insert("echoes", value);
        }
        let cluster = self.cluster();
        let host = cluster.choose_host(&LbContext::default()).unwrap();
        let opened = originate::open(&cluster, &host, &head, Purpose::default());
        opened.await.unwrap().io
    }
}

async fn echo(tunnel: &mut TunnelIo) {
    tunnel.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    tunnel.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"hello");
}

#[test]
fn one_that_is_not_read_here_holds_up_no_other() {
    run(async {
        let (port, accepted) = server().await;
        let mut proto = http2(proto(port));
        #[allow(deprecated)] // the short form of the HTTP/2 settings
        if let Some(options) = &mut proto.http2_protocol_options {
            options.initial_stream_window_size = value(65_535);
            options.initial_connection_window_size = value(65_535);
        }
        let client = Client::new(&proto);
        let mut unread = Vec::new();
        for _ in 0..3 {
            let mut tunnel = client.tunnel(false).await;
            // The window is full of what was sent into it once this has come.
            tunnel.read_exact(&mut [0; 1]).await.unwrap();
            unread.push(tunnel);
        }
        echo(&mut client.tunnel(true).await).await;
        assert_eq!(accepted.get(), 1);
    });
}

#[test]
fn one_that_is_not_read_there_makes_others_go_another_way() {
    run(async {
        let (port, accepted) = server().await;
        let client = Client::new(&http2(proto(port)));
        let mut stuck = client.tunnel(false).await;
        spawn_local(async move {
            let _ = stuck.write_all(&vec![b'x'; 1 << 20]).await;
        });
        // It takes a while until the connection is seen to be congested.
        while accepted.get() < 2 {
            drop(client.tunnel(true).await);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut tunnels = Vec::new();
        for _ in 0..10 {
            let mut tunnel = client.tunnel(true).await;
            echo(&mut tunnel).await;
            tunnels.push(tunnel);
        }
        assert_eq!(accepted.get(), 2);
    });
}
