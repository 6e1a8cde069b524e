//! HTTP/2 connections to one host, of one worker.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Instant;

use super::guard::{ConnectionState, Freed, PendingGuard, Place, is_worn};
use super::waiting::Waiting;
use super::{ConnectionGuard, Missed, PooledIo, Speaks, http1, protocols};
use crate::http::h2::FieldLimits;
use crate::http::h2::client::{ClientConnection, ClientSettings};
use crate::upstream::connect::{ConnectError, Connected};

/// The most bytes of a response's fields, as Envoy has it by default.
const MAX_RESPONSE_FIELDS: usize = 60 << 10;

/// The most connections that are made because others are congested.
const MOST_TUNNELS: u32 = 8;

/// A pooled connection.
pub(crate) struct Pooled {
    pub(crate) connection: ClientConnection,
    pub(crate) state: Rc<ConnectionState>,
    began: Instant,
    used: Cell<Instant>,
    requests: Cell<u32>,
}

/// Connections, and those who wait for room on one.
pub(crate) struct Pool {
    place: Rc<Place>,
    connections: RefCell<Vec<Rc<Pooled>>>,
    /// Connections whose bytes are not gone yet.
    open: Cell<u32>,
    connecting: Cell<bool>,
    waiting: Waiting<Rc<Pooled>>,
    /// Where connections go whose server has chosen HTTP/1.
    other: OnceCell<Weak<http1::Pool>>,
    me: Weak<Pool>,
}

impl Pool {
    pub(super) fn new(place: Rc<Place>) -> Rc<Self> {
        Rc::new_cyclic(|me| Self {
            place,
            connections: RefCell::default(),
            open: Cell::new(0),
            connecting: Cell::new(false),
            waiting: Waiting::default(),
            other: OnceCell::new(),
            me: me.clone(),
        })
    }

    pub(super) fn set_other(&self, other: &Rc<http1::Pool>) {
        let _ = self.other.set(Rc::downgrade(other));
    }

    /// A connection with room for a stream. Those who come while one is being made share it. `pending` is as for
    /// the other pool. A `tunnel` gets one that is not congested, if there may be another.
    pub(crate) async fn checkout(
        &self,
        tunnel: bool,
        pending: &mut Option<PendingGuard>,
    ) -> Result<Rc<Pooled>, Missed> {
        let evade = tunnel && self.is_congested() && self.open.get() < MOST_TUNNELS;
        if !(evade && self.make_another())
            && let Some(pooled) = self.take()
        {
            PendingGuard::finish(pending, false);
            return Ok(pooled);
        }
        let turn = self.waiting.turn(&self.place, pending, || self.grow());
        turn.await
    }

    /// What tells this pool that a stream has ended.
    pub(crate) fn freed(&self) -> Weak<dyn Freed> {
        self.me.clone()
    }

    /// Takes a stream's place on a connection that has room.
    fn take(&self) -> Option<Rc<Pooled>> {
        let max = self.place.cluster.config.max_requests.unwrap_or(u32::MAX);
        let mut connections = self.connections.borrow_mut();
        // Those that are too old take no more streams and end with their last one.
        connections.retain(|c| !c.connection.is_closed() && !is_worn(&self.place, c.began));
        let with_room = || connections.iter().filter(|c| c.connection.has_room());
        let pooled = with_room().find(|c| !c.connection.is_congested());
        let pooled = pooled.or_else(|| with_room().next())?.clone();
        pooled.used.set(Instant::now());
        pooled.requests.set(pooled.requests.get() + 1);
        if pooled.requests.get() >= max {
            self.place.stats().upstream_cx_max_requests.inc();
            // Its streams go on; it takes no more.
            connections.retain(|c| !Rc::ptr_eq(c, &pooled));
        }
        Some(pooled)
    }

    /// Gives room to those who wait, in their order.
    fn serve(&self) {
        loop {
            if self.waiting.forget_gone() {
                return;
            }
            let Some(pooled) = self.take() else { return };
            self.waiting.give(pooled);
        }
    }

    /// Whether there are connections with room, all of them congested.
    fn is_congested(&self) -> bool {
        let connections = self.connections.borrow();
        let with_room = connections.iter().filter(|c| c.connection.has_room());
        let mut with_room = with_room.peekable();
        with_room.peek().is_some() && with_room.all(|c| c.connection.is_congested())
    }

    /// Makes a connection for those who wait, one at a time.
    fn grow(&self) {
        if !self.waiting.is_empty() {
            self.make_another();
        }
    }

