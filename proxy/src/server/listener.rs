//! One listener on one worker: accept, limits, and the drain of what it accepted.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use rustc_hash::FxHashMap;
use socket2::Socket;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinHandle};

use super::accepted::Accepted;
use super::acceptor::Acceptor;
use super::compiled::{CompiledListener, FilterChainHandler};
use super::connection::ConnectionGuard;
use super::connection_drain::ConnectionDrain;
use super::drain::{DrainEnd, DrainPlan};
use super::hand_over::Owners;
use super::listener_filters::Found;
use super::listener_stats::{Count, ListenerStats, ManagerStats, WorkerStats};
use super::socket::BindAddress;
use crate::http::service::ConnectionControl;
use crate::internal::InternalConnection;
use crate::internal::registry::{self, Accept};
use crate::telemetry::stats::{Counter, Scope, Stats};

/// The connection limit of the process (`overload.global_downstream_max_connections`).
#[derive(Debug)]
pub struct GlobalLimit {
    active: Count,
    max: AtomicU64,
}

impl GlobalLimit {
    /// A limit of `max` connections.
    pub fn new(max: u64) -> Self {
        Self {
            active: Count::default(),
            max: AtomicU64::new(max),
        }
    }

    /// Changes the limit; connections above it stay.
    pub fn set_max(&self, max: u64) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Connections that count now.
    pub fn active(&self) -> u64 {
        self.active.get()
    }

    /// A connection that counted is over.
    pub(super) fn release(&self) {
        self.active.dec();
    }
}

/// What the workers' parts of one listener share.
#[derive(Debug)]
pub struct ListenerShared {
    /// Its number in the process.
    pub id: u64,
    /// `listener.<address or stat_prefix>.`
    pub scope: Scope,
    /// Its numbers.
    pub stats: ListenerStats,
    /// Connections now, as the limit is checked against.
    pub active: Count,
    /// `envoy.resource_limits.listener.<name>.connection_limit`
    pub limit: u64,
}

/// What all listeners of the process share.
#[derive(Debug)]
pub struct ListenerContext {
    /// The connection limit of the process.
    pub global: GlobalLimit,
    /// The manager's numbers.
    pub stats: ManagerStats,
    /// `fairway.connection_panics`: tasks of connections that ended in a panic, with their connection or HTTP/2 stream.
    pub connection_panics: Counter,
    /// Where listeners make their stats.
    pub scope: Scope,
    /// Set while health checks are failed: every response asks to close, as Envoy's do.
    pub unhealthy: Arc<AtomicBool>,
    /// How many bytes each direction of an internal connection buffers; `None` without
    /// `envoy.bootstrap.internal_listener`, and there are no internal listeners then.
    pub internal_buffer: Option<usize>,
    /// Connections of all listeners now.
    open: Count,
    next_connection: AtomicU64,
}

impl ListenerContext {
    /// A context with a limit of `max_connections`.
    pub fn new(max_connections: u64, stats: &Stats) -> Self {
        Self {
            global: GlobalLimit::new(max_connections),
            stats: ManagerStats::new(&stats.scope("listener_manager.")),
            connection_panics: stats.scope("fairway.").counter("connection_panics"),
            scope: stats.scope(""),
            unhealthy: Arc::default(),
            internal_buffer: None,
            open: Count::default(),
            next_connection: AtomicU64::new(1),
        }
    }
}

/// A connection in the listener's book.
struct Entry {
    control: ConnectionControl,
    abort: AbortHandle,
    /// `None` while listener filters run.
    handler: Option<Arc<dyn FilterChainHandler>>,
}

/// A listener as a worker runs it.
pub(super) struct WorkerListener {
    pub(super) context: Arc<ListenerContext>,
    pub(super) shared: Arc<ListenerShared>,
    pub(super) stats: WorkerStats,
    config: RefCell<Arc<CompiledListener>>,
    accepts: RefCell<Vec<JoinHandle<()>>>,
    stopping: Cell<bool>,
    stop: Notify,
    /// The listeners of this worker by address.
    owners: Rc<Owners>,
    connections: RefCell<FxHashMap<u64, Entry>>,
}

impl WorkerListener {
    /// Starts to accept on `sockets`. Must run inside the worker's `LocalSet`.
    pub(super) fn start(
        worker: usize,
        context: Arc<ListenerContext>,
        owners: Rc<Owners>,
        shared: Arc<ListenerShared>,
        config: Arc<CompiledListener>,
        sockets: Vec<(Socket, BindAddress)>,
    ) -> Rc<Self> {
        let own = shared.scope.scope(&format!("worker_{worker}."));
        let listener = Rc::new(Self {
            stats: WorkerStats::new(&own),
            context,
            shared,
            config: RefCell::new(config),
            accepts: RefCell::default(),
            stopping: Cell::new(false),
            stop: Notify::new(),
            owners,
            connections: RefCell::default(),
        });
        let config = listener.config();
        if config.internal {
            registry::register(config.name.clone(), listener.as_accept());
        }
        if !config.bind_to_port {
            listener.owners.add(&config.addresses, &listener);
        }
        let own = config.socket.reuse_port;
        for (socket, address) in sockets {
            listener
                .owners
                .add(std::slice::from_ref(&address), &listener);
            match Acceptor::new(socket, &address, own) {
                Ok(acceptor) => {
                    let task = tokio::task::spawn_local(listener.clone().accept_loop(acceptor));
                    listener.accepts.borrow_mut().push(task);
                }
                Err(e) => tracing::error!("cannot poll listening socket {address}: {e}"),
            }
        }
        listener
    }

