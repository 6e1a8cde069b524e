//! Strict parsing of heads. Pure: bytes in, head and framing out; the fuzz targets call this.

mod fields;
mod request;
mod response;

use bytes::{Buf, BytesMut};
use filters::head::{RequestHead, ResponseHead};
use http::HeaderValue;

pub use self::request::request;
pub use self::response::response;

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
    /// The protocols that a 101 switches to.
    pub upgrade: Option<HeaderValue>,
    /// The framing of the body.
    pub framing: Framing,
    /// Whether the server lets the connection persist.
    pub keep_alive: bool,
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

const TOO_MANY: ParseError = ParseError {
    status: 431,
    details: "http1.too_many_headers",
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

/// Drops empty lines before a request line (RFC 9112 section 2.2); true if there was one: a scanner that has
/// seen some of it must begin anew.
pub fn skip_empty_lines(buf: &mut BytesMut) -> bool {
    let before = buf.len();
    while buf.starts_with(b"\r\n") {
        buf.advance(2);
    }
    buf.len() < before
}
