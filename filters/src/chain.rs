//! The compiled filter chain and its runner for one stream.

use std::rc::Rc;
use std::sync::Arc;

use bytestring::ByteString;
use smallvec::SmallVec;

use crate::body::Body;
use crate::filter::{Flow, HttpFilter, LocalReply, SharedInfo, Slot, Step};
use crate::head::{RequestHead, ResponseHead};
use crate::local_reply::{ReplyShape, render};
use crate::stream::{FilterId, RouteFilterConfig};

/// One position of a filter chain.
#[derive(Clone)]
pub struct ChainEntry {
    /// The interned name, for per-route configuration.
    pub id: FilterId,
    /// The name in the configuration.
    pub name: ByteString,
    /// The filter.
    pub filter: Arc<dyn HttpFilter>,
    /// `HttpFilter.disabled`: off unless the route configures it.
    pub disabled_by_default: bool,
}

/// A compiled filter chain, without the terminal router. Cheap to clone.
#[derive(Clone)]
pub struct FilterChain(Arc<[ChainEntry]>);

impl FilterChain {
    /// A chain of these filters, the first nearest to downstream.
    pub fn new(entries: Vec<ChainEntry>) -> Self {
        Self(entries.into())
    }

    /// The entries in order.
    pub fn entries(&self) -> &[ChainEntry] {
        &self.0
    }
}

/// What the runner remembers about one filter.
#[derive(Default)]
struct Position {
    active: bool,
    seen: bool,
    slot: Slot,
}

/// Runs a chain for one stream. Dropping it completes the filters that have seen the stream.
///
/// With up to eight filters, none of which waits or remembers, a stream costs no allocation here.
pub struct StreamFilters {
    chain: FilterChain,
    positions: SmallVec<[Position; 8]>,
    shape: ReplyShape,
    info: SharedInfo,
    completed: bool,
}

impl StreamFilters {
    /// A runner for a stream.
    pub fn new(chain: FilterChain, info: &SharedInfo) -> Self {
        Self {
            chain,
            positions: SmallVec::new(),
            shape: ReplyShape::default(),
            info: Rc::clone(info),
            completed: false,
        }
    }

    /// The shape that local replies to this request have; known once the request has run.
    pub fn reply_shape(&self) -> ReplyShape {
        self.shape
    }

    /// Runs the request through the filters in order, until one of them answers or resets.
    ///
    /// Which filters are on is decided once, by the route at the start, as in Envoy. `reroute` chooses
    /// the route again, after a filter asked for it with
    /// [`route_stale`](crate::stream::StreamInfo::route_stale). The future may be dropped at any point.
    pub async fn run_request(
        &mut self,
        head: &mut RequestHead,
        body: &mut Body,
        reroute: impl Fn(&RequestHead, &SharedInfo),
    ) -> Flow {
        self.shape = ReplyShape::of(head);
        self.activate();
        for (entry, position) in self.chain.0.iter().zip(self.positions.iter_mut()) {
            if !position.active {
                continue;
            }
            position.seen = true;
            let filter = &entry.filter;
            let flow = match filter.on_request(head, body, &mut position.slot, &self.info) {
                Step::Ready(flow) => flow,
                Step::Wait(future) => future.await,
            };
            match flow {
                Flow::Continue => {}
                other => return other,
            }
            let stale = std::mem::take(&mut self.info.borrow_mut().route_stale);
            if stale {
                reroute(head, &self.info);
            }
        }
        Flow::Continue
    }

    /// Runs a response, the upstream's or a local reply, through all filters of the stream in reverse: as in
    /// Envoy, a local reply is seen by the filter that made it and by those that the request never came to.
    /// A filter's reply takes the response's place and is sent as it is, past the filters that are left. This
    /// answers `Continue` or `Reset` only.
    pub async fn run_response(&mut self, head: &mut ResponseHead, body: &mut Body) -> Flow {
        self.run_response_with(head, body, |_| {}).await
    }

    /// The same; `edit` sees each filter's reply before it becomes the response.
    pub async fn run_response_with(
        &mut self,
        head: &mut ResponseHead,
        body: &mut Body,
        edit: impl Fn(&mut LocalReply),
    ) -> Flow {
        if self.positions.is_empty() {
            // The request was refused before it came to the filters.
            self.activate();
        }
        let entries = self.chain.0.iter().zip(self.positions.iter_mut());
        for (entry, position) in entries.rev() {
            if !position.active {
                continue;
            }
            position.seen = true;
            let filter = &entry.filter;
            let flow = match filter.on_response(head, body, &mut position.slot, &self.info) {
                Step::Ready(flow) => flow,
                Step::Wait(future) => future.await,
            };
            match flow {
                Flow::Continue => {}
                Flow::Reply(mut reply) => {
                    edit(&mut reply);
                    (*head, *body) = local_response(*reply, self.shape, &self.info);
                    return Flow::Continue;
                }
                Flow::Reset(error) => return Flow::Reset(error),
            }
        }
        Flow::Continue
    }

    /// Tells the filters that have seen the stream that it is over. Later calls do nothing.
    pub fn complete(&mut self) {
        if std::mem::replace(&mut self.completed, true) {
            return;
        }
        for (entry, position) in self.chain.0.iter().zip(self.positions.iter_mut()) {
            if position.seen {
                entry.filter.on_complete(&mut position.slot, &self.info);
            }
        }
    }

    fn activate(&mut self) {
        let info = self.info.borrow();
        let route = info.route.as_deref();
        self.positions.clear();
        self.positions.extend(self.chain.0.iter().map(|entry| {
            let active = match route.and_then(|r| r.filter_config(entry.id)) {
                Some(RouteFilterConfig::Disabled) => false,
                Some(RouteFilterConfig::Config(_)) => true,
                None => !entry.disabled_by_default,
            };
            Position {
                active,
                ..Position::default()
            }
        }));
    }
}

impl Drop for StreamFilters {
    fn drop(&mut self) {
        self.complete();
    }
}

/// Renders a local reply and notes its details and flags in the stream's facts.
pub fn local_response(
    reply: LocalReply,
    shape: ReplyShape,
    info: &SharedInfo,
) -> (ResponseHead, Body) {
    {
        let mut info = info.borrow_mut();
        info.flags.insert(reply.flags);
        info.details = Some(reply.details.clone());
    }
    render(reply, shape)
}

/// A filter's per-route configuration on this stream, if the route has one of type `T`.
pub fn route_config<T: Send + Sync + 'static>(info: &SharedInfo, id: FilterId) -> Option<Arc<T>> {
    let info = info.borrow();
    match info.route.as_deref()?.filter_config(id)? {
        RouteFilterConfig::Config(config) => Arc::clone(config).downcast().ok(),
        RouteFilterConfig::Disabled => None,
    }
}

#[cfg(test)]
pub(crate) mod tests;