    fn as_accept(self: &Rc<Self>) -> Weak<dyn Accept> {
        let accept: Rc<dyn Accept> = self.clone();
        Rc::downgrade(&accept)
    }

    /// Whether it takes inbound traffic.
    pub(super) fn is_inbound(&self) -> bool {
        self.config.borrow().inbound
    }

    /// Takes a new configuration; connections whose chain is gone are drained by `plan`, and `done` is dropped
    /// when none is left.
    pub(super) fn update(
        self: &Rc<Self>,
        config: Arc<CompiledListener>,
        plan: DrainPlan,
        done: Arc<dyn Send + Sync>,
    ) {
        *self.config.borrow_mut() = config.clone();
        let gone = self.ids(|entry| {
            entry
                .handler
                .as_ref()
                .is_some_and(|h| !config.has_handler(h))
        });
        if !gone.is_empty() {
            let listener = self.clone();
            tokio::task::spawn_local(async move {
                listener.drain_connections(&gone, plan).await;
                listener.close(&gone);
                drop(done);
            });
        }
    }

    /// Takes no more connections than have begun, and returns when the sockets are closed.
    pub(super) async fn stop_accepting(self: &Rc<Self>) {
        self.stopping.set(true);
        registry::unregister(&self.config().name, &self.as_accept());
        self.owners.remove(self);
        self.stop.notify_waiters();
        let accepts = std::mem::take(&mut *self.accepts.borrow_mut());
        for task in accepts {
            // It ends by itself; if it panicked, its socket is closed all the same.
            let _ = task.await;
        }
    }

    /// Stops accepting, asks every connection to end, waits for them, closes the rest at the deadline.
    pub(super) async fn drain(self: &Rc<Self>, plan: DrainPlan) {
        self.stop_accepting().await;
        self.drain_connections(&self.ids(|_| true), plan).await;
        self.close(&self.ids(|_| true));
    }

    /// Drains while it goes on accepting; newcomers are asked to end too.
    pub(super) async fn drain_serving(self: &Rc<Self>, plan: DrainPlan, end: DrainEnd) {
        let mut drain = ConnectionDrain::new(plan, self.ids(|_| true));
        loop {
            let over = Instant::now() >= plan.deadline();
            let stops = match end {
                DrainEnd::Never => false,
                DrainEnd::Deadline => over,
                // Not only here: a worker that closed its socket alone would leave its share of the newcomers
                // without an answer.
                DrainEnd::Idle => over || self.is_idle(),
            };
            if stops {
                break;
            }
            drain.step(|id| self.control(id));
            drain.add(self.ids(|_| true));
            tokio::time::sleep(drain.tick()).await;
        }
        match end {
            DrainEnd::Idle => self.drain(plan).await,
            DrainEnd::Never | DrainEnd::Deadline => self.stop_from_outside().await,
        }
    }

    /// Whether nobody needs the listener any longer. An internal one is needed as long as there is any connection: one
    /// that is open may go on to it with its next request.
    fn is_idle(&self) -> bool {
        match self.config.borrow().internal {
            true => self.context.open.get() == 0,
            false => self.shared.active.get() == 0,
        }
    }

    /// Takes no more connections from outside. What comes from inside belongs to a connection that stays.
    pub(super) async fn stop_from_outside(self: &Rc<Self>) {
        if !self.config().internal {
            self.stop_accepting().await;
        }
    }

    /// The configuration of now.
    pub(super) fn config(&self) -> Arc<CompiledListener> {
        self.config.borrow().clone()
    }

    /// A connection has found its chain.
    pub(super) fn note_handler(&self, id: u64, handler: &Arc<dyn FilterChainHandler>) {
        if let Some(entry) = self.connections.borrow_mut().get_mut(&id) {
            entry.handler = Some(handler.clone());
        }
    }

    /// A connection is over.
    pub(super) fn forget(&self, id: u64) {
        self.context.open.dec();
        let entry = self.connections.borrow_mut().remove(&id);
        // Outside the borrow, whatever a handler does at its end.
        drop(entry);
    }

