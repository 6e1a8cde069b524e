//! Load balancing: priorities, panic, localities, and the choice of one host. Everything that can be
//! is computed when the hosts change; a choice is O(1) and allocates nothing.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use crate::upstream::hash_table::{HashTable, HashTableConfig, Share};
use crate::upstream::host::{Health, Host};
pub use crate::upstream::lb_policy::LbPolicy;
use crate::upstream::lb_policy::SlowStart;

/// What a choice may depend on.
#[derive(Debug, Clone, Copy, Default)]
pub struct LbContext<'a> {
    /// The hash policy's result.
    pub hash: Option<u64>,
    /// Hosts that were tried already; avoided as long as one of `tries` picks finds another.
    pub excluded: &'a [&'a Arc<Host>],
    /// Whether canary hosts are avoided likewise.
    pub omit_canary: bool,
    /// How many picks are made at most to find a host that need not be avoided; 0 is 1.
    pub tries: u32,
    /// A random number, fresh for each choice.
    pub random: u64,
    /// Where clusters of type ORIGINAL_DST are to go.
    pub destination: Option<SocketAddr>,
}

/// Endpoints of one locality at one priority.
#[derive(Debug, Clone)]
pub struct LocalityHosts {
    /// 0 is the highest.
    pub priority: u32,
    /// `load_balancing_weight`; used by locality weighted balancing.
    pub weight: u32,
    /// The locality's text (`region/zone/sub_zone`) for the admin interface.
    pub locality: Arc<str>,
    /// The endpoints.
    pub hosts: Vec<Arc<Host>>,
}

/// Settings that shape a [`HostSet`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SetOptions {
    /// `healthy_panic_threshold` in percent; 50 by default.
    pub panic_threshold: f64,
    /// `overprovisioning_factor` in percent; 140 by default.
    pub overprovisioning: u32,
    /// Whether localities are picked by their weights.
    pub locality_weighted: bool,
    /// How new hosts come into use.
    pub slow_start: Option<SlowStart>,
}

impl Default for SetOptions {
    fn default() -> Self {
        Self {
            panic_threshold: 50.0,
            overprovisioning: 140,
            locality_weighted: false,
            slow_start: None,
        }
    }
}

/// Upper bound of a pick schedule, beyond which weights lose precision.
const SCHEDULE: u64 = 4096;

#[derive(Debug, Default)]
struct Picks {
    hosts: Vec<Arc<Host>>,
    /// Indices into `hosts`, spread by weight; empty if all weights are equal.
    schedule: Vec<u32>,
}

impl Picks {
    fn new(hosts: Vec<Arc<Host>>) -> Self {
        let weights: Vec<u64> = hosts.iter().map(|h| u64::from(h.weight())).collect();
        Self {
            schedule: schedule(&weights),
            hosts,
        }
    }

    fn at(&self, n: u64) -> Option<&Arc<Host>> {
        if self.schedule.is_empty() {
            return self.even(n);
        }
        let slot = n.checked_rem(self.schedule.len() as u64)?;
        let index = self.schedule.get(usize::try_from(slot).ok()?)?;
        self.hosts.get(*index as usize)
    }

