//! One worker's upstream connections, by host and routing priority.

mod guard;
pub(super) mod http1;
pub(super) mod http2;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;

pub(crate) use self::guard::{ConnectionGuard, Place, PooledIo, RequestGuard, Speaks};
use super::circuit_breaker::Priority;
use super::cluster::Cluster;
use super::host::Host;

/// How often idle connections are looked over, which is how late an idle timeout may strike.
const SWEEP: Duration = Duration::from_secs(1);

/// The pools of one host and priority.
pub(super) struct HostPool {
    pub(super) place: Rc<Place>,
    pub(super) http1: Rc<http1::Pool>,
    pub(super) http2: Rc<http2::Pool>,
}

impl HostPool {
    fn new(cluster: &Arc<Cluster>, host: &Arc<Host>, priority: Priority) -> Self {
        let place = Rc::new(Place {
            cluster: cluster.clone(),
            host: host.clone(),
            priority,
        });
        // There is no limit of pools, so this breaker is never open.
        let gauges = cluster.stats().breakers_of(priority);
        gauges.cx_pool_open.add(0);
        Self {
            http1: http1::Pool::new(place.clone()),
            http2: http2::Pool::new(place.clone()),
            place,
        }
    }
}

thread_local! {
    /// Found by the host's number, which is never reused.
    static POOLS: RefCell<FxHashMap<(u64, Priority), Rc<HostPool>>> = RefCell::default();
    static SWEEPING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// This worker's pools for a host.
pub(super) fn of(cluster: &Arc<Cluster>, host: &Arc<Host>, priority: Priority) -> Rc<HostPool> {
    let (pool, first) = POOLS.with_borrow_mut(|pools| {
        let pool = pools
            .entry((host.id, priority))
            .or_insert_with(|| Rc::new(HostPool::new(cluster, host, priority)));
        (pool.clone(), !SWEEPING.replace(true))
    });
    if first {
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
        let pools: Vec<_> = POOLS.with_borrow(|pools| pools.values().cloned().collect());
        for pool in pools {
            let gone = pool.place.host.is_removed();
            pool.http1.sweep(gone);
            pool.http2.sweep(gone);
            if gone && pool.http1.is_empty() && pool.http2.is_empty() {
                let key = (pool.place.host.id, pool.place.priority);
                POOLS.with_borrow_mut(|pools| pools.remove(&key));
            }
        }
    }
}
