//! Pools of HTTP/1 connections: use again, limits, waiting, dead connections, hosts that go.

use super::*;

#[test]
fn a_connection_is_used_again_up_to_its_limit_of_requests() {
    run(async {
        let server = Server::start(&[Act::Say(OK)]).await;
        let client = Client::new(&proto(server.port));
        for _ in 0..3 {
            assert_eq!(client.get().await, Ok(StatusCode::OK));
        }
        assert_eq!(server.accepted.get(), 1);
        #[allow(deprecated)] // the field is still sent
        let twice = pb::Cluster {
            max_requests_per_connection: value(2),
            ..proto(server.port)
        };
        let client = Client::new(&twice);
        for _ in 0..4 {
            assert_eq!(client.get().await, Ok(StatusCode::OK));
        }
        assert_eq!(server.accepted.get(), 3);
        let stats = client.cluster();
        assert_eq!(stats.stats().upstream_cx_max_requests.value(), 2);
    });
}

#[test]
fn requests_wait_for_a_connection_in_their_order_and_only_so_many() {
    run(async {
        let server = Server::start(&[Act::Wait]).await;
        let client = Client::new(&limited(
            server.port,
            Thresholds {
                max_connections: value(1),
                max_pending_requests: value(2),
                ..Default::default()
            },
        ));
        let waiting = client.cluster();
        let order = Rc::new(RefCell::new(Vec::new()));
        let mut tasks = Vec::new();
        for n in 0..3 {
            let (client, done) = (client.clone(), order.clone());
            tasks.push(spawn_local(async move {
                assert_eq!(client.get().await, Ok(StatusCode::OK));
                done.borrow_mut().push(n);
            }));
            // The first must have its connection before the others begin to wait.
            let pending = &waiting.breakers.default.pending;
            until(|| server.requests.get() == 1 && pending.used() == n).await;
        }
        assert_eq!(client.get().await, Err(ResetReason::Overflow));
        server.go.add_permits(3);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(
            (server.accepted.get(), &*order.borrow()),
            (1, &vec![0, 1, 2])
        );
        let breaker = &waiting.breakers.default;
        assert_eq!((breaker.pending.used(), breaker.requests.used()), (0, 0));
    });
}

#[test]
fn requests_in_flight_are_limited_and_the_connection_is_kept() {
    run(async {
        let server = Server::start(&[Act::Wait, Act::Say(OK)]).await;
        let client = Client::new(&limited(
            server.port,
            Thresholds {
                max_requests: value(1),
                ..Default::default()
            },
        ));
        let first = spawn_local({
            let client = client.clone();
            async move { client.get().await }
        });
        until(|| server.requests.get() == 1).await;
        assert_eq!(client.get().await, Err(ResetReason::Overflow));
        server.go.add_permits(1);
        assert_eq!(first.await.unwrap(), Ok(StatusCode::OK));
        // Both connections are there, the one that the second request made and did not use too.
        assert_eq!(client.get().await, Ok(StatusCode::OK));
        assert_eq!(server.accepted.get(), 2);
    });
}

#[test]
fn a_cancelled_request_leaves_its_place_and_its_connection_to_others() {
    run(async {
        let server = Server::start(&[Act::Wait, Act::Say(OK)]).await;
        let client = Client::new(&limited(
            server.port,
            Thresholds {
                max_connections: value(1),
                ..Default::default()
            },
        ));
        let first = spawn_local({
            let client = client.clone();
            async move { client.get().await }
        });
        until(|| server.requests.get() == 1).await;
        let second = spawn_local({
            let client = client.clone();
            async move { client.get().await }
        });
        let third = spawn_local({
            let client = client.clone();
            async move { client.get().await }
        });
        let cluster = client.cluster();
        until(|| cluster.breakers.default.pending.used() == 2).await;
        second.abort();
        until(|| cluster.breakers.default.pending.used() == 1).await;
        first.abort();
        assert_eq!(third.await.unwrap(), Ok(StatusCode::OK));
        assert_eq!(cluster.breakers.default.requests.used(), 0);
        assert_eq!(cluster.stats().upstream_rq_cancelled.value(), 1);
    });
}

