//! Headers read: strictly, and without a copy.
//!
//! Pure functions over what has come so far; the caller reads, bounds and times. A header of version 1 has at
//! most [`MAX_LINE`] bytes, one of version 2 at most [`MAX_V2`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{HEAD_V2, SIGNATURE_V1, SIGNATURE_V2};

/// The longest line of version 1, its end included. The specification's longest has 107 bytes; Envoy takes 108.
pub const MAX_LINE: usize = 108;
/// How far the end of a line is looked for. One that is too long is told from no line at all, as in Envoy.
const LOOK: usize = 232;
/// The longest header of version 2: its length field has 16 bits.
pub const MAX_V2: usize = HEAD_V2 + u16::MAX as usize;

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// What the bytes so far are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// The beginning of a header; more bytes are needed.
    More,
    /// No header of either version.
    NotFound,
    /// A malformed header, or one that speaks of something else than TCP or UDP over IP.
    Malformed(Version),
    /// A header.
    Header(Header<'a>),
}

/// A header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header<'a> {
    /// Its version.
    pub version: Version,
    /// How many bytes it has.
    pub length: usize,
    /// Source and destination; `None` if the sender speaks for itself (LOCAL, UNKNOWN).
    pub addresses: Option<(SocketAddr, SocketAddr)>,
    /// Its TLVs, known to be well-formed; read them with [`tlvs`].
    pub extensions: &'a [u8],
}

/// What `bytes` begin with: which version, as far as that can be said.
pub fn version(bytes: &[u8]) -> Option<Version> {
    let begins = |signature: &[u8]| bytes.get(..signature.len()) == Some(signature);
    if begins(SIGNATURE_V2) {
        Some(Version::V2)
    } else if begins(SIGNATURE_V1) {
        Some(Version::V1)
    } else {
        None
    }
}

/// Whether `bytes` may be the beginning of a header of `version`: as far as they go, they agree with its signature.
pub fn may_be(bytes: &[u8], version: Version) -> bool {
    let signature: &[u8] = match version {
        Version::V1 => SIGNATURE_V1,
        Version::V2 => SIGNATURE_V2,
    };
    let seen = bytes.len().min(signature.len());
    bytes.get(..seen) == signature.get(..seen)
}

/// Parses the header that `bytes` begin with.
pub fn header(bytes: &[u8]) -> Parsed<'_> {
    match version(bytes) {
        Some(Version::V2) => v2(bytes),
        Some(Version::V1) => line(bytes),
        // The end of a line that is no header settles it; without one, as many bytes as any header has.
        None if bytes.len() < HEAD_V2 => line(bytes),
        None => Parsed::NotFound,
    }
}

fn line(bytes: &[u8]) -> Parsed<'_> {
    // That is how version 2 begins.
    if bytes.starts_with(b"\r\n") {
        return Parsed::More;
    }
    let near = bytes.get(..LOOK).unwrap_or(bytes);
    let Some(end) = memchr::memmem::find(near, b"\r\n") else {
        return match bytes.len() > MAX_LINE {
            true => Parsed::NotFound,
            false => Parsed::More,
        };
    };
    let length = end + 2;
    let parsed = bytes
        .get(..end)
        .filter(|_| length <= MAX_LINE)
        .and_then(|line| std::str::from_utf8(line).ok())
        .and_then(words);
    match parsed {
        Some(addresses) => Parsed::Header(Header {
            version: Version::V1,
            length,
            addresses,
            extensions: &[],
        }),
        None => Parsed::Malformed(Version::V1),
    }
}

type Addresses = Option<(SocketAddr, SocketAddr)>;

fn words(line: &str) -> Option<Addresses> {
    let mut words = line.split(' ');
    if words.next() != Some("PROXY") {
        return None;
    }
    let parse: fn(&str) -> Option<IpAddr> = match words.next()? {
        // Whatever follows is not for us.
        "UNKNOWN" => return Some(None),
        "TCP4" => |text| text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        "TCP6" => |text| text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => return None,
    };
    let source = parse(words.next()?)?;
    let target = parse(words.next()?)?;
    let source = SocketAddr::new(source, port(words.next()?)?);
    let target = SocketAddr::new(target, port(words.next()?)?);
    match words.next() {
        None => Some(Some(unicast(source, target)?)),
        Some(_) => None,
    }
}

fn port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let plain = text == "0" || !text.starts_with('0');
    (digits && plain).then(|| text.parse().ok()).flatten()
}

/// The pair, if both can be ends of a connection.
fn unicast(source: SocketAddr, target: SocketAddr) -> Option<(SocketAddr, SocketAddr)> {
    let fine = |address: SocketAddr| {
        let ip = address.ip();
        let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        !ip.is_unspecified() && !ip.is_multicast() && !broadcast
    };
    (fine(source) && fine(target)).then_some((source, target))
}

