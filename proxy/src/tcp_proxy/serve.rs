//! One connection, from its acceptance to its end.

use std::rc::Rc;
use std::sync::Arc;

use filters::body::ResetReason;
use filters::flags::ResponseFlags;
use filters::stream::{ConnectionInfo, StreamInfo};
use tokio::io::{AsyncRead, AsyncWrite};

use super::config::TcpProxyConfig;
use super::copy::{Traffic, both_ways};
use crate::transport::options::Purpose;
use crate::transport::proxy_protocol::Client;
use crate::upstream::balance::LbContext;
use crate::upstream::cluster::Cluster;
use crate::upstream::connect::ConnectError;
use crate::upstream::host::Host;
use crate::upstream::tcp::{self, TcpConnection};

/// Serves a connection. It is closed when this ends, with its access log written, also if it is dropped.
pub async fn serve<IO: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<TcpProxyConfig>,
    io: IO,
    connection: Rc<ConnectionInfo>,
) {
    config.stats.downstream_cx_total.inc();
    let mut end = ConnectionEnd {
        info: StreamInfo::for_connection(connection),
        traffic: Traffic::new(),
        config: config.clone(),
    };
    // Boxed, to be gone when it is done: a connection that is copied must not hold what connecting took.
    let Some(upstream) = Box::pin(end.connect()).await else {
        return;
    };
    let traffic = end.traffic.clone();
    let copying = both_ways(io, upstream.io, traffic.clone());
    let longest = async {
        match config.max_duration {
            Some(most) => tokio::time::sleep(most).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        copied = copying => {
            if copied.is_err() {
                tracing::debug!(remote = %end.info.connection.remote, "connection broken");
            }
        }
        () = traffic.quiet(config.idle_timeout) => {
            config.stats.idle_timeout.inc();
            end.info.flags.insert(ResponseFlags::STREAM_IDLE_TIMEOUT);
        }
        () = longest => {
            config.stats.max_downstream_connection_duration.inc();
            end.info.flags.insert(ResponseFlags::DURATION_TIMEOUT);
        }
    }
}

/// The end of a connection, however it comes: stats and access log. Runs when it is dropped.
struct ConnectionEnd {
    config: Arc<TcpProxyConfig>,
    info: StreamInfo,
    traffic: Rc<Traffic>,
}

impl ConnectionEnd {
    /// Connects to a host of the chosen cluster, with as many tries as are configured.
    async fn connect(&mut self) -> Option<TcpConnection> {
        let config = self.config.clone();
        let slot = config.cluster(fastrand::u64(..))?;
        self.info.upstream.cluster = Some(slot.name().clone());
        let Some(cluster) = slot.get() else {
            config.stats.downstream_cx_no_route.inc();
            self.info.flags.insert(ResponseFlags::NO_CLUSTER_FOUND);
            return None;
        };
        for _ in 0..config.connect_attempts {
            let Some(host) = self.choose(&cluster) else {
                cluster.stats().upstream_cx_none_healthy.inc();
                self.info.flags.insert(ResponseFlags::NO_HEALTHY_UPSTREAM);
                return None;
            };
            self.info.upstream.attempts += 1;
            self.info.upstream.host = Some(host.address.clone());
            let purpose = Purpose {
                client: Client::of(&self.info.connection),
                shared: self.info.filter_state.shared(),
                ..Purpose::default()
            };
            match tcp::connect(&cluster, &host, purpose).await {
                Ok(connection) => {
                    let facts = &connection.facts;
                    self.info.upstream.local.clone_from(&facts.local);
                    self.info.upstream.tls.clone_from(&facts.tls);
                    return Some(connection);
                }
                Err(ConnectError {
                    reason,
                    transport_failure,
                }) => {
                    self.info.upstream.transport_failure = transport_failure;
                    self.info.flags.insert(match reason {
                        ResetReason::Overflow => ResponseFlags::UPSTREAM_OVERFLOW,
                        _ => ResponseFlags::UPSTREAM_CONNECTION_FAILURE,
                    });
                    if reason == ResetReason::Overflow {
                        return None;
                    }
                }
            }
        }
        self.info
            .flags
            .insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
        None
    }

    fn choose(&self, cluster: &Cluster) -> Option<Arc<Host>> {
        let remote = self.info.connection.remote.ip();
        let hash = remote
            .filter(|_| self.config.hash_source_ip)
            .map(|address| xxhash_rust::xxh64::xxh64(address.ip().to_string().as_bytes(), 0));
        cluster.choose_host(&LbContext {
            hash,
            random: fastrand::u64(..),
            ..LbContext::default()
        })
    }
}

impl Drop for ConnectionEnd {
    fn drop(&mut self) {
        self.info.bytes_received = self.traffic.received.get();
        self.info.bytes_sent = self.traffic.sent.get();
        self.info.take_notes();
        let (info, stats) = (&self.info, &self.config.stats);
        stats.downstream_cx_rx_bytes_total.add(info.bytes_received);
        stats.downstream_cx_tx_bytes_total.add(info.bytes_sent);
        for log in &self.config.access_logs {
            log.record(&self.info, None, None, None);
        }
    }
}
