//! Request heads: no panic, and what is accepted holds what the validator promises.
#![no_main]

use bytes::Bytes;
use fairway::http::h1::Http1Settings;
use fairway::http::h1::parse::{self, HeadScanner};
use fairway::http::validate;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let settings = Http1Settings { accept_http_10: true, ..Http1Settings::default() };
    let Ok(Some(end)) = HeadScanner::default().scan(data, settings.max_head_bytes) else {
        return;
    };
    let Ok(parsed) = parse::request(&Bytes::copy_from_slice(&data[..end]), &settings) else {
        return;
    };
    assert!(validate::is_authority(parsed.head.authority.as_bytes()));
    assert!(parsed.head.path.is_empty() || validate::is_target(parsed.head.path.as_bytes()));
    assert!(!parsed.head.headers.contains_key("host"));
    assert!(!parsed.head.headers.contains_key("connection"));
    assert!(!parsed.head.headers.contains_key("transfer-encoding"));
});
