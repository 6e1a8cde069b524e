//! One worker's upstream connections, by host.

mod guard;
pub(super) mod http1;
pub(super) mod http2;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;

pub(crate) use self::guard::{ConnectionGuard, PooledIo, RequestGuard};
use super::cluster::Cluster;
use super::host::Host;

/// How often idle connections are looked over.
const SWEEP: Duration = Duration::from_secs(1);

/// The pools of one host.
pub(super) struct HostPool {
    pub(super) host: Arc<Host>,
    pub(super) http1: Rc<http1::Pool>,
    pub(super) http2: Rc<http2::Pool>,
}

thread_local! {
    /// Found by the host's number, which is never reused.
    static POOLS: RefCell<FxHashMap<u64, Rc<HostPool>>> = RefCell::new(FxHashMap::default());
    static SWEEPING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// This worker's pools for a host.
pub(super) fn of(cluster: &Arc<Cluster>, host: &Arc<Host>) -> Rc<HostPool> {
    let (pool, first) = POOLS.with_borrow_mut(|pools| {
        let pool = pools.entry(host.id).or_insert_with(|| {
            Rc::new(HostPool {
                host: host.clone(),
                http1: http1::Pool::new(cluster.clone(), host.clone()),
                http2: http2::Pool::new(cluster.clone(), host.clone()),
            })
        });
        (pool.clone(), !SWEEPING.replace(true))
    });
    if first {
        tokio::task::spawn_local(sweep());
    }
    pool
}

/// One task per worker: closes what is idle for too long or dead, and forgets hosts that are gone.
async fn sweep() {
    loop {
        tokio::time::sleep(SWEEP).await;
        let pools: Vec<_> = POOLS.with_borrow(|pools| pools.values().cloned().collect());
        for pool in pools {
            let gone = pool.host.is_removed();
            pool.http1.sweep(gone);
            pool.http2.sweep(gone);
            if gone && pool.http1.is_empty() && pool.http2.is_empty() {
                POOLS.with_borrow_mut(|pools| pools.remove(&pool.host.id));
            }
        }
    }
}
