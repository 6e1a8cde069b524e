//! Heads to bytes.

use bytes::{BufMut, BytesMut};
use filters::head::{RequestHead, ResponseHead, Spelling};
use http::{HeaderMap, Method, StatusCode, header};

use super::parse::Framing;
use super::{HeaderCase, Http1Settings};
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

/// How the names of one message are written.
#[derive(Clone, Copy)]
struct Names<'a> {
    case: HeaderCase,
    /// The sender's, which goes before the connection's.
    spelling: Option<&'a Spelling>,
}

impl Names<'_> {
    fn field(self, out: &mut BytesMut, name: &str, value: &[u8]) {
        out.reserve(name.len() + value.len() + 4);
        match (self.spelling, self.case) {
            (Some(spelling), _) => match spelling.of(name) {
                Some(name) => out.put_slice(name.as_bytes()),
                None if spelling.proper_others => proper_words(out, name),
                None => out.put_slice(name.as_bytes()),
            },
            (None, HeaderCase::ProperWords) => proper_words(out, name),
            (None, HeaderCase::Lower | HeaderCase::Preserve { .. }) => {
                out.put_slice(name.as_bytes());
            }
        }
        out.put_slice(b": ");
        out.put_slice(value);
        out.put_slice(b"\r\n");
    }

    fn framing(self, out: &mut BytesMut, framing: Framing) {
        match framing {
            Framing::Length(n) => self.length(out, n),
            Framing::Chunked => self.field(out, "transfer-encoding", b"chunked"),
            Framing::None | Framing::Close => {}
        }
    }

    fn length(self, out: &mut BytesMut, length: u64) {
        let mut digits = itoa::Buffer::new();
        self.field(out, "content-length", digits.format(length).as_bytes());
    }

    fn upgrade(self, out: &mut BytesMut, upgrade: &str) {
        self.field(out, "connection", b"Upgrade");
        self.field(out, "upgrade", upgrade.as_bytes());
    }
}

/// A word begins at the start and behind whatever is no letter and no digit.
fn proper_words(out: &mut BytesMut, name: &str) {
    let mut begins = true;
    for b in name.bytes() {
        out.put_u8(if begins { b.to_ascii_uppercase() } else { b });
        begins = !b.is_ascii_alphanumeric();
    }
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
    let names = Names {
        case: frame.case,
        spelling: head.spelling.as_deref(),
    };
    out.reserve(256);
    out.put_slice(if frame.http_10 {
        b"HTTP/1.0 "
    } else {
        b"HTTP/1.1 "
    });
    out.put_slice(head.status.as_str().as_bytes());
    out.put_u8(b' ');
    let own = names.spelling.and_then(|s| s.reason.as_deref());
    out.put_slice(own.unwrap_or_else(|| reason(head.status)).as_bytes());
    out.put_slice(b"\r\n");
    for (name, value) in &head.headers {
        let skip = *name == header::CONTENT_LENGTH && !frame.keep_length;
        if !skip && !validate::is_hop_by_hop(name) {
            names.field(out, name.as_str(), value.as_bytes());
        }
    }
    names.framing(out, frame.framing);
    match (frame.upgrade, frame.persistence) {
        (Some(upgrade), _) => names.upgrade(out, upgrade),
        (None, Persistence::Close) => names.field(out, "connection", b"close"),
        (None, Persistence::KeepAlive) => names.field(out, "connection", b"keep-alive"),
        (None, Persistence::Default) => {}
    }
    out.put_slice(b"\r\n");
}

/// Appends a request head with this framing. `head` must have passed [`is_sendable`].
pub fn request(out: &mut BytesMut, head: &RequestHead, framing: Framing, settings: &Http1Settings) {
    let names = Names {
        case: settings.header_case,
        spelling: head.spelling.as_deref(),
    };
    out.reserve(512);
    out.put_slice(head.method.as_str().as_bytes());
    out.put_u8(b' ');
    if head.method == Method::CONNECT {
        out.put_slice(head.authority.as_bytes());
    } else {
        if settings.absolute_requests {
            out.put_slice(head.scheme.as_bytes());
            out.put_slice(b"://");
            out.put_slice(head.authority.as_bytes());
        }
        out.put_slice(head.path.as_bytes());
    }
    out.put_slice(b" HTTP/1.1\r\n");
    names.field(out, "host", head.authority.as_bytes());
    for (name, value) in &head.headers {
        if validate::is_hop_by_hop(name) || *name == header::CONTENT_LENGTH || *name == header::HOST
        {
            continue;
        }
        names.field(out, name.as_str(), value.as_bytes());
    }
    match framing {
        Framing::None if !never_has_body(&head.method) => names.length(out, 0),
        framing => names.framing(out, framing),
    }
    if let Some(upgrade) = &head.upgrade {
        names.upgrade(out, upgrade);
    }
    out.put_slice(b"\r\n");
}

