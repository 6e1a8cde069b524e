//! Choosing a route: what the first and the last of many cost, and what misses.

#![allow(clippy::expect_used)] // See the crate.

use benches::context::chain_context;
use divan::{Bencher, black_box};
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatcher;
use fairway::router::RouteTable;
use filters::head::RequestHead;
use http::Method;
use pb::route_match::PathSpecifier;

fn main() {
    divan::main();
}

const COUNTS: [usize; 3] = [10, 1_000, 10_000];

fn route(path: PathSpecifier) -> pb::Route {
    pb::Route {
        r#match: Some(pb::RouteMatch {
            path_specifier: Some(path),
            ..Default::default()
        }),
        action: Some(pb::route::Action::DirectResponse(
            pb::DirectResponseAction {
                status: 200,
                ..Default::default()
            },
        )),
        ..Default::default()
    }
}

/// One virtual host with as many prefixes, exact paths and regular expressions, by turns.
fn table(count: usize) -> RouteTable {
    let routes = (0..count).map(|n| {
        route(match n % 3 {
            0 => PathSpecifier::Prefix(format!("/prefix/{n}/")),
            1 => PathSpecifier::Path(format!("/exact/{n}")),
            _ => PathSpecifier::SafeRegex(RegexMatcher {
                regex: format!("/regex/{n}/[a-z]+"),
                ..Default::default()
            }),
        })
    });
    let config = pb::RouteConfiguration {
        name: "mixed".into(),
        virtual_hosts: vec![pb::VirtualHost {
            name: "one".into(),
            domains: vec!["*".into()],
            routes: routes.collect(),
            ..Default::default()
        }],
        ..Default::default()
    };
    chain_context()
        .compile_routes(&config, true)
        .expect("routes")
}

/// A request that only route `n` takes.
fn request(n: usize) -> RequestHead {
    let path = match n % 3 {
        0 => format!("/prefix/{n}/item"),
        1 => format!("/exact/{n}"),
        _ => format!("/regex/{n}/item"),
    };
    let mut head = RequestHead::new(Method::GET, path);
    head.authority = "service.example.com".into();
    head
}

fn measure(bencher: Bencher<'_, '_>, count: usize, head: &RequestHead, found: bool) {
    let (table, info) = (table(count), benches::stream());
    assert_eq!(table.route(head, &info, 0).view().is_some(), found);
    bencher.bench_local(|| table.route(black_box(head), &info, 0));
}

#[divan::bench(args = COUNTS)]
fn first(bencher: Bencher<'_, '_>, count: usize) {
    measure(bencher, count, &request(0), true);
}

#[divan::bench(args = COUNTS)]
fn last_prefix(bencher: Bencher<'_, '_>, count: usize) {
    measure(bencher, count, &request((count - 1) / 3 * 3), true);
}

#[divan::bench(args = COUNTS)]
fn last_exact(bencher: Bencher<'_, '_>, count: usize) {
    measure(bencher, count, &request((count - 2) / 3 * 3 + 1), true);
}

#[divan::bench(args = COUNTS)]
fn last_regex(bencher: Bencher<'_, '_>, count: usize) {
    measure(bencher, count, &request((count - 3) / 3 * 3 + 2), true);
}

#[divan::bench(args = COUNTS)]
fn none(bencher: Bencher<'_, '_>, count: usize) {
    let head = RequestHead::new(Method::GET, "/elsewhere/and/further");
    measure(bencher, count, &head, false);
}
