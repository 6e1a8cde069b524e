//! What the codec and the validator accept, against the grammars of the RFCs.

use std::sync::LazyLock;

use bytes::Bytes;
use http::HeaderValue;

use super::Http1Settings;
use super::fuzz_tests::{REQUESTS, RESPONSES, TOKENS};
use super::parse::{self, HeadScanner};
use crate::fuzz_driver::drive;
use crate::http::abnf::{Grammar, HTTP};
use crate::http::validate;

static GRAMMAR: LazyLock<Grammar> = LazyLock::new(|| Grammar::new(HTTP));

/// The message's head, if it has one.
fn head(data: &[u8]) -> Option<Bytes> {
    let end = HeadScanner::default().scan(data, 60 << 10).ok()??;
    Some(Bytes::copy_from_slice(&data[..end]))
}

#[test]
fn accepted_requests_are_of_the_grammar() {
    fn property(data: &[u8]) {
        let settings = Http1Settings {
            allow_custom_methods: true,
            ..Http1Settings::default()
        };
        if let Some(head) = head(data)
            && parse::request(&head, &settings).is_ok()
        {
            assert!(GRAMMAR.matches("request-head", &head));
        }
    }
    drive("request grammar", property, REQUESTS, TOKENS, 0);
}

#[test]
fn accepted_responses_are_of_the_grammar() {
    fn property(data: &[u8]) {
        if let Some(head) = head(data)
            && parse::response(&head, &Http1Settings::default(), false, false).is_ok()
        {
            assert!(GRAMMAR.matches("response-head", &head));
        }
    }
    drive("response grammar", property, RESPONSES, TOKENS, 0);
}

/// Every byte, a seventh of all pairs, and longer strings of the bytes that matter.
fn strings() -> impl Iterator<Item = Vec<u8>> {
    let pairs = (0..=u16::MAX)
        .step_by(7)
        .map(|pair| pair.to_be_bytes().to_vec());
    let single = (0..=u8::MAX).map(|byte| vec![byte]);
    let mut random = fastrand::Rng::with_seed(9110);
    let longer = std::iter::repeat_with(move || {
        let bytes = b"a1Z!\"(,:;=@\\ \t\r\n\0\x7f\x80\xff-_~|^`'";
        let length = random.usize(3..12);
        (0..length)
            .map(|_| *random.choice(bytes).unwrap())
            .collect()
    });
    std::iter::once(Vec::new())
        .chain(single)
        .chain(pairs)
        .chain(longer.take(5000))
}

#[test]
fn tokens_lengths_and_values_are_of_the_grammar() {
    for string in strings() {
        let told = string.escape_ascii();
        assert_eq!(
            validate::is_token(&string),
            GRAMMAR.matches("token", &string),
            "{told}"
        );
        let length = validate::content_length(&string).is_some();
        assert_eq!(length, GRAMMAR.matches("content-length", &string), "{told}");
        // White space around a value is no part of it, and gone before it is one.
        let trimmed = string.trim_ascii();
        if trimmed == string {
            let value = HeaderValue::from_bytes(&string).is_ok();
            assert_eq!(value, GRAMMAR.matches("field-value", &string), "{told}");
        }
    }
}

#[test]
fn messages_of_the_grammar_are_accepted() {
    let settings = Http1Settings::default();
    for string in strings().step_by(67) {
        let named = GRAMMAR.matches("token", &string) && !string.contains(&b'_');
        let name = if named { string.as_slice() } else { b"a" };
        let valued = GRAMMAR.matches("field-value", &string);
        let value = if valued { string.as_slice() } else { b"" };
        for line in ["GET /x HTTP/1.1\r\nhost: h", "HTTP/1.1 200 OK"] {
            let message = [
                line.as_bytes(),
                b"\r\nx-",
                name,
                b":\t",
                value,
                b" \r\n\r\n",
            ]
            .concat();
            let rule = if line.starts_with('G') {
                "request-head"
            } else {
                "response-head"
            };
            let block = head(&message).unwrap();
            assert!(GRAMMAR.matches(rule, &block));
            let headers = match rule {
                "request-head" => parse::request(&block, &settings).unwrap().head.headers,
                _ => {
                    parse::response(&block, &settings, false, false)
                        .unwrap()
                        .head
                        .headers
                }
            };
            let written = [b"x-", name].concat();
            let read = &headers[http::HeaderName::from_bytes(&written).unwrap()];
            assert_eq!(read.as_bytes(), value, "{}", message.escape_ascii());
        }
    }
}