    fn ids(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<u64> {
        let connections = self.connections.borrow();
        let wanted = connections.iter().filter(|(_, e)| wanted(e));
        wanted.map(|(id, _)| *id).collect()
    }

    fn control(&self, id: u64) -> Option<ConnectionControl> {
        let connections = self.connections.borrow();
        connections.get(&id).map(|entry| entry.control.clone())
    }

    /// Returns when they are gone, or the drain time is over.
    async fn drain_connections(&self, ids: &[u64], plan: DrainPlan) {
        let mut drain = ConnectionDrain::new(plan, ids.iter().copied());
        while drain.step(|id| self.control(id)) && Instant::now() < plan.deadline() {
            tokio::time::sleep(drain.tick()).await;
        }
    }

    fn close(&self, ids: &[u64]) {
        let aborts: Vec<AbortHandle> = {
            let connections = self.connections.borrow();
            let entries = ids.iter().filter_map(|id| connections.get(id));
            entries.map(|e| e.abort.clone()).collect()
        };
        // Outside the borrow: the end of a task takes its entry out.
        aborts.iter().for_each(AbortHandle::abort);
    }

    async fn accept_loop(self: Rc<Self>, acceptor: Acceptor) {
        let mut back_off = Duration::from_millis(10);
        // Nothing runs between the look and the wait that could set it: one thread.
        while !self.stopping.get() {
            let mut next = tokio::select! {
                biased;
                () = self.stop.notified() => break,
                accepted = acceptor.accept() => Some(accepted),
            };
            let most = self.config.borrow().accepts_per_event;
            let mut taken = 0_usize;
            // What is queued is taken in one go; tokio's budget ends that even where nothing else does.
            while let Some(accepted) = next.take() {
                match accepted {
                    Ok(io) => {
                        back_off = Duration::from_millis(10);
                        self.admit(io);
                        taken += 1;
                        if taken < most {
                            next = acceptor.accept().now_or_never();
                        }
                    }
                    // The peer was gone before it was accepted: the next one may be fine.
                    Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(e) => {
                        // Out of descriptors or memory. The queue stays; ask again, but do not spin.
                        tracing::warn!("accept: {e}; again in {back_off:?}");
                        tokio::time::sleep(back_off).await;
                        back_off = (back_off * 2).min(Duration::from_secs(1));
                    }
                }
            }
            if taken > 0 {
                let stats = &self.shared.stats;
                let taken = u64::try_from(taken).unwrap_or(u64::MAX);
                stats.connections_accepted_per_socket_event.record(taken);
            }
            tokio::task::yield_now().await;
        }
        acceptor.finish(|io| self.admit(io)).await;
    }

    /// Counts a socket in, or drops it at a limit, and starts its task.
    fn admit(self: &Rc<Self>, io: Accepted) {
        let stats = &self.shared.stats;
        // What comes from inside the process has been counted when it came in.
        let internal = matches!(io, Accepted::Internal(_));
        let counted_globally = !internal && !self.config.borrow().ignore_global_limit;
        let global = &self.context.global;
        if counted_globally && !global.active.inc_below(global.max.load(Ordering::Relaxed)) {
            stats.downstream_global_cx_overflow.inc();
            return;
        }
        if !self.shared.active.inc_below(self.shared.limit) {
            if counted_globally {
                global.active.dec();
            }
            stats.downstream_cx_overflow.inc();
            return;
        }
        self.begin(io, None, counted_globally);
    }

    /// The listener that owns the original destination of a connection to this one, if that is another.
    pub(super) fn owner_of(self: &Rc<Self>, found: &Found) -> Option<Rc<Self>> {
        let owner = self.owners.find(found.local.ip()?)?;
        (!Rc::ptr_eq(&owner, self)).then_some(owner)
    }

    /// Takes a connection over from another listener, whose limits it has passed; those of this one do not count.
    pub(super) fn take_over(self: &Rc<Self>, io: Accepted, found: Found, counted_globally: bool) {
        self.shared.active.inc_below(u64::MAX);
        self.begin(io, Some(found.handed_over()), counted_globally);
    }

    /// Starts the task of a connection that has been counted. `found`: what another listener knows of it.
    fn begin(self: &Rc<Self>, io: Accepted, found: Option<Found>, counted_globally: bool) {
        self.context.open.inc_below(u64::MAX);
        let id = self.context.next_connection.fetch_add(1, Ordering::Relaxed);
        let (unhealthy, panics) = (&self.context.unhealthy, &self.context.connection_panics);
        let control = ConnectionControl::new(unhealthy.clone(), panics.clone());
        let guard = ConnectionGuard::new(self.clone(), id, counted_globally, control.clone());
        let task = tokio::task::spawn_local(guard.run(io, found));
        self.connections.borrow_mut().insert(
            id,
            Entry {
                control,
                abort: task.abort_handle(),
                handler: None,
            },
        );
    }
}

impl Accept for WorkerListener {
    fn buffer_size(&self) -> usize {
        self.context.internal_buffer.unwrap_or_default()
    }

    fn accept(self: Rc<Self>, connection: InternalConnection) {
        self.admit(Accepted::Internal(connection));
    }
}
