//! DNS for STRICT_DNS and LOGICAL_DNS clusters: look-ups, and the task that repeats them.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytestring::ByteString;
use envoy_types::pb::envoy::config::cluster::v3::cluster::DnsLookupFamily;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolveHosts};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::upstream::manager::ClusterManager;

/// Look-ups in flight at a time.
const CONCURRENT: usize = 32;
/// The longest that an answer's TTL is believed, so that a broken server cannot freeze a cluster.
const MAX_TTL: Duration = Duration::from_secs(24 * 3600);
/// The shortest pause between look-ups of one name.
const MIN_REFRESH: Duration = Duration::from_millis(100);

/// The answer to a look-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The addresses in the server's order; empty if the name does not exist or has none of the family.
    pub ips: Vec<IpAddr>,
    /// For how long the answer is good.
    pub ttl: Duration,
}

/// One name to keep resolved.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The name.
    pub name: ByteString,
    /// `dns_lookup_family`.
    pub family: DnsLookupFamily,
}

/// How often a name is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// `dns_refresh_rate`.
    pub refresh: Duration,
    /// `respect_dns_ttl`: a TTL over 0 takes the place of `refresh`.
    pub respect_ttl: bool,
}

/// Whoever wants names resolved.
pub trait DnsClient: Send + Sync + 'static {
    /// The names wanted now.
    fn wanted(&self) -> HashMap<Key, Schedule>;
    /// Notified when [`wanted`](Self::wanted) may have changed.
    fn changed(&self) -> Arc<Notify>;
    /// A look-up ended.
    fn resolved(&self, key: &Key, answer: Result<Vec<IpAddr>, String>);
    /// A name is not wanted any more.
    fn forgotten(&self, key: &Key);
}

impl DnsClient for Mutex<ClusterManager> {
    fn wanted(&self) -> HashMap<Key, Schedule> {
        let manager = self.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: HashMap<Key, Schedule> = HashMap::new();
        for (name, cluster) in manager.dns_names_wanted() {
            let config = &cluster.config;
            let family = config.dns_family;
            let one = Schedule {
                refresh: config.dns_refresh,
                respect_ttl: config.respect_dns_ttl,
            };
            // Clusters that share a name share its look-ups; the one in the greatest hurry decides.
            let entry = all.entry(Key { name, family }).or_insert(one);
            entry.refresh = entry.refresh.min(one.refresh);
            entry.respect_ttl &= one.respect_ttl;
        }
        all
    }

    fn changed(&self) -> Arc<Notify> {
        let manager = self.lock().unwrap_or_else(PoisonError::into_inner);
        manager.dns_changed()
    }

    fn resolved(&self, key: &Key, answer: Result<Vec<IpAddr>, String>) {
        let mut manager = self.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(ips) => manager.apply_resolved(&key.name, key.family, ips),
            Err(error) => {
                tracing::debug!(name = %key.name, %error, "DNS look-up failed");
                manager.resolve_failed(&key.name, key.family);
            }
        }
    }

    fn forgotten(&self, key: &Key) {
        let mut manager = self.lock().unwrap_or_else(PoisonError::into_inner);
        manager.forget_resolved(&key.name, key.family);
    }
}

fn strategy(family: DnsLookupFamily) -> LookupIpStrategy {
    match family {
        DnsLookupFamily::Auto => LookupIpStrategy::Ipv6thenIpv4,
        DnsLookupFamily::V4Only => LookupIpStrategy::Ipv4Only,
        DnsLookupFamily::V6Only => LookupIpStrategy::Ipv6Only,
        DnsLookupFamily::V4Preferred => LookupIpStrategy::Ipv4thenIpv6,
        DnsLookupFamily::All => LookupIpStrategy::Ipv4AndIpv6,
    }
}

