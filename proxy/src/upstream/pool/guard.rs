//! What connections and requests hold of their cluster's limits and numbers, given back on drop.

use std::cell::{Cell, OnceCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Missed;
use super::waiting::overflow;
use crate::transport::options::Purpose;
use crate::upstream::circuit_breaker::{Breaker, BreakerStats, Priority};
use crate::upstream::cluster::Cluster;
use crate::upstream::cluster::UpstreamProtocol;
use crate::upstream::connect::{ConnectError, Connected, ConnectionFacts, connect};
use crate::upstream::host::{Host, count};
use crate::upstream::stats::ClusterStats;
use bytestring::ByteString;
use filters::body::ResetReason;

/// What a pool's connections and requests belong to.
pub(crate) struct Place {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) host: Arc<Host>,
    pub(crate) priority: Priority,
    purpose: Purpose,
    /// Where the server chooses the protocol: whether it chose HTTP/1 last. Until it is asked, HTTP/2 is what it is
    /// thought to speak.
    prefers_http1: Cell<bool>,
}

impl Place {
    pub(in crate::upstream) fn new(
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        priority: Priority,
        purpose: Purpose,
    ) -> Rc<Self> {
        Rc::new(Self {
            cluster: cluster.clone(),
            host: host.clone(),
            priority,
            purpose,
            prefers_http1: Cell::new(false),
        })
    }

    /// For whom connections are made.
    pub(super) fn purpose(&self) -> &Purpose {
        &self.purpose
    }

    /// Whether the server chooses the protocol.
    pub(super) fn server_chooses(&self) -> bool {
        self.cluster.config.protocol == UpstreamProtocol::Auto
    }

    /// The protocol that the server chose last.
    pub(in crate::upstream) fn prefers_http1(&self) -> bool {
        self.prefers_http1.get()
    }

    pub(super) fn chose(&self, speaks: Speaks) {
        self.prefers_http1.set(speaks == Speaks::Http1);
    }

    /// Connects to the host; see [`connect`].
    pub(in crate::upstream) async fn connect(
        &self,
        protocols: &'static [&'static str],
    ) -> Result<Connected, ConnectError> {
        connect(&self.cluster.config, &self.host, &self.purpose, protocols).await
    }

    pub(super) fn stats(&self) -> &ClusterStats {
        self.cluster.stats()
    }

    pub(super) fn breaker(&self) -> (&Breaker, &BreakerStats) {
        (
            self.cluster.breakers.of(self.priority),
            self.stats().breakers_of(self.priority),
        )
    }
}

/// Who wants to know when a stream of a connection has ended.
pub(crate) trait Freed {
    /// A stream ended, so there may be room for another.
    fn freed(&self);
}

/// A request that has a connection.
pub(crate) struct RequestGuard {
    place: Rc<Place>,
    connection: Rc<ConnectionState>,
    freed: Option<Weak<dyn Freed>>,
    /// Whether the exchange came to its end, whatever that was.
    ended: bool,
}

impl RequestGuard {
    /// Takes a request's share; `None` when the circuit breaker is open.
    pub(crate) fn take(
        place: &Rc<Place>,
        connection: &Rc<ConnectionState>,
        freed: Option<Weak<dyn Freed>>,
    ) -> Option<Self> {
        let stats = place.stats();
        let (breaker, gauges) = place.breaker();
        if !breaker.requests.try_take(&gauges.rq_open) {
            stats.upstream_rq_active_overflow.inc();
            return None;
        }
        stats.upstream_rq_total.inc();
        stats.upstream_rq_active.inc();
        if connection.http2.get() {
            stats.http2.get().streams_active.inc();
        }
        count(&place.host.stats.rq_total);
        place.host.stats.rq_active.fetch_add(1, Ordering::Relaxed);
        connection.active.set(connection.active.get() + 1);
        Some(Self {
            place: place.clone(),
            connection: connection.clone(),
            freed,
            ended: false,
        })
    }

    /// The response came to its end, or the exchange failed for this reason.
    pub(crate) fn ended(&mut self, failed: Option<ResetReason>) {
        if !std::mem::replace(&mut self.ended, true)
            && self.connection.http2.get()
            && let Some(reason) = failed
        {
            self.count_reset(reason);
        }
    }

