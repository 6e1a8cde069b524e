use std::cell::Cell;

use filters::stream::Address;

use super::*;
use crate::transport::upstream::UpstreamTransport;

fn host(port: u16, weight: u32, health: Health) -> Arc<Host> {
    let address = Address::Ip(([127, 0, 0, 1], port).into());
    Host::new(address, "".into(), UpstreamTransport::Raw, weight, health)
}

fn level(priority: u32, weight: u32, hosts: Vec<Arc<Host>>) -> LocalityHosts {
    LocalityHosts {
        priority,
        weight,
        locality: "".into(),
        hosts,
    }
}

fn spread(set: &HostSet, policy: LbPolicy, n: u64) -> std::collections::BTreeMap<u16, u64> {
    let turn = Cell::new(0);
    let mut counts = std::collections::BTreeMap::new();
    for random in 0..n {
        let cx = LbContext {
            random,
            ..LbContext::default()
        };
        let next = || turn.replace(turn.get() + 1);
        let host = set.choose(policy, next, &cx).unwrap();
        *counts.entry(host.address.ip().unwrap().port()).or_default() += 1;
    }
    counts
}

#[test]
fn round_robin_follows_weights_exactly() {
    let hosts = vec![
        host(1, 10, Health::Healthy),
        host(2, 30, Health::Healthy),
        host(3, 60, Health::Healthy),
    ];
    let set = HostSet::new(vec![level(0, 1, hosts)], &SetOptions::default());
    let counts = spread(&set, LbPolicy::RoundRobin, 1000);
    assert_eq!(counts, [(1, 100), (2, 300), (3, 600)].into());
}

#[test]
fn unhealthy_hosts_get_nothing_outside_panic() {
    let hosts = vec![
        host(1, 1, Health::Healthy),
        host(2, 1, Health::Healthy),
        host(3, 1, Health::Unhealthy),
    ];
    let set = HostSet::new(vec![level(0, 1, hosts)], &SetOptions::default());
    assert!(!set.is_panic());
    assert_eq!(
        spread(&set, LbPolicy::RoundRobin, 10),
        [(1, 5), (2, 5)].into()
    );
}

#[test]
fn below_the_threshold_all_hosts_serve() {
    let hosts = vec![
        host(1, 1, Health::Healthy),
        host(2, 1, Health::Unhealthy),
        host(3, 1, Health::Unhealthy),
    ];
    let set = HostSet::new(vec![level(0, 1, hosts.clone())], &SetOptions::default());
    assert!(set.is_panic());
    assert_eq!(spread(&set, LbPolicy::RoundRobin, 9).len(), 3);
    let off = SetOptions {
        panic_threshold: 0.0,
        ..SetOptions::default()
    };
    let set = HostSet::new(vec![level(0, 1, hosts)], &off);
    assert_eq!(spread(&set, LbPolicy::RoundRobin, 9), [(1, 9)].into());
}

#[test]
fn priorities_share_by_overprovisioned_health() {
    // Half of P0 is healthy: 50 % x 1.4 = 70 % stays.
    let p0 = vec![host(1, 1, Health::Healthy), host(2, 1, Health::Unhealthy)];
    let p1 = vec![host(3, 1, Health::Healthy)];
    let set = HostSet::new(
        vec![level(0, 1, p0), level(1, 1, p1)],
        &SetOptions::default(),
    );
    let counts = spread(&set, LbPolicy::Random, 20_000);
    assert_eq!(counts.len(), 2);
    let share = counts[&1] as f64 / 20_000.0;
    assert!((share - 0.7).abs() < 0.02, "{share}");
}

#[test]
fn a_dead_priority_fails_over_entirely() {
    let set = HostSet::new(
        vec![
            level(0, 1, vec![host(1, 1, Health::Unhealthy)]),
            level(1, 1, vec![host(2, 1, Health::Healthy)]),
        ],
        &SetOptions::default(),
    );
    assert_eq!(spread(&set, LbPolicy::Random, 100), [(2, 100)].into());
}