/// The loopback addresses of a family, for `localhost` where neither the hosts file nor DNS knows it
/// (RFC 6761, section 6.3). AUTO takes IPv4: what listens on "localhost" listens there first.
fn loopback(family: DnsLookupFamily) -> Vec<IpAddr> {
    let (v4, v6) = (
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    );
    match family {
        DnsLookupFamily::Auto | DnsLookupFamily::V4Only | DnsLookupFamily::V4Preferred => vec![v4],
        DnsLookupFamily::V6Only => vec![v6],
        DnsLookupFamily::All => vec![v4, v6],
    }
}

/// Looks a name up with the system's settings (`/etc/hosts`, `/etc/resolv.conf`), which are read anew each
/// time so that their changes count. Nothing is cached here: the refresh rate is the caller's.
///
/// That a name has no addresses is an answer, not an error: hosts of such a name go away, as in Envoy.
///
/// # Errors
/// The resolver's text when no server answered.
pub async fn resolve(name: &str, family: DnsLookupFamily) -> Result<Resolved, String> {
    if let Ok(ip) = name.parse::<IpAddr>() {
        return Ok(Resolved {
            ips: vec![ip],
            ttl: MAX_TTL,
        });
    }
    let answer = lookup(name, family).await;
    let bare = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    if bare == "localhost" || bare.ends_with(".localhost") {
        return Ok(match answer {
            Ok(found) if !found.ips.is_empty() => found,
            _ => Resolved {
                ips: loopback(family),
                ttl: Duration::ZERO,
            },
        });
    }
    answer
}

async fn lookup(name: &str, family: DnsLookupFamily) -> Result<Resolved, String> {
    let mut builder = TokioResolver::builder_tokio().map_err(|e| e.to_string())?;
    let options = builder.options_mut();
    options.ip_strategy = strategy(family);
    options.use_hosts_file = ResolveHosts::Always;
    options.cache_size = 0;
    let resolver = builder.build().map_err(|e| e.to_string())?;
    match resolver.lookup_ip(name).await {
        Ok(found) => {
            let now = std::time::Instant::now();
            let mut ips = Vec::new();
            for ip in found.iter() {
                if !ips.contains(&ip) {
                    ips.push(ip);
                }
            }
            Ok(Resolved {
                ips,
                ttl: found.valid_until().saturating_duration_since(now),
            })
        }
        Err(e) if e.is_nx_domain() || e.is_no_records_found() => Ok(Resolved {
            ips: Vec::new(),
            ttl: Duration::ZERO,
        }),
        Err(e) => Err(e.to_string()),
    }
}

/// Starts the task that keeps a client's names resolved. To be called in the control runtime; the task ends
/// when the handle is aborted.
pub fn spawn<C: DnsClient>(client: Arc<C>) -> JoinHandle<()> {
    tokio::spawn(run(client, |key: Key| async move {
        resolve(&key.name, key.family).await
    }))
}

/// When a name is due; none while it is being looked up.
type Due = Option<Instant>;

