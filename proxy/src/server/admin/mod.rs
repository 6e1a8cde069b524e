//! The admin interface: Envoy's paths and texts over HTTP/1.1, on TCP or a Unix socket.
//!
//! It knows the proxy only through [`AdminBackend`]. Runs on the control runtime, never on a worker.

mod backend;
mod clusters;
mod commands;
pub mod config_dump;
mod listeners;
mod logging;
mod page;
mod prometheus;
mod stats;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, Semaphore};
use xds_client::error::ConfigError;

pub use backend::{
    AdminBackend, AdminError, ClusterStatus, DrainRequest, DumpRequest, HostStatus, ListenerStatus,
    LogChange, ServerState,
};

use super::socket::{self, BindAddress, SocketOptions};
use crate::telemetry::stats::Stats;

/// Connections served at once; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 128;
/// The time the answer to `/quitquitquit` may take to leave.
const LAST_ANSWER: Duration = Duration::from_secs(5);
/// The time a client has to send a request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the admin interface listens.
pub enum AdminListener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

impl AdminListener {
    /// Listens, and tells where: the kernel chooses a port for 0. Must run inside a runtime.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn bind(address: &BindAddress) -> Result<(Self, BindAddress), ConfigError> {
        let options = SocketOptions {
            reuse_port: false,
            backlog: 128,
            freebind: false,
            transparent: false,
            more: Default::default(),
        };
        let (sockets, bound) = socket::bind(address, &options, 1)?;
        let socket = sockets.into_iter().next();
        let socket = socket.ok_or_else(|| ConfigError::new("no socket"))?;
        let listener = match &bound {
            BindAddress::Tcp { .. } => TcpListener::from_std(socket.into()).map(Self::Tcp),
            BindAddress::Pipe { .. } => UnixListener::from_std(socket.into()).map(Self::Unix),
        };
        let failed = |e: std::io::Error| ConfigError::new(e.to_string());
        Ok((listener.map_err(failed)?, bound))
    }
}

/// Serves until dropped.
pub async fn serve(listener: AdminListener, backend: Arc<dyn AdminBackend>, stats: Arc<Stats>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let (backend, stats) = (backend.clone(), stats.clone());
        let accepted = match &listener {
            AdminListener::Tcp(l) => l.accept().await.map(|(io, _)| {
                tokio::spawn(async move {
                    connection(io, backend, stats).await;
                    drop(slot);
                });
            }),
            AdminListener::Unix(l) => l.accept().await.map(|(io, _)| {
                tokio::spawn(async move {
                    connection(io, backend, stats).await;
                    drop(slot);
                });
            }),
        };
        if let Err(error) = accepted {
            // Out of descriptors, or the client is gone: wait a little instead of spinning.
            tracing::warn!(%error, "admin: accept failed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn connection<I>(io: I, backend: Arc<dyn AdminBackend>, stats: Arc<Stats>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let last = Notify::new();
    let service = hyper::service::service_fn(|request: Request<Incoming>| {
        let page = commands::respond(request.method(), request.uri(), &*backend, &stats);
        if page.is_last {
            last.notify_one();
        }
        std::future::ready(Ok::<_, Infallible>(page.into_response()))
    });
    let mut serving = pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(io), service)
    );
    tokio::select! {
        biased;
        served = &mut serving => {
            if let Err(error) = served {
                tracing::debug!(%error, "admin: connection ended");
            }
            if last.notified().now_or_never().is_none() {
                return;
            }
        }
        () = last.notified() => {
            // The answer leaves before the process does, unless nobody reads it.
            serving.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(LAST_ANSWER, serving).await;
        }
    }
    backend.quit();
}

#[cfg(test)]
mod tests;
