//! One attempt: a connection from the pool, the exchange, and a safe second try when a pooled connection
//! turns out to be dead.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Instant;

use bytestring::ByteString;
use filters::body::{Body, ResetReason};
use filters::head::{RequestHead, ResponseHead};
use filters::moments::{Moment, Moments};
use filters::stream::{Protocol, StreamInfo};

use super::circuit_breaker::Priority;
use super::cluster::{Cluster, UpstreamProtocol};
use super::connect::{ConnectError, ConnectionFacts};
use super::host::Host;
pub(crate) use super::pool::RequestGuard;
use super::pool::{self, HostPool, Missed, PendingGuard};
use crate::http::h1::client::ExchangeOptions;
use crate::http::service::EarlyResponses;
use crate::transport::options::Purpose;

/// A response as it begins.
pub struct UpstreamResponse {
    /// The head.
    pub head: ResponseHead,
    /// The body. It goes on sending the request's body while it is polled.
    pub body: Body,
    /// The version spoken; none if it is not HTTP.
    pub protocol: Option<Protocol>,
    /// What the request holds of the cluster's limits; keep it as long as the body.
    pub(crate) guard: RequestGuard,
}

/// An attempt that got no response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamError {
    /// Why.
    pub reason: ResetReason,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub transport_failure: Option<ByteString>,
    /// Whether the upstream may have seen any of the request.
    pub request_sent: bool,
    /// Whether a connection to the host was wanted at all: not if too many requests wait for one already.
    pub host_tried: bool,
    /// There may be no more pools of connections.
    pub no_pool: bool,
}

impl From<ConnectError> for UpstreamError {
    fn from(error: ConnectError) -> Self {
        Self {
            reason: error.reason,
            host_tried: error.reason != ResetReason::Overflow,
            no_pool: false,
            transport_failure: error.transport_failure,
            request_sent: false,
        }
    }
}

/// The connection that a request has got, once it has.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    facts: RefCell<Option<ConnectionFacts>>,
    /// When, if anybody wants to know.
    at: Cell<Option<Instant>>,
}

impl Ready {
    pub(crate) fn set(&self, facts: ConnectionFacts) {
        self.facts.replace(Some(facts));
        self.at.set(Moments::wanted().then(Instant::now));
    }

    pub(crate) fn is_set(&self) -> bool {
        self.facts.borrow().is_some()
    }

    /// What logs tell of it.
    pub(crate) fn take(&self) -> Option<ConnectionFacts> {
        self.facts.take()
    }

    /// Tells a stream what came of its attempt, which was begun then, if anybody wants to know.
    pub(crate) fn note(&self, info: &mut StreamInfo, begun: Option<Instant>) {
        let at = self.at.get();
        if let Some(facts) = self.take() {
            facts.note(info);
            info.moments.set(Moment::UpstreamSendBegin, at);
            info.upstream.pool_ready = at.zip(begun).map(|(at, begun)| at.duration_since(begun));
        } else if let Some(begun) = begun {
            info.upstream.pool_ready = Some(begun.elapsed());
        }
    }
}

/// What an attempt needs beside the message.
pub(crate) struct SendOptions<'a> {
    /// The downstream's version, for clusters that speak it too.
    pub(crate) downstream: Protocol,
    /// Whose limits count.
    pub(crate) priority: Priority,
    /// Where 1xx responses go.
    pub(crate) early: EarlyResponses,
    /// For whom its connection is made.
    pub(crate) purpose: Purpose,
    /// Told once the request has its connection.
    pub(crate) ready: Option<&'a Ready>,
}

/// Sends a request to a host and waits for the response's head. Dropping the future cancels it.
///
/// # Errors
/// Circuit breakers, connection failures, resets.
pub(crate) async fn send(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    head: &RequestHead,
    body: Body,
    options: SendOptions<'_>,
) -> Result<UpstreamResponse, UpstreamError> {
    let Some(pool) = pool::of(cluster, host, options.priority, options.purpose) else {
        cluster.stats().upstream_cx_pool_overflow.inc();
        return Err(UpstreamError {
            no_pool: true,
            ..OVERFLOW
        });
    };
    let http2 = |pool: &HostPool| match cluster.config.protocol {
        UpstreamProtocol::Http1 => false,
        UpstreamProtocol::Http2 => true,
        UpstreamProtocol::Downstream => options.downstream == Protocol::Http2,
        UpstreamProtocol::Auto => !pool.place.prefers_http1(),
    };
    let mut sending = Sending {
        pool: &pool,
        head,
        body,
        early: options.early,
        ready: options.ready,
        pending: None,
    };
    let mut turns = 0;
    loop {
        let sent = match http2(&pool) {
            true => sending.over_http2().await,
            false => sending.over_http1().await,
        };
        match sent {
            Ok(response) => return Ok(response),
            Err(Stopped::Turned) if turns < MAX_TURNS => turns += 1,
            Err(Stopped::Turned) => return Err(UNDECIDED),
            Err(Stopped::Failed(error)) => return Err(error),
        }
    }
}

/// How often the servers of a host may change the protocol between while one request looks for a connection.
const MAX_TURNS: u32 = 4;

