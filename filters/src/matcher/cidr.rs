//! Address ranges.

use std::net::IpAddr;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::xds::core::v3 as xds;
use xds_client::error::{At, ConfigError};

/// An address range. IPv4-mapped IPv6 addresses that are looked up count as IPv4; a range of such addresses
/// therefore holds none, as in Envoy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CidrRange {
    bits: u128,
    len: u8,
    v4: bool,
}

fn bits(ip: IpAddr) -> (u128, bool) {
    match ip {
        // In the upper bits, so that one mask serves both families.
        IpAddr::V4(ip) => (u128::from(u32::from(ip)) << 96, true),
        IpAddr::V6(ip) => (u128::from(ip), false),
    }
}

fn mask(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

impl CidrRange {
    /// Every IPv4 address.
    pub const ALL_V4: Self = Self {
        bits: 0,
        len: 0,
        v4: true,
    };
    /// Every IPv6 address.
    pub const ALL_V6: Self = Self {
        bits: 0,
        len: 0,
        v4: false,
    };

    /// A range from its address and length; bits beyond the length are ignored, and a length beyond 32 or 128
    /// is the whole address, as in Envoy.
    ///
    /// # Errors
    /// Not an IP address.
    pub fn new(address: &str, len: u32) -> Result<Self, ConfigError> {
        let ip: IpAddr = address.parse().map_err(|_| {
            ConfigError::new(format!("malformed IP address: {address}")).at("address_prefix")
        })?;
        let (bits, v4) = bits(ip);
        let max = if v4 { 32 } else { 128 };
        let len = u8::try_from(len).map_or(max, |len| len.min(max));
        Ok(Self {
            bits: bits & mask(len),
            len,
            v4,
        })
    }

    /// The range of this length around an address; none of the other family's ranges is equal to it.
    pub fn around(ip: IpAddr, len: u8) -> Self {
        let (bits, v4) = bits(ip.to_canonical());
        let bits = bits & mask(len);
        Self { bits, len, v4 }
    }

    /// Compiles Envoy's message; no length means 0, as in Envoy.
    ///
    /// # Errors
    /// See [`CidrRange::new`].
    pub fn compile(config: &core::CidrRange) -> Result<Self, ConfigError> {
        Self::new(
            &config.address_prefix,
            config.prefix_len.as_ref().map_or(0, |l| l.value),
        )
    }

    /// Compiles xDS's message.
    ///
    /// # Errors
    /// See [`CidrRange::new`].
    pub fn compile_xds(config: &xds::CidrRange) -> Result<Self, ConfigError> {
        Self::new(
            &config.address_prefix,
            config.prefix_len.as_ref().map_or(0, |l| l.value),
        )
    }

    /// The prefix length.
    pub fn len(&self) -> u8 {
        self.len
    }

    /// Whether this is the range of all addresses of its family.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `ip` is in the range.
    pub fn contains(&self, ip: IpAddr) -> bool {
        Self::around(ip, self.len) == *self
    }
}

/// Several ranges.
#[derive(Debug, Clone, Default)]
pub struct CidrSet(Vec<CidrRange>);

impl CidrSet {
    /// Compiles a list.
    ///
    /// # Errors
    /// The first bad range, with its index.
    pub fn compile(config: &[core::CidrRange]) -> Result<Self, ConfigError> {
        let each = |(i, r)| CidrRange::compile(r).at(format!("[{i}]"));
        config
            .iter()
            .enumerate()
            .map(each)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Compiles a list of xDS's message.
    ///
    /// # Errors
    /// The first bad range, with its index.
    pub fn compile_xds(config: &[xds::CidrRange]) -> Result<Self, ConfigError> {
        let each = |(i, r)| CidrRange::compile_xds(r).at(format!("[{i}]"));
        config
            .iter()
            .enumerate()
            .map(each)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether any range contains `ip`.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|r| r.contains(ip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        let r = CidrRange::new("10.1.2.3", 8).unwrap();
        assert!(r.contains(ip("10.255.0.1")) && r.contains(ip("::ffff:10.0.0.1")));
        assert!(!r.contains(ip("11.0.0.1")) && !r.contains(ip("a00::1")));
        let mapped = CidrRange::new("::ffff:10.0.0.0", 104).unwrap();
        assert!(!mapped.contains(ip("10.0.0.1")) && !mapped.contains(ip("::ffff:10.0.0.1")));
        assert!(
            CidrRange::new("0.0.0.0", 0)
                .unwrap()
                .contains(ip("1.2.3.4"))
        );
        assert!(CidrRange::new("::1", 128).unwrap().contains(ip("::1")));
        assert!(!CidrRange::new("::", 0).unwrap().contains(ip("1.2.3.4")));
        let whole = CidrRange::new("1.2.3.4", 33).unwrap();
        assert_eq!(whole, CidrRange::new("1.2.3.4", 32).unwrap());
        assert!(CidrRange::new("x", 1).is_err());
    }
}
