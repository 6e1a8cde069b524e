//! Strict parsing of heads. Pure: bytes in, head and framing out; the fuzz targets call this.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use bytestring::ByteString;
use filters::head::{RequestHead, ResponseHead};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::{Http1Settings, UnderscoreAction};
use crate::http::validate;

/// How the end of a body is found (RFC 9112 section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// This many bytes.
    Length(u64),
    /// The chunked coding.
    Chunked,
    /// Until the connection closes: responses, and both sides of a tunnel.
    Close,
}

/// A request's head as parsed.
#[derive(Debug)]
pub struct ParsedRequest {
    /// The head, hop-by-hop fields taken out, `host` moved to the authority.
    pub head: RequestHead,
    /// The framing of the body; [`Framing::Close`] for CONNECT and upgrades.
    pub framing: Framing,
    /// Whether it is HTTP/1.0.
    pub http_10: bool,
    /// Whether the client lets the connection persist.
    pub keep_alive: bool,
}

/// A response's head as parsed.
#[derive(Debug)]
pub struct ParsedResponse {
    /// The head, hop-by-hop fields taken out.
    pub head: ResponseHead,
    /// The framing of the body.
    pub framing: Framing,
    /// Whether the server lets the connection persist.
    pub keep_alive: bool,
    /// The `upgrade` field of a 101, lower case.
    pub upgrade: Option<ByteString>,
}

/// A message refused: status to answer with and Envoy's details.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseError {
    /// 400, 426, 431 or 501.
    pub status: u16,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: &'static str,
}

const CODEC: ParseError = bad("http1.codec_error");
const TOO_LARGE: ParseError = ParseError {
    status: 431,
    details: "http1.headers_too_large",
};

const fn bad(details: &'static str) -> ParseError {
    ParseError {
        status: 400,
        details,
    }
}

/// Finds the end of a head across reads without looking at any byte twice.
#[derive(Debug, Default)]
pub struct HeadScanner {
    scanned: usize,
    line: usize,
}

impl HeadScanner {
    /// The length of the complete head at the front of `buf`, if it is complete.
    ///
    /// # Errors
    /// A bare LF (RFC 9112 section 2.2 allows leniency, smuggling forbids it), or more than `limit` bytes.
    pub fn scan(&mut self, buf: &[u8], limit: usize) -> Result<Option<usize>, ParseError> {
        loop {
            let rest = buf.get(self.scanned..).unwrap_or_default();
            let Some(at) = memchr::memchr(b'\n', rest).map(|at| at + self.scanned) else {
                self.scanned = buf.len();
                return if buf.len() > limit {
                    Err(TOO_LARGE)
                } else {
                    Ok(None)
                };
            };
            if at == 0 || buf.get(at - 1) != Some(&b'\r') {
                return Err(CODEC);
            }
            if at >= limit {
                return Err(TOO_LARGE);
            }
            let empty = at - 1 == self.line;
            self.scanned = at + 1;
            self.line = at + 1;
            if empty {
                *self = Self::default();
                return Ok(Some(at + 1));
            }
        }
    }
}

/// Drops empty lines before a request line (RFC 9112 section 2.2).
pub fn skip_empty_lines(buf: &mut BytesMut) {
    while buf.starts_with(b"\r\n") {
        buf.advance(2);
    }
}

/// Fields on the stack up to this many; more only if the configuration allows more.
const STACK_FIELDS: usize = 101;

/// What the fields say about the connection and the body.
#[derive(Default)]
struct Facts {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    host: Option<ByteString>,
}

fn collect(
    block: &Bytes,
    fields: &[httparse::Header<'_>],
    settings: &Http1Settings,
    request: bool,
) -> Result<(HeaderMap, Facts), ParseError> {
    let mut map = HeaderMap::with_capacity(fields.len());
    let mut facts = Facts::default();
    let underscores = if request {
        settings.underscores
    } else {
        UnderscoreAction::Allow
    };
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| CODEC)?;
        if underscores != UnderscoreAction::Allow && field.name.contains('_') {
            if underscores == UnderscoreAction::Drop {
                continue;
            }
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
            if facts.host.replace(text(block, field.value)?).is_some() {
                return Err(CODEC);
            }
            continue;
        }
        map.append(name, value);
    }
    if facts.chunked && facts.length.is_some() {
        // Either one alone is fine; together they are smuggling, unless the operator says that those
        // before us read them as we do (RFC 9112 section 6.3, 3).
        if !settings.allow_chunked_length {
            return Err(bad("http1.content_length_and_chunked_not_allowed"));
        }
        facts.length = None;
        map.remove(header::CONTENT_LENGTH);
    }
    Ok((map, facts))
}

