//! Request and response heads as filters and the router see them: codec-independent.

use bytestring::ByteString;
use http::{HeaderMap, Method, StatusCode};

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
    /// What an HTTP/1 `Upgrade` or an HTTP/2 extended CONNECT `:protocol` asks for, lower case
    /// (for example `websocket`). None for ordinary requests and plain CONNECT.
    pub upgrade: Option<ByteString>,
    /// All other headers. Never holds `host`, `connection`, `transfer-encoding` or other
    /// hop-by-hop fields once the validator and the connection manager are done with it.
    pub headers: HeaderMap,
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

    /// Whether this request opens a tunnel of bytes: CONNECT or an upgrade.
    pub fn is_tunnel(&self) -> bool {
        self.upgrade.is_some() || self.method == Method::CONNECT
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
}

impl ResponseHead {
    /// A head with this status and no headers.
    pub fn new(status: StatusCode) -> Self {
        Self {
            status,
            headers: HeaderMap::new(),
        }
    }
}