    /// Makes a connection if none is being made; false if there may be no other.
    fn make_another(&self) -> bool {
        if self.connecting.get() {
            return true;
        }
        let first = self.open.get() == 0;
        let (Some(mut guard), Some(me)) =
            (ConnectionGuard::take(&self.place, first), self.me.upgrade())
        else {
            return false;
        };
        if !self.place.server_chooses() {
            guard.speaks(Speaks::Http2);
        }
        self.own(&mut guard);
        self.connecting.set(true);
        // A task of its own: it goes on when the request that needed it first gives up.
        tokio::task::spawn_local(me.make(guard));
        true
    }

    /// Counts a connection among this pool's until it is gone.
    fn own(&self, guard: &mut ConnectionGuard) {
        let pool = self.me.clone();
        guard.on_close(move || {
            if let Some(pool) = pool.upgrade() {
                pool.open.set(pool.open.get().saturating_sub(1));
                pool.grow();
            }
        });
        self.open.set(self.open.get() + 1);
    }

    async fn make(self: Rc<Self>, guard: ConnectionGuard) {
        let chooses = self.place.server_chooses();
        let mut connected = match self.place.connect(protocols(chooses, "h2")).await {
            Ok(connected) => connected,
            Err(error) => {
                guard.failed(&error);
                self.connecting.set(false);
                // A congested connection is better than none.
                self.serve();
                return self.waiting.miss(&Missed::Failed(error));
            }
        };
        guard.connected(std::mem::take(&mut connected.facts));
        if chooses && !connected.http2 {
            self.connecting.set(false);
            // It is gone only when this pool is going, too.
            if let Some(other) = self.other.get().and_then(Weak::upgrade) {
                self.open.set(self.open.get().saturating_sub(1));
                other.adopt(connected, guard);
            }
            return self.waiting.miss(&Missed::Turned);
        }
        if chooses {
            guard.speaks(Speaks::Http2);
        }
        let begun = self.begin(connected, guard).await;
        self.connecting.set(false);
        self.put(begun);
    }

    /// Takes a connection that was made for the other pool.
    pub(super) async fn adopt(&self, connected: Connected, mut guard: ConnectionGuard) {
        self.place.chose(Speaks::Http2);
        guard.speaks(Speaks::Http2);
        self.own(&mut guard);
        let begun = self.begin(connected, guard).await;
        self.put(begun);
    }

    /// Takes up a connection for those who wait, who fail with it.
    fn put(&self, begun: Result<Pooled, ConnectError>) {
        match begun {
            Ok(pooled) => {
                let useful = pooled.connection.has_room();
                self.connections.borrow_mut().push(Rc::new(pooled));
                self.serve();
                if useful {
                    self.grow();
                }
            }
            Err(error) => self.waiting.miss(&Missed::Failed(error)),
        }
    }

    async fn begin(
        &self,
        connected: Connected,
        guard: ConnectionGuard,
    ) -> Result<Pooled, ConnectError> {
        let options = &self.place.cluster.config.http2;
        let state = guard.state().clone();
        let settings = ClientSettings {
            stream_window: options.stream_window,
            connection_window: options.connection_window,
            max_streams: options.max_streams,
            limits: FieldLimits {
                bytes: MAX_RESPONSE_FIELDS,
                count: self.place.cluster.config.http1.max_headers,
            },
            keepalive: options.keepalive,
        };
        let io = PooledIo::new(connected.io, guard);
        let connection = ClientConnection::handshake(io, settings)
            .await
            .map_err(|reason| ConnectError {
                reason,
                transport_failure: None,
            })?;
        Ok(Pooled {
            connection,
            state,
            began: Instant::now(),
            used: Cell::new(Instant::now()),
            requests: Cell::new(0),
        })
    }

    pub(super) fn sweep(&self, gone: bool) {
        let timeout = self.place.cluster.config.idle_timeout;
        self.connections.borrow_mut().retain(|pooled| {
            let idle = pooled.connection.active() == 0;
            let late = timeout.is_some_and(|timeout| pooled.used.get().elapsed() >= timeout);
            if idle && late {
                self.place.stats().upstream_cx_idle_timeout.inc();
            }
            !(pooled.connection.is_closed() || gone || idle && late)
        });
    }

    /// Whether a connection is in use or wanted.
    pub(super) fn is_used(&self) -> bool {
        let connections = self.connections.borrow();
        // One that takes no more requests may have some yet.
        self.open.get() as usize != connections.len()
            || connections.iter().any(|c| c.connection.active() > 0)
            || !self.waiting.is_empty()
    }

    /// Whether nobody needs the pool.
    pub(super) fn is_empty(&self) -> bool {
        self.connections.borrow().is_empty() && !self.connecting.get() && self.waiting.is_empty()
    }
}

impl Freed for Pool {
    fn freed(&self) {
        if !self.waiting.is_empty() {
            self.serve();
        }
    }
}
