//! What the process knows about itself (Envoy: local info).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use envoy_types::pb::envoy::config::core::v3::Node;

use crate::bootstrap::command_line::IpVersion;

/// This process as others know it.
#[derive(Debug)]
pub struct LocalInfo {
    /// The machine's address: what stands for a client on the same machine in `x-forwarded-for`.
    pub address: IpAddr,
    /// The node's cluster.
    pub cluster: String,
    /// The node's id.
    pub node: String,
}

impl LocalInfo {
    /// Looks the address up once; addresses that come later are not seen.
    pub fn new(node: &Node, version: IpVersion) -> Self {
        Self {
            address: address(version),
            cluster: node.cluster.clone(),
            node: node.id.clone(),
        }
    }
}

/// The first address of an interface that is not the loopback's, which stands in if there is none.
fn address(version: IpVersion) -> IpAddr {
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    });
    let mut usable = addresses
        .filter(|ip| !ip.is_loopback() && ip.is_ipv4() == (version == IpVersion::V4));
    usable.next().unwrap_or(match version {
        IpVersion::V4 => Ipv4Addr::LOCALHOST.into(),
        IpVersion::V6 => Ipv6Addr::LOCALHOST.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_of_the_version_asked_for() {
        assert!(address(IpVersion::V4).is_ipv4());
        assert!(address(IpVersion::V6).is_ipv6());
    }
}