#[test]
fn a_connection_that_closed_while_idle_fails_no_request() {
    run(async {
        let server = Server::start(&[Act::SayAndClose, Act::Say(OK)]).await;
        let client = Client::new(&proto(server.port));
        assert_eq!(client.get().await, Ok(StatusCode::OK));
        until(|| server.open.get() == 0).await;
        let (status, _) = client.send(Method::POST, "body").await.unwrap();
        assert_eq!((status, server.accepted.get()), (StatusCode::OK, 2));
    });
}

#[test]
fn only_requests_that_are_safe_to_repeat_are_sent_again_when_the_connection_dies() {
    for (method, body, again) in [
        (Method::GET, "", true),
        (Method::DELETE, "", true),
        (Method::POST, "", false),
        (Method::PUT, "body", false),
    ] {
        run(async {
            let server = Server::start(&[Act::Say(OK), Act::Close, Act::Say(OK)]).await;
            let client = Client::new(&proto(server.port));
            assert_eq!(client.get().await, Ok(StatusCode::OK));
            let done = client.send(method.clone(), body).await;
            let requests = server.requests.get();
            if again {
                assert_eq!((done.unwrap().0, requests), (StatusCode::OK, 3));
            } else {
                let reason = done.unwrap_err().reason;
                assert_eq!((reason, requests), (ResetReason::ConnectionTermination, 2));
            }
        });
    }
}

#[test]
fn a_request_is_sent_again_only_once_and_never_on_a_fresh_connection() {
    run(async {
        let server = Server::start(&[Act::Close]).await;
        let client = Client::new(&proto(server.port));
        assert_eq!(client.get().await, Err(ResetReason::ConnectionTermination));
        assert_eq!(server.requests.get(), 1);
        let server = Server::start(&[Act::Say(OK), Act::Close]).await;
        let client = Client::new(&proto(server.port));
        assert_eq!(client.get().await, Ok(StatusCode::OK));
        assert_eq!(client.get().await, Err(ResetReason::ConnectionTermination));
        assert_eq!(server.requests.get(), 3);
    });
}

#[test]
fn connections_that_the_server_ends_are_not_kept() {
    run(async {
        let server = Server::start(&[Act::Say(LAST)]).await;
        let client = Client::new(&proto(server.port));
        for _ in 0..2 {
            assert_eq!(client.get().await, Ok(StatusCode::OK));
        }
        let cluster = client.cluster();
        let stats = cluster.stats();
        assert_eq!(server.accepted.get(), 2);
        assert_eq!(stats.upstream_cx_close_notify.value(), 2);
        assert_eq!(stats.upstream_cx_destroy_local.value(), 2);
        assert_eq!(stats.upstream_cx_destroy_with_active_rq.value(), 0);
    });
}

#[test]
fn idle_and_old_connections_are_closed() {
    for (idle, max_age, counted) in [(Some(1), None, 0), (None, Some(1), 1)] {
        run(async {
            let server = Server::start(&[Act::Say(OK)]).await;
            let ms = |ms: i32| wkt::Duration {
                seconds: 0,
                nanos: ms * 1_000_000,
            };
            #[allow(deprecated)] // the short form of these settings
            let cluster = pb::Cluster {
                common_http_protocol_options: Some(core::HttpProtocolOptions {
                    idle_timeout: idle.map(ms),
                    max_connection_duration: max_age.map(ms),
                    ..Default::default()
                }),
                ..proto(server.port)
            };
            let client = Client::new(&cluster);
            assert_eq!(client.get().await, Ok(StatusCode::OK));
            std::thread::sleep(Duration::from_millis(5));
            let cluster = client.cluster();
            let host = cluster.choose_host(&LbContext::default()).unwrap();
            pool::of(&cluster, &host, Priority::Default, Default::default())
                .unwrap()
                .http1
                .sweep(false);
            until(|| server.open.get() == 0).await;
            let stats = cluster.stats();
            assert_eq!(stats.upstream_cx_idle_timeout.value(), 1 - counted);
            assert_eq!(stats.upstream_cx_max_duration_reached.value(), counted);
        });
    }
}

