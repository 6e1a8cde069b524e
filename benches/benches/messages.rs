//! HTTP/1.1 heads: parsing and checking, taking off what is of one connection, changing, writing.

#![allow(clippy::expect_used)] // See the crate.

use bytes::{Bytes, BytesMut};
use divan::{Bencher, black_box};
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use fairway::http::h1::parse::{self, Framing, HeadScanner};
use fairway::http::h1::{Http1Settings, encode};
use fairway::http::validate;
use filters::formatter::FormatContext;
use filters::head::RequestHead;
use filters::header_mutation::HeaderMutations;

fn main() {
    divan::main();
}

/// The requests, by name in the report.
#[derive(Debug, Clone, Copy)]
enum Sample {
    Small,
    Browser,
}

const SMALL: &[u8] = b"GET /api/v1/items?limit=10 HTTP/1.1\r\nhost: service.example.com\r\n\
    user-agent: bench/1\r\naccept: */*\r\n\r\n";

/// What a browser sends.
const BROWSER: &[u8] = b"GET /shop/item/4711?from=search HTTP/1.1\r\nHost: www.example.com\r\n\
    Connection: keep-alive\r\nCache-Control: max-age=0\r\nUpgrade-Insecure-Requests: 1\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0 Safari/537.36\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
    Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-User: ?1\r\nSec-Fetch-Dest: document\r\n\
    Referer: https://www.example.com/search?q=lamp\r\nAccept-Encoding: gzip, deflate, br\r\n\
    Accept-Language: en-GB,en;q=0.9\r\nCookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n\r\n";

impl Sample {
    fn bytes(self) -> Bytes {
        Bytes::from_static(match self {
            Self::Small => SMALL,
            Self::Browser => BROWSER,
        })
    }
}

const ALL: [Sample; 2] = [Sample::Small, Sample::Browser];

fn parsed(sample: Sample) -> RequestHead {
    let block = sample.bytes();
    let request = parse::request(&block, &Http1Settings::default());
    request.expect("a good request").head
}

#[divan::bench(args = ALL)]
fn parse(bencher: Bencher<'_, '_>, sample: Sample) {
    let settings = Http1Settings::default();
    let block = sample.bytes();
    bencher
        .counter(divan::counter::BytesCount::new(block.len()))
        .bench_local(|| {
            let end = HeadScanner::default().scan(black_box(&block), settings.max_head_bytes);
            (end, parse::request(&block, &settings))
        });
}

#[divan::bench(args = ALL)]
fn write(bencher: Bencher<'_, '_>, sample: Sample) {
    let head = parsed(sample);
    let settings = Http1Settings::default();
    let mut out = BytesMut::with_capacity(4096);
    bencher.bench_local(|| {
        out.clear();
        encode::request(&mut out, black_box(&head), Framing::None, &settings);
    });
}

#[divan::bench]
fn sanitise(bencher: Bencher<'_, '_>) {
    let headers = parsed(Sample::Browser).headers;
    bencher
        .with_inputs(|| headers.clone())
        .bench_local_values(|mut headers| {
            let checked = validate::strip_hop_by_hop(&mut headers);
            (checked, headers)
        });
}

/// Four headers added, one of them formatted, and two removed: a route of a Gateway API filter.
#[divan::bench]
fn mutate(bencher: Bencher<'_, '_>) {
    let add = |key: &str, value: &str| HeaderValueOption {
        header: Some(HeaderValue {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let add = [
        add("x-one", "1"),
        add("x-two", "two"),
        add("x-client", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
        add("x-environment", "production"),
    ];
    let remove = ["cookie".to_owned(), "x-absent".to_owned()];
    let mutations = HeaderMutations::compile("request", &add, &remove).expect("mutations");
    let (head, info) = (parsed(Sample::Browser), benches::stream());
    bencher
        .with_inputs(|| head.clone())
        .bench_local_values(|mut head| {
            let values = mutations.values(&FormatContext {
                info: &info,
                request: Some(&head),
                response: None,
                trailers: None,
                local_reply: None,
            });
            mutations.remove(&mut head.headers);
            mutations.write(values, &mut head.headers);
            head
        });
}
