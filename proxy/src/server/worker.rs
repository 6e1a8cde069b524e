//! A worker: one thread, one single-threaded runtime, its own part of every listener.

use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use socket2::Socket;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use super::compiled::CompiledListener;
use super::drain::{DrainEnd, DrainPlan};
use super::hand_over::Owners;
use super::listener::{ListenerContext, ListenerShared, WorkerListener};
use super::socket::BindAddress;
use crate::internal::spread;

/// What a worker is told.
pub(super) enum Command {
    /// Serve a new listener.
    Add {
        shared: Arc<ListenerShared>,
        config: Arc<CompiledListener>,
        sockets: Vec<(Socket, BindAddress)>,
    },
    /// Exchange a listener's configuration. `done` is dropped when the chains it lacks have drained.
    Update {
        id: u64,
        config: Arc<CompiledListener>,
        plan: DrainPlan,
        done: Arc<dyn Send + Sync>,
    },
    /// Stop accepting now, drain, forget. `done` is dropped at the end.
    Remove {
        id: u64,
        plan: DrainPlan,
        done: Arc<dyn Send + Sync>,
    },
    /// Drain every connection while new ones are still taken.
    DrainAll {
        plan: DrainPlan,
        inbound_only: bool,
        end: DrainEnd,
        done: Arc<dyn Send + Sync>,
    },
    /// Take no more connections; the open ones stay.
    StopAll { inbound_only: bool },
    /// Close everything and end the thread.
    Stop,
    /// Runs on the worker, inside its `LocalSet`.
    Run(Box<dyn FnOnce() + Send>),
}

/// The way to a running worker.
pub struct WorkerHandle {
    index: usize,
    commands: mpsc::UnboundedSender<Command>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl WorkerHandle {
    /// Starts worker `index`.
    ///
    /// # Errors
    /// The thread or its runtime cannot be made.
    pub fn start(
        index: usize,
        context: Arc<ListenerContext>,
        workers: Arc<spread::Workers>,
    ) -> io::Result<Self> {
        // Unbounded: only configuration updates go through it, one message each.
        let (commands, receiver) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = std::thread::Builder::new()
            .name(format!("wrk:worker_{index}"))
            .spawn(move || {
                let serving = async {
                    spread::take_seat(&workers, index);
                    run(index, context, receiver).await;
                };
                LocalSet::new().block_on(&runtime, serving);
            })?;
        Ok(Self {
            index,
            commands,
            thread: Some(thread),
        })
    }

    /// The worker's number, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Runs `f` on the worker, inside its `LocalSet`; without effect once the worker has stopped.
    pub fn run(&self, f: impl FnOnce() + Send + 'static) {
        self.send(Command::Run(Box::new(f)));
    }

    /// Returns once the worker has worked off everything it was told before.
    pub async fn flush(&self) {
        let (done, wait) = oneshot::channel::<()>();
        self.run(move || drop(done));
        let _ = wait.await;
    }

    pub(super) fn send(&self, command: Command) {
        // A stopped worker has nothing left that a command could be about.
        let _ = self.commands.send(command);
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        self.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn run(
    index: usize,
    context: Arc<ListenerContext>,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let mut listeners: HashMap<u64, Rc<WorkerListener>> = HashMap::new();
    let owners = Rc::new(Owners::default());
    while let Some(command) = commands.recv().await {
        match command {
            Command::Add {
                shared,
                config,
                sockets,
            } => {
                let id = shared.id;
                let (context, owners) = (context.clone(), owners.clone());
                let listener =
                    WorkerListener::start(index, context, owners, shared, config, sockets);
                listeners.insert(id, listener);
            }
            Command::Update {
                id,
                config,
                plan,
                done,
            } => {
                if let Some(listener) = listeners.get(&id) {
                    listener.update(config, plan, done);
                }
            }
            Command::Remove { id, plan, done } => {
                if let Some(listener) = listeners.remove(&id) {
                    tokio::task::spawn_local(async move {
                        listener.drain(plan).await;
                        drop(done);
                    });
                }
            }
            Command::DrainAll {
                plan,
                inbound_only,
                end,
                done,
            } => {
                for listener in listeners.values() {
                    if !inbound_only || listener.is_inbound() {
                        let (listener, done) = (listener.clone(), done.clone());
                        tokio::task::spawn_local(async move {
                            listener.drain_serving(plan, end).await;
                            drop(done);
                        });
                    }
                }
            }
            Command::StopAll { inbound_only } => {
                for listener in listeners.values() {
                    if !inbound_only || listener.is_inbound() {
                        let listener = listener.clone();
                        tokio::task::spawn_local(async move { listener.stop_from_outside().await });
                    }
                }
            }
            Command::Stop => break,
            Command::Run(f) => f(),
        }
    }
}
