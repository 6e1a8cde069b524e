//! Heads to bytes. Field names are lower case, as Envoy writes them.

use bytes::{BufMut, BytesMut};
use filters::head::{RequestHead, ResponseHead};
use http::{HeaderMap, Method, StatusCode, header};

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

/// Appends the fields but no hop-by-hop ones, and no `content-length` unless `length` says so.
fn fields(out: &mut BytesMut, headers: &HeaderMap, length: bool) {
    for (name, value) in headers {
        if validate::is_hop_by_hop(name) || (!length && *name == header::CONTENT_LENGTH) {
            continue;
        }
        field(out, name.as_str(), value.as_bytes());
    }
}

fn field(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

fn length(out: &mut BytesMut, length: u64) {
    field(
        out,
        "content-length",
        itoa::Buffer::new().format(length).as_bytes(),
    );
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

/// Appends a response head with this framing. For HEAD and 304 a declared length is kept though no body
/// follows (RFC 9110 section 8.6).
pub fn response(
    out: &mut BytesMut,
    head: &ResponseHead,
    http_10: bool,
    framing: Framing,
    keep_length: bool,
    persistence: Persistence,
    upgrade: Option<&str>,
) {
    out.reserve(256);
    out.put_slice(if http_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.put_slice(head.status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(reason(head.status).as_bytes());
    out.put_slice(b"\r\n");
    fields(out, &head.headers, keep_length);
    match framing {
        Framing::Length(n) => length(out, n),
        Framing::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
        Framing::None | Framing::Close => {}
    }
    match (upgrade, persistence) {
        (Some(upgrade), _) => {
            out.put_slice(b"connection: Upgrade\r\n");
            field(out, "upgrade", upgrade.as_bytes());
        }
        (None, Persistence::Close) => out.put_slice(b"connection: close\r\n"),
        (None, Persistence::KeepAlive) => out.put_slice(b"connection: keep-alive\r\n"),
        (None, Persistence::Default) => {}
    }
    out.put_slice(b"\r\n");
}

/// Appends a request head with this framing. `head` must have passed [`is_sendable`].
pub fn request(out: &mut BytesMut, head: &RequestHead, framing: Framing) {
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
    field(out, "host", head.authority.as_bytes());
    for (name, value) in &head.headers {
        if validate::is_hop_by_hop(name) || *name == header::CONTENT_LENGTH || *name == header::HOST
        {
            continue;
        }
        field(out, name.as_str(), value.as_bytes());
    }
    match framing {
        Framing::Length(n) => length(out, n),
        Framing::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
        // An enclosed body of nothing is said for the methods that expect one (RFC 9110 section 8.6).
        Framing::None if matches!(head.method, Method::POST | Method::PUT | Method::PATCH) => {
            length(out, 0);
        }
        Framing::None | Framing::Close => {}
    }
    if let Some(upgrade) = &head.upgrade {
        out.put_slice(b"connection: Upgrade\r\n");
        field(out, "upgrade", upgrade.as_bytes());
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
pub fn end_of_chunks(out: &mut BytesMut, trailers: Option<&HeaderMap>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        if !validate::is_forbidden_in_trailers(name) {
            field(out, name.as_str(), value.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
}
