//! The hosts of a cluster: made of its endpoints and of what their names resolved to, and kept over updates.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use bytestring::ByteString;
use envoy_types::pb::envoy::config::cluster::v3::cluster::DnsLookupFamily;
use filters::stream::Address;

use crate::transport::tls::upstream::UpstreamTls;
use crate::upstream::assignment::{Endpoint, Locality};
use crate::upstream::balance::{HostSet, LocalityHosts};
use crate::upstream::cluster::{ClusterConfig, Discovery};
use crate::upstream::host::{Host, Target};

/// DNS answers by name and family.
pub(super) type Resolved = HashMap<(ByteString, DnsLookupFamily), Vec<IpAddr>>;

/// What became of a cluster's endpoints.
pub(super) struct Members {
    /// The hosts.
    pub(super) set: HostSet,
    /// Whether a host came or went.
    pub(super) changed: bool,
    /// Whether every name has been looked up.
    pub(super) resolved: bool,
}

impl Members {
    /// Hosts of `localities`. Those of `before` whose address and transport stayed are kept, the others are
    /// told that they are removed.
    pub(super) fn build(
        config: &ClusterConfig,
        localities: &[Locality],
        overprovisioning: u32,
        before: &HostSet,
        answers: &Resolved,
    ) -> Self {
        // A static cluster may list an address twice, and then has two hosts, as in Envoy.
        let mut old: HashMap<Address, Vec<Arc<Host>>> = HashMap::new();
        for host in before.hosts() {
            old.entry(host.address.clone())
                .or_default()
                .push(host.clone());
        }
        old.values_mut().for_each(|same| same.reverse());
        let eds = matches!(config.discovery, Discovery::Eds { .. });
        let mut seen = HashSet::new();
        let mut added = false;
        let mut resolved = true;
        let mut built = Vec::with_capacity(localities.len());
        for locality in localities {
            let mut hosts = Vec::with_capacity(locality.endpoints.len());
            for endpoint in &locality.endpoints {
                let (found, known) = addresses(config, endpoint, before, answers);
                resolved &= known;
                for address in found {
                    // Of endpoints with one address, EDS has the first, whatever its priority.
                    if eds && !seen.insert(address.clone()) {
                        continue;
                    }
                    let kept = old.get_mut(&address).and_then(|same| {
                        let at = same.iter().rposition(|h| is_same(h, endpoint))?;
                        Some(same.remove(at))
                    });
                    added |= kept.is_none();
                    let host = kept.unwrap_or_else(|| {
                        Host::new(
                            address,
                            hostname(endpoint).clone(),
                            endpoint.transport.clone(),
                            endpoint.weight,
                            endpoint.health,
                        )
                    });
                    host.update(endpoint.weight, endpoint.health);
                    let hash_key = endpoint.hash_key.as_deref();
                    host.set_labels(endpoint.canary, hash_key, &endpoint.metadata);
                    hosts.push(host);
                }
            }
            built.push(LocalityHosts {
                priority: locality.priority,
                weight: locality.weight,
                locality: locality.name.clone(),
                hosts,
            });
        }
        let mut gone = old.values().flatten().peekable();
        let changed = added || gone.peek().is_some();
        gone.for_each(|host| host.set_removed());
        let mut options = config.set;
        options.overprovisioning = overprovisioning;
        Self {
            set: HostSet::new(built, &options),
            changed,
            resolved,
        }
    }
}

/// The addresses of an endpoint, and whether its name has been looked up.
fn addresses(
    config: &ClusterConfig,
    endpoint: &Endpoint,
    before: &HostSet,
    answers: &Resolved,
) -> (Vec<Address>, bool) {
    let (dns, port) = match &endpoint.target {
        Target::Address(address) => return (vec![address.clone()], true),
        Target::Name(dns, port) => (dns, *port),
    };
    let logical = config.discovery == Discovery::LogicalDns;
    let found = answers.get(&(dns.clone(), config.dns_family));
    let taken = found.map(Vec::as_slice).unwrap_or_default().iter();
    let taken = taken.take(if logical { 1 } else { usize::MAX });
    let mut addresses: Vec<_> = taken.map(|ip| Address::Ip((*ip, port).into())).collect();
    if addresses.is_empty() && logical {
        // An empty answer does not take a logical host away.
        addresses.extend(before.hosts().take(1).map(|h| h.address.clone()));
    }
    (addresses, found.is_some())
}

/// Whether connections to a host are those that the endpoint asks for.
fn is_same(host: &Host, endpoint: &Endpoint) -> bool {
    let by_name = host.transport.tls().is_some_and(UpstreamTls::asks_for_host);
    host.transport == endpoint.transport && (!by_name || host.hostname == *hostname(endpoint))
}

/// The name that hosts of an endpoint have.
fn hostname(endpoint: &Endpoint) -> &ByteString {
    match &endpoint.target {
        Target::Name(dns, _) if endpoint.hostname.is_empty() => dns,
        _ => &endpoint.hostname,
    }
}
