//! HTTP/1 connections to one host, of one worker.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::guard::{ConnectionState, PendingGuard, Place};
use super::waiting::Waiting;
use super::{ConnectionGuard, Missed, PooledIo, Speaks, http2, protocols};
use crate::http::h1::Http1Settings;
use crate::http::h1::client::{ClientConnection, Recycle};
use crate::upstream::connect::Connected;

type Connection = ClientConnection<PooledIo>;

/// A connection for one exchange.
pub(crate) struct Checkout {
    pub(crate) connection: Connection,
    pub(crate) state: Rc<ConnectionState>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// Idle connections, last in first out, and those who wait for one, first in first out.
pub(crate) struct Pool {
    place: Rc<Place>,
    settings: Rc<Http1Settings>,
    idle: RefCell<Vec<Idle>>,
    waiting: Waiting<Connection>,
    /// Connections of any state.
    open: Cell<u32>,
    connecting: Cell<usize>,
    /// Where connections go whose server has chosen HTTP/2.
    other: OnceCell<Weak<http2::Pool>>,
}

impl Pool {
    pub(super) fn new(place: Rc<Place>) -> Rc<Self> {
        Rc::new(Self {
            settings: Rc::new(place.cluster.config.http1.clone()),
            place,
            idle: RefCell::default(),
            waiting: Waiting::default(),
            open: Cell::new(0),
            connecting: Cell::new(0),
            other: OnceCell::new(),
        })
    }

    pub(super) fn set_other(&self, other: &Rc<http2::Pool>) {
        let _ = self.other.set(Rc::downgrade(other));
    }

    /// An idle connection that is alive, or the first that becomes free: a new one, unless the cluster's limit is
    /// reached. `fresh` passes the idle ones by. `pending` is the request's share while it waits, which it keeps if
    /// it has to turn to the other pool.
    pub(crate) async fn checkout(
        self: &Rc<Self>,
        fresh: bool,
        pending: &mut Option<PendingGuard>,
    ) -> Result<Checkout, Missed> {
        if !fresh && let Some(connection) = self.take_idle() {
            PendingGuard::finish(pending, false);
            return Ok(self.checked_out(connection));
        }
        let turn = self.waiting.turn(&self.place, pending, || self.grow());
        turn.await.map(|connection| self.checked_out(connection))
    }

    fn checked_out(&self, connection: Connection) -> Checkout {
        Checkout {
            state: connection.io().observer().state().clone(),
            connection,
        }
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            let mut idle = self.idle.borrow_mut().pop()?;
            if idle.connection.poll_closed(&mut cx).is_pending()
                && !idle.connection.io().observer().is_worn()
            {
                return Some(idle.connection);
            }
        }
    }

    /// Makes as many connections as there are requests that wait for one.
    fn grow(self: &Rc<Self>) {
        while self.connecting.get() < self.waiting.len() {
            let first = self.open.get() == 0;
            let Some(mut guard) = ConnectionGuard::take(&self.place, first) else {
                return;
            };
            if !self.place.server_chooses() {
                guard.speaks(Speaks::Http1);
            }
            self.own(&mut guard);
            self.connecting.set(self.connecting.get() + 1);
            // A task of its own: the connection is of use even if the request that caused it goes away.
            tokio::task::spawn_local(self.clone().make(guard));
        }
    }

    /// Counts a connection among this pool's until it is gone.
    fn own(self: &Rc<Self>, guard: &mut ConnectionGuard) {
        let pool = Rc::downgrade(self);
        guard.on_close(move || {
            if let Some(pool) = pool.upgrade() {
                pool.closed();
            }
        });
        self.open.set(self.open.get() + 1);
    }

