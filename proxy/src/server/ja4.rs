//! JA4: a fingerprint of what a TLS client offers.
//!
//! <https://github.com/FoxIO-LLC/ja4/blob/main/technical_details/JA4.md>; Envoy: `enable_ja4_fingerprinting`.

use aws_lc_rs::digest;

use super::sniff::Cursor;

const SERVER_NAME: usize = 0;
const SIGNATURE_ALGORITHMS: usize = 13;
const ALPN: usize = 16;
const SUPPORTED_VERSIONS: usize = 43;

/// The fingerprint of a ClientHello without its head; `None` if it cannot be read.
pub fn fingerprint(hello: &[u8]) -> Option<String> {
    let mut cursor = Cursor(hello);
    let legacy_version = cursor.number(2)?;
    cursor.take(32)?; // random
    cursor.vector(1)?; // session id
    let mut suites = numbers(cursor.vector(2)?);
    suites.retain(|n| !is_grease(*n));
    cursor.vector(1)?; // compression methods
    let mut extensions = Vec::new();
    let mut offered = Offered::default();
    let mut rest = match cursor.0.is_empty() {
        true => Cursor(&[]),
        false => cursor.vector(2)?,
    };
    while !rest.0.is_empty() {
        let kind = rest.number(2)?;
        let body = rest.vector(2)?;
        if !is_grease(kind) {
            extensions.push(kind);
            offered.read(kind, body);
        }
    }
    let version = match offered.version.unwrap_or(legacy_version) {
        0x304 => "13",
        0x303 => "12",
        0x302 => "11",
        0x301 => "10",
        _ => "00",
    };
    let name = if extensions.contains(&SERVER_NAME) {
        'd'
    } else {
        'i'
    };
    let (suite_count, extension_count) = (suites.len().min(99), extensions.len().min(99));
    let alpn = offered.alpn.as_deref().unwrap_or("00");
    suites.sort_unstable();
    extensions.retain(|kind| ![SERVER_NAME, ALPN].contains(kind));
    extensions.sort_unstable();
    let mut listed = list(&extensions);
    if !extensions.is_empty() && !offered.signatures.is_empty() {
        listed.push('_');
        listed.push_str(&list(&offered.signatures));
    }
    let (suites, extensions) = (hash(&list(&suites)), hash(&listed));
    Some(format!(
        "t{version}{name}{suite_count:02}{extension_count:02}{alpn}_{suites}_{extensions}"
    ))
}

/// What extensions say that the fingerprint tells.
#[derive(Default)]
struct Offered {
    /// The newest version.
    version: Option<usize>,
    /// Ends of the first protocol's name.
    alpn: Option<String>,
    signatures: Vec<usize>,
}

impl Offered {
    /// What cannot be read is left out, as it is for whoever compares fingerprints.
    fn read(&mut self, kind: usize, mut body: Cursor<'_>) {
        match kind {
            SUPPORTED_VERSIONS => {
                let versions = body.vector(1).map(numbers).unwrap_or_default();
                self.version = versions.into_iter().filter(|n| !is_grease(*n)).max();
            }
            SIGNATURE_ALGORITHMS => {
                self.signatures = body.vector(2).map(numbers).unwrap_or_default();
            }
            ALPN => {
                let name = body.vector(2).and_then(|mut names| names.vector(1));
                self.alpn = name.and_then(|name| ends(name.0));
            }
            _ => {}
        }
    }
}

/// The first and the last character of a protocol's name; in hexadecimal where they are no letters or digits.
fn ends(name: &[u8]) -> Option<String> {
    let (first, last) = (*name.first()?, *name.last()?);
    Some(
        if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() {
            [char::from(first), char::from(last)].iter().collect()
        } else {
            format!("{:x}{:x}", first >> 4, last & 15)
        },
    )
}

/// Values that clients throw in so that servers stay tolerant (RFC 8701).
fn is_grease(number: usize) -> bool {
    number & 0x0f0f == 0x0a0a && number >> 8 == number & 0xff
}

fn numbers(mut list: Cursor<'_>) -> Vec<usize> {
    std::iter::from_fn(|| list.number(2)).collect()
}

fn list(numbers: &[usize]) -> String {
    let texts: Vec<_> = numbers.iter().map(|n| format!("{n:04x}")).collect();
    texts.join(",")
}

/// Twelve digits of the list's SHA-256; zeros for an empty one.
fn hash(list: &str) -> String {
    if list.is_empty() {
        return "0".repeat(12);
    }
    let digest = digest::digest(&digest::SHA256, list.as_bytes());
    let digits = digest.as_ref().iter().take(6);
    digits.map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(width: usize, body: &[u8]) -> Vec<u8> {
        let mut out = u32::try_from(body.len()).unwrap().to_be_bytes()[4 - width..].to_vec();
        out.extend_from_slice(body);
        out
    }

    fn pairs(numbers: &[u16]) -> Vec<u8> {
        numbers.iter().flat_map(|n| n.to_be_bytes()).collect()
    }

    fn hello(suites: &[u16], extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut out = vec![3, 3];
        out.extend([7; 32]);
        out.extend(vector(1, &[]));
        out.extend(vector(2, &pairs(suites)));
        out.extend(vector(1, &[0]));
        let extensions: Vec<u8> = extensions
            .iter()
            .flat_map(|(kind, body)| [kind.to_be_bytes().to_vec(), vector(2, body)].concat())
            .collect();
        out.extend(vector(2, &extensions));
        out
    }

    /// The example of the description of JA4.
    #[test]
    fn the_published_example_is_met() {
        let suites = [
            0x2a2a, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013,
            0xc014, 0x009c, 0x009d, 0x002f, 0x0035,
        ];
        let signatures = pairs(&[
            0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601,
        ]);
        let mut extensions: Vec<_> = [
            0x1a1a, 0x001b, 0x0000, 0x0033, 0x4469, 0x0017, 0x002d, 0x0005, 0x0023, 0x0012, 0xff01,
            0x000b, 0x000a, 0x0015,
        ]
        .map(|kind| (kind, Vec::new()))
        .into();
        extensions.push((0x0d, vector(2, &signatures)));
        extensions.push((0x2b, vector(1, &pairs(&[0x3a3a, 0x0304, 0x0303]))));
        extensions.push((
            0x10,
            vector(2, &[vector(1, b"h2"), vector(1, b"http/1.1")].concat()),
        ));
        let made = fingerprint(&hello(&suites, &extensions)).unwrap();
        assert_eq!(made, "t13d1516h2_8daaf6152771_e5627efa2ab1");
    }

    #[test]
    fn little_and_nonsense_are_told_too() {
        let none = "000000000000";
        assert_eq!(
            fingerprint(&hello(&[], &[])).unwrap(),
            format!("t12i000000_{none}_{none}")
        );
        let alpn = |name: &[u8]| fingerprint(&hello(&[], &[(0x10, vector(2, &vector(1, name)))]));
        assert!(alpn(b"\xab\xcd").unwrap().starts_with("t12i0001ad_"));
        assert!(alpn(b"x").unwrap().starts_with("t12i0001xx_"));
        let whole = hello(&[1], &[(0x2b, vec![9])]);
        assert!(fingerprint(&whole).is_some());
        for end in 0..whole.len() {
            // All of it is looked at, and nothing is read past its end.
            let _ = fingerprint(&whole[..end]);
        }
        assert_eq!(fingerprint(&whole[..40]), None);
    }
}