async fn run<C, R, F>(client: Arc<C>, look_up: R)
where
    C: DnsClient,
    R: Fn(Key) -> F,
    F: Future<Output = Result<Resolved, String>> + Send + 'static,
{
    let changed = client.changed();
    let mut due: HashMap<Key, Due> = HashMap::new();
    let mut running = JoinSet::new();
    let mut wanted = client.wanted();
    loop {
        let now = Instant::now();
        for key in wanted.keys() {
            due.entry(key.clone()).or_insert(Some(now));
        }
        let mut next: Option<Instant> = None;
        for (key, at) in &mut due {
            let Some(when) = *at else { continue };
            if when > now {
                next = Some(next.map_or(when, |n| n.min(when)));
            } else if running.len() < CONCURRENT {
                *at = None;
                let (key, answer) = (key.clone(), look_up(key.clone()));
                running.spawn(async move { (key, answer.await) });
            }
            // Others that are due start when one of those in flight ends.
        }
        let sleep = async {
            match next {
                Some(when) => tokio::time::sleep_until(when).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed.notified() => {
                wanted = client.wanted();
                due.retain(|key, _| {
                    let keep = wanted.contains_key(key);
                    if !keep {
                        client.forgotten(key);
                    }
                    keep
                });
            }
            Some(done) = running.join_next() => {
                // A task that panicked loses its key until the client changes; ours cannot panic.
                let Ok((key, answer)) = done else { continue };
                let Some(schedule) = wanted.get(&key) else { continue };
                let pause = pause(*schedule, answer.as_ref().ok());
                due.insert(key.clone(), Some(Instant::now() + pause));
                client.resolved(&key, answer.map(|a| a.ips));
            }
            () = sleep => {}
        }
    }
}

/// How long until the next look-up.
fn pause(schedule: Schedule, answer: Option<&Resolved>) -> Duration {
    match answer {
        Some(found) if schedule.respect_ttl && !found.ttl.is_zero() => found.ttl.min(MAX_TTL),
        _ => schedule.refresh,
    }
    .max(MIN_REFRESH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Client {
        names: Mutex<Vec<&'static str>>,
        changed: Arc<Notify>,
        answers: Mutex<Vec<Result<Vec<IpAddr>, String>>>,
        forgotten: Mutex<Vec<Key>>,
        answered: Notify,
    }

    fn key(name: &str) -> Key {
        Key {
            name: name.into(),
            family: DnsLookupFamily::Auto,
        }
    }

    impl DnsClient for Client {
        fn wanted(&self) -> HashMap<Key, Schedule> {
            let schedule = Schedule {
                refresh: Duration::from_secs(5),
                respect_ttl: false,
            };
            let names = self.names.lock().unwrap();
            names.iter().map(|n| (key(n), schedule)).collect()
        }

        fn changed(&self) -> Arc<Notify> {
            self.changed.clone()
        }

        fn resolved(&self, _: &Key, answer: Result<Vec<IpAddr>, String>) {
            self.answers.lock().unwrap().push(answer);
            self.answered.notify_one();
        }

        fn forgotten(&self, key: &Key) {
            self.forgotten.lock().unwrap().push(key.clone());
        }
    }

    #[tokio::test]
    async fn names_are_looked_up_when_they_come_and_forgotten_when_they_go() {
        let client = Arc::new(Client::default());
        let task = tokio::spawn(run(client.clone(), |key: Key| async move {
            match &*key.name {
                "bad" => Err("no".to_owned()),
                _ => Ok(Resolved {
                    ips: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
                    ttl: Duration::ZERO,
                }),
            }
        }));
        for name in ["good", "bad"] {
            client.names.lock().unwrap().push(name);
            client.changed.notify_one();
            client.answered.notified().await;
        }
        let answers = client.answers.lock().unwrap().clone();
        assert_eq!(answers.len(), 2);
        assert!(answers[0].is_ok() && answers[1].is_err());
        client.names.lock().unwrap().clear();
        client.changed.notify_one();
        while client.forgotten.lock().unwrap().len() < 2 {
            tokio::task::yield_now().await;
        }
        task.abort();
    }

    #[test]
    fn the_ttl_counts_only_where_it_is_respected_and_not_zero() {
        let answer = |ttl| Resolved {
            ips: Vec::new(),
            ttl: Duration::from_secs(ttl),
        };
        let schedule = |respect_ttl| Schedule {
            refresh: Duration::from_secs(5),
            respect_ttl,
        };
        assert_eq!(pause(schedule(true), Some(&answer(60))).as_secs(), 60);
        assert_eq!(pause(schedule(false), Some(&answer(60))).as_secs(), 5);
        assert_eq!(pause(schedule(true), Some(&answer(0))).as_secs(), 5);
        assert_eq!(pause(schedule(true), None).as_secs(), 5);
        assert_eq!(pause(schedule(true), Some(&answer(u64::MAX))), MAX_TTL);
    }

    #[tokio::test]
    async fn localhost_and_literals_need_no_server() {
        let found = resolve("localhost", DnsLookupFamily::V4Only).await.unwrap();
        assert!(found.ips.iter().all(|ip| ip.is_loopback()) && !found.ips.is_empty());
        let found = resolve("::1", DnsLookupFamily::Auto).await.unwrap();
        assert_eq!(found.ips, [IpAddr::V6(Ipv6Addr::LOCALHOST)]);
    }
}
