//! Adds, changes and removes listeners on the running workers.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use envoy_types::pb::envoy::config::listener::v3::Listener;
use socket2::Socket;
use tokio::sync::oneshot;
use xds_client::error::{At, ConfigError};

use super::compiled::{CompiledListener, FilterChainCompiler};
use super::drain::{DrainEnd, DrainManager, DrainPlan};
use super::listener::{ListenerContext, ListenerShared};
use super::listener_stats::{Count, ListenerStats};
use super::socket::{self, BindAddress};
use super::worker::{Command, WorkerHandle};
use crate::internal::spread;

/// Reads a whole-number runtime key, such as a listener's connection limit.
pub type RuntimeLookup = Arc<dyn Fn(&str) -> Option<u64> + Send + Sync>;

type Sockets = Vec<Vec<(Socket, BindAddress)>>;

struct Active {
    /// Its place among the listeners: when its name was first added.
    order: u64,
    shared: Arc<ListenerShared>,
    config: Arc<CompiledListener>,
    bound: Vec<BindAddress>,
    /// Sockets per worker that wait for the workers to start.
    waiting: Option<Sockets>,
}

/// The listeners of the process. Lives on the control side, in one hand.
pub struct ListenerManager {
    context: Arc<ListenerContext>,
    drain: Arc<DrainManager>,
    compiler: Arc<dyn FilterChainCompiler>,
    runtime: RuntimeLookup,
    concurrency: usize,
    workers: Vec<WorkerHandle>,
    listeners: BTreeMap<String, Active>,
    next_id: u64,
}

/// Becomes ready when a drain is over on every worker.
pub struct Drained(oneshot::Receiver<()>);

impl Drained {
    /// Waits for the end of the drain.
    pub async fn wait(self) {
        // The sender is dropped, never used: the error is the signal.
        let _ = self.0.await;
    }
}

/// Dropped by the last worker that has drained a listener.
struct DrainingListener {
    context: Arc<ListenerContext>,
}

impl Drop for DrainingListener {
    fn drop(&mut self) {
        self.context.stats.total_listeners_draining.dec();
        self.context.stats.listener_stopped.inc();
    }
}

/// Dropped by the last worker that has drained the chains that an update took away.
struct DrainingChains {
    context: Arc<ListenerContext>,
    count: i64,
}

impl DrainingChains {
    fn new(context: &Arc<ListenerContext>, old: &CompiledListener, new: &CompiledListener) -> Self {
        let gone = old.chains.iter().filter(|c| !new.has_handler(&c.handler));
        let count = i64::try_from(gone.count()).unwrap_or(i64::MAX);
        let context = context.clone();
        context.stats.total_filter_chains_draining.add(count);
        Self { context, count }
    }
}

impl Drop for DrainingChains {
    fn drop(&mut self) {
        let gauge = &self.context.stats.total_filter_chains_draining;
        gauge.add(-self.count);
    }
}

impl ListenerManager {
    /// A manager for `concurrency` workers, none of which runs yet.
    pub fn new(
        concurrency: usize,
        context: Arc<ListenerContext>,
        drain: Arc<DrainManager>,
        compiler: Arc<dyn FilterChainCompiler>,
        runtime: RuntimeLookup,
    ) -> Self {
        Self {
            context,
            drain,
            compiler,
            runtime,
            concurrency: concurrency.max(1),
            workers: Vec::new(),
            listeners: BTreeMap::new(),
            next_id: 1,
        }
    }

    /// Starts the workers; listeners applied before begin to accept now.
    ///
    /// # Errors
    /// A thread or runtime cannot be made.
    pub fn start_workers(&mut self) -> io::Result<()> {
        let workers = spread::Workers::new(self.concurrency);
        for index in self.workers.len()..self.concurrency {
            self.workers.push(WorkerHandle::start(
                index,
                self.context.clone(),
                workers.clone(),
            )?);
        }
        for active in self.listeners.values_mut() {
            if let Some(sockets) = active.waiting.take() {
                hand_out(&self.workers, &active.shared, &active.config, sockets);
            }
        }
        self.context.stats.workers_started.set(1);
        Ok(())
    }

