//! Filter-chain match: from the facts of a new connection to the one chain that serves it.
//!
//! Envoy's rule (`listener_components.proto`, `FilterChainMatch`): the criteria are looked at in a fixed
//! order; at each one the most specific value that matches wins and the rest is forgotten, even when
//! nothing under the winner matches later on. The index below is that rule as nested tables.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3::FilterChainMatch;
use filters::matcher::MatchInput;
use filters::matcher::cidr::CidrRange;
use rustc_hash::FxHashMap;
use xds_client::error::{At, ConfigError};

type Chain = usize;
type Ports = Vec<(u16, Chain)>;
type SourceIps = Vec<(CidrRange, Ports)>;
/// By source type: any, same IP or loopback, external.
type SourceTypes = [SourceIps; 3];
type DirectSources = Vec<(CidrRange, SourceTypes)>;
type Applications = Vec<(Box<str>, DirectSources)>;
type Transports = Vec<(Box<str>, Applications)>;
type ServerNames = FxHashMap<Box<str>, Transports>;
type Destinations = Vec<(CidrRange, ServerNames)>;

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
        let by_length = |c: &CidrRange| std::cmp::Reverse(c.len());
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
        let specific = if input.is_local() { local } else { external };
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

fn ranges(list: &[core::CidrRange]) -> Result<Vec<CidrRange>, ConfigError> {
    if list.is_empty() {
        return Ok(vec![CidrRange::ALL_V4, CidrRange::ALL_V6]);
    }
    list.iter().map(CidrRange::compile).collect()
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

fn most_specific<V>(list: &[(CidrRange, V)], address: Option<SocketAddr>) -> Option<&V> {
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

#[cfg(test)]
#[path = "filter_chain_match_tests.rs"]
mod tests;