#[test]
fn everyone_who_waits_learns_that_the_host_refuses() {
    run(async {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        for cluster in [proto(port), http2(proto(port))] {
            let client = Client::new(&cluster);
            let both = futures_util::future::join(client.get(), client.get()).await;
            let refused = Err(ResetReason::RemoteConnectionFailure);
            assert_eq!(both, (refused, refused));
            let cluster = client.cluster();
            let stats = cluster.stats();
            assert_eq!(stats.upstream_rq_pending_failure_eject.value(), 2);
            assert_eq!(stats.upstream_cx_active.value(), 0);
            assert_eq!(cluster.breakers.default.connections.used(), 0);
        }
    });
}

#[test]
fn a_request_in_flight_outlives_its_host_and_its_cluster() {
    run(async {
        let old = Server::start(&[Act::Wait]).await;
        let new = Server::start(&[Act::Say(OK)]).await;
        let client = Client::new(&proto(old.port));
        let in_flight = |client: &Rc<Client>| {
            let client = client.clone();
            spawn_local(async move { client.get().await })
        };
        let first = in_flight(&client);
        until(|| old.requests.get() == 1).await;
        let changed = client
            .manager
            .borrow_mut()
            .apply_cluster(&proto(new.port), "2");
        changed.unwrap();
        assert_eq!(client.get().await, Ok(StatusCode::OK));
        assert_eq!(new.requests.get(), 1);
        old.go.add_permits(1);
        assert_eq!(first.await.unwrap(), Ok(StatusCode::OK));
        // Nobody comes back to a host that is gone.
        until(|| old.open.get() == 0).await;

        let client = Client::new(&proto(old.port));
        let second = in_flight(&client);
        until(|| old.requests.get() == 2).await;
        assert!(client.manager.borrow_mut().remove_cluster("a"));
        assert!(client.slot.get().is_none());
        old.go.add_permits(1);
        assert_eq!(second.await.unwrap(), Ok(StatusCode::OK));
    });
}

#[test]
fn a_clients_connections_are_its_own_and_go_with_it() {
    use crate::http::testing::connection;
    use crate::transport::proxy_protocol::Client as Told;
    use crate::transport::proxy_protocol::tlvs::AddedTlvs;
    use filters::stream::StreamInfo;

    run(async {
        let server = Server::start(&[Act::Say(OK)]).await;
        let client = Client::new(&proto(server.port));
        let cluster = client.cluster();
        let host = cluster.choose_host(&LbContext::default()).unwrap();
        let pool = |of: Option<&Rc<_>>| {
            let info = of.map(|of| StreamInfo::for_connection(Rc::clone(of)));
            let told = info.and_then(|info| Told::of(&info, &AddedTlvs::default()));
            let purpose = crate::transport::options::Purpose {
                client: told,
                ..Default::default()
            };
            pool::of(&cluster, &host, Priority::Default, purpose).unwrap()
        };
        let info = |from: &str| Rc::new(connection(from, "192.0.2.2:2"));
        let (one, other) = (info("192.0.2.1:1"), info("192.0.2.1:3"));
        let first = pool(Some(&one));
        assert!(Rc::ptr_eq(&first, &pool(Some(&one))));
        assert!(!Rc::ptr_eq(&first, &pool(Some(&other))) && !Rc::ptr_eq(&first, &pool(None)));
        let checkout = first.http1.checkout(false, &mut None).await.ok().unwrap();
        first.http1.give_back(checkout.connection);
        first.sweep();
        assert_eq!(server.open.get(), 1);
        drop(one);
        first.sweep();
        until(|| server.open.get() == 0).await;
    });
}