    /// The running workers.
    pub fn workers(&self) -> &[WorkerHandle] {
        &self.workers
    }

    /// Compiles a listener, without any effect (`--mode validate`).
    ///
    /// # Errors
    /// See [`apply`](Self::apply); nothing is bound.
    pub fn validate(&self, listener: &Listener) -> Result<(), ConfigError> {
        let listener = Arc::new(listener.clone());
        let scope = &self.context.scope;
        let config = CompiledListener::compile(&listener, "", None, &*self.compiler, scope)?;
        self.check_internal(&config)
    }

    /// Adds or changes the listener of this name. Sockets stay as long as the addresses and socket options
    /// do; connections whose chain did not change are not touched. On an error the last good version
    /// serves on.
    ///
    /// # Errors
    /// Invalid configuration, an address another listener has, or a failed bind.
    pub fn apply(&mut self, listener: &Listener, version: &str) -> Result<(), ConfigError> {
        let result = self.apply_inner(listener, version);
        let stats = &self.context.stats;
        match &result {
            Ok(()) => stats.listener_create_success.inc(),
            Err(_) => stats.listener_create_failure.inc(),
        }
        stats
            .total_listeners_active
            .set(i64::try_from(self.listeners.len()).unwrap_or(i64::MAX));
        result
    }

    fn apply_inner(&mut self, listener: &Listener, version: &str) -> Result<(), ConfigError> {
        if listener.name.is_empty() {
            return Err(ConfigError::new("value is required").at("name"));
        }
        let previous = self.listeners.get(&listener.name);
        if previous.is_some_and(|p| *p.config.source == *listener) {
            return Ok(());
        }
        let config = Arc::new(CompiledListener::compile(
            &Arc::new(listener.clone()),
            version,
            previous.map(|p| &*p.config),
            &*self.compiler,
            &self.context.scope,
        )?);
        self.check_internal(&config)?;
        self.refuse_duplicates(&config)?;
        if let Some(active) = self.listeners.get_mut(&listener.name)
            && active.config.same_sockets(&config)
        {
            let done = Arc::new(DrainingChains::new(&self.context, &active.config, &config));
            active.config = config.clone();
            let plan = self.drain.plan();
            for worker in &self.workers {
                worker.send(Command::Update {
                    id: active.shared.id,
                    config: config.clone(),
                    plan,
                    done: done.clone(),
                });
            }
            self.context.stats.listener_modified.inc();
            self.context.stats.listener_in_place_updated.inc();
            return Ok(());
        }
        let (mut sockets, bound) = self.bind(&config)?;
        let key = format!(
            "envoy.resource_limits.listener.{}.connection_limit",
            config.name
        );
        let scope = format!("listener.{}.", config.stat_name);
        let scope = self.context.scope.scope(&scope);
        let order = self.listeners.get(&listener.name).map(|l| l.order);
        let order = order.unwrap_or(self.next_id);
        let shared = Arc::new(ListenerShared {
            id: self.next_id,
            stats: ListenerStats::new(&scope),
            scope,
            active: Count::default(),
            limit: (self.runtime)(&key).unwrap_or(u64::MAX),
        });
        self.next_id += 1;
        let waiting = if self.workers.is_empty() {
            Some(sockets)
        } else {
            hand_out(
                &self.workers,
                &shared,
                &config,
                std::mem::take(&mut sockets),
            );
            None
        };
        let old = self.listeners.insert(
            listener.name.clone(),
            Active {
                order,
                shared,
                config,
                bound,
                waiting,
            },
        );
        // The new sockets are bound and served by now; only then does the old listener go.
        match old {
            Some(old) => {
                self.retire(&old);
                self.context.stats.listener_modified.inc();
            }
            None => self.context.stats.listener_added.inc(),
        }
        Ok(())
    }

    fn check_internal(&self, config: &CompiledListener) -> Result<(), ConfigError> {
        if config.internal && self.context.internal_buffer.is_none() {
            return Err(ConfigError::new(format!(
                "error adding listener named '{}': the bootstrap extension \
                 envoy.bootstrap.internal_listener is mandatory",
                config.name
            ))
            .at("internal_listener"));
        }
        Ok(())
    }

