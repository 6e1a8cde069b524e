//! The four hard shapes of filters, through the binary: one that buffers a whole body, one that transforms a body
//! as it streams, one that answers from an awaited call, one that replaces both bodies from a side stream. Each under
//! random chunks, pauses, resets and local replies, over HTTP/1 and HTTP/2 on either side.
//!
//! `FAIRWAY_SEED=n` runs another selection; a failure names the plan that failed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "the whole crate is a test"
)]

mod backend;
mod client;
mod plan;
mod proxy;
mod services;

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use plan::{Ending, Fault, Plan, Shape};
use proxy::Proxy;

/// Longer than any honest exchange on a busy machine: whoever takes as long hangs.
const HANG: Duration = Duration::from_secs(60);
const AT_A_TIME: usize = 16;
/// A body that no honest buffer holds.
const LARGE: usize = 16 << 20;
/// Whether HTTP/2 is spoken downstream and upstream.
const VERSIONS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

async fn start() -> Proxy {
    let backends = backend::start().await;
    let services = services::start().await;
    Proxy::start(&backends, &services).await
}

#[test]
fn random_plans_end_as_they_must() {
    let seed = std::env::var("FAIRWAY_SEED").map_or(1, |s| s.parse().unwrap());
    runtime().block_on(async {
        let proxy = start().await;
        let mut random = fastrand::Rng::with_seed(seed);
        let plans: Vec<Plan> = (0..400).map(|_| Plan::random(&mut random)).collect();
        let mut running = FuturesUnordered::new();
        let mut waiting = plans.iter();
        loop {
            while running.len() < AT_A_TIME
                && let Some(plan) = waiting.next()
            {
                running.push(check(&proxy, plan));
            }
            if running.next().await.is_none() {
                break;
            }
        }
        drop(running);
        proxy.settle().await;
        let logged = proxy.log_lines();
        let streams = proxy.counter("downstream_rq_total").await;
        assert_eq!(logged, streams, "each stream is logged once");
        assert!(streams >= plans.len() as u64 * 9 / 10, "{streams} streams");
        proxy.stop();
    });
}

async fn check(proxy: &Proxy, plan: &Plan) {
    let ending = tokio::time::timeout(HANG, client::run(proxy.port(plan), plan)).await;
    let ending = ending.unwrap_or_else(|_| panic!("hangs: {plan:?}"));
    if let Err(why) = plan.judge(&ending) {
        panic!("{why}: {plan:?}: {}", ending.brief());
    }
}

/// Bodies much larger than any buffer, into and out of a side that does not move: the rest must wait outside.
#[test]
fn memory_is_bounded_by_back_pressure() {
    runtime().block_on(async {
        let proxy = start().await;
        for shape in [Shape::Gzip, Shape::Duplex] {
            for fault in [Fault::BackendStalls, Fault::ClientStalls] {
                let plans = VERSIONS.map(|(http2, up2)| {
                    let mut plan = Plan::calm(shape, http2, up2, fault);
                    match fault {
                        Fault::BackendStalls => plan.request = LARGE,
                        _ => plan.response = LARGE,
                    }
                    plan
                });
                let before = proxy.memory();
                // Nothing moves at its end: none comes to one.
                let moving = plans.iter().map(|plan| client::run(proxy.port(plan), plan));
                let ended = futures_util::future::select_all(moving.map(Box::pin));
                let ended = tokio::time::timeout(Duration::from_secs(2), ended).await;
                let grown = proxy.memory().saturating_sub(before);
                assert!(ended.is_err(), "{shape:?}, {fault:?} came to an end");
                assert!(
                    grown < LARGE / 4 * plans.len(),
                    "{grown} more bytes: {shape:?}, {fault:?}"
                );
            }
        }
        // Not settled: a client that leaves unread data behind it is noticed when its stream idles out.
        proxy.stop();
    });
}

/// Every shape, both versions on both sides, nothing wrong anywhere: the bytes are exact.
#[test]
fn calm_plans_are_exact() {
    runtime().block_on(async {
        let proxy = start().await;
        for shape in Shape::ALL {
            for (http2, up2) in VERSIONS {
                for size in [0, 1, 100, 70_000, 300_000] {
                    let mut plan = Plan::calm(shape, http2, up2, Fault::None);
                    plan.request = size;
                    plan.response = 300_000 - size;
                    check(&proxy, &plan).await;
                    assert!(matches!(
                        client::run(proxy.port(&plan), &plan).await,
                        Ending::Response { .. }
                    ));
                }
            }
        }
        proxy.stop();
    });
}
