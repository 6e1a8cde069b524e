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

/// The pools of one host and priority, for requests that ask the same of the transport.
pub(super) struct HostPool {
    pub(super) place: Rc<Place>,
    pub(super) http1: Rc<http1::Pool>,
    pub(super) http2: Rc<http2::Pool>,
}

impl HostPool {
    fn new(place: Rc<Place>) -> Self {
        // The limit of pools is no setting, so this breaker is never open.
        let gauges = place.stats().breakers_of(place.priority);
        gauges.cx_pool_open.add(0);
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

    pub(super) fn sweep(&self) -> bool {
        self.place.cluster.clean_up();
        let client = self.place.purpose().client.as_ref();
        // What was made for a client is of no use when it has left.
        let gone = self.place.host.is_removed() || client.is_some_and(|c| !c.is_connected());
        self.http1.sweep(gone);
        self.http2.sweep(gone);
        self.http1.is_empty() && self.http2.is_empty()
    }
}

/// A host's pools at one priority.
struct HostPools {
    /// For requests that ask for nothing: nearly all.
    plain: Rc<HostPool>,
    /// By what is asked for. Not the fast hasher: names may be an attacker's.
    others: HashMap<Purpose, Rc<HostPool>>,
}

thread_local! {
    /// Found by the host's number, which is never reused.
    static POOLS: RefCell<FxHashMap<(u64, Priority), HostPools>> = RefCell::default();
    static SWEEPING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// This worker's pools for a host; `None` if requests ask for too many different things of it.
pub(super) fn of(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    priority: Priority,
    purpose: Purpose,
) -> Option<Rc<HostPool>> {
    let new = |purpose| {
        let place = Place::new(cluster, host, priority, purpose);
        Rc::new(HostPool::new(place))
    };
    // One that nobody uses makes room for another. Its connections are closed outside of the borrow.
    let mut evicted = None;
    let pool = POOLS.with_borrow_mut(|pools| {
        let entry = pools.entry((host.id, priority));
        let pools = entry.or_insert_with(|| HostPools {
            plain: new(<_>::default()),
            others: HashMap::new(),
        });
        let key = purpose.on(&host.transport);
        if key.is_plain() {
            return Some(pools.plain.clone());
        }
        // Clients are bounded elsewhere, by the limits of connections; what each of them asks for is bounded here.
        let asks = !key.options.is_empty() || key.shared.is_some();
        if asks && pools.others.len() >= MAX_POOLS && !pools.others.contains_key(&key) {
            let of_client = |other: &Purpose| other.client == key.client;
            let mine = || pools.others.iter().filter(|(other, _)| of_client(other));
            if mine().count() >= MAX_POOLS {
                let unused = mine().find(|(_, pool)| !pool.is_used())?;
                let unused = unused.0.clone();
                evicted = pools.others.remove(&unused);
            }
        }
        let pool = pools.others.entry(key);
        Some(pool.or_insert_with_key(|key| new(key.clone())).clone())
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
        let all: Vec<_> = POOLS.with_borrow(|pools| {
            let pools = pools.iter();
            let pools = pools.map(|(key, p)| (*key, p.plain.clone(), p.others.values().cloned()));
            pools
                .map(|(key, plain, others)| (key, plain, others.collect::<Vec<_>>()))
                .collect()
        });
        // Not while the map is borrowed: closing a connection may look into it.
        for (key, plain, others) in all {
            let empty = plain.sweep();
            let mut unused = Vec::new();
            for pool in &others {
                if pool.sweep() {
                    unused.push(pool.place.purpose().clone());
                }
            }
            let gone = empty && unused.len() == others.len() && plain.place.host.is_removed();
            POOLS.with_borrow_mut(|pools| {
                if gone {
                    pools.remove(&key);
                } else if let Some(pools) = pools.get_mut(&key) {
                    for key in &unused {
                        pools.others.remove(key);
                    }
                }
            });
        }
    }
}
