//! One connection, from its acceptance to its end.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use filters::body::ResetReason;
use filters::flags::ResponseFlags;
use filters::stream::{AccessLogType, CloseType, ConnectionInfo, StreamInfo};
use tokio::io::AsyncReadExt;

use super::config::TcpProxyConfig;
use super::copy::{self, Traffic, both_ways};
use crate::transport::ByteStream;
use crate::transport::options::{Purpose, TransportOptions};
use crate::transport::prefixed::Prefixed;
use crate::upstream::balance::LbContext;
use crate::upstream::cluster::Cluster;
use crate::upstream::connect::{ConnectError, ConnectionFacts};
use crate::upstream::host::Host;
use crate::upstream::request::RequestGuard;
use crate::upstream::tcp;
use crate::upstream::tunnel::originate::{self, Refused};

/// Serves a connection of which `prefix` has been read. It is closed when this ends, with its access log written, also if it is dropped.
pub async fn serve<IO: ByteStream>(
    config: Arc<TcpProxyConfig>,
    io: IO,
    prefix: Bytes,
    connection: Rc<ConnectionInfo>,
) {
    let session = Session::new(config, connection);
    let config = &session.config;
    if config.moments.start {
        session.log(AccessLogType::TcpConnectionStart);
    }
    let idle_timeout = config.idle_timeout(&session.info.borrow());
    let longest = async {
        match config.lifetime() {
            Some(most) => tokio::time::sleep(most).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        // In this order, so that a connection that may not be quiet at all is still taken somewhere, as in Envoy.
        biased;
        () = session.carry(copy::client(Prefixed::new(prefix, io), &session.traffic)) => {}
        () = session.traffic.quiet(idle_timeout) => config.stats.idle_timeout.inc(),
        () = longest => {
            config.stats.max_downstream_connection_duration.inc();
            session.flag(ResponseFlags::DURATION_TIMEOUT);
        }
        () = session.log_at_times() => {}
    }
}

/// Counts and logs a connection that came to its end before there were bytes to copy.
pub fn never_served(config: Arc<TcpProxyConfig>, connection: Rc<ConnectionInfo>) {
    drop(Session::new(config, connection));
}

/// One connection and what is known of it. Its end, however it comes, is the drop.
struct Session {
    config: Arc<TcpProxyConfig>,
    /// Never borrowed over an await.
    info: RefCell<StreamInfo>,
    traffic: Rc<Traffic>,
}

/// Where a connection goes on.
struct Upstream {
    io: Box<dyn ByteStream>,
    facts: ConnectionFacts,
    /// What a connection of its own counts as; a tunnel has its own.
    _request: Option<RequestGuard>,
}

impl Session {
    /// A connection that is counted, and will be logged.
    fn new(config: Arc<TcpProxyConfig>, connection: Rc<ConnectionInfo>) -> Self {
        config.stats.downstream_cx_total.inc();
        Self {
            info: RefCell::new(StreamInfo::for_connection(connection)),
            traffic: Traffic::new(),
            config,
        }
    }

    /// Connects, and copies to the end.
    async fn carry<IO: ByteStream>(&self, mut io: IO) {
        let mut first = BytesMut::new();
        if self.config.on_data {
            match io.read_buf(&mut first).await {
                // Half a connection without a word goes nowhere, as in Envoy.
                Ok(0) => return std::future::pending().await,
                Ok(_) => {}
                Err(_) => return,
            }
        }
        let client = Prefixed::new(first.freeze(), io);
        // Boxed, to be gone when it is done: a connection that is copied must not hold what connecting took.
        let Some(Upstream {
            io: upstream,
            facts,
            _request,
        }) = Box::pin(self.connect()).await
        else {
            return;
        };
        facts.note(&mut self.info.borrow_mut());
        if self.config.moments.connected {
            self.log(AccessLogType::TcpUpstreamConnected);
        }
        if let Err(error) = both_ways(client, upstream, &self.traffic).await {
            let info = &mut self.info.borrow_mut();
            if self.traffic.upstream_reset.get() {
                info.flags.insert(ResponseFlags::UPSTREAM_REMOTE_RESET);
                info.upstream.close = CloseType::RemoteReset;
            }
            tracing::debug!(remote = %info.connection.remote, %error, "connection broken");
        }
    }

    /// Connects to a host of the chosen cluster, with as many tries as are configured.
    async fn connect(&self) -> Option<Upstream> {
        let config = &self.config;
        let slot = config.cluster(&self.info.borrow(), fastrand::u64(..));
        let Some(cluster) = slot.and_then(|slot| slot.get()) else {
            config.stats.downstream_cx_no_route.inc();
            self.flag(ResponseFlags::NO_CLUSTER_FOUND);
            return None;
        };
        cluster.note(&mut self.info.borrow_mut());
        let mut backoff = config.backoff.clone();
        for attempt in 1..=config.connect_attempts {
            if let Some(backoff) = backoff.as_mut().filter(|_| attempt > 1) {
                tokio::time::sleep(backoff.next_wait()).await;
            }
            let Some(host) = self.choose(&cluster) else {
                cluster.stats().upstream_cx_none_healthy.inc();
                self.flag(ResponseFlags::NO_HEALTHY_UPSTREAM);
                return None;
            };
            self.info.borrow_mut().upstream.attempts = attempt;
            let begun = Instant::now();
            let connected = self.connect_to(&cluster, &host).await;
            let info = &mut self.info.borrow_mut();
            match connected {
                Ok(connection) => {
                    // Why an earlier attempt has failed stays known, as in Envoy.
                    let failure = info.upstream.transport_failure.take();
                    host.note(info);
                    info.upstream.transport_failure = failure;
                    info.upstream.pool_ready = Some(begun.elapsed());
                    return Some(connection);
                }
                Err(error) if error.reason == ResetReason::Overflow => {
                    info.upstream.attempts = attempt - 1;
                    info.flags.insert(ResponseFlags::UPSTREAM_OVERFLOW);
                    return None;
                }
                Err(error) => {
                    host.note(info);
                    info.upstream.pool_ready = Some(begun.elapsed());
                    info.upstream.transport_failure = error.transport_failure;
                    info.flags
                        .insert(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
                }
            }
        }
        cluster.stats().upstream_cx_connect_attempts_exceeded.inc();
        self.flag(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
        None
    }

    /// Connects to a host, or asks it for a tunnel.
    async fn connect_to(
        &self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
    ) -> Result<Upstream, ConnectError> {
        let (purpose, head) = {
            let info = self.info.borrow();
            let purpose = Purpose {
                options: TransportOptions::of_state(&info.filter_state),
                client: host
                    .transport
                    .client(&info)
                    .map(|client| client.with_tlvs(|own| self.config.proxy_tlvs.merge(own, &info))),
                shared: info.filter_state.shared(),
                spread: false,
            };
            let tunneling = self.config.tunneling(&info);
            let secure = host.transport.tls().is_some();
            (purpose, tunneling.map(|t| t.head(&info, secure)))
        };
        let Some(head) = head else {
            let connection = tcp::connect(cluster, host, purpose).await?;
            return Ok(Upstream {
                io: Box::new(connection.io),
                facts: connection.facts,
                _request: Some(connection.request),
            });
        };
        match originate::open(cluster, host, &head, purpose).await {
            Ok(tunnel) => Ok(Upstream {
                io: Box::new(tunnel.io),
                facts: tunnel.facts,
                _request: None,
            }),
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
        let remote = self.info.borrow().connection.remote.ip();
        let hash = remote
            .filter(|_| self.config.hash_source_ip)
            .map(|address| xxhash_rust::xxh64::xxh64(address.ip().to_string().as_bytes(), 0));
        cluster.choose_host(&LbContext {
            hash,
            random: fastrand::u64(..),
            destination: cluster.destination(None, &self.info.borrow()),
            ..LbContext::default()
        })
    }

    fn flag(&self, flag: ResponseFlags) {
        self.info.borrow_mut().flags.insert(flag);
    }

    /// Writes a line again and again.
    async fn log_at_times(&self) {
        let Some(interval) = self.config.moments.interval else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(interval).await;
            self.log(AccessLogType::TcpPeriodic);
        }
    }

    fn log(&self, moment: AccessLogType) {
        let info = &mut self.info.borrow_mut();
        info.log_type = moment;
        info.bytes_received = self.traffic.received.get();
        info.bytes_sent = self.traffic.sent.get();
        info.take_notes();
        for log in &self.config.access_logs {
            log.record(info, None, None, None);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.log(AccessLogType::TcpConnectionEnd);
        let (received, sent) = (self.traffic.received.get(), self.traffic.sent.get());
        let (info, stats) = (self.info.get_mut(), &self.config.stats);
        stats.downstream_cx_rx_bytes_total.add(info.bytes_received);
        stats.downstream_cx_tx_bytes_total.add(sent);
        // For the listener's log.
        let (flags, upstream) = (info.flags, std::mem::take(&mut info.upstream));
        info.connection.note(|notes| {
            notes.flags.insert(flags);
            notes.proxied_bytes = (received, sent);
            notes.upstream = Some(upstream);
        });
    }
}
