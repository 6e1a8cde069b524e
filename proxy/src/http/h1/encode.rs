//! Heads to bytes.

use bytes::{BufMut, BytesMut};
use filters::head::{RequestHead, ResponseHead};
use http::{HeaderMap, Method, StatusCode, header};

use super::HeaderCase;
use super::parse::Framing;
use crate::http::validate;

/// What to say about the connection in a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// Nothing: it persists, as is the default of HTTP/1.1.
    Default,
    /// `connection: keep-alive`, for an HTTP/1.0 client that asked.
    KeepAlive,
    /// `connection: close`.
    Close,
}

/// The framing and the connection's fate, as a response says them.
#[derive(Debug, Clone, Copy)]
pub struct ResponseFrame<'a> {
    /// Answer as HTTP/1.0.
    pub http_10: bool,
    /// How the end of the body is found.
    pub framing: Framing,
    /// Keep a declared length though no body follows: HEAD and 304 (RFC 9110 section 8.6).
    pub keep_length: bool,
    /// See [`Persistence`].
    pub persistence: Persistence,
    /// The protocol that is switched to.
    pub upgrade: Option<&'a str>,
    /// How names are written.
    pub case: HeaderCase,
}

impl ResponseFrame<'_> {
    /// What an interim response says: nothing.
    pub fn interim(case: HeaderCase) -> Self {
        Self {
            http_10: false,
            framing: Framing::None,
            keep_length: false,
            persistence: Persistence::Default,
            upgrade: None,
            case,
        }
    }
}

fn field(out: &mut BytesMut, name: &str, value: &[u8], case: HeaderCase) {
    out.reserve(name.len() + value.len() + 4);
    match case {
        HeaderCase::Lower => out.put_slice(name.as_bytes()),
        HeaderCase::ProperWords => {
            // A word begins at the start and behind whatever is no letter and no digit.
            let mut begins = true;
            for b in name.bytes() {
                out.put_u8(if begins { b.to_ascii_uppercase() } else { b });
                begins = !b.is_ascii_alphanumeric();
            }
        }
    }
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

fn framing_fields(out: &mut BytesMut, framing: Framing, case: HeaderCase) {
    match framing {
        Framing::Length(n) => length(out, n, case),
        Framing::Chunked => field(out, "transfer-encoding", b"chunked", case),
        Framing::None | Framing::Close => {}
    }
}

fn length(out: &mut BytesMut, length: u64, case: HeaderCase) {
    let mut digits = itoa::Buffer::new();
    field(
        out,
        "content-length",
        digits.format(length).as_bytes(),
        case,
    );
}

fn upgrade_fields(out: &mut BytesMut, upgrade: &str, case: HeaderCase) {
    field(out, "connection", b"Upgrade", case);
    field(out, "upgrade", upgrade.as_bytes(), case);
}

/// The declared `content-length`, if there is a valid one.
pub fn declared_length(headers: &HeaderMap) -> Option<u64> {
    validate::content_length(headers.get(header::CONTENT_LENGTH)?.as_bytes())
}

/// The reason phrase: IANA's, but Envoy's where that knows another set.
fn reason(status: StatusCode) -> &'static str {
    match status.as_u16() {
        203 => "Non-Authoritative Information",
        418 | 451 => "Unknown",
        599 => "Last Unassigned Server Error Code",
        _ => status.canonical_reason().unwrap_or("Unknown"),
    }
}

/// Appends a response head.
pub fn response(out: &mut BytesMut, head: &ResponseHead, frame: ResponseFrame<'_>) {
    let case = frame.case;
    out.reserve(256);
    out.put_slice(if frame.http_10 {
        b"HTTP/1.0 "
    } else {
        b"HTTP/1.1 "
    });
    out.put_slice(head.status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(reason(head.status).as_bytes());
    out.put_slice(b"\r\n");
    for (name, value) in &head.headers {
        let skip = *name == header::CONTENT_LENGTH && !frame.keep_length;
        if !skip && !validate::is_hop_by_hop(name) {
            field(out, name.as_str(), value.as_bytes(), case);
        }
    }
    framing_fields(out, frame.framing, case);
    match (frame.upgrade, frame.persistence) {
        (Some(upgrade), _) => upgrade_fields(out, upgrade, case),
        (None, Persistence::Close) => field(out, "connection", b"close", case),
        (None, Persistence::KeepAlive) => field(out, "connection", b"keep-alive", case),
        (None, Persistence::Default) => {}
    }
    out.put_slice(b"\r\n");
}

/// Appends a request head with this framing. `head` must have passed [`is_sendable`].
pub fn request(out: &mut BytesMut, head: &RequestHead, framing: Framing, case: HeaderCase) {
    out.reserve(512);
    out.put_slice(head.method.as_str().as_bytes());
    out.put_u8(b' ');
    let connect = head.method == Method::CONNECT;
    out.put_slice(if connect {
        head.authority.as_bytes()
    } else {
        head.path.as_bytes()
    });
    out.put_slice(b" HTTP/1.1\r\n");
    field(out, "host", head.authority.as_bytes(), case);
    for (name, value) in &head.headers {
        if validate::is_hop_by_hop(name) || *name == header::CONTENT_LENGTH || *name == header::HOST
        {
            continue;
        }
        field(out, name.as_str(), value.as_bytes(), case);
    }
    match framing {
        // An enclosed body of nothing is said for the methods that expect one (RFC 9110 section 8.6).
        Framing::None if matches!(head.method, Method::POST | Method::PUT | Method::PATCH) => {
            length(out, 0, case);
        }
        framing => framing_fields(out, framing, case),
    }
    if let Some(upgrade) = &head.upgrade {
        upgrade_fields(out, upgrade, case);
    }
    out.put_slice(b"\r\n");
}

/// Whether the parts of `head` that are not typed can be written as one request line and one `host`.
pub fn is_sendable(head: &RequestHead) -> bool {
    let target = head.method == Method::CONNECT || validate::is_target(head.path.as_bytes());
    let upgrade = head.upgrade.as_ref();
    target
        && validate::is_authority(head.authority.as_bytes())
        && upgrade.is_none_or(|u| u.bytes().all(|b| validate::is_token_byte(b) || b == b'/'))
}

/// Appends the last chunk and the trailers.
pub fn end_of_chunks(out: &mut BytesMut, trailers: Option<&HeaderMap>, case: HeaderCase) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        if !validate::is_forbidden_in_trailers(name) {
            field(out, name.as_str(), value.as_bytes(), case);
        }
    }
    out.extend_from_slice(b"\r\n");
}