    async fn make(self: Rc<Self>, guard: ConnectionGuard) {
        let chooses = self.place.server_chooses();
        let made = self.place.connect(protocols(chooses, "http/1.1")).await;
        self.connecting.set(self.connecting.get() - 1);
        match made {
            Ok(mut connected) => {
                guard.connected(std::mem::take(&mut connected.facts));
                if chooses && connected.http2 {
                    // It is gone only when this pool is going, too.
                    if let Some(other) = self.other.get().and_then(Weak::upgrade) {
                        self.open.set(self.open.get().saturating_sub(1));
                        other.adopt(connected, guard).await;
                    }
                    return self.waiting.miss(&Missed::Turned);
                }
                if chooses {
                    guard.speaks(Speaks::Http1);
                }
                self.put_new(connected, guard);
            }
            Err(error) => {
                guard.failed(&error);
                // As in Envoy, none of those who wait gets another try.
                self.waiting.miss(&Missed::Failed(error));
            }
        }
    }

    fn put_new(&self, connected: Connected, guard: ConnectionGuard) {
        let io = PooledIo::new(connected.io, guard);
        self.put(ClientConnection::new(io, self.settings.clone()));
    }

    /// Takes a connection that was made for the other pool.
    pub(super) fn adopt(self: &Rc<Self>, connected: Connected, mut guard: ConnectionGuard) {
        self.place.chose(Speaks::Http1);
        guard.speaks(Speaks::Http1);
        self.own(&mut guard);
        self.put_new(connected, guard);
    }

    /// Takes a connection back that was not used.
    pub(crate) fn give_back(&self, connection: Connection) {
        self.put(connection);
    }

    /// Gives a free connection to whoever has waited longest, or keeps it.
    fn put(&self, connection: Connection) {
        if let Some(connection) = self.waiting.give(connection) {
            self.idle.borrow_mut().push(Idle {
                connection,
                since: Instant::now(),
            });
        }
    }

    /// A connection is gone: those who wait may make another.
    fn closed(self: &Rc<Self>) {
        self.open.set(self.open.get().saturating_sub(1));
        self.waiting.forget_gone();
        self.grow();
    }

    /// Closes what is idle for too long, too old or dead; all that is idle if the host is `gone`.
    pub(crate) fn sweep(&self, gone: bool) {
        let timeout = self.place.cluster.config.idle_timeout;
        let mut cx = Context::from_waker(Waker::noop());
        // Dropped outside of the borrow: closing tells the pool.
        let mut dead = Vec::new();
        {
            let mut idle = self.idle.borrow_mut();
            let mut at = 0;
            while let Some(entry) = idle.get_mut(at) {
                let late = timeout.is_some_and(|timeout| entry.since.elapsed() >= timeout);
                let worn = entry.connection.io().observer().is_worn();
                if gone || late || worn || entry.connection.poll_closed(&mut cx) == Poll::Ready(())
                {
                    if late {
                        self.place.stats().upstream_cx_idle_timeout.inc();
                    }
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

    /// Whether a connection is in use or wanted.
    pub(super) fn is_used(&self) -> bool {
        self.open.get() as usize != self.idle.borrow().len() || !self.waiting.is_empty()
    }

    /// Whether nobody needs the pool: connections in use bring themselves back to it, or end.
    pub(super) fn is_empty(&self) -> bool {
        self.open.get() == 0 && self.waiting.is_empty()
    }

    /// What exchanges hand connections back to.
    pub(crate) fn recycler(self: &Rc<Self>) -> Rc<dyn Recycle<PooledIo>> {
        self.clone()
    }
}

impl Recycle<PooledIo> for Pool {
    fn recycle(&self, connection: Connection) {
        connection.io().observer().finished();
        let max = self.place.cluster.config.max_requests;
        if max.is_some_and(|max| connection.exchanges() >= u64::from(max)) {
            self.place.stats().upstream_cx_max_requests.inc();
            return;
        }
        if !self.place.host.is_removed() && !connection.io().observer().is_worn() {
            self.put(connection);
        }
    }

    fn finished(&self, io: &PooledIo, asked: bool) {
        if asked {
            self.place.stats().upstream_cx_close_notify.inc();
        }
        io.observer().finished();
    }
}
