//! One worker's upstream connections, by host, routing priority, and for whom they are made.

mod guard;
pub(super) mod http1;
pub(super) mod http2;
mod io;
mod waiting;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;

use self::guard::Speaks;
pub(crate) use self::guard::{ConnectionGuard, PendingGuard, Place, RequestGuard};
pub(crate) use self::io::PooledIo;
use super::circuit_breaker::Priority;
use super::cluster::Cluster;
use super::connect::ConnectError;
use super::host::Host;
use crate::transport::options::Purpose;

/// How often idle connections are looked over, which is how late an idle timeout may strike.
const SWEEP: Duration = Duration::from_secs(1);

/// The most pools of one host, priority, worker and client for what requests ask of the transport. Names that are asked for
/// may come from requests, so somebody could try to have a pool for each.
const MAX_POOLS: usize = 1024;

/// What TLS offers on a pool's connections if nothing else is configured.
fn protocols(server_chooses: bool, own: &'static str) -> &'static [&'static str] {
    match (server_chooses, own) {
        (true, _) => &["h2", "http/1.1"],
        (false, "h2") => &["h2"],
        (false, _) => &["http/1.1"],
    }
}

/// Why a pool gives no connection.
#[derive(Debug, Clone)]
pub(crate) enum Missed {
    Failed(ConnectError),
    /// The server has chosen the other version of HTTP; that pool has the connection.
    Turned,
}

/// The pools of one host and priority, for requests that ask the same of the transport. They are one to the limit of
/// pools.
pub(super) struct HostPool {
    pub(super) place: Rc<Place>,
    pub(super) http1: Rc<http1::Pool>,
    pub(super) http2: Rc<http2::Pool>,
}

impl HostPool {
    fn new(place: Rc<Place>) -> Self {
        let (breaker, gauges) = place.breaker();
        breaker.pools.take(&gauges.cx_pool_open);
        let http1 = http1::Pool::new(place.clone());
        let http2 = http2::Pool::new(place.clone());
        http1.set_other(&http2);
        http2.set_other(&http1);
        Self {
            http1,
            http2,
            place,
        }
    }

    /// Whether a request is on one of its connections, waits for one, or is about to.
    fn is_used(self: &Rc<Self>) -> bool {
        Rc::strong_count(self) > 1 || self.http1.is_used() || self.http2.is_used()
    }

    /// Closes what is idle for too long or dead, and returns whether the pool may go.
    pub(super) fn sweep(&self) -> bool {
        self.place.cluster.clean_up();
        let client = self.place.purpose().client.as_ref();
        // What was made for a client is of no use when it has left.
        let gone = self.place.host.is_removed() || client.is_some_and(|c| !c.is_connected());
        self.http1.sweep(gone);
        self.http2.sweep(gone);
        self.http1.is_empty() && self.http2.is_empty() && !self.is_kept()
    }

    /// Whether it stays when it is empty: it knows what the server has chosen, and is not in the way of another.
    fn is_kept(&self) -> bool {
        let (breaker, _) = self.place.breaker();
        let limited = breaker.pools.limit() < u32::MAX;
        self.place.purpose().is_plain() && !limited && !self.place.host.is_removed()
    }
}

impl Drop for HostPool {
    fn drop(&mut self) {
        let (breaker, gauges) = self.place.breaker();
        breaker.pools.give(&gauges.cx_pool_open);
    }
}

/// A host's pools at one priority.
#[derive(Default)]
struct HostPools {
    /// For requests that ask for nothing: nearly all.
    plain: Option<Rc<HostPool>>,
    /// By what is asked for. Not the fast hasher: names may be an attacker's.
    others: HashMap<Purpose, Rc<HostPool>>,
}

impl HostPools {
    fn get(&self, key: &Purpose) -> Option<&Rc<HostPool>> {
        match key.is_plain() {
            true => self.plain.as_ref(),
            false => self.others.get(key),
        }
    }

    fn insert(&mut self, key: Purpose, pool: Rc<HostPool>) {
        match key.is_plain() {
            true => self.plain = Some(pool),
            false => {
                self.others.insert(key, pool);
            }
        }
    }

    fn remove(&mut self, key: &Purpose) -> Option<Rc<HostPool>> {
        match key.is_plain() {
            true => self.plain.take(),
            false => self.others.remove(key),
        }
    }

    /// Takes a pool out if nobody uses it, not even by holding it.
    fn remove_unused(&mut self, key: &Purpose) -> Option<Rc<HostPool>> {
        let unused = self.get(key).is_some_and(|pool| !pool.is_used());
        unused.then(|| self.remove(key)).flatten()
    }

    fn is_empty(&self) -> bool {
        self.plain.is_none() && self.others.is_empty()
    }

    fn all(&self) -> impl Iterator<Item = &Rc<HostPool>> {
        self.plain.iter().chain(self.others.values())
    }

    /// Whether requests of one client ask for too many different things.
    fn is_full_for(&self, key: &Purpose) -> bool {
        // Clients are bounded elsewhere, by the limits of connections; what each of them asks for is bounded here.
        let asks = !key.options.is_empty() || key.shared.is_some();
        asks && self.others.len() >= MAX_POOLS && self.of_client(key).count() >= MAX_POOLS
    }

    fn of_client(&self, key: &Purpose) -> impl Iterator<Item = &Rc<HostPool>> {
        let of_client = |(other, _): &(&Purpose, _)| other.client == key.client;
        self.others.iter().filter(of_client).map(|(_, pool)| pool)
    }
}

thread_local! {
    /// Found by the host's number, which is never reused.
    static POOLS: RefCell<FxHashMap<(u64, Priority), HostPools>> = RefCell::default();
    static SWEEPING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// This worker's pools for a host; `None` if there may be no more.
pub(super) fn of(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    priority: Priority,
    purpose: Purpose,
) -> Option<Rc<HostPool>> {
    // One that nobody uses makes room for another. Its connections are closed outside of the borrow.
    let mut evicted = None;
    let pool = POOLS.with_borrow_mut(|all| {
        let pools = all.entry((host.id, priority)).or_default();
        let key = purpose.on(&host.transport);
        if let Some(pool) = pools.get(&key) {
            return Some(pool.clone());
        }
        let unused = if cluster.breakers.of(priority).pools.is_open() {
            Some(pools.all().find(|pool| !pool.is_used())?)
        } else if pools.is_full_for(&key) {
            Some(pools.of_client(&key).find(|pool| !pool.is_used())?)
        } else {
            None
        };
        if let Some(unused) = unused.map(|pool| pool.place.purpose().clone()) {
            evicted = pools.remove(&unused);
        }
        let place = Place::new(cluster, host, priority, key.clone());
        let pool = Rc::new(HostPool::new(place));
        pools.insert(key, pool.clone());
        Some(pool)
    });
    drop(evicted);
    if !SWEEPING.replace(true) {
        tokio::task::spawn_local(sweep());
    }
    pool
}

/// One task per worker: closes what is idle for too long or dead, and forgets hosts that are gone.
async fn sweep() {
    // When the worker ends, so does the task; another runtime on this thread (in tests) starts its own.
    struct Ended;
    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = SWEEPING.try_with(|sweeping| sweeping.set(false));
        }
    }
    let _ended = Ended;
    loop {
        tokio::time::sleep(SWEEP).await;
        let all: Vec<_> = POOLS.with_borrow(|all| {
            let of = |(key, pools): (&_, &HostPools)| (*key, pools.all().cloned().collect());
            all.iter().map(of).collect::<Vec<(_, Vec<_>)>>()
        });
        // Not while the map is borrowed: closing a connection may look into it.
        for (key, pools) in all {
            let mut removed = Vec::new();
            for pool in pools {
                if pool.sweep() {
                    let purpose = pool.place.purpose().clone();
                    // What is swept is held here once.
                    drop(pool);
                    POOLS.with_borrow_mut(|all| {
                        removed.extend(all.get_mut(&key).and_then(|p| p.remove_unused(&purpose)));
                    });
                }
            }
            POOLS.with_borrow_mut(|all| {
                if all.get(&key).is_some_and(HostPools::is_empty) {
                    all.remove(&key);
                }
            });
        }
    }
}
