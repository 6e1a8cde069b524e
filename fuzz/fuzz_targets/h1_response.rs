//! Response heads: no panic; hop-by-hop fields never come through.
#![no_main]

use bytes::Bytes;
use fairway::http::h1::Http1Settings;
use fairway::http::h1::parse::{self, HeadScanner};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((flags, data)) = data.split_first() else {
        return;
    };
    let settings = Http1Settings::default();
    let Ok(Some(end)) = HeadScanner::default().scan(data, settings.max_head_bytes) else {
        return;
    };
    let block = Bytes::copy_from_slice(&data[..end]);
    if let Ok(parsed) = parse::response(&block, &settings, flags & 1 != 0, flags & 2 != 0) {
        assert!(!parsed.head.headers.contains_key("connection"));
        assert!(!parsed.head.headers.contains_key("transfer-encoding"));
    }
});