    fn even(&self, n: u64) -> Option<&Arc<Host>> {
        let slot = n.checked_rem(self.hosts.len() as u64)?;
        self.hosts.get(usize::try_from(slot).ok()?)
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Smooth weighted round robin, laid out for one whole round. Empty if all weights are equal.
fn schedule(weights: &[u64]) -> Vec<u32> {
    let Some(first) = weights.first() else {
        return Vec::new();
    };
    if weights.iter().all(|w| w == first) {
        return Vec::new();
    }
    let unit = weights.iter().copied().fold(0, gcd).max(1);
    let mut weights: Vec<u64> = weights.iter().map(|w| w / unit).collect();
    let sum: u64 = weights.iter().sum();
    let limit = SCHEDULE.max(weights.len() as u64 * 4);
    if sum > limit {
        for w in &mut weights {
            *w = (u128::from(*w) * u128::from(limit) / u128::from(sum)).max(1) as u64;
        }
    }
    // Each host's picks stand at even distances; ties go to the earlier host.
    let mut places: Vec<(u64, u32)> = Vec::new();
    for (host, weight) in (0u32..).zip(&weights) {
        for pick in 0..*weight {
            places.push((((pick * 2 + 1) << 32) / (weight * 2), host));
        }
    }
    places.sort_unstable();
    places.into_iter().map(|(_, host)| host).collect()
}

#[derive(Debug, Default)]
struct Tier {
    /// One for all, or one per locality.
    groups: Vec<Picks>,
    /// The groups' weights, as configured.
    weights: Vec<u32>,
    /// Which group, by locality weight; empty if there is one.
    by_weight: Vec<u32>,
    /// For policies that hash: the hosts of all groups, and the table of them.
    hashed: OnceLock<(Vec<Share>, HashTable)>,
}

impl Tier {
    fn new(
        localities: &[&LocalityHosts],
        options: &SetOptions,
        keep: &dyn Fn(&Host) -> bool,
    ) -> Self {
        let filtered = |l: &LocalityHosts| -> Vec<Arc<Host>> {
            l.hosts.iter().filter(|h| keep(h)).cloned().collect()
        };
        let mut tier = Self::default();
        if options.locality_weighted {
            let mut effective = Vec::new();
            for locality in localities.iter().filter(|l| l.weight > 0) {
                let hosts = filtered(locality);
                if hosts.is_empty() {
                    continue;
                }
                // A locality that lost hosts gives load away, after the overprovisioning factor.
                let scaled = u64::from(options.overprovisioning) * hosts.len() as u64;
                let share = scaled.checked_div(locality.hosts.len() as u64);
                effective.push(u64::from(locality.weight) * share.unwrap_or(0).min(100));
                tier.weights.push(locality.weight);
                tier.groups.push(Picks::new(hosts));
            }
            tier.by_weight = schedule(&effective);
        }
        if tier.groups.is_empty() {
            // Also if no locality has a weight and hosts: weights say nothing then, and Envoy too takes all hosts.
            let hosts: Vec<_> = localities.iter().flat_map(|l| filtered(l)).collect();
            tier.groups.push(Picks::new(hosts));
            tier.weights.push(1);
        }
        tier
    }

    /// The hosts by hash. The first request of a new host set waits for the table, so that sets that nobody uses
    /// cost nothing.
    fn hashed(&self, config: &HashTableConfig) -> &(Vec<Share>, HashTable) {
        self.hashed.get_or_init(|| {
            let all: f64 = self.weights.iter().map(|w| f64::from(*w)).sum();
            let mut shares = Vec::new();
            for (group, weight) in self.groups.iter().zip(&self.weights) {
                let sum: f64 = group.hosts.iter().map(|h| f64::from(h.weight())).sum();
                let part = f64::from(*weight) / all;
                let share = |host: &Arc<Host>| f64::from(host.weight()) * part / sum;
                shares.extend(group.hosts.iter().map(|h| (h.clone(), share(h))));
            }
            let table = HashTable::build(config, &shares);
            (shares, table)
        })
    }

    fn group(&self, random: u64) -> Option<&Picks> {
        let count = if self.by_weight.is_empty() {
            self.groups.len()
        } else {
            self.by_weight.len()
        };
        let slot = usize::try_from(random.checked_rem(count as u64)?).ok()?;
        match self.by_weight.get(slot) {
            Some(index) => self.groups.get(*index as usize),
            None => self.groups.get(slot),
        }
    }
}

/// All hosts of a cluster, arranged for balancing.
#[derive(Debug, Default)]
pub struct HostSet {
    localities: Vec<LocalityHosts>,
    /// Cumulative load in percent and the tier it goes to.
    loads: Vec<(u32, Tier)>,
    healthy: usize,
    total: usize,
    panic: bool,
    slow_start: Option<SlowStart>,
}

impl HostSet {
    /// Arranges `localities`.
    pub fn new(localities: Vec<LocalityHosts>, options: &SetOptions) -> Self {
        let mut priorities: Vec<u32> = localities.iter().map(|l| l.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        struct Level<'a> {
            localities: Vec<&'a LocalityHosts>,
            total: usize,
            healthy: u32,
            degraded: u32,
            available: f64,
        }
        let mut levels = Vec::new();
        for priority in priorities {
            let members: Vec<_> = localities
                .iter()
                .filter(|l| l.priority == priority)
                .collect();
            let hosts = || members.iter().flat_map(|l| &l.hosts);
            let total = hosts().count();
            let count = |health| hosts().filter(|h| h.health() == health).count();
            let (healthy, degraded) = (count(Health::Healthy), count(Health::Degraded));
            let percent = |n: usize| {
                let scaled = n as u64 * u64::from(options.overprovisioning);
                scaled.checked_div(total as u64).unwrap_or(0).min(100) as u32
            };
            levels.push(Level {
                total,
                healthy: percent(healthy),
                degraded: percent(degraded),
                available: if total == 0 {
                    0.0
                } else {
                    (healthy + degraded) as f64 * 100.0 / total as f64
                },
                localities: members,
            });
        }
        let sum: u32 = levels.iter().map(|l| l.healthy + l.degraded).sum();
        let normal = sum.min(100);
        let in_panic = |l: &Level<'_>| normal < 100 && l.available < options.panic_threshold;
        let total: usize = levels.iter().map(|l| l.total).sum();
        let mut loads = Vec::new();
        if levels.iter().all(in_panic) {
            // Total panic: health says nothing any more, so hosts count.
            for level in levels.iter().filter(|l| l.total > 0) {
                let share = (level.total * 100).checked_div(total).unwrap_or(0) as u32;
                loads.push((share, Tier::new(&level.localities, options, &|_| true)));
            }
        } else {
            let mut left = 100u32;
            for (degraded, wanted) in [(false, Health::Healthy), (true, Health::Degraded)] {
                for level in &levels {
                    let health = if degraded {
                        level.degraded
                    } else {
                        level.healthy
                    };
                    let load = (health * 100).checked_div(normal).unwrap_or(0).min(left);
                    if load == 0 {
                        continue;
                    }
                    left -= load;
                    let all = in_panic(level);
                    let tier =
                        Tier::new(&level.localities, options, &|h| all || h.health() == wanted);
                    loads.push((load, tier));
                }
            }
        }
        // What rounding lost goes to the first level in use. From here on the loads are cumulative.
        let used: u32 = loads.iter().map(|load| load.0).sum();
        let mut until = 100u32.saturating_sub(used);
        for load in &mut loads {
            until += load.0;
            load.0 = until;
        }
        // No hosts at all is panic too.
        let panic =
            levels.iter().any(in_panic) || levels.is_empty() && options.panic_threshold > 0.0;
        let healthy = localities
            .iter()
            .flat_map(|l| &l.hosts)
            .filter(|h| h.health() == Health::Healthy)
            .count();
        Self {
            localities,
            loads,
            healthy,
            total,
            panic,
            slow_start: options.slow_start,
        }
    }

    /// The endpoints by locality.
    pub fn localities(&self) -> &[LocalityHosts] {
        &self.localities
    }

    /// All hosts.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.localities.iter().flat_map(|l| &l.hosts)
    }

    /// How many hosts are healthy.
    pub fn healthy(&self) -> usize {
        self.healthy
    }

    /// How many hosts there are.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Whether a priority in use is in panic: unhealthy hosts get requests too.
    pub fn is_panic(&self) -> bool {
        self.panic
    }

    /// Chooses a host. `turn` is the worker's round robin counter.
    pub fn choose(
        &self,
        policy: LbPolicy,
        turn: impl Fn() -> u64,
        cx: &LbContext<'_>,
    ) -> Option<Arc<Host>> {
        let by_hash = match &policy {
            LbPolicy::Hash(config) => Some((config, cx.hash.unwrap_or_else(|| mix(cx.random)))),
            _ => None,
        };
        let mut last = None;
        for attempt in 0..cx.tries.max(1) {
            let host = match by_hash {
                Some((config, hash)) => self.choose_by_hash(config, hash, attempt)?,
                None => {
                    let random = mix(cx.random.wrapping_add(attempt.into()));
                    self.choose_started(policy, &turn, random)?
                }
            };
            let avoid = cx.excluded.iter().any(|e| Arc::ptr_eq(e, host))
                || cx.omit_canary && host.is_canary();
            if !avoid {
                return Some(host.clone());
            }
            last = Some(host);
        }
        last.cloned()
    }

    /// The tier that a number from 0 to 99 falls to.
    fn tier(&self, point: u64) -> Option<&Tier> {
        let mut loads = self.loads.iter();
        let (_, tier) = loads.find(|(until, _)| point < u64::from(*until))?;
        Some(tier)
    }

    fn choose_by_hash(
        &self,
        config: &HashTableConfig,
        hash: u64,
        attempt: u32,
    ) -> Option<&Arc<Host>> {
        let (shares, table) = self.tier(hash % 100)?.hashed(config);
        let index = table.find(hash, attempt)?;
        shares.get(index as usize).map(|(host, _)| host)
    }

    /// Chooses again if a host that is new is not yet up to it, so that its share of the picks grows.
    fn choose_started(
        &self,
        policy: LbPolicy,
        turn: &impl Fn() -> u64,
        random: u64,
    ) -> Option<&Arc<Host>> {
        /// Picks at most; if all hosts are new, that is as good as any.
        const PICKS: u64 = 16;
        let mut host = self.choose_once(policy, turn, random)?;
        let Some(slow) = self.slow_start else {
            return Some(host);
        };
        for pick in 1..PICKS {
            let dice = (mix(random ^ pick) >> 11) as f64 / (1u64 << 53) as f64;
            if dice < slow.share(host.age()) {
                break;
            }
            host = self.choose_once(policy, turn, mix(random.wrapping_add(pick << 32)))?;
        }
        Some(host)
    }

    fn choose_once(
        &self,
        policy: LbPolicy,
        turn: &impl Fn() -> u64,
        random: u64,
    ) -> Option<&Arc<Host>> {
        let tier = self.tier((random >> 40) % 100)?;
        let picks = tier.group(mix(random ^ 0x5bd1_e995))?;
        match policy {
            LbPolicy::RoundRobin => picks.at(turn()),
            LbPolicy::Random | LbPolicy::Hash(_) => picks.even(random),
            LbPolicy::LeastRequest { choices: u32::MAX } => {
                // From a random place on, so that equally loaded hosts share.
                let count = picks.hosts.len();
                let start = usize::try_from(random.checked_rem(count as u64)?).ok()?;
                let (before, from) = picks.hosts.split_at_checked(start)?;
                from.iter().chain(before).min_by_key(|host| host.active())
            }
            LbPolicy::LeastRequest { choices } => {
                let mut best = picks.at(random)?;
                let mut next = random;
                for _ in 1..choices {
                    next = mix(next);
                    let other = picks.at(next)?;
                    if other.active() < best.active() {
                        best = other;
                    }
                }
                Some(best)
            }
        }
    }
}

/// One step of splitmix64: spreads a random number into another.
fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

thread_local! {
    /// The worker's round robin turns, by cluster index.
    static TURNS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// The next turn of cluster `index` on this worker. Starts at a random place, so that workers and
/// restarts do not all begin with the first host.
pub(crate) fn next_turn(index: usize) -> u64 {
    TURNS.with_borrow_mut(|turns| {
        if turns.len() <= index {
            turns.resize_with(index + 1, || fastrand::u64(..) >> 1);
        }
        turns.get_mut(index).map_or(0, |turn| {
            *turn = turn.wrapping_add(1);
            *turn
        })
    })
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;
