//! Request and response heads as filters and the router see them: codec-independent.

use std::rc::Rc;

use bytestring::ByteString;
use http::{HeaderMap, Method, StatusCode};

/// How an HTTP/1 peer spelled its message, kept where a `preserve_case` formatter asks for it. It travels with
/// the head and decides how an HTTP/1 peer on the other side sees it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Spelling {
    /// Field names as received, each once; the message's framing fields and `host` among them.
    pub names: Vec<ByteString>,
    /// Whether names that the peer did not send are written `Like-This`.
    pub proper_others: bool,
    /// The reason phrase, if it shall be kept.
    pub reason: Option<ByteString>,
}

impl Spelling {
    /// The peer's spelling of a name, if it sent one.
    pub fn of(&self, name: &str) -> Option<&str> {
        let mut names = self.names.iter().map(|n| &**n);
        names.find(|n| n.eq_ignore_ascii_case(name))
    }
}

/// A request's head. The pseudo-headers of HTTP/2 are fields; HTTP/1 requests fill the same fields.
#[derive(Debug, Clone)]
pub struct RequestHead {
    /// `:method`.
    pub method: Method,
    /// `:scheme`, lower case; what the connection manager decided, not what the peer claimed.
    pub scheme: ByteString,
    /// `:authority` or `Host`, as received (or rewritten). Empty if absent.
    pub authority: ByteString,
    /// `:path`: origin form with the query (`/a/b?c=d`), or `*`. Empty for CONNECT.
    pub path: ByteString,
    /// What an HTTP/1 `Upgrade` or an HTTP/2 extended CONNECT `:protocol` asks for, as received
    /// (for example `websocket`; compare without case). None for ordinary requests and plain CONNECT.
    pub upgrade: Option<ByteString>,
    /// All other headers. Never holds `host`, `connection`, `transfer-encoding` or other
    /// hop-by-hop fields once the validator and the connection manager are done with it.
    pub headers: HeaderMap,
    /// See [`Spelling`].
    pub spelling: Option<Rc<Spelling>>,
}

impl RequestHead {
    /// An empty GET for `/`, to be filled in.
    pub fn new(method: Method, path: impl Into<ByteString>) -> Self {
        Self {
            method,
            scheme: ByteString::from_static("http"),
            authority: ByteString::new(),
            path: path.into(),
            upgrade: None,
            headers: HeaderMap::new(),
            spelling: None,
        }
    }

    /// The path without the query and fragment.
    pub fn path_only(&self) -> &str {
        let path: &str = &self.path;
        match memchr::memchr2(b'?', b'#', path.as_bytes()) {
            Some(at) => path.get(..at).unwrap_or(path),
            None => path,
        }
    }

    /// The query without the `?`, if there is one.
    pub fn query(&self) -> Option<&str> {
        let path: &str = &self.path;
        let at = memchr::memchr(b'?', path.as_bytes())?;
        path.get(at + 1..)
    }

    /// The bytes of all names and values, `%REQUEST_HEADERS_BYTES%`.
    pub fn byte_size(&self) -> usize {
        let pseudo = [
            (":method", self.method.as_str()),
            (":scheme", &*self.scheme),
            (":authority", &*self.authority),
            (":path", &*self.path),
            (":protocol", self.upgrade.as_deref().unwrap_or_default()),
        ];
        let there = pseudo.iter().filter(|(_, value)| !value.is_empty());
        let pseudo: usize = there.map(|(name, value)| name.len() + value.len()).sum();
        pseudo + byte_size(&self.headers)
    }

    /// Whether this request opens a tunnel of bytes: CONNECT or an upgrade.
    pub fn is_tunnel(&self) -> bool {
        self.upgrade.is_some() || self.method == Method::CONNECT
    }

    /// Whether this request opens a tunnel of bytes by a CONNECT that asks for no protocol.
    pub fn is_connect(&self) -> bool {
        self.method == Method::CONNECT && self.upgrade.is_none()
    }

    /// Whether local replies to this request must be gRPC's: `content-type: application/grpc`
    /// or `application/grpc+...`.
    pub fn is_grpc(&self) -> bool {
        self.headers
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|v| {
                v.as_bytes()
                    .strip_prefix(b"application/grpc")
                    .is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'+'))
            })
    }
}

/// A response's head.
#[derive(Debug, Clone)]
pub struct ResponseHead {
    /// `:status`.
    pub status: StatusCode,
    /// All headers, without hop-by-hop fields.
    pub headers: HeaderMap,
    /// See [`Spelling`].
    pub spelling: Option<Rc<Spelling>>,
}

/// The bytes of all names and values.
pub fn byte_size(headers: &HeaderMap) -> usize {
    let line =
        |(name, value): (&http::HeaderName, &http::HeaderValue)| name.as_str().len() + value.len();
    headers.iter().map(line).sum()
}

impl ResponseHead {
    /// The bytes of all names and values, `%RESPONSE_HEADERS_BYTES%`.
    pub fn byte_size(&self) -> usize {
        ":status".len() + self.status.as_str().len() + byte_size(&self.headers)
    }

    /// A head with this status and no headers.
    pub fn new(status: StatusCode) -> Self {
        Self::with_headers(status, HeaderMap::new())
    }

    /// A head of these parts.
    pub fn with_headers(status: StatusCode, headers: HeaderMap) -> Self {
        Self {
            status,
            headers,
            spelling: None,
        }
    }
}