fn v2(bytes: &[u8]) -> Parsed<'_> {
    const MALFORMED: Parsed<'static> = Parsed::Malformed(Version::V2);
    let (Some(&[command, family, high, low]), Some(rest)) =
        (bytes.get(12..HEAD_V2), bytes.get(HEAD_V2..))
    else {
        return Parsed::More;
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let complete = |addresses, extensions| {
        Parsed::Header(Header {
            version: Version::V2,
            length: HEAD_V2 + length,
            addresses,
            extensions,
        })
    };
    let wide = match (command, family) {
        // LOCAL: whatever follows is not for us.
        (0x20, _) if rest.len() < length => return Parsed::More,
        (0x20, _) => return complete(None, &[]),
        // PROXY, TCP or UDP.
        (0x21, 0x11 | 0x12) => false,
        (0x21, 0x21 | 0x22) => true,
        _ => return MALFORMED,
    };
    let size = if wide { 36 } else { 12 };
    if length < size {
        return MALFORMED;
    }
    let Some((addresses, rest)) = rest.split_at_checked(size) else {
        return Parsed::More;
    };
    let Some(pair) = pair(addresses, wide) else {
        return MALFORMED;
    };
    let Some(extensions) = rest.get(..length - size) else {
        return Parsed::More;
    };
    match is_sound(extensions) {
        true => complete(Some(pair), extensions),
        false => MALFORMED,
    }
}

fn pair(bytes: &[u8], wide: bool) -> Option<(SocketAddr, SocketAddr)> {
    let size = if wide { 16 } else { 4 };
    let ip = |at: usize| -> Option<IpAddr> {
        let octets = bytes.get(at..at + size)?;
        match wide {
            true => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
            false => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        }
    };
    let port = |at: usize| -> Option<u16> {
        let octets = bytes.get(at..at + 2)?;
        octets.try_into().ok().map(u16::from_be_bytes)
    };
    unicast(
        SocketAddr::new(ip(0)?, port(2 * size)?),
        SocketAddr::new(ip(size)?, port(2 * size + 2)?),
    )
}

fn is_sound(extensions: &[u8]) -> bool {
    let mut all = tlvs(extensions);
    all.by_ref().for_each(drop);
    all.rest.is_empty()
}

/// The TLVs of a header: type and value. Ends at the first malformed one.
pub fn tlvs(extensions: &[u8]) -> Tlvs<'_> {
    Tlvs { rest: extensions }
}

