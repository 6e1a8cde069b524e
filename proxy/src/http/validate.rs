//! The strict validator: what a legal message may contain, whichever codec parsed it.
//!
//! Pure functions over bytes; no state, no allocation. Codecs call these before a head becomes a
//! request, and again on what filters may have rewritten before it goes upstream.

use http::{HeaderMap, HeaderName, header};

/// Whether `b` may stand in a token (RFC 9110 section 5.6.2).
pub const fn is_token_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric()
        || matches!(
            b,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// Whether `value` is a token: methods, field names, upgrade protocols.
pub fn is_token(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(|b| is_token_byte(*b))
}

/// Whether all names are tokens (RFC 9110 section 5.1). What is parsed here is; the HTTP/2 decoder also makes names
/// with a quote.
pub fn are_field_names(headers: &HeaderMap) -> bool {
    headers.keys().all(|name| !name.as_str().contains('"'))
}

/// Whether a request target is free of spaces, controls and bytes outside ASCII (RFC 9112 section 3.2,
/// RFC 3986 section 2). A fragment is the connection manager's to judge.
pub fn is_target(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(|b| matches!(b, 0x21..=0x7e))
}

/// Whether `value` can be an authority: `host[:port]`, no userinfo (RFC 9110 section 4.2.4), only the
/// bytes of RFC 3986 section 3.2. The empty authority is legal here; the connection manager refuses it.
pub fn is_authority(value: &[u8]) -> bool {
    value.iter().all(|b| {
        b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'-' | b'.'
                    | b'_'
                    | b'~'
                    | b'%'
                    | b'!'
                    | b'$'
                    | b'&'
                    | b'\''
                    | b'('
                    | b')'
                    | b'*'
                    | b'+'
                    | b','
                    | b';'
                    | b'='
                    | b':'
                    | b'['
                    | b']'
            )
    })
}

/// A `content-length`: digits only, no sign, no list, at most `u64::MAX` (RFC 9110 section 8.6).
pub fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0u64, |sum, b| {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// Whether this field belongs to one connection (RFC 9110 section 7.6.1) and never travels on.
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    // Comparisons of well-known names are comparisons of small integers.
    *name == header::CONNECTION
        || *name == header::TRANSFER_ENCODING
        || *name == header::UPGRADE
        || name.as_str() == "keep-alive"
        || name.as_str() == "proxy-connection"
}

/// Whether this field may not come in trailers: framing, routing and authentication
/// (RFC 9110 section 6.5.1).
pub fn is_forbidden_in_trailers(name: &HeaderName) -> bool {
    is_hop_by_hop(name)
        || *name == header::CONTENT_LENGTH
        || *name == header::HOST
        || *name == header::TRAILER
        || *name == header::TE
        || *name == header::AUTHORIZATION
        || *name == header::CONTENT_ENCODING
        || *name == header::CONTENT_TYPE
        || *name == header::CONTENT_RANGE
}

/// Takes out the fields that the `connection` options name, and all hop-by-hop fields.
///
/// # Errors
/// `http1.connection_header_rejected` if the options name a field that a client must not be able to
/// take out on the way (Envoy's list: the forwarding fields and `host`; RFC 9110 section 7.6.1).
pub fn strip_hop_by_hop(headers: &mut HeaderMap) -> Result<(), &'static str> {
    // Most requests have no such field, or only `connection: keep-alive`, which names a field
    // that is never in the map: then nothing is allocated.
    if headers.contains_key(header::CONNECTION) {
        let options: smallvec::SmallVec<[http::HeaderValue; 2]> = headers
            .get_all(header::CONNECTION)
            .iter()
            .cloned()
            .collect();
        for name in options
            .iter()
            .flat_map(|v| v.as_bytes().split(|b| *b == b','))
        {
            let name = name.trim_ascii();
            const KEPT: [&[u8]; 5] = [
                b"forwarded",
                b"x-forwarded-for",
                b"x-forwarded-host",
                b"x-forwarded-proto",
                b"host",
            ];
            if KEPT.iter().any(|kept| name.eq_ignore_ascii_case(kept)) {
                return Err("http1.connection_header_rejected");
            }
            // `te: trailers` goes on (gRPC needs it), and framing is never up to `connection`.
            if name.is_empty()
                || [
                    &b"close"[..],
                    b"keep-alive",
                    b"upgrade",
                    b"te",
                    b"content-length",
                ]
                .iter()
                .any(|known| name.eq_ignore_ascii_case(known))
            {
                continue;
            }
            if let Ok(name) = HeaderName::from_bytes(name) {
                headers.remove(name);
            }
        }
    }
    remove_hop_by_hop(headers);
    Ok(())
}

static HOP_BY_HOP: [HeaderName; 5] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Removes the fields that are only ever about one connection (RFC 9110 section 7.6.1), whatever `connection`
/// names. A no-op on what the codecs have parsed; filters may have added some.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // Nearly no message has any: comparing the names that are there is cheaper than hashing those that could be.
    if headers.keys().any(|name| HOP_BY_HOP.contains(name)) {
        for name in &HOP_BY_HOP {
            headers.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_length_is_digits_only() {
        for (text, want) in [
            ("0", Some(0)),
            ("42", Some(42)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("", None),
            ("+2", None),
            ("-1", None),
            ("1,1", None),
            ("0x10", None),
            ("1 ", None),
        ] {
            assert_eq!(content_length(text.as_bytes()), want, "{text:?}");
        }
    }

    #[test]
    fn the_decoders_names_are_tokens_but_for_the_quote() {
        for byte in 0..=u8::MAX {
            let Ok(name) = HeaderName::from_lowercase(&[b'a', byte]) else {
                continue;
            };
            let mut headers = HeaderMap::new();
            headers.insert(name, "1".parse().unwrap());
            assert_eq!(are_field_names(&headers), is_token_byte(byte), "{byte}");
        }
    }

    #[test]
    fn nominated_fields_go_and_forwarding_fields_do_not() {
        let mut map = HeaderMap::new();
        map.insert("connection", "close, x-secret".parse().unwrap());
        map.insert("x-secret", "1".parse().unwrap());
        map.insert("keep-alive", "1".parse().unwrap());
        map.insert("te", "trailers".parse().unwrap());
        assert_eq!(strip_hop_by_hop(&mut map), Ok(()));
        assert_eq!(map.len(), 1);
        map.insert("connection", "X-Forwarded-For".parse().unwrap());
        assert!(strip_hop_by_hop(&mut map).is_err());
    }

    #[test]
    fn targets_and_authorities() {
        assert!(is_target(b"/a?b=c"));
        assert!(!is_target(b"/a b") && !is_target(b"/\x7f") && !is_target(b"/\xff"));
        assert!(is_authority(b"[::1]:80") && !is_authority(b"u@h") && !is_authority(b"h/x"));
        assert!(is_token(b"GET") && !is_token(b"G(T") && !is_token(b""));
    }
}
