//! Filter-chain match: from the facts of a new connection to the one chain that serves it.
//!
//! Envoy's rule (`listener_components.proto`, `FilterChainMatch`): the criteria are looked at in a fixed
//! order; at each one the most specific value that matches wins and the rest is forgotten, even when
//! nothing under the winner matches later on. The index below is that rule as nested tables.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use envoy_types::pb::envoy::config::core::v3::CidrRange;
use envoy_types::pb::envoy::config::listener::v3::FilterChainMatch;
use rustc_hash::FxHashMap;
use xds_client::error::{At, ConfigError};

/// An address range in canonical form (host bits cleared).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    address: IpAddr,
    length: u8,
}

impl Cidr {
    /// A range from its protobuf form.
    ///
    /// # Errors
    /// The prefix is no IP address. A length beyond its width is its width, as in Envoy.
    pub fn parse(range: &CidrRange) -> Result<Self, ConfigError> {
        let address: IpAddr = range.address_prefix.parse().map_err(|_| {
            ConfigError::new(format!("malformed IP address: {}", range.address_prefix))
                .at("address_prefix")
        })?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let length = range.prefix_len.as_ref().map_or(0, |v| v.value);
        let length = u8::try_from(length).map_or(width, |l| l.min(width));
        Ok(Self::new(address, length))
    }

    fn new(address: IpAddr, length: u8) -> Self {
        let address = match address {
            IpAddr::V4(v4) => IpAddr::from((u32::from(v4) & mask32(length)).to_be_bytes()),
            IpAddr::V6(v6) => IpAddr::from((u128::from(v6) & mask128(length)).to_be_bytes()),
        };
        Self { address, length }
    }

    /// Whether `ip` lies in the range. Addresses of the other family never do.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.address, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => u32::from(b) & mask32(self.length) == u32::from(a),
            (IpAddr::V6(a), IpAddr::V6(b)) => u128::from(b) & mask128(self.length) == u128::from(a),
            _ => false,
        }
    }
}

fn mask32(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

fn mask128(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

/// What is known about a connection when its chain is chosen.
#[derive(Debug, Clone, Copy)]
pub struct MatchInput<'a> {
    /// Local address (after original_dst); `None` for a Unix socket.
    pub destination: Option<SocketAddr>,
    /// Peer (after PROXY protocol); `None` for a Unix socket.
    pub source: Option<SocketAddr>,
    /// Peer of the socket itself.
    pub direct_source: Option<SocketAddr>,
    /// SNI in lower case; empty when there is none.
    pub server_name: &'a str,
    /// `tls`, `raw_buffer`, or empty when nothing detected it.
    pub transport_protocol: &'a str,
    /// Detected or offered application protocols, in the client's order.
    pub application_protocols: &'a [&'a str],
}

type Chain = usize;
type Ports = Vec<(u16, Chain)>;
type SourceIps = Vec<(Cidr, Ports)>;
/// By source type: any, same IP or loopback, external.
type SourceTypes = [SourceIps; 3];
type DirectSources = Vec<(Cidr, SourceTypes)>;
type Applications = Vec<(Box<str>, DirectSources)>;
type Transports = Vec<(Box<str>, Applications)>;
type ServerNames = FxHashMap<Box<str>, Transports>;
type Destinations = Vec<(Cidr, ServerNames)>;

/// The compiled match of a listener. Yields the position of the chain.
#[derive(Debug, Default)]
pub struct FilterChainIndex {
    /// Key 0 holds the chains without a port.
    ports: FxHashMap<u16, Destinations>,
}

/// Bound on the table a single chain may ask for; the product of its lists.
const MAX_COMBINATIONS: usize = 1 << 20;

