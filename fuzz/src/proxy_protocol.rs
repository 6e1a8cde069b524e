//! What must hold of the PROXY protocol's parser whatever bytes it is given.

use fairway::transport::proxy_protocol::parse::{self, MAX_LINE, MAX_V2, Parsed, Version};

/// Headers: what is said of the first bytes is not taken back when more come, what is taken is bounded and names
/// ends that a connection can have, and what follows a header does not matter.
pub fn header(data: &[u8]) {
    let whole = parse::header(data);
    let mut settled = false;
    for end in 0..data.len().min(512) {
        let part = &data[..end];
        match parse::header(part) {
            Parsed::More => assert!(!settled || parse::version(part).is_some()),
            Parsed::Header(header) => {
                assert!(header.length <= end);
                assert_eq!(Parsed::Header(header), whole);
                settled = true;
            }
            // A line that ends within the first bytes is judged as one, and only until there are more.
            Parsed::Malformed(Version::V1) => settled = parse::version(part).is_some(),
            Parsed::Malformed(Version::V2) => {
                assert_eq!(whole, Parsed::Malformed(Version::V2));
                settled = true;
            }
            Parsed::NotFound => {
                assert!(!matches!(whole, Parsed::Header(_)));
                settled = true;
            }
        }
    }
    let Parsed::Header(header) = whole else {
        return;
    };
    assert!(parse::version(data) == Some(header.version));
    assert!(parse::may_be(data, header.version));
    let most = match header.version {
        Version::V1 => MAX_LINE,
        Version::V2 => MAX_V2,
    };
    assert!(header.length <= most && header.length <= data.len());
    if let Some((source, target)) = header.addresses {
        assert_eq!(source.is_ipv4(), target.is_ipv4());
        for address in [source, target] {
            assert!(!address.ip().is_unspecified() && !address.ip().is_multicast());
        }
    }
    let tlvs: usize = parse::tlvs(header.extensions)
        .map(|(_, value)| value.len() + 3)
        .sum();
    assert_eq!(tlvs, header.extensions.len());
    assert_eq!(
        parse::header(&data[..header.length]),
        Parsed::Header(header)
    );
}
