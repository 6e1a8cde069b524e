//! Response heads.

use std::mem::MaybeUninit;

use bytes::Bytes;
use filters::head::ResponseHead;
use http::{StatusCode, header};

use super::fields::{STACK_FIELDS, collect, room};
use super::{CODEC, Framing, ParseError, ParsedResponse, TOO_MANY, bad};
use crate::http::h1::Http1Settings;
use crate::http::validate;

/// Parses one complete response head. `head_request` and `connect` describe the request it answers.
///
/// # Errors
/// Any deviation; the status in the error means nothing here. A lenient reading of a response is how
/// responses are smuggled, so this is as strict as for requests.
pub fn response(
    block: &Bytes,
    settings: &Http1Settings,
    head_request: bool,
    connect: bool,
) -> Result<ParsedResponse, ParseError> {
    let mut stack = [const { MaybeUninit::uninit() }; STACK_FIELDS];
    let mut heap = Vec::new();
    let fields = room(&mut stack, &mut heap, settings.max_headers);
    let mut parsed = httparse::Response::new(&mut []);
    let status = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut parsed, block, fields)
        .map_err(|error| match error {
            httparse::Error::TooManyHeaders => TOO_MANY,
            _ => CODEC,
        })?;
    if status != httparse::Status::Complete(block.len()) {
        return Err(CODEC);
    }
    let (Some(code), Some(version)) = (parsed.code, parsed.version) else {
        return Err(CODEC);
    };
    let status = StatusCode::from_u16(code).map_err(|_| CODEC)?;
    let reason = Some(parsed.reason.unwrap_or_default());
    let (mut headers, facts) = collect(block, parsed.headers, settings, reason)?;
    let upgrade = match code {
        101 if facts.upgrade => headers.get(header::UPGRADE).cloned(),
        _ => None,
    };
    if code == 101 && upgrade.is_none() {
        // It does not say what the bytes behind it would be (RFC 9110 section 15.2.2).
        return Err(CODEC);
    }
    if facts.chunked && (version == 0 || code < 200 || code == 204) {
        return Err(bad("http1.transfer_encoding_not_allowed"));
    }
    if (code < 200 || code == 204) && facts.length.unwrap_or(0) > 0 {
        return Err(bad("http1.content_length_not_allowed"));
    }
    // The forwarding fields mean nothing in a response: an upstream may name what it likes.
    let _ = validate::strip_hop_by_hop(&mut headers);
    headers.remove(header::CONNECTION);
    let framing = if connect && status.is_success() || code == 101 {
        Framing::Close
    } else if head_request || code < 200 || code == 204 || code == 304 {
        Framing::None
    } else if facts.chunked {
        Framing::Chunked
    } else {
        match facts.length {
            Some(0) => Framing::None,
            Some(length) => Framing::Length(length),
            None => Framing::Close,
        }
    };
    Ok(ParsedResponse {
        head: ResponseHead {
            status,
            headers,
            spelling: facts.spelling,
        },
        upgrade,
        framing,
        keep_alive: !facts.close && (version == 1 || facts.keep_alive) && framing != Framing::Close,
    })
}
