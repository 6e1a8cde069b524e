//! The chunked coding: no panic, and the same result whether bytes come at once or one by one.
#![no_main]

use bytes::BytesMut;
use fairway::http::h1::chunked::{ChunkedDecoder, Decoded};
use libfuzzer_sys::fuzz_target;

fn decode(input: &[u8], step: usize) -> (Vec<u8>, Option<bool>) {
    let mut decoder = ChunkedDecoder::default();
    let (mut buf, mut data) = (BytesMut::new(), Vec::new());
    for piece in input.chunks(step) {
        buf.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buf) {
                Ok(Decoded::More) => break,
                Ok(Decoded::Data(part)) => data.extend_from_slice(&part),
                Ok(Decoded::End(_)) => return (data, Some(true)),
                Err(_) => return (data, Some(false)),
            }
        }
    }
    (data, None)
}

fuzz_target!(|data: &[u8]| {
    assert_eq!(decode(data, 1), decode(data, data.len().max(1)));
});
