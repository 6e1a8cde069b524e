//! HTTP/1 connections to one host, of one worker.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use filters::body::ResetReason;
use filters::stream::Address;
use tokio::sync::oneshot;

use super::{ConnectionGuard, PooledIo};
use crate::http::h1::Http1Settings;
use crate::http::h1::client::{ClientConnection, Recycle};
use crate::upstream::cluster::Cluster;
use crate::upstream::connect::{ConnectError, connect};
use crate::upstream::host::Host;

type Connection = ClientConnection<PooledIo>;

/// A connection for one exchange.
pub(crate) struct Checkout {
    pub(crate) connection: Connection,
    pub(crate) local: Option<Address>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// Idle connections, last in first out, and those who wait for one.
pub(crate) struct Pool {
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    settings: Rc<Http1Settings>,
    idle: RefCell<Vec<Idle>>,
    /// Told of a connection, or that there is room to make one.
    waiting: RefCell<VecDeque<oneshot::Sender<Option<Connection>>>>,
    open: Cell<u32>,
    local: RefCell<Option<Address>>,
    me: Weak<Pool>,
}

impl Pool {
    pub(super) fn new(cluster: Arc<Cluster>, host: Arc<Host>) -> Rc<Self> {
        Rc::new_cyclic(|me| Self {
            cluster,
            host,
            settings: Rc::new(Http1Settings::upstream()),
            idle: RefCell::default(),
            waiting: RefCell::default(),
            open: Cell::new(0),
            local: RefCell::default(),
            me: me.clone(),
        })
    }

    /// An idle connection that is alive, or a new one; waits for one while the cluster's limit is reached.
    pub(crate) async fn checkout(self: &Rc<Self>, fresh: bool) -> Result<Checkout, ConnectError> {
        if !fresh && let Some(connection) = self.take_idle() {
            return Ok(Checkout {
                connection,
                local: self.local.borrow().clone(),
            });
        }
        let pending = &self.cluster.breakers.default.pending;
        if !pending.try_take() {
            return Err(overflow());
        }
        let _pending = GiveBack(&self.cluster);
        loop {
            if let Some(mut guard) = ConnectionGuard::take(&self.cluster) {
                let pool = self.me.clone();
                guard.on_close(move || {
                    if let Some(pool) = pool.upgrade() {
                        pool.closed();
                    }
                });
                self.open.set(self.open.get() + 1);
                let connected = connect(&self.cluster.config, &self.host).await?;
                if self.local.borrow().is_none() {
                    self.local.replace(connected.local.clone());
                }
                let io = PooledIo {
                    stream: connected.io,
                    _guard: guard,
                };
                let connection = ClientConnection::new(io, self.settings.clone());
                return Ok(Checkout {
                    connection,
                    local: connected.local,
                });
            }
            if self.open.get() == 0 {
                // Other hosts or workers hold all connections: none of ours can come free.
                return Err(overflow());
            }
            let (sender, receiver) = oneshot::channel();
            self.waiting.borrow_mut().push_back(sender);
            if let Ok(Some(connection)) = receiver.await {
                return Ok(Checkout {
                    connection,
                    local: self.local.borrow().clone(),
                });
            }
        }
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            let mut idle = self.idle.borrow_mut().pop()?;
            if idle.connection.poll_closed(&mut cx).is_pending() {
                return Some(idle.connection);
            }
        }
    }

    /// A connection is gone: one who waits may make another.
    fn closed(&self) {
        self.open.set(self.open.get().saturating_sub(1));
        while let Some(waiter) = self.waiting.borrow_mut().pop_front() {
            if waiter.send(None).is_ok() {
                return;
            }
        }
    }

    pub(super) fn sweep(&self, gone: bool) {
        let timeout = self.cluster.config.idle_timeout;
        let mut cx = Context::from_waker(Waker::noop());
        // Dropped outside of the borrow: closing tells the pool.
        let mut dead = Vec::new();
        {
            let mut idle = self.idle.borrow_mut();
            let mut at = 0;
            while let Some(entry) = idle.get_mut(at) {
                let late = timeout.is_some_and(|timeout| entry.since.elapsed() >= timeout);
                if gone || late || entry.connection.poll_closed(&mut cx) == Poll::Ready(()) {
                    dead.push(idle.swap_remove(at));
                } else {
                    at += 1;
                }
            }
            // `swap_remove` disturbs the order; the freshest must be last.
            if !dead.is_empty() {
                idle.sort_by_key(|entry| entry.since);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.idle.borrow().is_empty() && self.waiting.borrow().is_empty()
    }

    /// What exchanges hand connections back to.
    pub(crate) fn recycler(self: &Rc<Self>) -> Rc<dyn Recycle<PooledIo>> {
        self.clone()
    }
}

impl Recycle<PooledIo> for Pool {
    fn recycle(&self, mut connection: Connection) {
        if self.host.is_removed()
            || self
                .cluster
                .config
                .max_requests
                .is_some_and(|max| connection.exchanges() >= u64::from(max))
        {
            return;
        }
        loop {
            let Some(waiter) = self.waiting.borrow_mut().pop_front() else {
                break;
            };
            match waiter.send(Some(connection)) {
                Err(Some(back)) => connection = back,
                Ok(()) | Err(None) => return,
            }
        }
        self.idle.borrow_mut().push(Idle {
            connection,
            since: Instant::now(),
        });
    }
}

struct GiveBack<'a>(&'a Arc<Cluster>);

impl Drop for GiveBack<'_> {
    fn drop(&mut self) {
        self.0.breakers.default.pending.give();
    }
}

pub(super) fn overflow() -> ConnectError {
    ConnectError {
        reason: ResetReason::Overflow,
        transport_failure: None,
    }
}
