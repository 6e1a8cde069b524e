//! Request mirroring: copies of a request go to other clusters, and nobody waits for what those answer.
//!
//! Envoy: `RouteAction.RequestMirrorPolicy`, `ShadowWriter`. A copy's body follows the request's own through
//! a bounded queue; a mirror that is slower than that is given up, so that it never slows the request down.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytestring::ByteString;
use filters::body::{Body, BodyError, BodyStream, Frame, ResetReason};
use filters::filter::SharedInfo;
use filters::head::RequestHead;
use filters::stream::Protocol;
use http::{HeaderValue, StatusCode};

use super::action::Mirror;
use super::charge::Charge;
use super::forward::failure_status;
use super::timeout::Timeouts;
use crate::http::conn_manager::{append_to_xff, names};
use crate::http::local_address::local_address;
use crate::http::service::EarlyResponses;
use crate::upstream::balance::LbContext;
use crate::upstream::circuit_breaker::Priority;
use crate::upstream::cluster::Cluster;
use crate::upstream::host::count;
use crate::upstream::request::{self, SendOptions};

/// What mirroring needs to know of a request.
pub(super) struct Mirroring<'a> {
    /// The head, ready for the upstream.
    pub(super) head: &'a RequestHead,
    /// The stream's facts.
    pub(super) info: &'a SharedInfo,
    /// Whether copies carry `x-envoy-attempt-count`; it is the first attempt's.
    pub(super) attempt_count: bool,
    /// The request's own version.
    pub(super) protocol: Protocol,
    /// The request's timeouts, of which the global one is the copies' too.
    pub(super) timeouts: Timeouts,
    /// How much of a body may wait for a mirror, bytes.
    pub(super) buffer_limit: usize,
    /// The stream's random number.
    pub(super) random: u64,
}

/// Starts the copies that `mirrors` ask for; the body that comes back is the request's own.
pub(super) fn start(mirrors: &[Mirror], request: &Mirroring<'_>, body: Body) -> Body {
    // Envoy mirrors no CONNECT; the bytes of an upgrade mean nothing without the answers either.
    if mirrors.is_empty() || request.head.is_tunnel() {
        return body;
    }
    let mut queues = Vec::new();
    let empty = body.is_end();
    // Turned, so that a share of the requests is not the share that a weighted cluster got.
    let random = request.random.rotate_left(32);
    for mirror in mirrors.iter().filter(|mirror| mirror.applies(random)) {
        // As in Envoy, a mirror whose cluster is not there is left out.
        let Some(cluster) = mirror.cluster(request.head) else {
            continue;
        };
        let copy = if empty {
            Body::Empty
        } else {
            let queue = Rc::new(RefCell::new(Queue::new(
                request.buffer_limit,
                body.remaining(),
            )));
            queues.push(Rc::downgrade(&queue));
            Body::stream(Copied(queue))
        };
        let mut head = copied_head(request, mirror);
        if request.attempt_count {
            head.headers
                .insert(names::ATTEMPT_COUNT, HeaderValue::from_static("1"));
        }
        tokio::task::spawn_local(send(
            cluster,
            head,
            copy,
            request.protocol,
            request.timeouts,
            random,
        ));
    }
    if queues.is_empty() {
        return body;
    }
    Body::stream(Tee { body, queues })
}

/// The head of a copy: another host, so that the mirror's logs tell copies from requests, and marked as a
/// request that this proxy itself makes.
fn copied_head(request: &Mirroring<'_>, mirror: &Mirror) -> RequestHead {
    let mut head = request.head.clone();
    mirror
        .mutations
        .apply_to_request(&mut head, &request.info.borrow());
    if let Some(host) = &mirror.host {
        head.authority = host.clone();
    } else if mirror.append_host_suffix && !head.authority.is_empty() {
        head.authority = with_suffix(&head.authority);
    }
    head.headers
        .insert(names::INTERNAL, HeaderValue::from_static("true"));
    append_to_xff(&mut head, local_address());
    head
}