const UNDECIDED: UpstreamError = UpstreamError {
    reason: ResetReason::RemoteConnectionFailure,
    transport_failure: Some(ByteString::from_static(
        "the servers keep changing the protocol",
    )),
    request_sent: false,
    host_tried: true,
    no_pool: false,
};

const OVERFLOW: UpstreamError = UpstreamError {
    reason: ResetReason::Overflow,
    transport_failure: None,
    request_sent: false,
    host_tried: true,
    no_pool: false,
};

/// Why an attempt goes no further on one protocol.
enum Stopped {
    Failed(UpstreamError),
    /// The server speaks the other one; nothing of the request has left.
    Turned,
}

impl From<Missed> for Stopped {
    fn from(missed: Missed) -> Self {
        match missed {
            Missed::Failed(error) => Self::Failed(error.into()),
            Missed::Turned => Self::Turned,
        }
    }
}

/// A request on its way to a host.
struct Sending<'a> {
    pool: &'a HostPool,
    head: &'a RequestHead,
    body: Body,
    early: EarlyResponses,
    ready: Option<&'a Ready>,
    /// What it holds while it waits for a connection.
    pending: Option<PendingGuard>,
}

/// How many connections a request finds to be going away before it gives up.
const GOING_AWAY: u32 = 3;

impl Sending<'_> {
    async fn over_http1(&mut self) -> Result<UpstreamResponse, Stopped> {
        let Self {
            pool,
            head,
            body,
            early,
            ready,
            pending,
        } = self;
        let no_body = body.is_end() && !head.is_tunnel();
        let mut fresh = false;
        loop {
            let checkout = pool.http1.checkout(fresh, pending).await?;
            let Some(mut guard) = RequestGuard::take(&pool.place, &checkout.state, None) else {
                pool.http1.give_back(checkout.connection);
                return Err(Stopped::Failed(OVERFLOW));
            };
            if let Some(ready) = ready {
                ready.set(checkout.state.facts());
            }
            let state = checkout.state.clone();
            let options = ExchangeOptions {
                recycle: Some(pool.http1.recycler()),
                early: Some(early.clone()),
            };
            match checkout
                .connection
                .exchange(head, std::mem::take(body), options)
                .await
            {
                Ok(response) => {
                    return Ok(UpstreamResponse {
                        head: response.head,
                        body: response.body,
                        protocol: Some(Protocol::Http11),
                        guard,
                    });
                }
                // RFC 9112, 9.3.1 and RFC 9110, 9.2.2: a connection that was closed while it was idle says
                // nothing of the request; one that has not left, or is idempotent, may go again, once.
                Err(error)
                    if error.was_reused
                        && !error.response_started
                        && no_body
                        && !fresh
                        && error.reason == ResetReason::ConnectionTermination
                        && (!error.request_sent || head.method.is_idempotent()) =>
                {
                    fresh = true;
                }
                Err(error) => {
                    guard.ended(Some(error.reason));
                    return Err(Stopped::Failed(UpstreamError {
                        reason: error.reason,
                        transport_failure: state.failure(),
                        request_sent: error.request_sent,
                        host_tried: true,
                        no_pool: false,
                    }));
                }
            }
        }
    }

    async fn over_http2(&mut self) -> Result<UpstreamResponse, Stopped> {
        let Self {
            pool,
            head,
            body,
            early,
            ready,
            pending,
        } = self;
        let end = body.is_end() && !head.is_tunnel();
        let mut tries = 0;
        let (pooled, mut guard, opened) = loop {
            tries += 1;
            let pooled = pool.http2.checkout(head.is_connect(), pending).await?;
            let freed = Some(pool.http2.freed());
            let Some(mut guard) = RequestGuard::take(&pool.place, &pooled.state, freed) else {
                return Err(Stopped::Failed(OVERFLOW));
            };
            if let Some(ready) = ready {
                ready.set(pooled.state.facts());
            }
            match pooled.connection.open(head, end).await {
                Ok(opened) => break (pooled, guard, opened),
                Err(reason) => {
                    // The server says GOAWAY, or the connection is dead: nothing of the request has left, so another
                    // connection may have it.
                    // A head that cannot be sent says nothing of the connection, which others use.
                    if reason != ResetReason::ProtocolError {
                        pooled.connection.retire();
                    }
                    guard.ended(None);
                    if tries >= GOING_AWAY || reason == ResetReason::ProtocolError {
                        return Err(Stopped::Failed(UpstreamError {
                            reason,
                            transport_failure: None,
                            request_sent: false,
                            host_tried: true,
                            no_pool: false,
                        }));
                    }
                }
            }
        };
        match opened.exchange(std::mem::take(body), Some(early)).await {
            Ok((head, body)) => Ok(UpstreamResponse {
                head,
                body,
                protocol: Some(Protocol::Http2),
                guard,
            }),
            Err(reason) => {
                guard.ended(Some(reason));
                Err(Stopped::Failed(UpstreamError {
                    reason,
                    transport_failure: pooled.state.failure(),
                    request_sent: true,
                    host_tried: true,
                    no_pool: false,
                }))
            }
        }
    }
}

#[cfg(test)]
#[path = "request_tests/mod.rs"]
mod tests;
