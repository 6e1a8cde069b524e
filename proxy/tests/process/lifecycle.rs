//! Signals, drains and the end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::client::{Http1, Http2};
use crate::fairway::{Fairway, Home, bootstrap, until};
use crate::upstream;

const DRAIN: [&str; 4] = ["--drain-time-s", "20", "--drain-strategy", "immediate"];

fn start(home: &Home, delay: Duration) -> Fairway {
    let up = upstream::start("up", delay);
    Fairway::start(home, &bootstrap(home, up), &DRAIN)
}

/// Requests on kept connections until the server has asked twice to go elsewhere: once on a connection of before
/// the drain and once on a new one. Gives the number of answers.
fn http1_load(to: SocketAddr, ending: &AtomicBool) -> u32 {
    let (mut served, mut asked) = (0, 0);
    while asked < 2 {
        let mut connection = match Http1::connect(to) {
            Ok(connection) => connection,
            Err(_) if ending.load(Ordering::SeqCst) => return served,
            Err(e) => panic!("connect: {e}"),
        };
        loop {
            let answer = connection.get("/").expect("a request was lost");
            assert_eq!(answer.status, 200, "{answer:?}");
            served += 1;
            if answer.close {
                assert!(ending.load(Ordering::SeqCst), "asked to close too early");
                asked += 1;
                break;
            }
        }
    }
    served
}

/// As [`http1_load`], with four streams at a time.
fn http2_load(to: SocketAddr, ending: &AtomicBool) -> u32 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (mut served, mut asked) = (0, 0);
    runtime.block_on(async {
        while asked < 2 {
            let connection = match Http2::connect(to).await {
                Ok(connection) => connection,
                Err(_) if ending.load(Ordering::SeqCst) => return,
                Err(e) => panic!("connect: {e}"),
            };
            let streams: Vec<_> = (0..4)
                .map(|_| {
                    let mut connection = connection.share();
                    tokio::spawn(async move {
                        let mut served = 0;
                        while let Some(answer) = connection.get("/").await {
                            assert_eq!(answer.expect("a stream was lost"), 200);
                            served += 1;
                        }
                        served
                    })
                })
                .collect();
            drop(connection);
            for stream in streams {
                served += stream.await.unwrap();
            }
            asked += 1;
        }
    });
    served
}

#[test]
fn sigterm_under_load_loses_no_request() {
    let home = Home::new();
    let mut fairway = start(&home, Duration::from_millis(2));
    let to = fairway.listener("main");
    let ending = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..6)
        .map(|i| {
            let ending = ending.clone();
            std::thread::spawn(move || match i % 2 {
                0 => http1_load(to, &ending),
                _ => http2_load(to, &ending),
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    ending.store(true, Ordering::SeqCst);
    fairway.signal("TERM");
    until("not ready", || fairway.get("/ready").0 != 200);
    let served: u32 = clients.into_iter().map(|c| c.join().unwrap()).sum();
    assert!(served > 50, "{served}");
    assert!(fairway.wait().success());
    let log = std::fs::read_to_string(home.path("access.log")).unwrap();
    assert_eq!(
        log.lines().count(),
        served as usize,
        "every line was written"
    );
}

#[test]
fn an_idle_connection_may_still_ask_and_is_closed_a_little_later() {
    let home = Home::new();
    let mut fairway = start(&home, Duration::ZERO);
    let to = fairway.listener("main");
    let mut busy = Http1::connect(to).unwrap();
    let mut idle = Http1::connect(to).unwrap();
    for connection in [&mut busy, &mut idle] {
        assert!(!connection.get("/").unwrap().close);
    }
    let began = Instant::now();
    fairway.signal("TERM");
    until("draining", || {
        fairway.get("/ready") == (503, "DRAINING\n".into())
    });
    assert!(busy.get("/").unwrap().close);
    until("the idle connection's end", || idle.is_closed());
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "not at the drain time"
    );
    assert!(fairway.wait().success());
}

#[test]
fn a_second_sigterm_and_sigint_end_at_once() {
    for second in ["TERM", "INT"] {
        let home = Home::new();
        let mut fairway = start(&home, Duration::from_secs(60));
        let to = fairway.listener("main");
        let busy = std::thread::spawn(move || Http1::connect(to).unwrap().get("/"));
        until("the request", || {
            fairway.stat("http.main.downstream_rq_active") == Some(1)
        });
        fairway.signal("TERM");
        until("draining", || fairway.get("/ready").0 == 503);
        assert!(!fairway.has_exited());
        fairway.signal(second);
        assert!(fairway.wait().success());
        assert!(busy.join().unwrap().is_err());
    }
}

#[test]
fn sighup_is_ignored_and_sigusr1_opens_the_logs_anew() {
    let home = Home::new();
    let fairway = start(&home, Duration::ZERO);
    let mut connection = Http1::connect(fairway.listener("main")).unwrap();
    fairway.signal("HUP");
    connection.get("/first").unwrap();
    std::fs::rename(home.path("access.log"), home.path("access.log.1")).unwrap();
    std::fs::rename(&fairway.log, home.path("log.1")).unwrap();
    fairway.signal("USR1");
    until("the new log", || fairway.log.exists());
    until("a line in the new file", || {
        connection.get("/second").unwrap();
        std::thread::sleep(Duration::from_millis(20));
        home.path("access.log").exists()
    });
}

#[test]
fn quitquitquit_ends_the_process() {
    let home = Home::new();
    let mut fairway = start(&home, Duration::ZERO);
    assert_eq!(fairway.get("/quitquitquit").0, 405);
    assert_eq!(fairway.post("/quitquitquit"), (200, "OK\n".into()));
    assert!(fairway.wait().success());
}

#[test]
fn failed_health_checks_ask_clients_to_go_and_passed_ones_do_not() {
    let home = Home::new();
    let fairway = start(&home, Duration::ZERO);
    let to = fairway.listener("main");
    let close = || Http1::connect(to).unwrap().get("/").unwrap().close;
    assert!(!close());
    fairway.post("/healthcheck/fail");
    assert_eq!(fairway.get("/ready"), (503, "DRAINING\n".into()));
    assert!(close());
    fairway.post("/healthcheck/ok");
    assert_eq!(fairway.get("/ready"), (200, "LIVE\n".into()));
    assert!(!close());
}