/// `-shadow` behind the host, before the port.
fn with_suffix(authority: &str) -> ByteString {
    match authority.rsplit_once(':') {
        // The last colon of a bare IPv6 address is in brackets.
        Some((host, port)) if !port.contains(']') => format!("{host}-shadow:{port}"),
        _ => format!("{authority}-shadow"),
    }
    .into()
}

/// Sends one copy and reads its answer to the end, so that its connection can be used again.
async fn send(
    cluster: Arc<Cluster>,
    head: RequestHead,
    body: Body,
    protocol: Protocol,
    timeouts: Timeouts,
    random: u64,
) {
    let started = Instant::now();
    let charge = Charge {
        cluster: cluster.clone(),
        internal: true,
        grpc: head.is_grpc(),
    };
    let Some(host) = cluster.choose_host(&LbContext {
        random,
        ..LbContext::default()
    }) else {
        cluster.stats().upstream_cx_none_healthy.inc();
        return charge.local(None, StatusCode::SERVICE_UNAVAILABLE);
    };
    let exchange = async {
        let options = SendOptions {
            downstream: protocol,
            priority: Priority::Default,
            early: EarlyResponses::default(),
            purpose: {
                let options =
                    cluster
                        .config
                        .transport_options(&head, protocol, None, Default::default());
                options.into()
            },
            ready: None,
        };
        let mut response = match request::send(&cluster, &host, &head, body, options).await {
            Ok(response) => response,
            Err(error) => return charge.local(Some(&host), failure_status(error.reason)),
        };
        let end = response.body.is_end();
        let answer = &response.head;
        let kind = charge.response(&host, answer.status, &answer.headers, end);
        let mut trailers = None;
        loop {
            match response.body.frame().await {
                Some(Ok(Frame::Data(_))) => {}
                Some(Ok(Frame::Trailers(map))) => trailers = Some(map),
                Some(Err(error)) => return response.guard.ended(Some(error.reason)),
                None => break,
            }
        }
        response.guard.ended(None);
        if charge.grpc && !end {
            charge.grpc_end(&host, trailers.as_ref());
        }
        charge.complete(kind, Some(started.elapsed()));
    };
    // Nobody waits for the answer, so it makes no difference that Envoy's clock starts with the whole request.
    let limit = timeouts.global.unwrap_or(Duration::MAX);
    if tokio::time::timeout(limit, exchange).await.is_err() {
        cluster.stats().upstream_rq_timeout.inc();
        count(&host.stats.rq_timeout);
    }
}

/// What a mirror has yet to send.
struct Queue {
    frames: VecDeque<Frame>,
    bytes: usize,
    limit: usize,
    /// The rest of the body, as far as it is known, the queue included.
    remaining: Option<u64>,
    end: Option<End>,
    waker: Option<Waker>,
}

/// How a queue's source ended.
#[derive(Clone, Copy)]
enum End {
    Whole,
    Cut,
}

impl Queue {
    fn new(limit: usize, remaining: Option<u64>) -> Self {
        Self {
            frames: VecDeque::new(),
            bytes: 0,
            limit,
            remaining,
            end: None,
            waker: None,
        }
    }

    fn push(&mut self, frame: Frame) {
        if let Frame::Data(data) = &frame {
            self.bytes = self.bytes.saturating_add(data.len());
        }
        if self.bytes > self.limit {
            self.frames.clear();
            self.end(End::Cut);
            return;
        }
        self.frames.push_back(frame);
        self.wake();
    }

    fn end(&mut self, end: End) {
        self.end.get_or_insert(end);
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// A request's body that leaves a copy in every queue.
struct Tee {
    body: Body,
    queues: Vec<Weak<RefCell<Queue>>>,
}

impl Tee {
    fn each(&mut self, act: impl Fn(&mut Queue)) {
        self.queues.retain(|queue| {
            let Some(queue) = queue.upgrade() else {
                return false;
            };
            let mut queue = queue.borrow_mut();
            act(&mut queue);
            queue.end.is_none()
        });
    }
}

impl BodyStream for Tee {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let polled = self.body.poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.each(|queue| queue.push(frame.clone()));
                if self.body.is_end() {
                    self.each(|queue| queue.end(End::Whole));
                }
            }
            Poll::Ready(None) => self.each(|queue| queue.end(End::Whole)),
            Poll::Ready(Some(Err(_))) => self.each(|queue| queue.end(End::Cut)),
            Poll::Pending => {}
        }
        polled
    }

    fn remaining(&self) -> Option<u64> {
        self.body.remaining()
    }

    fn is_end(&self) -> bool {
        self.body.is_end()
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        // A codec that has sent what content-length promised need not look for the end. Otherwise the request
        // ended before its body did, and a copy that looked whole would be a lie.
        let whole = self.body.is_end() || self.body.remaining() == Some(0);
        let end = if whole { End::Whole } else { End::Cut };
        self.each(|queue| queue.end(end));
    }
}

