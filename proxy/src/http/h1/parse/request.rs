//! Request heads.

use std::mem::MaybeUninit;

use bytes::Bytes;
use bytestring::ByteString;
use filters::head::RequestHead;
use http::{Method, header};

use super::fields::{STACK_FIELDS, collect, room, text};
use super::{CODEC, Framing, ParseError, ParsedRequest, TOO_MANY, bad};
use crate::http::h1::Http1Settings;
use crate::http::validate;

const LOW_VERSION: ParseError = ParseError {
    status: 426,
    details: "low_version",
};

/// The methods that Envoy takes without `allow_custom_methods`, in order.
const METHODS: &[&str] = &[
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
    "QUERY",
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
    let (mut headers, facts) = collect(block, parsed.headers, settings, None)?;
    if facts.chunked && http_10 {
        // RFC 9112 section 6.1: such a message was framed by someone who did not know the coding.
        return Err(bad("http1.transfer_encoding_not_allowed"));
    }
    if connect && facts.chunked {
        return Err(ParseError {
            status: 501,
            details: "http1.invalid_transfer_encoding",
        });
    }
    if connect && facts.length.unwrap_or(0) > 0 {
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
            .and_then(|v| ByteString::try_from(v.as_bytes()).ok())
            .filter(|v| !v.is_empty() && !v.eq_ignore_ascii_case("h2c"));
    }
    validate::strip_hop_by_hop(&mut headers).map_err(bad)?;
    head.headers = headers;
    head.spelling = facts.spelling;
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
        if !has_port(target) || !validate::is_authority(target.as_bytes()) {
            return Err(URL);
        }
        head.authority = text(block, target.as_bytes())?;
        return Ok(());
    }
    let absolute = target
        .split_once("://")
        .filter(|_| !target.starts_with('/'));
    if absolute.is_none() && !target.starts_with(['/', '*']) {
        return Err(CODEC);
    }
    if target.starts_with('/')
        || (target == "*" && head.method == Method::OPTIONS)
        || !settings.allow_absolute_url
    {
        head.path = text(block, target.as_bytes())?;
        return Ok(());
    }
    let (scheme, rest) = absolute.ok_or(URL)?;
    head.scheme = if scheme.eq_ignore_ascii_case("http") {
        ByteString::from_static("http")
    } else if scheme.eq_ignore_ascii_case("https") {
        ByteString::from_static("https")
    } else {
        return Err(bad("http1.invalid_scheme"));
    };
    let at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    if authority.is_empty() {
        return Err(URL);
    }
    // The target's authority replaces Host (RFC 9112 section 3.2.2).
    head.authority = text(block, authority.as_bytes())?;
    // A query without a path stays as it is, and the connection manager refuses it.
    head.path = match path.is_empty() {
        true => ByteString::from_static("/"),
        false => text(block, path.as_bytes())?,
    };
    Ok(())
}

/// The authority form always has a port (RFC 9110 section 9.3.6).
fn has_port(target: &str) -> bool {
    target
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}
