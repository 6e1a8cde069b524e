//! The process's signals, as Pingora's server asks for them.
//!
//! Pingora's own graceful shutdown sleeps for its whole grace period whatever is left to do, so the drain is
//! ours: it runs inside [`ShutdownSignalWatch::recv`], which then asks for a fast shutdown.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use pingora_core::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Drains the server and returns when it is empty, or its drain time over.
pub type DrainServer = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// What signals do: SIGTERM drains (a second one, or SIGINT, ends the wait), SIGINT stops at once, SIGUSR1
/// opens log files anew, SIGHUP does nothing.
pub struct Lifecycle {
    drain: DrainServer,
    reopen_logs: Arc<dyn Fn() + Send + Sync>,
    quit: Arc<tokio::sync::Notify>,
}

impl Lifecycle {
    /// A watch with these actions.
    pub fn new(drain: DrainServer, reopen_logs: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self {
            drain,
            reopen_logs,
            quit: Arc::default(),
        }
    }

    /// `notify_one` on this stops the server at once (`/quitquitquit`).
    pub fn quit(&self) -> Arc<tokio::sync::Notify> {
        self.quit.clone()
    }
}

/// The next signal of a kind; never, when it cannot be listened for.
async fn next(signal: &mut Option<Signal>) {
    let got = match signal {
        Some(signal) => signal.recv().await,
        None => None,
    };
    if got.is_none() {
        std::future::pending::<()>().await;
    }
}

fn listen(kind: SignalKind) -> Option<Signal> {
    signal(kind)
        .inspect_err(|e| tracing::error!("cannot listen for signal {kind:?}: {e}"))
        .ok()
}

#[async_trait]
impl ShutdownSignalWatch for Lifecycle {
    async fn recv(&self) -> ShutdownSignal {
        let mut terminate = listen(SignalKind::terminate());
        let mut interrupt = listen(SignalKind::interrupt());
        let mut reopen = listen(SignalKind::user_defined1());
        let mut hangup = listen(SignalKind::hangup());
        let mut draining: Option<BoxFuture<'static, ()>> = None;
        loop {
            let drained = async {
                match &mut draining {
                    Some(drain) => drain.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = next(&mut terminate) => {
                    if draining.is_some() {
                        tracing::warn!("caught a second SIGTERM: closing what is left");
                        return ShutdownSignal::FastShutdown;
                    }
                    tracing::warn!("caught SIGTERM: draining");
                    draining = Some((self.drain)());
                }
                () = next(&mut interrupt) => {
                    tracing::warn!("caught SIGINT");
                    return ShutdownSignal::FastShutdown;
                }
                () = next(&mut reopen) => {
                    tracing::info!("caught SIGUSR1: opening log files anew");
                    (self.reopen_logs)();
                }
                () = next(&mut hangup) => tracing::info!("caught and ignored SIGHUP"),
                () = self.quit.notified() => return ShutdownSignal::FastShutdown,
                () = drained => {
                    tracing::info!("drained");
                    return ShutdownSignal::FastShutdown;
                }
            }
        }
    }
}
