//! A request as `h2` hands it over, judged and turned into our head.

use bytestring::ByteString;
use filters::flags::ResponseFlags;
use filters::head::RequestHead;
use h2::RecvStream;
use http::{HeaderMap, HeaderValue, Method, header};

use super::limits::Excess;
use super::settings::Http2Settings;
use super::watch::{BAD_MESSAGING, Fault, INVALID_FIELD};
use crate::http::h1::UnderscoreAction;
use crate::http::validate;

/// Why a request is not served.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It breaks the protocol: the connection ends, unless configured otherwise.
    Malformed(Fault),
    /// It is not wanted: its stream is reset.
    Unwanted(Fault),
}

fn unwanted(details: &'static str) -> Refusal {
    Refusal::Unwanted((details, ResponseFlags::DOWNSTREAM_REMOTE_RESET))
}

/// Turns a decoded request into our head. `h2` has checked that the pseudo-headers are complete and in
/// their place, that no field is connection-specific, and the syntax of fields (RFC 9113, 8.2 and 8.3); what
/// it lets pass is judged here.
pub(super) fn head_of(
    request: http::Request<RecvStream>,
    settings: &Http2Settings,
) -> Result<(RequestHead, RecvStream), Refusal> {
    let (mut parts, stream) = request.into_parts();
    let upgrade = parts
        .extensions
        .remove::<h2::ext::Protocol>()
        .map(|protocol| ByteString::from(protocol.as_str()));
    let uri = parts.uri.into_parts();
    let mut head = RequestHead {
        // An extended CONNECT means what a GET with `upgrade` means in HTTP/1, and that is how filters,
        // routes and HTTP/1 upstreams see it.
        method: if upgrade.is_some() {
            Method::GET
        } else {
            parts.method
        },
        scheme: match uri.scheme {
            None => ByteString::from_static("http"),
            Some(scheme) if scheme == http::uri::Scheme::HTTP => ByteString::from_static("http"),
            Some(scheme) if scheme == http::uri::Scheme::HTTPS => ByteString::from_static("https"),
            Some(scheme) => ByteString::from(scheme.as_str()),
        },
        authority: uri
            .authority
            .map(|a| ByteString::from(a.as_str()))
            .unwrap_or_default(),
        path: uri
            .path_and_query
            .map(|p| ByteString::from(p.as_str()))
            .unwrap_or_default(),
        upgrade,
        headers: parts.headers,
        spelling: None,
    };
    check_size(&head, settings)?;
    // RFC 9113, 8.3.1: `host` stands in for an absent `:authority`; it must not contradict a present one.
    // Hardly anybody sends it: the names are looked at before one is hashed.
    if head.headers.keys().any(|name| *name == header::HOST)
        && let Some(host) = head.headers.remove(header::HOST)
        && head.authority.is_empty()
        && let Ok(host) = host.to_str()
    {
        head.authority = ByteString::from(host);
    }
    if head.authority.is_empty() {
        return Err(Refusal::Malformed(BAD_MESSAGING));
    }
    let target = head.method == Method::CONNECT || validate::is_target(head.path.as_bytes());
    let known = head.upgrade.as_deref().is_none_or(is_protocol);
    let legal = target && known && validate::are_field_names(&head.headers);
    if !legal || !validate::is_authority(head.authority.as_bytes()) {
        return Err(Refusal::Malformed(INVALID_FIELD));
    }
    judge_underscores(&mut head.headers, settings)?;
    join_cookies(&mut head.headers);
    Ok((head, stream))
}

/// Whether an extended CONNECT asks for something that `upgrade` could name (RFC 8441, 4; RFC 9110, 7.8).
fn is_protocol(name: &str) -> bool {
    let mut parts = name.splitn(2, '/');
    parts.all(|part| validate::is_token(part.as_bytes()))
}