fn text(block: &Bytes, part: &[u8]) -> Result<ByteString, ParseError> {
    ByteString::try_from(block.slice_ref(part)).map_err(|_| CODEC)
}

fn lower(value: &[u8]) -> Option<ByteString> {
    if !value
        .iter()
        .all(|b| validate::is_token_byte(*b) || *b == b'/')
        || value.is_empty()
    {
        return None;
    }
    if value == b"websocket" {
        return Some(ByteString::from_static("websocket"));
    }
    let value = std::str::from_utf8(value).ok()?;
    Some(ByteString::from(value.to_ascii_lowercase()))
}

const TOO_MANY: ParseError = ParseError {
    status: 431,
    details: "http1.too_many_headers",
};
const LOW_VERSION: ParseError = ParseError {
    status: 426,
    details: "low_version",
};

/// The methods that Envoy takes without `allow_custom_methods`, in order.
const METHODS: [&str; 34] = [
    "ACL",
    "BIND",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MOVE",
    "MSEARCH",
    "NOTIFY",
    "OPTIONS",
    "PATCH",
    "POST",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "PUT",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SOURCE",
    "SUBSCRIBE",
    "TRACE",
    "UNBIND",
    "UNLINK",
    "UNLOCK",
    "UNSUBSCRIBE",
];

fn is_method(method: &str, settings: &Http1Settings) -> bool {
    if settings.allow_custom_methods {
        return validate::is_token(method.as_bytes());
    }
    // Nearly every request is one of the first three.
    matches!(method, "GET" | "POST" | "PUT") || METHODS.binary_search(&method).is_ok()
}

/// Why a request head that does not parse is refused, in Envoy's words.
fn diagnose(block: &[u8], error: httparse::Error, settings: &Http1Settings) -> ParseError {
    if error == httparse::Error::TooManyHeaders {
        return TOO_MANY;
    }
    let line = block.split(|b| *b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|b| *b == b' ');
    let method = words.next().and_then(|m| std::str::from_utf8(m).ok());
    if !method.is_some_and(|m| is_method(m, settings)) {
        return CODEC;
    }
    if block
        .iter()
        .any(|b| b.is_ascii_control() && !matches!(b, b'\t' | b'\r' | b'\n'))
    {
        return bad("http1.invalid_characters");
    }
    match (words.next(), words.next(), words.next()) {
        // HTTP/0.9, and versions that are well-formed but not ours.
        (Some(_), None, None) => LOW_VERSION,
        (Some(_), Some(version), None) => match version.strip_prefix(b"HTTP/") {
            Some([major, b'.', minor])
                if major.is_ascii_digit()
                    && minor.is_ascii_digit()
                    && !matches!((major, minor), (b'1', b'0' | b'1')) =>
            {
                LOW_VERSION
            }
            _ => CODEC,
        },
        _ => CODEC,
    }
}

