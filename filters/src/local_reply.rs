//! Local replies as responses: text, or trailers-only gRPC for gRPC requests (gRPC over HTTP/2,
//! "Responses"; Envoy's `Utility::sendLocalReply`).

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

use crate::body::Body;
use crate::filter::LocalReply;
use crate::head::{RequestHead, ResponseHead};

/// What gRPC's `Percent-Encoded` leaves alone is 0x20..=0x7e without `%`.
const GRPC_MESSAGE: &AsciiSet = &CONTROLS.add(b'%');

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE_NAME: HeaderName = HeaderName::from_static("grpc-message");

/// What about a request decides the shape of a local reply to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplyShape {
    /// The request is HEAD: no body may follow.
    pub head: bool,
    /// The request is gRPC: the answer is status 200 and `grpc-status`.
    pub grpc: bool,
}

impl ReplyShape {
    /// The shape for a request. Take it before filters change the head.
    pub fn of(request: &RequestHead) -> Self {
        Self {
            head: request.method == Method::HEAD,
            grpc: request.is_grpc(),
        }
    }
}

/// The `grpc-status` for an HTTP status, by gRPC's `http-grpc-status-mapping.md`.
pub fn grpc_status(status: StatusCode) -> u8 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// Whether a `grpc-status` stands for a failure of the server: its HTTP status would be 5xx.
pub fn is_server_error_grpc(status: &[u8]) -> bool {
    !matches!(
        status,
        b"0" | b"1" | b"3" | b"5" | b"6" | b"7" | b"8" | b"9" | b"10" | b"11" | b"16"
    )
}

/// Renders a local reply for a request of this shape. Does not touch the stream's facts.
pub fn render(reply: LocalReply, shape: ReplyShape) -> (ResponseHead, Body) {
    let mut head = ResponseHead::new(reply.status);
    head.headers = reply.headers;
    if shape.grpc {
        head.status = StatusCode::OK;
        head.headers.remove(CONTENT_LENGTH);
        head.headers
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        let code = reply
            .grpc_status
            .unwrap_or_else(|| grpc_status(reply.status));
        // A `local_reply_config` may have said another.
        head.headers
            .entry(GRPC_STATUS)
            .or_insert(HeaderValue::from(u16::from(code)));
        if !reply.body.is_empty() && !shape.head {
            let text = percent_encode(&reply.body, GRPC_MESSAGE).to_string();
            if let Ok(value) = HeaderValue::try_from(text) {
                head.headers.insert(GRPC_MESSAGE_NAME, value);
            }
        }
        return (head, Body::Empty);
    }
    if reply.body.is_empty() {
        head.headers.remove(CONTENT_LENGTH);
        head.headers.remove(CONTENT_TYPE);
        return (head, Body::Empty);
    }
    head.headers
        .insert(CONTENT_LENGTH, HeaderValue::from(reply.body.len()));
    head.headers
        .entry(CONTENT_TYPE)
        .or_insert(HeaderValue::from_static("text/plain"));
    let body = if shape.head {
        Body::Empty
    } else {
        Body::Full(reply.body)
    };
    (head, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> LocalReply {
        LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "no 100%\nhost", "x")
    }

    #[test]
    fn text_and_head() {
        let (head, body) = render(reply(), ReplyShape::default());
        assert_eq!(head.headers[CONTENT_LENGTH], "12");
        assert_eq!(head.headers[CONTENT_TYPE], "text/plain");
        assert_eq!(body.remaining(), Some(12));
        let shape = ReplyShape {
            head: true,
            grpc: false,
        };
        let (head, body) = render(reply(), shape);
        assert_eq!(head.headers[CONTENT_LENGTH], "12");
        assert!(body.is_end());
    }

    #[test]
    fn grpc_is_headers_only() {
        let shape = ReplyShape {
            head: false,
            grpc: true,
        };
        let (head, body) = render(reply(), shape);
        assert_eq!(head.status, 200);
        assert_eq!(head.headers["grpc-status"], "14");
        assert_eq!(head.headers["grpc-message"], "no 100%25%0Ahost");
        assert!(!head.headers.contains_key(CONTENT_LENGTH));
        assert!(body.is_end());
    }

    #[test]
    fn grpc_mapping() {
        for (http, grpc) in [
            (400, 13),
            (401, 16),
            (403, 7),
            (404, 12),
            (429, 14),
            (500, 2),
        ] {
            assert_eq!(grpc_status(StatusCode::from_u16(http).unwrap()), grpc);
        }
    }
}
