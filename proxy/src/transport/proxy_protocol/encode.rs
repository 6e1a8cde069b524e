//! Headers written.

use std::net::{IpAddr, SocketAddr};

use super::{SIGNATURE_V1, SIGNATURE_V2};

/// A line of version 1. Addresses of different families are both written as IPv6.
pub fn v1(source: SocketAddr, target: SocketAddr) -> Vec<u8> {
    let (from, to) = same_family(source.ip(), target.ip());
    let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from_port, to_port) = (source.port(), target.port());
    let mut line = SIGNATURE_V1.to_vec();
    line.extend_from_slice(format!("{family} {from} {to} {from_port} {to_port}\r\n").as_bytes());
    line
}

/// A header of version 2, and whether all TLVs are in it; without addresses one that speaks for nobody (LOCAL) and
/// has none. What its length field has no room for is left out, as in Envoy.
pub fn v2<'a>(
    addresses: Option<(SocketAddr, SocketAddr)>,
    tlvs: impl Iterator<Item = (u8, &'a [u8])>,
) -> (Vec<u8>, bool) {
    let Some((source, target)) = addresses else {
        return ([&SIGNATURE_V2[..], &[0x20, 0, 0, 0]].concat(), true);
    };
    let mut body = Vec::with_capacity(36);
    let (from, to) = same_family(source.ip(), target.ip());
    for ip in [from, to] {
        match ip {
            IpAddr::V4(ip) => body.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => body.extend_from_slice(&ip.octets()),
        }
    }
    for port in [source.port(), target.port()] {
        body.extend_from_slice(&port.to_be_bytes());
    }
    let mut complete = true;
    for (kind, value) in tlvs {
        match u16::try_from(value.len()) {
            Ok(length) if body.len() + 3 + value.len() <= u16::MAX.into() => {
                body.push(kind);
                body.extend_from_slice(&length.to_be_bytes());
                body.extend_from_slice(value);
            }
            _ => complete = false,
        }
    }
    let family = if from.is_ipv4() { 0x11 } else { 0x21 };
    // The body was kept within the length field.
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes();
    let head = [&SIGNATURE_V2[..], &[0x21, family], &length];
    ([head.concat(), body].concat(), complete)
}

fn same_family(a: IpAddr, b: IpAddr) -> (IpAddr, IpAddr) {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V6(b)) => (a.to_ipv6_mapped().into(), b.into()),
        (IpAddr::V6(a), IpAddr::V4(b)) => (a.into(), b.to_ipv6_mapped().into()),
        same => same,
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse::{self, Parsed, Version};
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_written_reads_as_it_was_meant() {
        for (source, target, mapped) in [
            ("192.0.2.1:1", "198.51.100.2:65535", None),
            ("[2001:db8::1]:0", "[::1]:2", None),
            ("192.0.2.1:1", "[::1]:2", Some("[::ffff:192.0.2.1]:1")),
        ] {
            let (source, target) = (address(source), address(target));
            let expected = Some((mapped.map_or(source, address), target));
            let tlvs: [(u8, &[u8]); 2] = [(1, b"h2"), (4, b"")];
            for (version, bytes) in [
                (Version::V1, v1(source, target)),
                (Version::V2, v2(Some((source, target)), tlvs.into_iter()).0),
            ] {
                let Parsed::Header(header) = parse::header(&bytes) else {
                    panic!("{bytes:?}")
                };
                assert_eq!((header.version, header.length), (version, bytes.len()));
                assert_eq!(header.addresses, expected);
                if version == Version::V2 {
                    assert_eq!(parse::tlvs(header.extensions).collect::<Vec<_>>(), tlvs);
                }
            }
        }
        let (local, complete) = v2(None, [(1, &b"x"[..])].into_iter());
        assert_eq!(local, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
        assert!(complete);
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let pair = Some((address("192.0.2.1:1"), address("192.0.2.2:2")));
        let (large, whole) = (vec![0; 65535 - 12 - 3 - 4], [1]);
        let tlvs: [(u8, &[u8]); 4] = [(1, &large), (2, &[0; 65536]), (3, &whole), (4, b"")];
        let (header, complete) = v2(pair, tlvs.into_iter());
        assert!(!complete);
        assert_eq!(header.len(), parse::MAX_V2);
        let Parsed::Header(read) = parse::header(&header) else {
            panic!()
        };
        let kinds: Vec<u8> = parse::tlvs(read.extensions).map(|(kind, _)| kind).collect();
        assert_eq!(kinds, [1, 3]);
    }
}
