//! One listener on one worker: accept, limits, listener filters, chain match, and the drain of what it
//! accepted.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use filters::stream::{Address, ConnectionInfo};
use pingora_core::protocols::Stream;
use pingora_core::protocols::l4::stream::Stream as L4Stream;
use rustc_hash::FxHashMap;
use socket2::{SockRef, Socket};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::AbortHandle;

use super::compiled::{CompiledListener, FilterChainHandler};
use super::drain::DrainPlan;
use super::filter_chain_match::MatchInput;
use super::listener_stats::{Count, ListenerStats, ManagerStats};
use super::sniff::{self, Sniff};
use super::socket::BindAddress;
use crate::http::service::ConnectionControl;
use crate::telemetry::stats::{Scope, Stats};

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
}

/// What the workers' parts of one listener share.
#[derive(Debug)]
pub struct ListenerShared {
    /// Its number in the process.
    pub id: u64,
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
    /// Where listeners make their stats.
    pub scope: Scope,
    next_connection: AtomicU64,
}

impl ListenerContext {
    /// A context with a limit of `max_connections`.
    pub fn new(max_connections: u64, stats: &Stats) -> Self {
        Self {
            global: GlobalLimit::new(max_connections),
            stats: ManagerStats::new(&stats.scope("listener_manager.")),
            scope: stats.scope(""),
            next_connection: AtomicU64::new(1),
        }
    }
}

/// How often a drain looks whether it is done.
fn tick(plan: DrainPlan) -> Duration {
    (plan.time / 20).clamp(Duration::from_millis(5), Duration::from_millis(250))
}

struct Entry {
    control: ConnectionControl,
    abort: AbortHandle,
    /// `None` while listener filters run.
    handler: Option<Arc<dyn FilterChainHandler>>,
}

/// A listener as a worker runs it.
pub(super) struct WorkerListener {
    context: Arc<ListenerContext>,
    shared: Arc<ListenerShared>,
    config: RefCell<Arc<CompiledListener>>,
    accepts: RefCell<Vec<AbortHandle>>,
    connections: RefCell<FxHashMap<u64, Entry>>,
}

enum Acceptor {
    Tcp(TcpListener),
    Unix(UnixListener, Arc<str>),
}

enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream, Arc<str>),
}

impl WorkerListener {
    /// Starts to accept on `sockets`. Must run inside the worker's `LocalSet`.
    pub(super) fn start(
        context: Arc<ListenerContext>,
        shared: Arc<ListenerShared>,
        config: Arc<CompiledListener>,
        sockets: Vec<(Socket, BindAddress)>,
    ) -> Rc<Self> {
        let listener = Rc::new(Self {
            context,
            shared,
            config: RefCell::new(config),
            accepts: RefCell::default(),
            connections: RefCell::default(),
        });
        for (socket, address) in sockets {
            let acceptor = match &address {
                BindAddress::Tcp { .. } => TcpListener::from_std(socket.into()).map(Acceptor::Tcp),
                BindAddress::Pipe { path, .. } => {
                    UnixListener::from_std(socket.into()).map(|l| Acceptor::Unix(l, path.clone()))
                }
            };
            match acceptor {
                Ok(acceptor) => {
                    let task = tokio::task::spawn_local(listener.clone().accept_loop(acceptor));
                    listener.accepts.borrow_mut().push(task.abort_handle());
                }
                Err(e) => tracing::error!("cannot poll listening socket {address}: {e}"),
            }
        }
        listener
    }

    /// Whether it takes inbound traffic.
    pub(super) fn is_inbound(&self) -> bool {
        self.config.borrow().inbound
    }

