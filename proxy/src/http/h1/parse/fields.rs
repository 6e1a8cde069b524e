//! The fields of a head: checked, gathered, and what they say about the message.

use std::mem::MaybeUninit;
use std::rc::Rc;

use bytes::Bytes;
use bytestring::ByteString;
use filters::head::Spelling;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{CODEC, ParseError, TOO_MANY, bad};
use crate::http::h1::{HeaderCase, Http1Settings, UnderscoreAction};
use crate::http::validate;

/// Fields on the stack up to this many; more only if the configuration allows more.
pub(super) const STACK_FIELDS: usize = 101;

/// A length and a coding, each of which says where the message ends.
const LENGTH_AND_CODING: ParseError = bad("http1.content_length_and_chunked_not_allowed");

/// Room for `max` fields, on the stack if they fit there; uninitialised, so no memset per message.
pub(super) fn room<'a, 'h>(
    stack: &'a mut [MaybeUninit<httparse::Header<'h>>; STACK_FIELDS],
    heap: &'a mut Vec<MaybeUninit<httparse::Header<'h>>>,
    max: usize,
) -> &'a mut [MaybeUninit<httparse::Header<'h>>] {
    if max <= STACK_FIELDS {
        stack.get_mut(..max).unwrap_or_default()
    } else {
        heap.resize_with(max, MaybeUninit::uninit);
        heap
    }
}

/// What the fields say about the connection and the body.
#[derive(Default)]
pub(super) struct Facts {
    pub(super) length: Option<u64>,
    pub(super) chunked: bool,
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    pub(super) host: Option<ByteString>,
    pub(super) spelling: Option<Rc<Spelling>>,
}

/// The names as they are written, where a formatter will want them.
fn spelling(
    block: &Bytes,
    fields: &[httparse::Header<'_>],
    case: HeaderCase,
    reason: Option<&str>,
) -> Result<Option<Rc<Spelling>>, ParseError> {
    let HeaderCase::Preserve {
        proper_others,
        keep_reason,
    } = case
    else {
        return Ok(None);
    };
    let mut spelling = Spelling {
        names: Vec::with_capacity(fields.len()),
        proper_others,
        reason: reason.filter(|_| keep_reason).map(ByteString::from),
    };
    for field in fields {
        if spelling.of(field.name).is_none() {
            spelling.names.push(text(block, field.name.as_bytes())?);
        }
    }
    Ok(Some(Rc::new(spelling)))
}

/// Checks and gathers the fields. `reason` is a response's reason phrase; requests have none.
///
/// # Errors
/// On the first field that cannot be accepted.
pub(super) fn collect(
    block: &Bytes,
    fields: &[httparse::Header<'_>],
    settings: &Http1Settings,
    reason: Option<&str>,
) -> Result<(HeaderMap, Facts), ParseError> {
    let request = reason.is_none();
    let mut map = HeaderMap::with_capacity(fields.len().min(100));
    let mut facts = Facts {
        spelling: spelling(block, fields, settings.header_case, reason)?,
        ..Facts::default()
    };
    let underscores = if request {
        settings.underscores
    } else {
        UnderscoreAction::Allow
    };
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| CODEC)?;
        if underscores != UnderscoreAction::Allow && field.name.contains('_') {
            let stats = &settings.stats;
            if underscores == UnderscoreAction::Drop {
                stats.dropped_headers_with_underscores.inc();
                continue;
            }
            stats.requests_rejected_with_underscores_in_headers.inc();
            return Err(bad("http1.unexpected_underscore"));
        }
        let value = HeaderValue::from_maybe_shared(block.slice_ref(field.value))
            .map_err(|_| bad("http1.invalid_characters"))?;
        if name == header::CONTENT_LENGTH {
            // A second one, equal or not, is refused (RFC 9112 section 6.3, 5).
            let length = validate::content_length(value.as_bytes()).ok_or(CODEC)?;
            if facts.length.replace(length).is_some() {
                return Err(CODEC);
            }
        } else if name == header::TRANSFER_ENCODING {
            // Only exactly `chunked`, once: nothing else is implemented (RFC 9112 section 6.1: 501).
            if facts.chunked || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                let mut names = fields.iter().map(|field| field.name);
                let length = names.any(|name| name.eq_ignore_ascii_case("content-length"));
                if length && !settings.allow_chunked_length {
                    return Err(LENGTH_AND_CODING);
                }
                return Err(ParseError {
                    status: 501,
                    details: "http1.invalid_transfer_encoding",
                });
            }
            facts.chunked = true;
        } else if name == header::CONNECTION {
            for option in value.as_bytes().split(|b| *b == b',') {
                let option = option.trim_ascii();
                facts.close |= option.eq_ignore_ascii_case(b"close");
                facts.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                facts.upgrade |= option.eq_ignore_ascii_case(b"upgrade");
            }
        } else if request && name == header::HOST {
            // Exactly one Host (RFC 9112 section 3.2).
            let host = text(block, field.value).map_err(|_| bad("http.invalid_authority"))?;
            if facts.host.replace(host).is_some() {
                return Err(CODEC);
            }
            continue;
        }
        // A map holds 32,768 values; the limits may be configured higher.
        map.try_append(name, value).map_err(|_| TOO_MANY)?;
    }
    if facts.chunked && facts.length.is_some() {
        // Either one alone is fine; together they are smuggling, unless the operator says that those
        // before us read them as we do (RFC 9112 section 6.3, 3).
        if !settings.allow_chunked_length {
            return Err(LENGTH_AND_CODING);
        }
        facts.length = None;
        map.remove(header::CONTENT_LENGTH);
    }
    Ok((map, facts))
}

pub(super) fn text(block: &Bytes, part: &[u8]) -> Result<ByteString, ParseError> {
    ByteString::try_from(block.slice_ref(part)).map_err(|_| CODEC)
}