impl FilterChainIndex {
    /// Builds the index. `names` and `matches` run in parallel; a missing match matches everything.
    /// `address` is the listener's, for the error texts.
    ///
    /// # Errors
    /// A field that Envoy does not implement either, a malformed range or wildcard, or two chains with the
    /// same rules.
    pub fn compile<'a>(
        address: &str,
        chains: impl IntoIterator<Item = (&'a str, Option<&'a FilterChainMatch>)>,
    ) -> Result<Self, ConfigError> {
        let mut index = Self::default();
        let mut names: Vec<&str> = Vec::new();
        let empty = FilterChainMatch::default();
        for (position, (name, chain_match)) in chains.into_iter().enumerate() {
            names.push(name);
            index
                .insert(position, chain_match.unwrap_or(&empty))
                .map_err(|e| match e {
                    InsertError::Conflict(other) => ConfigError::new(format!(
                        "error adding listener '{address}': filter chain '{name}' has the same \
                         matching rules defined as '{}'",
                        names.get(other).copied().unwrap_or_default()
                    )),
                    InsertError::Config(e) => e,
                })
                .at(format!("filter_chains[{position}].filter_chain_match"))?;
        }
        index.order();
        Ok(index)
    }

    fn insert(&mut self, chain: Chain, m: &FilterChainMatch) -> Result<(), InsertError> {
        if !m.address_suffix.is_empty() || m.suffix_len.is_some() {
            return Err(ConfigError::new("contains unimplemented fields").into());
        }
        let port = match &m.destination_port {
            None => 0,
            Some(p) => u16::try_from(p.value)
                .map_err(|_| ConfigError::new("not a port").at("destination_port"))?,
        };
        let destinations = ranges(&m.prefix_ranges).at("prefix_ranges")?;
        let direct = ranges(&m.direct_source_prefix_ranges).at("direct_source_prefix_ranges")?;
        let sources = ranges(&m.source_prefix_ranges).at("source_prefix_ranges")?;
        let names = m
            .server_names
            .iter()
            .map(|n| server_name(n))
            .collect::<Result<Vec<_>, _>>()
            .at("server_names")?;
        let names = or_empty(names);
        let applications = or_empty(
            m.application_protocols
                .iter()
                .map(|p| p.as_str().into())
                .collect(),
        );
        let source_type = usize::try_from(m.source_type)
            .ok()
            .filter(|t| *t < 3)
            .ok_or_else(|| ConfigError::new("unknown value").at("source_type"))?;
        let mut ports = m
            .source_ports
            .iter()
            .map(|p| u16::try_from(*p).map_err(|_| ConfigError::new("not a port")))
            .collect::<Result<Vec<_>, _>>()
            .at("source_ports")?;
        if ports.is_empty() {
            ports.push(0);
        }
        let combinations = [
            destinations.len(),
            names.len(),
            applications.len(),
            direct.len(),
            sources.len(),
            ports.len(),
        ]
        .into_iter()
        .try_fold(1_usize, usize::checked_mul);
        if combinations.is_none_or(|n| n > MAX_COMBINATIONS) {
            return Err(ConfigError::new("too many combinations of rules").into());
        }

        let by_port = self.ports.entry(port).or_default();
        for destination in &destinations {
            let by_name = slot(by_port, destination);
            for name in &names {
                let by_transport = by_name.entry(name.clone()).or_default();
                let by_application = slot(by_transport, &m.transport_protocol.as_str().into());
                for application in &applications {
                    let by_direct = slot(by_application, application);
                    for range in &direct {
                        let Some(by_source) = slot(by_direct, range).get_mut(source_type) else {
                            continue;
                        };
                        for range in &sources {
                            let by_source_port = slot(by_source, range);
                            for port in &ports {
                                match by_source_port.iter().find(|(p, _)| p == port) {
                                    // The same value twice in one chain is harmless.
                                    Some((_, other)) if *other == chain => {}
                                    Some((_, other)) => return Err(InsertError::Conflict(*other)),
                                    None => by_source_port.push((*port, chain)),
                                }
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Puts the longest prefixes first, so that the first hit is the most specific one.
    fn order(&mut self) {
        let by_length = |c: &Cidr| std::cmp::Reverse(c.length);
        for destinations in self.ports.values_mut() {
            destinations.sort_by_key(|(c, _)| by_length(c));
            for applications in destinations
                .iter_mut()
                .flat_map(|(_, names)| names.values_mut())
                .flatten()
                .map(|(_, applications)| applications)
            {
                for (_, direct) in applications {
                    direct.sort_by_key(|(c, _)| by_length(c));
                    for sources in direct.iter_mut().flat_map(|(_, types)| types.iter_mut()) {
                        sources.sort_by_key(|(c, _)| by_length(c));
                    }
                }
            }
        }
    }

    /// The chain for a connection, or `None` (then the default chain serves, if there is one).
    pub fn find(&self, input: &MatchInput<'_>) -> Option<usize> {
        let port = input.destination.map_or(0, |d| d.port());
        // A port that is mentioned at all decides: Envoy does not fall back to chains without a port.
        let destinations = self.ports.get(&port).or_else(|| self.ports.get(&0))?;
        let names = most_specific(destinations, input.destination)?;
        let transports = by_server_name(names, input.server_name)?;
        let applications = exact_or_any(transports, input.transport_protocol)?;
        let direct = input
            .application_protocols
            .iter()
            .find_map(|p| exact(applications, p))
            .or_else(|| exact(applications, ""))?;
        let [any, local, external] = most_specific(direct, input.direct_source)?;
        let specific = if is_local(input) { local } else { external };
        let sources = if specific.is_empty() { any } else { specific };
        let ports = most_specific(sources, input.source)?;
        let port = input.source.map_or(0, |s| s.port());
        let find = |port: u16| ports.iter().find(|(p, _)| *p == port).map(|(_, c)| *c);
        find(port).or_else(|| find(0))
    }
}

#[derive(Debug)]
enum InsertError {
    Conflict(Chain),
    Config(ConfigError),
}

impl From<ConfigError> for InsertError {
    fn from(e: ConfigError) -> Self {
        Self::Config(e)
    }
}

fn or_empty(mut names: Vec<Box<str>>) -> Vec<Box<str>> {
    if names.is_empty() {
        names.push("".into());
    }
    names
}

fn ranges(list: &[CidrRange]) -> Result<Vec<Cidr>, ConfigError> {
    if list.is_empty() {
        return Ok(vec![
            Cidr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
            Cidr::new(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), 0),
        ]);
    }
    list.iter().map(Cidr::parse).collect()
}

/// The table key of a server name: lower case, and `.example.com` for `*.example.com`.
fn server_name(name: &str) -> Result<Box<str>, ConfigError> {
    let name = name.to_ascii_lowercase();
    let key = match name.strip_prefix('*') {
        Some(suffix) if suffix.starts_with('.') => suffix,
        _ => name.as_str(),
    };
    if key.contains('*') {
        return Err(ConfigError::new(
            "partial wildcards are not supported in \"server_names\"",
        ));
    }
    Ok(key.into())
}

/// Build-time lookup; linear, because these lists have a handful of entries.
fn slot<'a, K: PartialEq + Clone, V: Default>(list: &'a mut Vec<(K, V)>, key: &K) -> &'a mut V {
    let position = list.iter().position(|(k, _)| k == key).unwrap_or_else(|| {
        list.push((key.clone(), V::default()));
        list.len() - 1
    });
    // The position was found or made on the lines above.
    #[allow(clippy::indexing_slicing)]
    &mut list[position].1
}

fn most_specific<V>(list: &[(Cidr, V)], address: Option<SocketAddr>) -> Option<&V> {
    // Envoy stands in 255.255.255.255 for ends without an IP: only a catch-all range is meant to hit.
    let ip = address.map_or(IpAddr::V4(Ipv4Addr::BROADCAST), |a| a.ip().to_canonical());
    list.iter().find(|(c, _)| c.contains(ip)).map(|(_, v)| v)
}

fn by_server_name<'a>(names: &'a ServerNames, name: &str) -> Option<&'a Transports> {
    if name.is_empty() {
        return names.get("");
    }
    names
        .get(name)
        .or_else(|| {
            name.char_indices()
                .skip(1)
                .filter(|(_, c)| *c == '.')
                .find_map(|(at, _)| names.get(name.get(at..)?))
        })
        .or_else(|| names.get(""))
}

fn exact<'a, V>(list: &'a [(Box<str>, V)], key: &str) -> Option<&'a V> {
    list.iter().find(|(k, _)| &**k == key).map(|(_, v)| v)
}