/// Parses one complete request head: exactly the bytes up to and with the empty line.
///
/// # Errors
/// What to answer: see [`ParseError`]. The rules are RFC 9112's and Envoy's edge defaults.
pub fn request(block: &Bytes, settings: &Http1Settings) -> Result<ParsedRequest, ParseError> {
    let mut stack = [const { MaybeUninit::uninit() }; STACK_FIELDS];
    let mut heap = Vec::new();
    let fields = room(&mut stack, &mut heap, settings.max_headers);
    let mut parsed = httparse::Request::new(&mut []);
    let status = httparse::ParserConfig::default()
        .parse_request_with_uninit_headers(&mut parsed, block, fields)
        .map_err(|error| diagnose(block, error, settings))?;
    if status != httparse::Status::Complete(block.len()) {
        return Err(CODEC);
    }
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(CODEC);
    };
    let http_10 = version == 0;
    if http_10 && !settings.accept_http_10 {
        return Err(LOW_VERSION);
    }
    if !is_method(method, settings) || !validate::is_target(target.as_bytes()) {
        return Err(CODEC);
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| CODEC)?;
    let connect = method == Method::CONNECT;
    let (mut headers, facts) = collect(block, parsed.headers, settings, true)?;
    if facts.chunked && http_10 {
        return Err(bad("http1.transfer_encoding_not_allowed"));
    }
    if connect && (facts.chunked || facts.length.unwrap_or(0) > 0) {
        return Err(bad("http1.body_disallowed"));
    }
    let mut head = RequestHead::new(method, ByteString::new());
    place_target(block, target, connect, settings, &mut head)?;
    if let Some(host) = facts.host
        && head.authority.is_empty()
    {
        head.authority = host;
    }
    if !validate::is_authority(head.authority.as_bytes()) {
        return Err(bad("http.invalid_authority"));
    }
    let body = facts.chunked || facts.length.unwrap_or(0) > 0;
    // A request with a body keeps its body and loses the upgrade, which a server may always ignore
    // (RFC 9110 section 7.8); so does an upgrade to h2c, as in Envoy.
    if facts.upgrade && !http_10 && !body && !connect {
        head.upgrade = headers
            .get(header::UPGRADE)
            .and_then(|v| lower(v.as_bytes()))
            .filter(|v| v != "h2c");
    }
    validate::strip_hop_by_hop(&mut headers).map_err(bad)?;
    head.headers = headers;
    let framing = match facts.length {
        _ if head.is_tunnel() => Framing::Close,
        _ if facts.chunked => Framing::Chunked,
        None | Some(0) => Framing::None,
        Some(length) => Framing::Length(length),
    };
    Ok(ParsedRequest {
        head,
        framing,
        http_10,
        keep_alive: !facts.close && (!http_10 || facts.keep_alive),
    })
}

/// Room for `max` fields, on the stack if they fit there; uninitialised, so no memset per message.
fn room<'a, 'h>(
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

/// Origin, absolute, authority or asterisk form (RFC 9112 section 3.2).
fn place_target(
    block: &Bytes,
    target: &str,
    connect: bool,
    settings: &Http1Settings,
    head: &mut RequestHead,
) -> Result<(), ParseError> {
    const URL: ParseError = bad("http1.invalid_url");
    if connect {
        if target.starts_with('/') || !validate::is_authority(target.as_bytes()) {
            return Err(URL);
        }
        head.authority = text(block, target.as_bytes())?;
        return Ok(());
    }
    if target.starts_with('/') || (target == "*" && head.method == Method::OPTIONS) {
        head.path = text(block, target.as_bytes())?;
        return Ok(());
    }
    if !settings.allow_absolute_url {
        head.path = text(block, target.as_bytes())?;
        return Ok(());
    }
    if target.starts_with('*') {
        return Err(URL);
    }
    let (scheme, rest) = target.split_once("://").ok_or(CODEC)?;
    head.scheme = if scheme.eq_ignore_ascii_case("http") {
        ByteString::from_static("http")
    } else if scheme.eq_ignore_ascii_case("https") {
        ByteString::from_static("https")
    } else {
        return Err(URL);
    };
    let at = rest
        .bytes()
        .position(|b| matches!(b, b'/' | b'?' | b'#'))
        .unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    if authority.is_empty() {
        return Err(URL);
    }
    // The target's authority replaces Host (RFC 9112 section 3.2.2).
    head.authority = text(block, authority.as_bytes())?;
    head.path = match path.as_bytes().first() {
        None => ByteString::from_static("/"),
        Some(b'/') => text(block, path.as_bytes())?,
        Some(_) => ByteString::from(format!("/{path}")),
    };
    Ok(())
}

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
    let (mut headers, facts) = collect(block, parsed.headers, settings, false)?;
    let upgrade = (code == 101 && facts.upgrade)
        .then(|| {
            headers
                .get(header::UPGRADE)
                .and_then(|v| lower(v.as_bytes()))
        })
        .flatten();
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
        head: ResponseHead { status, headers },
        framing,
        keep_alive: !facts.close && (version == 1 || facts.keep_alive) && framing != Framing::Close,
        upgrade,
    })
}