    /// Streams that were reset; HTTP/1 has none.
    fn count_reset(&self, reason: ResetReason) {
        use ResetReason as R;
        let stats = self.place.stats();
        match reason {
            R::RemoteReset => {
                stats.upstream_rq_rx_reset.inc();
                stats.http2.get().rx_reset.inc();
            }
            R::LocalReset | R::ProtocolError => {
                stats.upstream_rq_tx_reset.inc();
                stats.http2.get().tx_reset.inc();
            }
            R::ConnectionTermination => stats.upstream_rq_pending_failure_eject.inc(),
            _ => {}
        }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.ended(Some(ResetReason::LocalReset));
        let (breaker, gauges) = self.place.breaker();
        breaker.requests.give(&gauges.rq_open);
        self.place.stats().upstream_rq_active.dec();
        if self.connection.http2.get() {
            self.place.stats().http2.get().streams_active.dec();
        }
        let stats = &self.place.host.stats;
        stats.rq_active.fetch_sub(1, Ordering::Relaxed);
        let active = &self.connection.active;
        active.set(active.get().saturating_sub(1));
        if let Some(pool) = self.freed.take().and_then(|pool| pool.upgrade()) {
            pool.freed();
        }
    }
}

/// A request that waits for a connection.
pub(crate) struct PendingGuard {
    place: Rc<Place>,
    served: bool,
}

impl PendingGuard {
    /// Takes a waiting request's share; `None` when the circuit breaker is open.
    fn take(place: &Rc<Place>) -> Option<Self> {
        let stats = place.stats();
        let (breaker, gauges) = place.breaker();
        if !breaker.pending.try_take(&gauges.rq_pending_open) {
            stats.upstream_rq_pending_overflow.inc();
            return None;
        }
        stats.upstream_rq_pending_total.inc();
        stats.upstream_rq_pending_active.inc();
        let waiting = &place.host.stats.rq_pending_active;
        waiting.fetch_add(1, Ordering::Relaxed);
        Some(Self {
            place: place.clone(),
            served: false,
        })
    }

    /// Takes a share for `pending` if it has none yet.
    pub(in crate::upstream) fn begin(
        pending: &mut Option<Self>,
        place: &Rc<Place>,
    ) -> Result<(), Missed> {
        if pending.is_none() {
            *pending = Some(Self::take(place).ok_or_else(overflow)?);
        }
        Ok(())
    }

    /// The wait of `pending` is over, if there was one.
    pub(in crate::upstream) fn finish(pending: &mut Option<Self>, failed: bool) {
        if let Some(pending) = pending.take() {
            pending.served(failed);
        }
    }

    /// The wait is over.
    fn served(mut self, failed: bool) {
        self.served = true;
        if failed {
            self.place.stats().upstream_rq_pending_failure_eject.inc();
        }
    }
}

impl Drop for PendingGuard {
    fn drop(&mut self) {
        let stats = self.place.stats();
        let (breaker, gauges) = self.place.breaker();
        breaker.pending.give(&gauges.rq_pending_open);
        stats.upstream_rq_pending_active.dec();
        let waiting = &self.place.host.stats.rq_pending_active;
        waiting.fetch_sub(1, Ordering::Relaxed);
        if !self.served {
            stats.upstream_rq_cancelled.inc();
        }
    }
}

/// What a connection's end needs to know, kept by those who see it.
pub(crate) struct ConnectionState {
    http2: Cell<bool>,
    /// Requests in flight.
    active: Cell<u32>,
    /// Whether the other end closed.
    pub(super) remote: Cell<bool>,
    facts: OnceCell<ConnectionFacts>,
    /// Why the transport failed once the connection stood.
    pub(super) failure: OnceCell<ByteString>,
}

impl ConnectionState {
    /// Why the transport failed; the server's reasons for a refusal may come after the handshake (TLS 1.3).
    pub(in crate::upstream) fn failure(&self) -> Option<ByteString> {
        self.failure.get().cloned()
    }

    /// What logs tell of the connection.
    pub(in crate::upstream) fn facts(&self) -> ConnectionFacts {
        self.facts.get().cloned().unwrap_or_default()
    }
}

/// The version of HTTP on an upstream connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    Http1,
    Http2,
}

/// A connection's share of the cluster's limit.
pub(crate) struct ConnectionGuard {
    pub(super) place: Rc<Place>,
    state: Rc<ConnectionState>,
    pub(super) began: Instant,
    on_close: Option<Box<dyn FnOnce()>>,
}

