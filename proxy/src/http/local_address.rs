//! This machine's own address, as `x-forwarded-for` tells it (Envoy's `LocalInfo::address`).

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::OnceLock;

/// The IPv4 address that this machine uses towards others; loopback if it has none. Found once.
pub(crate) fn local_address() -> IpAddr {
    static FOUND: OnceLock<IpAddr> = OnceLock::new();
    *FOUND.get_or_init(|| find().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)))
}

/// Asks the routing table: connecting a datagram socket chooses its local address and sends nothing.
fn find() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // TEST-NET-3 (RFC 5737): nobody's, so the default route's address is chosen.
    socket.connect((Ipv4Addr::new(203, 0, 113, 1), 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_is_always_one_and_it_stays() {
        let found = super::local_address();
        assert!(!found.is_unspecified());
        assert_eq!(super::local_address(), found);
    }
}
