//! One connection, from its acceptance to its end.

use std::rc::Rc;
use std::sync::Arc;

use filters::body::ResetReason;
use filters::flags::ResponseFlags;
use filters::stream::{ConnectionInfo, StreamInfo};
use tokio::io::{AsyncRead, AsyncWrite};

use super::config::TcpProxyConfig;
use super::copy::{Traffic, both_ways};
use crate::transport::ByteStream;
use crate::transport::options::Purpose;
use crate::transport::proxy_protocol::Client;
use crate::upstream::balance::LbContext;
use crate::upstream::cluster::Cluster;
use crate::upstream::connect::{ConnectError, ConnectionFacts};
use crate::upstream::host::Host;
use crate::upstream::tcp;
use crate::upstream::tunnel::originate::{self, Refused};

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
    let Some(upstream) = end.connect().await else {
        return;
    };
    let traffic = end.traffic.clone();
    let copying = both_ways(io, upstream, traffic.clone());
    let longest = async {
        match config.max_duration {
            Some(most) => tokio::time::sleep(most).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        copied = copying => {
            if let Err(error) = copied {
                if traffic.is_upstream_reset(&error) {
                    end.info.flags.insert(ResponseFlags::UPSTREAM_REMOTE_RESET);
                }
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
    async fn connect(&mut self) -> Option<Box<dyn ByteStream>> {
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
            match self.connect_to(&cluster, &host).await {
                Ok((io, facts)) => {
                    self.info.upstream.local = facts.local;
                    self.info.upstream.tls = facts.tls;
                    return Some(io);
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

    /// Connects to a host, or asks it for a tunnel.
    async fn connect_to(
        &self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
    ) -> Result<(Box<dyn ByteStream>, ConnectionFacts), ConnectError> {
        let purpose = Purpose {
            client: match host.transport.tells_client() {
                true => Client::of(&self.info.connection),
                false => None,
            },
            shared: self.info.filter_state.shared(),
            ..Purpose::default()
        };
        let Some(tunneling) = &self.config.tunneling else {
            let connected = tcp::connect(cluster, host, purpose).await?;
            return Ok((Box::new(connected.io), connected.facts));
        };
        let head = tunneling.head(&self.info, host.transport.tls().is_some());
        match originate::open(cluster, host, &head, purpose).await {
            Ok(opened) => Ok((Box::new(opened.io), opened.facts)),
            Err(Refused::Failed(error)) => Err(ConnectError {
                reason: error.reason,
                transport_failure: error.transport_failure,
            }),
            Err(Refused::Answered(status)) => Err(ConnectError {
                reason: ResetReason::RemoteConnectionFailure,
                transport_failure: Some(format!("tunnel response:{}", status.as_u16()).into()),
            }),
        }
    }

    fn choose(&self, cluster: &Cluster) -> Option<Arc<Host>> {
        let remote = self.info.connection.remote.ip();
        let hash = remote
            .filter(|_| self.config.hash_source_ip)
            .map(|address| xxhash_rust::xxh64::xxh64(address.ip().to_string().as_bytes(), 0));
        cluster.choose_host(&LbContext {
            hash,
            random: fastrand::u64(..),
            destination: cluster.destination(None, &self.info),
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