/// Of all other methods an enclosed body of nothing is said (RFC 9110 section 8.6), as by Envoy.
fn never_has_body(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::DELETE | Method::TRACE | Method::CONNECT
    )
}

/// Whether the parts of `head` that are not typed can be written as one request line and one `host`.
pub fn is_sendable(head: &RequestHead) -> bool {
    let target = head.method == Method::CONNECT || validate::is_target(head.path.as_bytes());
    let upgrade = head.upgrade.as_ref();
    target
        && validate::is_authority(head.authority.as_bytes())
        && upgrade.is_none_or(|u| {
            u.bytes()
                .all(|b| validate::is_token_byte(b) || matches!(b, b'/' | b',' | b' '))
        })
}

/// Appends the last chunk and the trailers, in lower case whatever the message's case, as Envoy does.
pub fn end_of_chunks(out: &mut BytesMut, trailers: Option<&HeaderMap>) {
    let names = Names {
        case: HeaderCase::Lower,
        spelling: None,
    };
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        if !validate::is_forbidden_in_trailers(name) {
            names.field(out, name.as_str(), value.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    fn written(case: HeaderCase, spelling: Option<Spelling>, absolute: bool) -> String {
        let mut head = RequestHead::new(Method::POST, "/a?b");
        head.authority = "h".into();
        head.headers.insert("x-one.two", "1".parse().unwrap());
        head.spelling = spelling.map(Rc::new);
        let settings = Http1Settings {
            header_case: case,
            absolute_requests: absolute,
            ..Http1Settings::default()
        };
        let mut out = BytesMut::new();
        request(&mut out, &head, Framing::Length(3), &settings);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn names_are_lower_case_proper_or_the_senders() {
        let plain = "POST /a?b HTTP/1.1\r\nhost: h\r\nx-one.two: 1\r\ncontent-length: 3\r\n\r\n";
        assert_eq!(written(HeaderCase::Lower, None, false), plain);
        let keep = HeaderCase::Preserve {
            proper_others: true,
            keep_reason: true,
        };
        assert_eq!(written(keep, None, false), plain);
        let proper = "POST /a?b HTTP/1.1\r\nHost: h\r\nX-One.Two: 1\r\nContent-Length: 3\r\n\r\n";
        assert_eq!(written(HeaderCase::ProperWords, None, false), proper);
        let spelling = |proper_others| Spelling {
            names: vec!["HOST".into(), "x-ONE.two".into()],
            proper_others,
            reason: None,
        };
        let kept = written(HeaderCase::ProperWords, Some(spelling(false)), true);
        let want =
            "POST http://h/a?b HTTP/1.1\r\nHOST: h\r\nx-ONE.two: 1\r\ncontent-length: 3\r\n\r\n";
        assert_eq!(kept, want);
        let kept = written(HeaderCase::Lower, Some(spelling(true)), true);
        assert_eq!(kept, want.replace("content-length", "Content-Length"));
    }

    #[test]
    fn what_could_end_a_line_is_never_sent() {
        let mut head = RequestHead::new(Method::GET, "/a");
        assert!(is_sendable(&head));
        for upgrade in ["a\r\nb: c", "a\tb", "", "\u{e9}"] {
            head.upgrade = Some(upgrade.into());
            assert_eq!(is_sendable(&head), upgrade.is_empty(), "{upgrade:?}");
        }
        head.upgrade = Some("a/1, b".into());
        assert!(is_sendable(&head));
        head.path = "/a b".into();
        assert!(!is_sendable(&head));
    }
}