/// A mirror's body.
struct Copied(Rc<RefCell<Queue>>);

impl BodyStream for Copied {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let mut queue = self.0.borrow_mut();
        if let Some(frame) = queue.frames.pop_front() {
            if let Frame::Data(data) = &frame {
                queue.bytes = queue.bytes.saturating_sub(data.len());
                queue.remaining = queue.remaining.map(|n| n.saturating_sub(data.len() as u64));
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        match queue.end {
            Some(End::Whole) => Poll::Ready(None),
            Some(End::Cut) => Poll::Ready(Some(Err(BodyError::new(ResetReason::LocalReset)))),
            None => {
                queue.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn remaining(&self) -> Option<u64> {
        self.0.borrow().remaining
    }

    fn is_end(&self) -> bool {
        let queue = self.0.borrow();
        queue.frames.is_empty() && matches!(queue.end, Some(End::Whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use filters::body::Collected;
    use futures_util::FutureExt;

    fn tee(limit: usize, body: Body) -> (Body, Body) {
        let queue = Rc::new(RefCell::new(Queue::new(limit, body.remaining())));
        let queues = vec![Rc::downgrade(&queue)];
        (
            Body::stream(Tee { body, queues }),
            Body::stream(Copied(queue)),
        )
    }

    fn whole(trailers: bool) -> Collected {
        let trailers = trailers.then(|| {
            [(names::INTERNAL, "1".parse().unwrap())]
                .into_iter()
                .collect()
        });
        Collected {
            data: Bytes::from_static(b"abc"),
            trailers,
        }
    }

    #[test]
    fn a_copy_has_the_whole_body_and_its_length() {
        for trailers in [false, true] {
            let (mut own, mut copy) = tee(3, Body::stream(whole(trailers)));
            assert_eq!(copy.remaining(), Some(3));
            assert!(!copy.is_end() && copy.frame().now_or_never().is_none());
            let own = own.collect(10).now_or_never().unwrap();
            let copy = copy.collect(10).now_or_never().unwrap();
            assert_eq!(
                (own.as_ref(), copy.as_ref()),
                (Ok(&whole(trailers)), Ok(&whole(trailers)))
            );
        }
    }

    #[test]
    fn a_slow_mirror_is_given_up_and_the_request_goes_on() {
        let (mut own, mut copy) = tee(2, Body::stream(whole(false)));
        assert_eq!(own.collect(10).now_or_never().unwrap(), Ok(whole(false)));
        assert!(copy.frame().now_or_never().unwrap().unwrap().is_err());
    }

    #[test]
    fn a_request_that_ends_early_cuts_its_copies() {
        let (own, mut copy) = tee(9, Body::stream(whole(false)));
        drop(own);
        assert!(copy.frame().now_or_never().unwrap().unwrap().is_err());
    }

    #[test]
    fn a_mirror_that_is_gone_costs_the_request_nothing() {
        let (mut own, copy) = tee(9, Body::stream(whole(false)));
        drop(copy);
        assert_eq!(own.collect(10).now_or_never().unwrap(), Ok(whole(false)));
    }

    #[test]
    fn the_suffix_stands_before_the_port() {
        for (host, want) in [
            ("a.test", "a.test-shadow"),
            ("a.test:80", "a.test-shadow:80"),
            ("[::1]", "[::1]-shadow"),
            ("[::1]:80", "[::1]-shadow:80"),
        ] {
            assert_eq!(&*with_suffix(host), want);
        }
    }
}
