//! Digests of certificates, in the forms that Envoy's fields have.

use aws_lc_rs::digest;
use base64::Engine as _;

/// SHA-256.
pub(super) type Sha256 = [u8; 32];

pub(super) fn sha256(bytes: &[u8]) -> Sha256 {
    let mut out = [0; 32];
    let digest = digest::digest(&digest::SHA256, bytes);
    for (to, from) in out.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    out
}

/// SHA-1, only to tell certificates by their old fingerprints.
pub(super) fn sha1(bytes: &[u8]) -> digest::Digest {
    digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, bytes)
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
    ];
    let nibbles = bytes.iter().flat_map(|b| [b >> 4, b & 15]);
    nibbles.filter_map(|n| DIGITS.get(usize::from(n))).collect()
}

/// `verify_certificate_hash`: 64 hex digits, or 32 pairs with colons between.
pub(super) fn parse_hex(text: &str) -> Option<Sha256> {
    let plain: String = match text.len() {
        64 => text.to_owned(),
        95 => text.split(':').collect(),
        _ => return None,
    };
    if plain.len() != 64 || !plain.is_ascii() {
        return None;
    }
    let mut out = [0; 32];
    for (to, pair) in out.iter_mut().zip(plain.as_bytes().chunks(2)) {
        *to = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

/// `verify_certificate_spki`: base64 of the digest.
pub(super) fn parse_base64(text: &str) -> Option<Sha256> {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .ok()?;
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_hash_are_read() {
        let digest = sha256(b"abc");
        let text = hex(&digest);
        assert!(text.starts_with("ba7816bf") && text.len() == 64);
        assert_eq!(parse_hex(&text), Some(digest));
        let pairs: Vec<&str> = (0..32).map(|i| &text[2 * i..2 * i + 2]).collect();
        assert_eq!(parse_hex(&pairs.join(":").to_uppercase()), Some(digest));
        for bad in ["", "ab", &"x".repeat(64), &"é".repeat(32), &":".repeat(95)] {
            assert_eq!(parse_hex(bad), None, "{bad}");
        }
        let base64 = base64::engine::general_purpose::STANDARD.encode(digest);
        assert_eq!(parse_base64(&base64), Some(digest));
        assert_eq!(parse_base64("AAAA"), None);
    }
}
