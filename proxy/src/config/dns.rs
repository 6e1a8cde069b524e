//! Keeps the addresses of DNS clusters fresh. Control runtime only.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::cluster::v3::cluster::DnsLookupFamily as Family;

use super::resources::Resources;

/// How often the wanted names are looked over; a name is resolved when its cluster's refresh rate says.
const TICK: Duration = Duration::from_millis(250);

/// Resolves the wanted names, first when they appear and then at their cluster's rate, for ever.
pub async fn run(resources: Arc<Resources>) {
    let mut due: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        let wanted = resources.with_clusters(|c| c.dns_names_wanted());
        let names: HashSet<&str> = wanted.iter().map(|(n, _)| &**n).collect();
        due.retain(|name, _| names.contains(name.as_str()));
        let mut started = HashSet::new();
        for (name, cluster) in &wanted {
            let now = Instant::now();
            if due.get(&**name).is_some_and(|at| *at > now) || !started.insert(name.clone()) {
                continue;
            }
            due.insert(name.to_string(), now + cluster.config.dns_refresh.max(TICK));
            let (name, family) = (name.to_string(), cluster.config.dns_family);
            let resources = resources.clone();
            tokio::spawn(async move {
                let found = tokio::net::lookup_host((name.as_str(), 0)).await;
                let found = found.map(|all| choose(all.map(|a| a.ip()).collect(), family));
                match found {
                    Ok(addresses) => resources.resolved(&name, addresses),
                    Err(error) => {
                        tracing::debug!("DNS resolution of {name} failed: {error}");
                        resources.unresolved(&name);
                    }
                }
            });
        }
        tokio::time::sleep(TICK).await;
    }
}

/// The addresses that `dns_lookup_family` asks for.
fn choose(addresses: Vec<IpAddr>, family: Family) -> Vec<IpAddr> {
    let of = |v6: bool| -> Vec<IpAddr> {
        let all = addresses.iter().copied();
        all.filter(|a| a.is_ipv6() == v6).collect()
    };
    let preferred = |first: Vec<IpAddr>, then: Vec<IpAddr>| {
        if first.is_empty() { then } else { first }
    };
    match family {
        Family::V4Only => of(false),
        Family::V6Only => of(true),
        Family::V4Preferred => preferred(of(false), of(true)),
        Family::Auto => preferred(of(true), of(false)),
        Family::All => addresses,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_family_chooses() {
        let (v4, v6): (IpAddr, IpAddr) = ("1.2.3.4".parse().unwrap(), "::1".parse().unwrap());
        assert_eq!(choose(vec![v4, v6], Family::Auto), [v6]);
        assert_eq!(choose(vec![v4, v6], Family::V4Preferred), [v4]);
        assert_eq!(choose(vec![v4], Family::Auto), [v4]);
        assert!(choose(vec![v4], Family::V6Only).is_empty());
        assert_eq!(choose(vec![v4, v6], Family::All), [v4, v6]);
    }
}