impl ConnectionGuard {
    /// Takes a connection's share. `None` when the circuit breaker is open, except for a pool's first
    /// connection: without it, whoever waits would wait for ever.
    pub(in crate::upstream) fn take(place: &Rc<Place>, first: bool) -> Option<Self> {
        let stats = place.stats();
        let (breaker, gauges) = place.breaker();
        if !breaker.connections.try_take(&gauges.cx_open) {
            stats.upstream_cx_overflow.inc();
            if !first {
                return None;
            }
            breaker.connections.take(&gauges.cx_open);
        }
        stats.upstream_cx_total.inc();
        stats.upstream_cx_active.inc();
        count(&place.host.stats.cx_total);
        place.host.stats.cx_active.fetch_add(1, Ordering::Relaxed);
        Some(Self {
            place: place.clone(),
            state: Rc::new(ConnectionState {
                http2: Cell::new(false),
                active: Cell::new(0),
                remote: Cell::new(false),
                facts: OnceCell::new(),
                failure: OnceCell::new(),
            }),
            began: Instant::now(),
            on_close: None,
        })
    }

    /// The connection is for HTTP; where the server chooses, this is known once it is made.
    pub(super) fn speaks(&self, speaks: Speaks) {
        let stats = self.place.stats();
        match speaks {
            Speaks::Http1 => stats.upstream_cx_http1_total.inc(),
            Speaks::Http2 => stats.upstream_cx_http2_total.inc(),
        }
        self.state.http2.set(speaks == Speaks::Http2);
    }

    /// What outlives the connection's bytes.
    pub(in crate::upstream) fn state(&self) -> &Rc<ConnectionState> {
        &self.state
    }

    /// Calls `f` when the connection is gone, and nothing else that was to be called.
    pub(super) fn on_close(&mut self, f: impl FnOnce() + 'static) {
        self.on_close = Some(Box::new(f));
    }

    /// The connection was made.
    pub(in crate::upstream) fn connected(&self, facts: ConnectionFacts) {
        let _ = self.state.facts.set(facts);
        let ms = milliseconds(self.began.elapsed());
        self.place.stats().upstream_cx_connect_ms.record(ms);
    }

    /// The connection could not be made.
    pub(in crate::upstream) fn failed(&self, error: &ConnectError) {
        let stats = self.place.stats();
        stats.upstream_cx_connect_fail.inc();
        count(&self.place.host.stats.cx_connect_fail);
        match error.reason {
            ResetReason::ConnectionTimeout => stats.upstream_cx_connect_timeout.inc(),
            ResetReason::RemoteConnectionFailure => self.state.remote.set(true),
            _ => {}
        }
    }

    /// Whether the connection is too old for another request; counts it if so.
    pub(super) fn is_worn(&self) -> bool {
        is_worn(&self.place, self.began)
    }

    /// The exchange on it ended before the connection does.
    pub(super) fn finished(&self) {
        self.state.active.set(0);
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let stats = self.place.stats();
        let (breaker, gauges) = self.place.breaker();
        breaker.connections.give(&gauges.cx_open);
        stats.upstream_cx_active.dec();
        stats
            .upstream_cx_length_ms
            .record(milliseconds(self.began.elapsed()));
        stats.upstream_cx_destroy.inc();
        let active = self.state.active.get() > 0;
        if active {
            stats.upstream_cx_destroy_with_active_rq.inc();
        }
        let (ended, with_active) = if self.state.remote.get() {
            (
                &stats.upstream_cx_destroy_remote,
                &stats.upstream_cx_destroy_remote_with_active_rq,
            )
        } else {
            (
                &stats.upstream_cx_destroy_local,
                &stats.upstream_cx_destroy_local_with_active_rq,
            )
        };
        ended.inc();
        if active {
            with_active.inc();
        }
        let host = &self.place.host.stats;
        host.cx_active.fetch_sub(1, Ordering::Relaxed);
        if let Some(f) = self.on_close.take() {
            f();
        }
    }
}

/// Whether a connection that began then is too old for another request (`max_connection_duration`); counts it if so.
pub(super) fn is_worn(place: &Place, began: Instant) -> bool {
    let max = place.cluster.config.max_connection_age;
    let worn = max.is_some_and(|max| began.elapsed() >= max);
    if worn {
        place.stats().upstream_cx_max_duration_reached.inc();
    }
    worn
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