/// Envoy's limits of a request's fields: their bytes and their number, pseudo-headers included.
fn check_size(head: &RequestHead, settings: &Http2Settings) -> Result<(), Refusal> {
    let pseudo = [
        (":method", head.method.as_str()),
        (":scheme", &head.scheme),
        (":authority", &head.authority),
        (":path", &head.path),
    ];
    let present = pseudo.iter().filter(|(_, value)| !value.is_empty());
    let pseudo = present.fold((0, 0), |(count, bytes), (name, value)| {
        (count + 1, bytes + name.len() + value.len())
    });
    match settings.limits.check(&head.headers, pseudo) {
        Ok(()) => Ok(()),
        Err(excess) => {
            match excess {
                Excess::Bytes => settings.stats.header_list_size_too_large.inc(),
                Excess::Count => settings.stats.header_overflow.inc(),
            }
            Err(unwanted(excess.details()))
        }
    }
}

fn judge_underscores(headers: &mut HeaderMap, settings: &Http2Settings) -> Result<(), Refusal> {
    let (action, stats) = (settings.underscores, &settings.stats);
    if action == UnderscoreAction::Allow {
        return Ok(());
    }
    let with_underscore = |headers: &HeaderMap| {
        let mut names = headers.keys();
        names.find(|n| n.as_str().contains('_')).cloned()
    };
    while let Some(name) = with_underscore(headers) {
        if action == UnderscoreAction::Reject {
            stats.requests_rejected_with_underscores_in_headers.inc();
            return Err(unwanted("http2.unexpected_underscore"));
        }
        stats.dropped_headers_with_underscores.inc();
        headers.remove(name);
    }
    Ok(())
}

/// RFC 9113, 8.2.3: cookie crumbs are joined before they leave HTTP/2.
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    if crumbs.nth(1).is_none() {
        return;
    }
    let mut joined = Vec::new();
    for crumb in headers.get_all(header::COOKIE) {
        if !joined.is_empty() {
            joined.extend_from_slice(b"; ");
        }
        joined.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> RequestHead {
        let mut head = RequestHead::new(Method::GET, "/");
        head.authority = "a.test".into();
        head
    }

    #[test]
    fn pseudo_headers_count_against_the_limits() {
        let mut head = head();
        let mut settings = Http2Settings::default();
        settings.limits.count = 5;
        head.headers.append("x-a", "1".parse().unwrap());
        assert_eq!(check_size(&head, &settings), Ok(()));
        head.headers.append("x-a", "2".parse().unwrap());
        assert_eq!(
            check_size(&head, &settings),
            Err(unwanted("http2.too_many_headers"))
        );
        settings.limits.bytes = 20;
        assert_eq!(
            check_size(&head, &settings),
            Err(unwanted(Excess::Bytes.details()))
        );
    }

    #[test]
    fn protocols_that_upgrade_could_name() {
        for name in ["websocket", "connect-udp", "HTTP/2.0"] {
            assert!(is_protocol(name), "{name}");
        }
        for name in ["", "webs ", " webs", "a,b", "a/b/c", "a/", "/a", "a\r\nb"] {
            assert!(!is_protocol(name), "{name:?}");
        }
    }

    #[test]
    fn names_with_underscores() {
        let mut headers = HeaderMap::new();
        headers.insert("a_b", "1".parse().unwrap());
        headers.insert("c", "1".parse().unwrap());
        let settings = |underscores| Http2Settings {
            underscores,
            ..Http2Settings::default()
        };
        let reject = settings(UnderscoreAction::Reject);
        assert!(judge_underscores(&mut headers, &reject).is_err());
        let allow = settings(UnderscoreAction::Allow);
        assert!(judge_underscores(&mut headers, &allow).is_ok());
        assert_eq!(headers.len(), 2);
        let drop = settings(UnderscoreAction::Drop);
        assert!(judge_underscores(&mut headers, &drop).is_ok());
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn crumbs_are_joined() {
        let mut headers = HeaderMap::new();
        headers.append("cookie", "a=1".parse().unwrap());
        headers.append("cookie", "b=2".parse().unwrap());
        join_cookies(&mut headers);
        assert_eq!(headers.get_all("cookie").iter().count(), 1);
        assert_eq!(headers["cookie"], "a=1; b=2");
    }
}
