//! One attempt: a connection from the pool, the exchange, and a safe second try when a pooled connection
//! turns out to be dead.

use std::rc::Rc;
use std::sync::Arc;

use bytestring::ByteString;
use filters::body::{Body, ResetReason};
use filters::head::{RequestHead, ResponseHead};
use filters::stream::{Address, Protocol};

use super::cluster::{Cluster, UpstreamProtocol};
use super::connect::ConnectError;
use super::host::Host;
pub(crate) use super::pool::RequestGuard;
use super::pool::{self, HostPool};
use crate::http::h1::client::ExchangeOptions;
use crate::http::service::EarlyResponses;

/// A response as it begins.
pub struct UpstreamResponse {
    /// The head.
    pub head: ResponseHead,
    /// The body. It goes on sending the request's body while it is polled.
    pub body: Body,
    /// The version spoken.
    pub protocol: Protocol,
    /// The local end of the connection.
    pub local: Option<Address>,
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
}

impl From<ConnectError> for UpstreamError {
    fn from(error: ConnectError) -> Self {
        Self {
            reason: error.reason,
            transport_failure: error.transport_failure,
            request_sent: false,
        }
    }
}

/// Sends a request to a host and waits for the response's head. Dropping the future cancels it.
///
/// # Errors
/// Circuit breakers, connection failures, resets.
pub async fn send(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    head: &RequestHead,
    body: Body,
    downstream: Protocol,
    early: EarlyResponses,
) -> Result<UpstreamResponse, UpstreamError> {
    let guard = RequestGuard::take(cluster, host).ok_or(UpstreamError {
        reason: ResetReason::Overflow,
        transport_failure: None,
        request_sent: false,
    })?;
    let pool = pool::of(cluster, host);
    let http2 = match cluster.config.protocol {
        UpstreamProtocol::Http1 => false,
        UpstreamProtocol::Http2 => true,
        UpstreamProtocol::Downstream => downstream == Protocol::Http2,
    };
    if http2 {
        over_http2(&pool, head, body, early, guard).await
    } else {
        over_http1(&pool, head, body, early, guard).await
    }
}

async fn over_http1(
    pool: &Rc<HostPool>,
    head: &RequestHead,
    mut body: Body,
    early: EarlyResponses,
    guard: RequestGuard,
) -> Result<UpstreamResponse, UpstreamError> {
    let no_body = body.is_end() && !head.is_tunnel();
    let mut fresh = false;
    loop {
        let checkout = pool.http1.checkout(fresh).await?;
        let options = ExchangeOptions {
            recycle: Some(pool.http1.recycler()),
            early: Some(early.clone()),
        };
        match checkout
            .connection
            .exchange(head, std::mem::take(&mut body), options)
            .await
        {
            Ok(response) => {
                return Ok(UpstreamResponse {
                    head: response.head,
                    body: response.body,
                    protocol: Protocol::Http11,
                    local: checkout.local,
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
                return Err(UpstreamError {
                    reason: error.reason,
                    transport_failure: None,
                    request_sent: error.request_sent,
                });
            }
        }
    }
}

async fn over_http2(
    pool: &Rc<HostPool>,
    head: &RequestHead,
    body: Body,
    early: EarlyResponses,
    guard: RequestGuard,
) -> Result<UpstreamResponse, UpstreamError> {
    let pooled = pool.http2.checkout().await?;
    match pooled.connection.exchange(head, body, Some(&early)).await {
        Ok((head, body)) => Ok(UpstreamResponse {
            head,
            body,
            protocol: Protocol::Http2,
            local: pooled.local.clone(),
            guard,
        }),
        Err(error) => {
            if !error.request_sent {
                pooled.connection.retire();
            }
            Err(UpstreamError {
                reason: error.reason,
                transport_failure: None,
                request_sent: error.request_sent,
            })
        }
    }
}
