//! HTTP/2 connections to one host, of one worker.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::http1::overflow;
use super::{ConnectionGuard, PooledIo};
use crate::http::h2::client::{ClientConnection, ClientSettings};
use crate::upstream::cluster::Cluster;
use crate::upstream::connect::{ConnectError, connect};
use crate::upstream::host::Host;

/// A pooled connection.
pub(crate) struct Pooled {
    pub(crate) connection: ClientConnection,
    pub(crate) local: Option<filters::stream::Address>,
    used: Cell<Instant>,
}

type Waiter = oneshot::Sender<Result<Rc<Pooled>, ConnectError>>;

/// Connections, and those who wait for the one that is being made.
pub(crate) struct Pool {
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    connections: RefCell<Vec<Rc<Pooled>>>,
    connecting: Cell<bool>,
    waiting: RefCell<Vec<Waiter>>,
    me: Weak<Pool>,
}

impl Pool {
    pub(super) fn new(cluster: Arc<Cluster>, host: Arc<Host>) -> Rc<Self> {
        Rc::new_cyclic(|me| Self {
            cluster,
            host,
            connections: RefCell::default(),
            connecting: Cell::new(false),
            waiting: RefCell::default(),
            me: me.clone(),
        })
    }

    /// A connection with room for a stream. Callers that come while one is being made share it.
    pub(crate) async fn checkout(self: &Rc<Self>) -> Result<Rc<Pooled>, ConnectError> {
        loop {
            let found = {
                let mut connections = self.connections.borrow_mut();
                connections.retain(|c| !c.connection.is_closed());
                connections
                    .iter()
                    .find(|c| c.connection.has_room())
                    .cloned()
            };
            if let Some(pooled) = found {
                pooled.used.set(Instant::now());
                return Ok(pooled);
            }
            if !self.cluster.breakers.default.pending.try_take() {
                return Err(overflow());
            }
            let (sender, receiver) = oneshot::channel();
            self.waiting.borrow_mut().push(sender);
            if !self.connecting.replace(true) {
                // A task of its own: it goes on when the caller who needed it first gives up.
                tokio::task::spawn_local(self.clone().make());
            }
            let made = receiver.await;
            self.cluster.breakers.default.pending.give();
            match made {
                Ok(Ok(pooled)) if pooled.connection.has_room() => return Ok(pooled),
                Ok(Ok(_)) | Err(_) => {}
                Ok(Err(error)) => return Err(error),
            }
        }
    }

    async fn make(self: Rc<Self>) {
        let made = self.connect().await;
        self.connecting.set(false);
        if let Ok(pooled) = &made {
            self.connections.borrow_mut().push(pooled.clone());
        }
        for waiter in self.waiting.take() {
            let _ = waiter.send(made.clone());
        }
    }

    async fn connect(&self) -> Result<Rc<Pooled>, ConnectError> {
        let guard = ConnectionGuard::take(&self.cluster).ok_or_else(overflow)?;
        let connected = connect(&self.cluster.config, &self.host).await?;
        let options = self.cluster.config.http2;
        let settings = ClientSettings {
            stream_window: options.stream_window,
            connection_window: options.connection_window,
            max_streams: options.max_streams,
        };
        let io = PooledIo {
            stream: connected.io,
            _guard: guard,
        };
        let connection = ClientConnection::handshake(io, settings)
            .await
            .map_err(|reason| ConnectError {
                reason,
                transport_failure: None,
            })?;
        Ok(Rc::new(Pooled {
            connection,
            local: connected.local,
            used: Cell::new(Instant::now()),
        }))
    }

    pub(super) fn sweep(&self, gone: bool) {
        let timeout = self.cluster.config.idle_timeout;
        self.connections.borrow_mut().retain(|pooled| {
            let idle = pooled.connection.active() == 0;
            let late = timeout.is_some_and(|timeout| pooled.used.get().elapsed() >= timeout);
            !(pooled.connection.is_closed() || idle && (gone || late))
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.connections.borrow().is_empty() && self.me.strong_count() <= 1
    }
}