fn exact_or_any<'a, V>(list: &'a [(Box<str>, V)], key: &str) -> Option<&'a V> {
    exact(list, key).or_else(|| exact(list, ""))
}

/// Same IP on both ends, loopback, or a Unix socket.
fn is_local(input: &MatchInput<'_>) -> bool {
    match (input.source, input.destination) {
        (Some(source), Some(destination)) => {
            let source = source.ip().to_canonical();
            source.is_loopback() || source == destination.ip().to_canonical()
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::google::protobuf::UInt32Value;

    fn range(text: &str) -> CidrRange {
        let (address, length) = text.split_once('/').unwrap();
        CidrRange {
            address_prefix: address.into(),
            prefix_len: Some(UInt32Value {
                value: length.parse().unwrap(),
            }),
        }
    }

    fn input<'a>() -> MatchInput<'a> {
        MatchInput {
            destination: Some("10.0.0.1:443".parse().unwrap()),
            source: Some("192.0.2.7:5000".parse().unwrap()),
            direct_source: Some("192.0.2.7:5000".parse().unwrap()),
            server_name: "",
            transport_protocol: "",
            application_protocols: &[],
        }
    }

    fn build(matches: &[FilterChainMatch]) -> Result<FilterChainIndex, ConfigError> {
        let names = ["a", "b", "c", "d", "e", "f"];
        FilterChainIndex::compile(
            "0.0.0.0:443",
            names.iter().copied().zip(matches.iter().map(Some)),
        )
    }

    fn names(list: &[&str]) -> FilterChainMatch {
        FilterChainMatch {
            server_names: list.iter().map(|s| (*s).to_owned()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn server_names_go_exact_then_longest_wildcard_then_any() {
        let index = build(&[
            names(&["www.Example.com"]),
            names(&["*.example.com"]),
            names(&["*.b.example.com"]),
            names(&[]),
        ])
        .unwrap();
        for (name, chain) in [
            ("www.example.com", 0),
            ("x.example.com", 1),
            ("a.b.example.com", 2),
            ("b.example.com", 1),
            ("example.com", 3),
            ("", 3),
        ] {
            let found = index.find(&MatchInput {
                server_name: name,
                ..input()
            });
            assert_eq!(found, Some(chain), "{name}");
        }
    }

    #[test]
    fn a_winning_criterion_is_never_taken_back() {
        let mut exact = names(&["www.example.com"]);
        exact.transport_protocol = "tls".into();
        let index = build(&[exact, names(&[])]).unwrap();
        let raw = MatchInput {
            server_name: "www.example.com",
            transport_protocol: "raw_buffer",
            ..input()
        };
        assert_eq!(index.find(&raw), None);

        let port = FilterChainMatch {
            destination_port: Some(UInt32Value { value: 443 }),
            prefix_ranges: vec![range("10.9.0.0/16")],
            ..Default::default()
        };
        let index = build(&[port, names(&[])]).unwrap();
        assert_eq!(index.find(&input()), None);
        let other = MatchInput {
            destination: Some("10.0.0.1:80".parse().unwrap()),
            ..input()
        };
        assert_eq!(index.find(&other), Some(1));
    }

    #[test]
    fn the_longest_prefix_wins_for_every_kind_of_address() {
        let of = |set: fn(&mut FilterChainMatch, Vec<CidrRange>)| {
            ["10.0.0.0/8", "10.0.0.1/32", "0.0.0.0/0", "192.0.2.0/24"].map(|r| {
                let mut m = FilterChainMatch::default();
                set(&mut m, vec![range(r)]);
                m
            })
        };
        let index = build(&of(|m, r| m.prefix_ranges = r)).unwrap();
        assert_eq!(index.find(&input()), Some(1));
        let index = build(&of(|m, r| m.source_prefix_ranges = r)).unwrap();
        assert_eq!(index.find(&input()), Some(3));
        let index = build(&of(|m, r| m.direct_source_prefix_ranges = r)).unwrap();
        assert_eq!(index.find(&input()), Some(3));
        let v6 = MatchInput {
            direct_source: Some("[2001:db8::1]:1".parse().unwrap()),
            ..input()
        };
        assert_eq!(index.find(&v6), None, "a v4 catch-all holds no v6 address");
        let mapped = MatchInput {
            direct_source: Some("[::ffff:192.0.2.1]:1".parse().unwrap()),
            ..input()
        };
        assert_eq!(index.find(&mapped), Some(3));
    }

    #[test]
    fn application_protocols_follow_the_clients_order() {
        let of = |p: &[&str]| FilterChainMatch {
            application_protocols: p.iter().map(|s| (*s).to_owned()).collect(),
            ..Default::default()
        };
        let index = build(&[of(&["h2"]), of(&["http/1.1", "http/1.0"]), of(&[])]).unwrap();
        let find = |p: &[&str]| {
            index.find(&MatchInput {
                application_protocols: p,
                ..input()
            })
        };
        assert_eq!(find(&["http/1.1", "h2"]), Some(1));
        assert_eq!(find(&["foo", "h2"]), Some(0));
        assert_eq!(find(&["foo"]), Some(2));
    }

    #[test]
    fn source_type_and_ports() {
        let of = |source_type: i32, source_ports: &[u32]| FilterChainMatch {
            source_type,
            source_ports: source_ports.to_vec(),
            ..Default::default()
        };
        let index = build(&[of(1, &[]), of(2, &[5000]), of(0, &[])]).unwrap();
        let from = |s: &str| {
            index.find(&MatchInput {
                source: Some(s.parse().unwrap()),
                ..input()
            })
        };
        assert_eq!(from("127.0.0.1:9"), Some(0));
        assert_eq!(from("10.0.0.1:9"), Some(0));
        assert_eq!(from("192.0.2.7:5000"), Some(1));
        assert_eq!(
            from("192.0.2.7:5001"),
            None,
            "external was chosen before the port"
        );
    }

    #[test]
    fn the_same_rules_twice_and_half_wildcards_are_refused() {
        let error = build(&[names(&["x", "y"]), names(&["y"])]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "filter_chains[1].filter_chain_match: error adding listener '0.0.0.0:443': filter chain 'b' \
             has the same matching rules defined as 'a'"
        );
        assert!(build(&[names(&["y", "y"])]).is_ok());
        for bad in ["*", "w*.example.com", "*.a*.com"] {
            let text = build(&[names(&[bad])]).unwrap_err().to_string();
            assert!(text.contains("partial wildcards"), "{bad}: {text}");
        }
    }
}