    fn refuse_duplicates(&self, config: &CompiledListener) -> Result<(), ConfigError> {
        for (name, other) in &self.listeners {
            if *name == *config.name {
                continue;
            }
            let shared = config.addresses.iter().find(|a| {
                let any_port = config.bind_to_port
                    && matches!(a, BindAddress::Tcp { address, .. } if address.port() == 0);
                !any_port && other.bound.contains(a)
            });
            if let Some(address) = shared {
                return Err(ConfigError::new(format!(
                    "error adding listener: '{}' has duplicate address '{address}' as existing \
                     listener",
                    config.name
                ))
                .at("address"));
            }
        }
        Ok(())
    }

    fn bind(&self, config: &CompiledListener) -> Result<(Sockets, Vec<BindAddress>), ConfigError> {
        let mut per_worker: Sockets = (0..self.concurrency).map(|_| Vec::new()).collect();
        if !config.bind_to_port {
            return Ok((per_worker, config.addresses.clone()));
        }
        let mut all = Vec::new();
        for address in &config.addresses {
            let (sockets, bound) =
                socket::bind(address, &config.socket, self.concurrency).at("address")?;
            for (slot, socket) in per_worker.iter_mut().zip(sockets) {
                slot.push((socket, bound.clone()));
            }
            all.push(bound);
        }
        Ok((per_worker, all))
    }

    fn retire(&self, old: &Active) {
        self.context.stats.total_listeners_draining.inc();
        let done = Arc::new(DrainingListener {
            context: self.context.clone(),
        });
        let plan = self.drain.plan();
        for worker in &self.workers {
            worker.send(Command::Remove {
                id: old.shared.id,
                plan,
                done: done.clone(),
            });
        }
    }

    /// Takes a listener away: no new connections from now on, the open ones drain. Gives whether there was
    /// one of that name.
    pub fn remove(&mut self, name: &str) -> bool {
        let Some(old) = self.listeners.remove(name) else {
            return false;
        };
        self.retire(&old);
        let stats = &self.context.stats;
        stats.listener_removed.inc();
        stats
            .total_listeners_active
            .set(i64::try_from(self.listeners.len()).unwrap_or(i64::MAX));
        true
    }

    /// Drains every listener by `plan` while they go on accepting, until `end`.
    pub fn drain_all(&self, plan: DrainPlan, inbound_only: bool, end: DrainEnd) -> Drained {
        let (done, wait) = oneshot::channel::<()>();
        // A lock only because a sender cannot be shared; it is never taken.
        let done: Arc<dyn Send + Sync> = Arc::new(std::sync::Mutex::new(done));
        for worker in &self.workers {
            worker.send(Command::DrainAll {
                plan,
                inbound_only,
                end,
                done: done.clone(),
            });
        }
        Drained(wait)
    }

    /// Lets every listener take no more connections; the open ones are left alone.
    pub fn stop_all(&self, inbound_only: bool) {
        for worker in &self.workers {
            worker.send(Command::StopAll { inbound_only });
        }
    }

    /// Every listener in the order they came: its configuration, the addresses really bound, its numbers.
    pub fn listeners(
        &self,
    ) -> impl Iterator<Item = (&CompiledListener, &[BindAddress], &ListenerStats)> {
        let mut listeners: Vec<_> = self.listeners.values().collect();
        listeners.sort_by_key(|l| l.order);
        listeners
            .into_iter()
            .map(|a| (&*a.config, a.bound.as_slice(), &a.shared.stats))
    }

    /// What all listeners share, the manager's numbers among it.
    pub fn context(&self) -> &Arc<ListenerContext> {
        &self.context
    }

    /// Waits until every worker has carried out what it was told so far.
    pub async fn flush(&self) {
        for worker in &self.workers {
            worker.flush().await;
        }
    }
}

fn hand_out(
    workers: &[WorkerHandle],
    shared: &Arc<ListenerShared>,
    config: &Arc<CompiledListener>,
    sockets: Sockets,
) {
    for (worker, sockets) in workers.iter().zip(sockets) {
        worker.send(Command::Add {
            shared: shared.clone(),
            config: config.clone(),
            sockets,
        });
    }
}

#[cfg(test)]
#[path = "listener_manager_tests.rs"]
mod tests;
