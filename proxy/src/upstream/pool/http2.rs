//! HTTP/2 connections to one host, of one worker.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::time::Instant;

use filters::stream::Address;
use tokio::sync::oneshot;

use super::guard::{ConnectionState, Freed, PendingGuard, Place, is_worn};
use super::http1::overflow;
use super::{ConnectionGuard, PooledIo, Speaks};
use crate::http::h2::client::{ClientConnection, ClientSettings};
use crate::upstream::connect::{ConnectError, connect};

/// A pooled connection.
pub(crate) struct Pooled {
    pub(crate) connection: ClientConnection,
    pub(crate) state: Rc<ConnectionState>,
    pub(crate) local: Option<Address>,
    began: Instant,
    used: Cell<Instant>,
    requests: Cell<u32>,
}

/// Where one who waits learns of a connection with room.
type Waiter = oneshot::Sender<Result<Rc<Pooled>, ConnectError>>;

/// Connections, and those who wait for room on one.
pub(crate) struct Pool {
    place: Rc<Place>,
    connections: RefCell<Vec<Rc<Pooled>>>,
    /// Connections whose bytes are not gone yet.
    open: Cell<u32>,
    connecting: Cell<bool>,
    waiting: RefCell<VecDeque<Waiter>>,
    me: Weak<Pool>,
}

impl Pool {
    pub(super) fn new(place: Rc<Place>) -> Rc<Self> {
        Rc::new_cyclic(|me| Self {
            place,
            connections: RefCell::default(),
            open: Cell::new(0),
            connecting: Cell::new(false),
            waiting: RefCell::default(),
            me: me.clone(),
        })
    }

    /// A connection with room for a stream. Those who come while one is being made share it.
    pub(crate) async fn checkout(&self) -> Result<Rc<Pooled>, ConnectError> {
        if let Some(pooled) = self.take() {
            return Ok(pooled);
        }
        let pending = PendingGuard::take(&self.place).ok_or_else(overflow)?;
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().push_back(sender);
        self.grow();
        // The sender is dropped unused only with the pool itself.
        let given = receiver.await.unwrap_or_else(|_| Err(overflow()));
        pending.served(given.is_err());
        given
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
        let pooled = connections.iter().find(|c| c.connection.has_room())?;
        let pooled = pooled.clone();
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
            self.waiting.borrow_mut().retain(|w| !w.is_closed());
            if self.waiting.borrow().is_empty() {
                return;
            }
            let Some(pooled) = self.take() else { return };
            let waiter = self.waiting.borrow_mut().pop_front();
            if let Some(waiter) = waiter {
                let _ = waiter.send(Ok(pooled));
            }
        }
    }

    /// Makes a connection for those who wait, one at a time.
    fn grow(&self) {
        if self.connecting.get() || self.waiting.borrow().is_empty() {
            return;
        }
        let first = self.open.get() == 0;
        let (Some(mut guard), Some(me)) = (
            ConnectionGuard::take(&self.place, Speaks::Http2, first),
            self.me.upgrade(),
        ) else {
            return;
        };
        let pool = self.me.clone();
        guard.on_close(move || {
            if let Some(pool) = pool.upgrade() {
                pool.open.set(pool.open.get().saturating_sub(1));
                pool.grow();
            }
        });
        self.open.set(self.open.get() + 1);
        self.connecting.set(true);
        // A task of its own: it goes on when the request that needed it first gives up.
        tokio::task::spawn_local(me.make(guard));
    }

    async fn make(self: Rc<Self>, guard: ConnectionGuard) {
        let made = self.connect(guard).await;
        self.connecting.set(false);
        match made {
            Ok(pooled) => {
                let useful = pooled.connection.has_room();
                self.connections.borrow_mut().push(Rc::new(pooled));
                self.serve();
                if useful {
                    self.grow();
                }
            }
            Err(error) => {
                for waiter in self.waiting.take() {
                    let _ = waiter.send(Err(error.clone()));
                }
            }
        }
    }

    async fn connect(&self, guard: ConnectionGuard) -> Result<Pooled, ConnectError> {
        let config = &self.place.cluster.config;
        let connected = match connect(config, &self.place.host).await {
            Ok(connected) => connected,
            Err(error) => {
                guard.failed(&error);
                return Err(error);
            }
        };
        guard.connected();
        let state = guard.state().clone();
        let settings = ClientSettings {
            stream_window: config.http2.stream_window,
            connection_window: config.http2.connection_window,
            max_streams: config.http2.max_streams,
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
            local: connected.local,
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

    /// Whether nobody needs the pool.
    pub(super) fn is_empty(&self) -> bool {
        self.connections.borrow().is_empty()
            && !self.connecting.get()
            && self.waiting.borrow().is_empty()
    }
}

impl Freed for Pool {
    fn freed(&self) {
        if !self.waiting.borrow().is_empty() {
            self.serve();
        }
    }
}