#[test]
fn least_request_prefers_the_idle_host() {
    let hosts = vec![host(1, 1, Health::Healthy), host(2, 1, Health::Healthy)];
    hosts[0]
        .stats
        .rq_active
        .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let set = HostSet::new(vec![level(0, 1, hosts)], &SetOptions::default());
    let counts = spread(&set, LbPolicy::LeastRequest { choices: 2 }, 4000);
    // The busy one wins only if both picks hit it.
    let share = counts[&1] as f64 / 4000.0;
    assert!((share - 0.25).abs() < 0.04, "{share}");
}

#[test]
fn localities_share_by_weight_and_empty_sets_choose_none() {
    let options = SetOptions {
        locality_weighted: true,
        ..SetOptions::default()
    };
    let set = HostSet::new(
        vec![
            level(0, 1, vec![host(1, 1, Health::Healthy)]),
            level(0, 3, vec![host(2, 1, Health::Healthy)]),
        ],
        &options,
    );
    let counts = spread(&set, LbPolicy::Random, 8000);
    let share = counts[&2] as f64 / 8000.0;
    assert!((share - 0.75).abs() < 0.03, "{share}");
    let cx = LbContext {
        random: 0,
        ..LbContext::default()
    };
    let empty = HostSet::new(Vec::new(), &options);
    assert!(empty.choose(LbPolicy::Random, || 0, &cx).is_none());
}

#[test]
fn excluded_hosts_are_avoided_if_possible() {
    let hosts = vec![host(1, 1, Health::Healthy), host(2, 1, Health::Healthy)];
    let set = HostSet::new(vec![level(0, 1, hosts.clone())], &SetOptions::default());
    let turn = Cell::new(0);
    let cx = LbContext {
        excluded: &[&hosts[0]],
        tries: 2,
        random: 7,
        ..LbContext::default()
    };
    let next = || turn.replace(turn.get() + 1);
    let chosen = set.choose(LbPolicy::RoundRobin, next, &cx).unwrap();
    assert!(Arc::ptr_eq(&chosen, &hosts[1]));
}

#[test]
fn a_full_scan_takes_the_least_loaded_of_all() {
    let hosts: Vec<_> = (1..20).map(|n| host(n, 1, Health::Healthy)).collect();
    for (n, host) in hosts.iter().enumerate() {
        let load = if n == 7 { 1 } else { 2 };
        host.stats
            .rq_active
            .store(load, std::sync::atomic::Ordering::Relaxed);
    }
    let set = HostSet::new(vec![level(0, 1, hosts)], &SetOptions::default());
    let policy = LbPolicy::LeastRequest { choices: u32::MAX };
    assert_eq!(spread(&set, policy, 100), [(8, 100)].into());
}

#[test]
fn new_hosts_start_slowly() {
    let hosts = vec![host(1, 1, Health::Healthy), host(2, 1, Health::Healthy)];
    let options = SetOptions {
        slow_start: Some(crate::upstream::lb_policy::SlowStart {
            window: std::time::Duration::from_secs(3600),
            aggression: 1.0,
            min_share: 0.1,
        }),
        ..SetOptions::default()
    };
    let mut old = host(3, 1, Health::Healthy);
    Arc::get_mut(&mut old).unwrap().make_old();
    let all = [hosts, vec![old]].concat();
    let set = HostSet::new(vec![level(0, 1, all)], &options);
    let counts = spread(&set, LbPolicy::RoundRobin, 12_000);
    // 0.1 and 0.1 beside 1.
    let share = counts[&3] as f64 / 12_000.0;
    assert!(share > 0.7, "{counts:?}");
    assert!(counts[&1] > 300 && counts[&2] > 300, "{counts:?}");
}

#[test]
fn requests_without_a_hash_are_spread_and_those_with_one_stay() {
    let hosts: Vec<_> = (1..5).map(|n| host(n, 1, Health::Healthy)).collect();
    let set = HostSet::new(vec![level(0, 1, hosts)], &SetOptions::default());
    let policy = LbPolicy::Hash(crate::upstream::hash_table::HashTableConfig {
        kind: crate::upstream::hash_table::HashTableKind::Maglev { size: 101 },
        use_hostname: false,
    });
    assert_eq!(spread(&set, policy, 200).len(), 4);
    let chosen = |random| {
        let cx = LbContext {
            hash: Some(12345),
            random,
            ..LbContext::default()
        };
        set.choose(policy, || 0, &cx).unwrap().id
    };
    assert_eq!(chosen(1), chosen(2));
}