    /// Takes a new configuration; connections whose chain is gone are drained by `plan`.
    pub(super) fn update(self: &Rc<Self>, config: Arc<CompiledListener>, plan: DrainPlan) {
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
                listener.drain_connections(gone.clone(), plan).await;
                listener.close(&gone);
            });
        }
    }

    /// Takes no more connections. The sockets close once the worker has run on.
    pub(super) fn stop_accepting(&self) {
        for task in self.accepts.borrow_mut().drain(..) {
            task.abort();
        }
    }

    /// Asks every connection to end, waits for them, closes the rest at the deadline.
    pub(super) async fn drain(&self, plan: DrainPlan) {
        self.drain_connections(self.ids(|_| true), plan).await;
        self.close(&self.ids(|_| true));
    }

    /// Drains while it goes on accepting; newcomers are asked to end too. Stops accepting and closes what
    /// is left at the deadline, or once idle with `until_idle`.
    pub(super) async fn drain_serving(self: &Rc<Self>, plan: DrainPlan, until_idle: bool) {
        let present = self.ids(|_| true);
        let newest = present.iter().copied().max().unwrap_or(0);
        let listener = self.clone();
        let asking = tokio::task::spawn_local(async move {
            listener.drain_connections(present, plan).await;
        });
        while std::time::Instant::now() < plan.deadline() {
            if until_idle && self.connections.borrow().is_empty() {
                break;
            }
            // A newcomer gets a tick to send its first request before it is asked.
            tokio::time::sleep(tick(plan)).await;
            let newcomers: Vec<ConnectionControl> = {
                let connections = self.connections.borrow();
                let new = connections.iter().filter(|(id, _)| **id > newest);
                new.map(|(_, e)| e.control.clone()).collect()
            };
            newcomers.iter().for_each(ConnectionControl::drain);
        }
        asking.abort();
        self.stop_accepting();
        self.close(&self.ids(|_| true));
    }

    fn ids(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<u64> {
        let connections = self.connections.borrow();
        let wanted = connections.iter().filter(|(_, e)| wanted(e));
        wanted.map(|(id, _)| *id).collect()
    }

    async fn drain_connections(&self, ids: Vec<u64>, plan: DrainPlan) {
        let mut order: Vec<(Duration, u64)> = ids.iter().map(|id| (plan.delay(), *id)).collect();
        order.sort_unstable();
        for (delay, id) in order {
            tokio::time::sleep_until((plan.start + delay).into()).await;
            let control = self
                .connections
                .borrow()
                .get(&id)
                .map(|e| e.control.clone());
            if let Some(control) = control {
                control.drain();
            }
        }
        let deadline = plan.deadline();
        while std::time::Instant::now() < deadline {
            let left = {
                let connections = self.connections.borrow();
                ids.iter().any(|id| connections.contains_key(id))
            };
            if !left {
                return;
            }
            tokio::time::sleep(tick(plan)).await;
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
        let mut taken = 0_usize;
        loop {
            let accepted = match &acceptor {
                Acceptor::Tcp(l) => l.accept().await.map(|(s, _)| Accepted::Tcp(s)),
                Acceptor::Unix(l, path) => l
                    .accept()
                    .await
                    .map(|(s, _)| Accepted::Unix(s, path.clone())),
            };
            match accepted {
                Ok(io) => {
                    back_off = Duration::from_millis(10);
                    self.admit(io);
                    taken += 1;
                    if taken >= self.config.borrow().accepts_per_event {
                        taken = 0;
                    } else {
                        continue;
                    }
                    tokio::task::yield_now().await;
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
    }

    /// Counts a socket in, or drops it at a limit, and starts its task.
    fn admit(self: &Rc<Self>, io: Accepted) {
        let stats = &self.shared.stats;
        let counted_globally = !self.config.borrow().ignore_global_limit;
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
        stats.downstream_cx_active.inc();
        stats.downstream_cx_total.inc();
        let id = self.context.next_connection.fetch_add(1, Ordering::Relaxed);
        let control = ConnectionControl::default();
        let guard = ConnectionGuard {
            listener: self.clone(),
            id,
            counted_globally,
        };
        let task = tokio::task::spawn_local(guard.run(io, control.clone()));
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

/// Takes a connection out of the books when its task ends, however it ends: return, abort or panic.
struct ConnectionGuard {
    listener: Rc<WorkerListener>,
    id: u64,
    counted_globally: bool,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        // Tokio catches the panic at the task's boundary; the worker goes on.
        if std::thread::panicking() {
            self.listener.context.stats.connection_panics.inc();
        }
        let stats = &self.listener.shared.stats;
        self.listener.shared.active.dec();
        stats.downstream_cx_active.dec();
        stats.downstream_cx_destroy.inc();
        if self.counted_globally {
            self.listener.context.global.active.dec();
        }
        let entry = self.listener.connections.borrow_mut().remove(&self.id);
        drop(entry);
    }
}

/// What the listener filters found out.
#[derive(Default)]
struct Sniffed {
    prefix: BytesMut,
    server_name: String,
    transport: &'static str,
    protocols: Vec<String>,
}

impl ConnectionGuard {
    async fn run(self, mut io: Accepted, control: ConnectionControl) {
        let listener = &self.listener;
        let config = listener.config.borrow().clone();
        let Ok((direct_remote, mut local)) = io.addresses() else {
            return; // reset already
        };
        if let Accepted::Tcp(stream) = &io {
            // Envoy's transports do the same; a failure only costs latency.
            let _ = stream.set_nodelay(true);
        }
        if config
            .filters
            .original_dst
            .runs(local.ip().map_or(0, |a| a.port()))
        {
            local = io.original_destination().unwrap_or(local);
        }
        let port = local.ip().map_or(0, |a| a.port());
        let mut sniffed = Sniffed::default();
        let stats = &listener.shared.stats;
        stats.downstream_pre_cx_active.inc();
        let looked = match config.filters_timeout {
            Some(timeout) => tokio::time::timeout(timeout, sniffed.look(&mut io, &config, port))
                .await
                .ok(),
            None => Some(sniffed.look(&mut io, &config, port).await),
        };
        stats.downstream_pre_cx_active.dec();
        match looked {
            Some(Ok(())) => {}
            Some(Err(_)) => return,
            None => {
                stats.downstream_pre_cx_timeout.inc();
                if !config.continue_on_timeout {
                    return;
                }
            }
        }
        // The configuration may have changed while the client was silent.
        let config = listener.config.borrow().clone();
        let protocols: Vec<&str> = sniffed.protocols.iter().map(String::as_str).collect();
        let found = config.index.find(&MatchInput {
            destination: local.ip(),
            source: direct_remote.ip(),
            direct_source: direct_remote.ip(),
            server_name: &sniffed.server_name,
            transport_protocol: sniffed.transport,
            application_protocols: &protocols,
        });
        let chain = found
            .or(config.default_chain)
            .and_then(|position| config.chains.get(position));
        let Some(chain) = chain else {
            stats.no_filter_chain_match.inc();
            return;
        };
        if let Some(entry) = listener.connections.borrow_mut().get_mut(&self.id) {
            entry.handler = Some(chain.handler.clone());
        }
        let info = Rc::new(ConnectionInfo {
            id: self.id,
            remote: direct_remote.clone(),
            direct_remote,
            local,
            server_name: (!sniffed.server_name.is_empty())
                .then(|| sniffed.server_name.as_str().into()),
            alpn: sniffed.protocols.first().map(|p| p.as_str().into()),
            secure: false,
            listener: config.name.clone(),
            filter_chain: chain.name.clone(),
        });
        let prefix: Bytes = sniffed.prefix.freeze();
        let serving = chain.handler.serve(io.into_stream(), prefix, info, control);
        // An old configuration must not live as long as its last idle connection.
        drop(config);
        serving.await;
    }
}

impl Sniffed {
    async fn look(
        &mut self,
        io: &mut Accepted,
        config: &CompiledListener,
        port: u16,
    ) -> io::Result<()> {
        if config.filters.tls_inspector.runs(port) {
            loop {
                match sniff::client_hello(&self.prefix) {
                    Sniff::More => io.read(&mut self.prefix).await?,
                    Sniff::No => {
                        self.transport = "raw_buffer";
                        break;
                    }
                    Sniff::Yes(hello) => {
                        self.transport = "tls";
                        self.server_name = hello.server_name;
                        self.protocols = hello.alpn;
                        break;
                    }
                }
            }
        }
        if self.transport != "tls" && config.filters.http_inspector.runs(port) {
            loop {
                match sniff::http(&self.prefix) {
                    Sniff::More => io.read(&mut self.prefix).await?,
                    Sniff::No => break,
                    Sniff::Yes(protocol) => {
                        self.protocols = vec![protocol.to_owned()];
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Accepted {
    /// The peer's and our own address.
    fn addresses(&self) -> io::Result<(Address, Address)> {
        Ok(match self {
            Self::Tcp(s) => (Address::Ip(s.peer_addr()?), Address::Ip(s.local_addr()?)),
            Self::Unix(_, path) => (Address::Pipe("".into()), Address::Pipe(path.clone())),
        })
    }

    /// Where the peer meant to go before a redirect (`SO_ORIGINAL_DST`).
    fn original_destination(&self) -> Option<Address> {
        let Self::Tcp(stream) = self else { return None };
        let socket = SockRef::from(stream);
        let address = match stream.local_addr().ok()?.ip().to_canonical() {
            std::net::IpAddr::V4(_) => socket.original_dst_v4(),
            std::net::IpAddr::V6(_) => socket.original_dst_v6(),
        };
        address.ok()?.as_socket().map(Address::Ip)
    }

    /// Reads once. The callers stop long before the buffer grows past their own limits.
    async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<()> {
        buffer.reserve(1024);
        let n = match self {
            Self::Tcp(s) => s.read_buf(buffer).await?,
            Self::Unix(s, _) => s.read_buf(buffer).await?,
        };
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    fn into_stream(self) -> Stream {
        match self {
            Self::Tcp(s) => Box::new(L4Stream::from(s)),
            Self::Unix(s, _) => Box::new(L4Stream::from(s)),
        }
    }
}
