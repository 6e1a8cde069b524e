//! Operators that print an address of a connection, or a part of one.

use std::borrow::Cow;
use std::net::IpAddr;

use xds_client::error::ConfigError;

use super::FormatContext;
use crate::stream::Address;

#[derive(Debug, Clone, Copy)]
enum Part {
    Whole,
    WithoutPort,
    /// The network of so many bits, in CIDR notation.
    Masked(u8),
    Port,
    EndpointId,
}

#[derive(Debug, Clone, Copy)]
enum Which {
    DownstreamRemote,
    DownstreamDirectRemote,
    DownstreamLocal,
    DownstreamDirectLocal,
    UpstreamHost,
    /// The same once there is a connection to it.
    UpstreamRemote,
    UpstreamLocal,
}

/// Whose address is printed, and what of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct AddressFact(Which, Part);

impl AddressFact {
    /// Compiles an operator; `None` if it is not one of these.
    ///
    /// # Errors
    /// A prefix length that is no number.
    pub(super) fn compile(name: &str, argument: Option<&str>) -> Result<Option<Self>, ConfigError> {
        let stripped = |suffix| name.strip_suffix(suffix);
        let (base, part) = if let Some(base) = stripped("_ADDRESS_WITHOUT_PORT") {
            let part = match argument {
                None => Part::WithoutPort,
                Some(bits) => Part::Masked(bits.parse().map_err(|_| {
                    ConfigError::new(format!("%{name}% takes a prefix length, not {bits:?}"))
                })?),
            };
            (base, part)
        } else if let Some(base) = stripped("_ADDRESS_ENDPOINT_ID") {
            (base, Part::EndpointId)
        } else if let Some(base) = stripped("_PORT") {
            (base, Part::Port)
        } else if name == "UPSTREAM_HOST" {
            return Ok(Some(Self(Which::UpstreamHost, Part::Whole)));
        } else if let Some(base) = stripped("_ADDRESS") {
            (base, Part::Whole)
        } else {
            return Ok(None);
        };
        let which = match base {
            "DOWNSTREAM_REMOTE" => Which::DownstreamRemote,
            "DOWNSTREAM_DIRECT_REMOTE" => Which::DownstreamDirectRemote,
            "DOWNSTREAM_LOCAL" => Which::DownstreamLocal,
            "DOWNSTREAM_DIRECT_LOCAL" => Which::DownstreamDirectLocal,
            "UPSTREAM_REMOTE" => Which::UpstreamRemote,
            "UPSTREAM_LOCAL" => Which::UpstreamLocal,
            _ => return Ok(None),
        };
        Ok(Some(Self(which, part)))
    }

    pub(super) fn is_port(self) -> bool {
        matches!(self.1, Part::Port)
    }

    pub(super) fn value<'a>(self, cx: &FormatContext<'a>) -> Option<Cow<'a, [u8]>> {
        let info = cx.info;
        let address = match self.0 {
            Which::DownstreamRemote => &info.remote,
            Which::DownstreamDirectRemote => &info.connection.direct_remote,
            Which::DownstreamLocal => &info.connection.local,
            Which::DownstreamDirectLocal => &info.connection.direct_local,
            Which::UpstreamHost => info.upstream.host.as_ref()?,
            Which::UpstreamRemote => {
                info.upstream.connection?;
                info.upstream.host.as_ref()?
            }
            Which::UpstreamLocal => info.upstream.local.as_ref()?,
        };
        let text = match (self.1, address) {
            (Part::WithoutPort, address) => without_port(address),
            (Part::Masked(bits), Address::Ip(ip)) => masked(ip.ip(), bits),
            (Part::Port, Address::Ip(ip)) => ip.port().to_string(),
            (Part::Masked(_) | Part::Port, _) => return None,
            (Part::EndpointId, Address::Internal(_, id)) => id.to_string(),
            (Part::EndpointId, _) => String::new(),
            (Part::Whole, address) => address.to_string(),
        };
        Some(Cow::Owned(text.into_bytes()))
    }
}

/// An address without its port, if it has one.
pub(super) fn without_port(address: &Address) -> String {
    match address {
        Address::Ip(ip) => ip.ip().to_string(),
        other => other.to_string(),
    }
}

fn masked(ip: IpAddr, bits: u8) -> String {
    match ip {
        IpAddr::V4(ip) => {
            let bits = bits.min(32);
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            format!(
                "{}/{bits}",
                std::net::Ipv4Addr::from_bits(ip.to_bits() & mask)
            )
        }
        IpAddr::V6(ip) => {
            let bits = bits.min(128);
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            format!(
                "{}/{bits}",
                std::net::Ipv6Addr::from_bits(ip.to_bits() & mask)
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_told_in_bits_at_most_as_many_as_there_are() {
        let of = |ip: &str, bits| masked(ip.parse().unwrap(), bits);
        assert_eq!(of("10.1.10.23", 16), "10.1.0.0/16");
        assert_eq!(of("10.1.10.23", 0), "0.0.0.0/0");
        assert_eq!(of("10.1.10.23", 200), "10.1.10.23/32");
        assert_eq!(of("2001:db8:1:2:3::1", 64), "2001:db8:1:2::/64");
        assert_eq!(of("::1", 200), "::1/128");
        assert_eq!(of("::1", 0), "::/0");
    }
}
