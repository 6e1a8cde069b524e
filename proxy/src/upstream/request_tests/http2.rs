//! HTTP/2: GOAWAY, and the limit of streams.

use super::*;

/// An HTTP/2 server that answers a stream when `go` lets it, and says GOAWAY after so many streams.
async fn http2_server(
    streams: u32,
    goaway_after: usize,
) -> (u16, Rc<Cell<usize>>, Rc<Cell<usize>>, Rc<Semaphore>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (accepted, requests) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let go = Rc::new(Semaphore::new(0));
    let (connections, seen, allowed) = (accepted.clone(), requests.clone(), go.clone());
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            connections.set(connections.get() + 1);
            let (seen, allowed) = (seen.clone(), allowed.clone());
            spawn_local(async move {
                let mut builder = h2::server::Builder::new();
                builder.max_concurrent_streams(streams);
                let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
                let mut count = 0;
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    seen.set(seen.get() + 1);
                    count += 1;
                    let allowed = allowed.clone();
                    spawn_local(async move {
                        allowed.acquire().await.unwrap().forget();
                        let _ = respond.send_response(Response::new(()), true);
                    });
                    if count == goaway_after {
                        connection.graceful_shutdown();
                    }
                }
            });
        }
    });
    (port, accepted, requests, go)
}

#[test]
fn after_goaway_requests_go_to_another_connection_and_those_in_flight_finish() {
    run(async {
        let (port, accepted, requests, go) = http2_server(100, 1).await;
        let client = Client::new(&http2(proto(port)));
        let first = spawn_local({
            let client = client.clone();
            async move { client.get().await }
        });
        until(|| requests.get() == 1).await;
        // GOAWAY may overtake the second request or not: it must not fail either way.
        let second = spawn_local({
            let client = client.clone();
            async move { client.get().await }
        });
        until(|| requests.get() == 2).await;
        go.add_permits(1);
        go.add_permits(1);
        assert_eq!(first.await.unwrap(), Ok(StatusCode::OK));
        go.add_permits(1);
        assert_eq!(second.await.unwrap(), Ok(StatusCode::OK));
        go.add_permits(1);
        assert_eq!(client.get().await, Ok(StatusCode::OK));
        assert!(accepted.get() >= 2);
    });
}

#[test]
fn streams_beyond_the_server_s_limit_get_a_connection_or_wait() {
    for (connections, accepted_at_last) in [(10, 2), (1, 1)] {
        run(async {
            let (port, accepted, requests, go) = http2_server(1, 0).await;
            let client = Client::new(&http2(limited(
                port,
                Thresholds {
                    max_connections: value(connections),
                    ..Default::default()
                },
            )));
            // The server's limit is known once it has answered.
            go.add_permits(1);
            assert_eq!(client.get().await, Ok(StatusCode::OK));
            let tasks: Vec<_> = (0..2)
                .map(|_| {
                    let client = client.clone();
                    spawn_local(async move { client.get().await })
                })
                .collect();
            until(|| requests.get() == 1 + accepted_at_last).await;
            go.add_permits(1);
            if accepted_at_last == 1 {
                until(|| requests.get() == 3).await;
            }
            go.add_permits(1);
            for task in tasks {
                assert_eq!(task.await.unwrap(), Ok(StatusCode::OK));
            }
            assert_eq!(accepted.get(), accepted_at_last);
        });
    }
}