/// See [`tlvs`].
pub struct Tlvs<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Tlvs<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[kind, high, low], rest) = self.rest.split_first_chunk::<3>()?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (value, rest) = rest.split_at_checked(length)?;
        self.rest = rest;
        Some((kind, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2_header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u16).to_be_bytes();
        [SIGNATURE_V2, &[command, family][..], &length, body].concat()
    }

    const INET: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 2, 0x04, 0x57, 0x08, 0xae];

    fn addresses(text: &str) -> Addresses {
        let (source, target) = text.split_once(' ').unwrap();
        Some((source.parse().unwrap(), target.parse().unwrap()))
    }

    #[test]
    fn lines() {
        fn read(line: &str) -> Result<(Addresses, usize), Parsed<'_>> {
            match header(line.as_bytes()) {
                Parsed::Header(h) => Ok((h.addresses, h.length)),
                other => Err(other),
            }
        }
        let line = "PROXY TCP4 192.0.2.1 198.51.100.2 1111 2222\r\n";
        let expected = (addresses("192.0.2.1:1111 198.51.100.2:2222"), line.len());
        assert_eq!(read(line), Ok(expected));
        assert_eq!(read(&format!("{line}GET /\r\n")), Ok(expected));
        for end in 0..line.len() {
            assert_eq!(header(&line.as_bytes()[..end]), Parsed::More, "{end}");
        }
        let six = "PROXY TCP6 2001:db8::1 ::ffff:1.2.3.4 0 65535\r\n";
        let expected = addresses("[2001:db8::1]:0 [::ffff:1.2.3.4]:65535");
        assert_eq!(read(six).unwrap().0, expected);
        assert_eq!(read("PROXY UNKNOWN\r\n"), Ok((None, 15)));
        assert_eq!(read("PROXY UNKNOWN x  y\r\n"), Ok((None, 20)));
        let unknown = |size: usize| format!("{:x<1$}\r\n", "PROXY UNKNOWN ", size - 2);
        assert_eq!(read(&unknown(MAX_LINE)), Ok((None, MAX_LINE)));
        let v1 = Err(Parsed::Malformed(Version::V1));
        assert_eq!(read(&unknown(MAX_LINE + 1)), v1);
        assert_eq!(read(&unknown(300)), Err(Parsed::NotFound));
        assert_eq!(read(&unknown(300)[..200]), Err(Parsed::NotFound));
        for bad in [
            "PROXY TCP4 192.0.2.1 198.51.100.2 1 2 ",
            "PROXY TCP4 192.0.2.1  198.51.100.2 1 2",
            "PROXY TCP4 192.0.2.1 198.51.100.2 1",
            "PROXY TCP4 192.0.2.1 198.51.100.2 1 65536",
            "PROXY TCP4 192.0.2.1 198.51.100.2 +1 2",
            "PROXY TCP4 192.0.2.1 198.51.100.2 01 2",
            "PROXY TCP4 192.0.2.1 198.51.100.2  2",
            "PROXY TCP4 ::1 ::1 1 2",
            "PROXY TCP6 192.0.2.1 198.51.100.2 1 2",
            "PROXY TCP6 fe80::1%lo fe80::2 1 2",
            "PROXY TCP4 224.0.0.1 198.51.100.2 1 2",
            "PROXY TCP4 192.0.2.1 255.255.255.255 1 2",
            "PROXY TCP4 0.0.0.0 198.51.100.2 1 2",
            "PROXY TCP4 192.0.2.1\0 198.51.100.2 1 2",
            "PROXY UDP4 192.0.2.1 198.51.100.2 1 2",
            "PROXY \u{e9}",
            "GET /",
        ] {
            assert_eq!(read(&format!("{bad}\r\n")), v1, "{bad}");
        }
        assert_eq!(read("GET / HTTP/1.1\r\n"), Err(Parsed::NotFound));
    }

    #[test]
    fn binary_headers() {
        let tlv = [INET, &[1, 0, 2, b'h', b'2', 4, 0, 0]].concat();
        let whole = v2_header(0x21, 0x11, &tlv);
        let Parsed::Header(read) = header(&whole) else {
            panic!()
        };
        assert_eq!(read.length, whole.len());
        assert_eq!(
            read.addresses,
            addresses("192.0.2.1:1111 198.51.100.2:2222")
        );
        let all: Vec<_> = tlvs(read.extensions).collect();
        assert_eq!(all, [(1, &b"h2"[..]), (4, b"")]);
        for end in 0..whole.len() {
            assert_eq!(header(&whole[..end]), Parsed::More, "{end}");
        }
        let six = [&[0x20; 32][..], &[0, 1, 0, 2]].concat();
        let six = v2_header(0x21, 0x22, &six);
        let Parsed::Header(read) = header(&six) else {
            panic!()
        };
        let ip = "2020:2020:2020:2020:2020:2020:2020:2020";
        assert_eq!(read.addresses, addresses(&format!("[{ip}]:1 [{ip}]:2")));
        let local = v2_header(0x20, 0x99, b"\x01\x02");
        let Parsed::Header(read) = header(&local) else {
            panic!()
        };
        assert_eq!((read.addresses, read.length), (None, 18));
        assert_eq!(header(&local[..17]), Parsed::More);
    }

    #[test]
    fn malformed_binary_headers() {
        let extended = |tail: &[u8]| [INET, tail].concat();
        for (command, family, body) in [
            (0x11, 0x11, INET.to_vec()),
            (0x22, 0x11, INET.to_vec()),
            (0x21, 0x10, INET.to_vec()),
            (0x21, 0x13, INET.to_vec()),
            (0x21, 0x00, vec![]),
            (0x21, 0x31, vec![b'x'; 216]),
            (0x21, 0x11, INET[..11].to_vec()),
            (0x21, 0x21, INET.to_vec()),
            (0x21, 0x11, vec![0; 12]),
            (0x21, 0x11, extended(b"\x01")),
            (0x21, 0x11, extended(b"\x01\0")),
            (0x21, 0x11, extended(b"\x01\0\x02h")),
        ] {
            let bytes = v2_header(command, family, &body);
            let expected = Parsed::Malformed(Version::V2);
            assert_eq!(header(&bytes), expected, "{command:x} {family:x} {body:?}");
        }
        // Said before the rest has come: the family is no one's business.
        let unix = v2_header(0x21, 0x31, &[b'x'; 216]);
        assert_eq!(header(&unix[..16]), Parsed::Malformed(Version::V2));
        let mut other = v2_header(0x21, 0x11, INET);
        other[11] = b'.';
        assert_eq!(header(&other), Parsed::NotFound);
    }
}
