//! What an upstream's answer to an upgrade means.

use bytes::Bytes;
use filters::filter::LocalReply;
use filters::head::{RequestHead, ResponseHead};
use filters::stream::Protocol;
use http::StatusCode;

/// The reply to a WebSocket handshake that failed without an error: the upstream's head without its body, as
/// of a handshake only the head counts (Envoy does the same). Errors and all other upgrades go through as they
/// are. HTTP/2 has its own way to agree, and is never here.
pub(super) fn failed_handshake(
    request: &RequestHead,
    response: &mut ResponseHead,
    protocol: Option<Protocol>,
) -> Option<LocalReply> {
    let asked = request.upgrade.as_ref()?;
    let failed = asked.eq_ignore_ascii_case("websocket")
        && protocol != Some(Protocol::Http2)
        && response.status != StatusCode::SWITCHING_PROTOCOLS
        && response.status < StatusCode::BAD_REQUEST;
    failed.then(|| {
        let details = "websocket_handshake_unsuccessful";
        let mut reply = LocalReply::new(response.status, Bytes::new(), details);
        reply.headers = std::mem::take(&mut response.headers);
        reply
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    #[test]
    fn only_a_websocket_over_http1_fails_by_a_success() {
        let mut request = RequestHead::new(Method::GET, "/");
        let of = |request: &RequestHead, status: u16, protocol| {
            let mut response = ResponseHead::new(StatusCode::from_u16(status).unwrap());
            failed_handshake(request, &mut response, Some(protocol)).is_some()
        };
        assert!(!of(&request, 200, Protocol::Http11), "no upgrade was asked");
        request.upgrade = Some("WebSocket".into());
        assert!(of(&request, 200, Protocol::Http11));
        assert!(of(&request, 302, Protocol::Http11));
        assert!(!of(&request, 101, Protocol::Http11));
        assert!(!of(&request, 403, Protocol::Http11));
        assert!(!of(&request, 200, Protocol::Http2));
        request.upgrade = Some("other".into());
        assert!(!of(&request, 200, Protocol::Http11));
    }
}
