//! One gRPC stream to a processor, shared by the request and the response of one HTTP stream.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use envoy_types::pb::envoy::service::ext_proc::v3::{
    ProcessingRequest, ProcessingResponse, external_processor_client::ExternalProcessorClient,
    processing_response::Response,
};
use futures_util::Stream;
use futures_util::future::LocalBoxFuture;
use futures_util::task::AtomicWaker;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::PollSender;
use tonic::{Status, Streaming};

use crate::grpc::GrpcChannel;

/// Answers that wait for one side while the other side reads, in messages and bytes (Envoy's default
/// buffer limit). At either, reading stops for both: one gRPC stream has one order.
const QUEUE: usize = 256;
const QUEUE_BYTES: usize = 1 << 20;

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Towards the upstream.
    Request,
    /// Towards the client.
    Response,
}

/// How the processor ended the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    /// With an OK status: it wants to see no more.
    Done,
    /// With an error.
    Failed,
}

enum Incoming {
    /// The processor has not answered the call yet; it may wait for our first message.
    Connecting(LocalBoxFuture<'static, Result<Streaming<ProcessingResponse>, Status>>),
    Open(Box<Streaming<ProcessingResponse>>),
    Closed(Closed),
}

/// Wakes whichever side waits: either may be the one that reads the stream.
#[derive(Default)]
struct Both([AtomicWaker; 2]);

impl Wake for Both {
    fn wake(self: Arc<Self>) {
        for waker in &self.0 {
            waker.wake();
        }
    }
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(usize, ProcessingResponse)>,
    bytes: usize,
    /// Nobody reads this side any more.
    gone: bool,
}

struct Inner {
    incoming: Incoming,
    request: Queue,
    response: Queue,
    response_began: bool,
}

/// The stream. Dropping the last clone ends it.
#[derive(Clone)]
pub(super) struct Session {
    inner: Rc<RefCell<Inner>>,
    wakers: Arc<Both>,
    sender: mpsc::Sender<ProcessingRequest>,
}

impl Session {
    /// Begins a call. Nothing is sent before the session is polled.
    pub(super) fn new(channel: GrpcChannel) -> Self {
        // One message waits for gRPC's flow control; what a side has read beyond that it holds itself.
        let (sender, receiver) = mpsc::channel(1);
        let connecting = Box::pin(async move {
            let mut client = ExternalProcessorClient::new(channel);
            let answer = client.process(ReceiverStream::new(receiver)).await?;
            Ok(answer.into_inner())
        });
        let inner = Inner {
            incoming: Incoming::Connecting(connecting),
            request: Queue::default(),
            response: Queue::default(),
            response_began: false,
        };
        Self {
            inner: Rc::new(RefCell::new(inner)),
            wakers: Arc::default(),
            sender,
        }
    }

    /// A way to send for one side.
    pub(super) fn sender(&self) -> PollSender<ProcessingRequest> {
        PollSender::new(self.sender.clone())
    }

    /// From now on an immediate response is an answer to the response.
    pub(super) fn begin_response(&self) {
        self.inner.borrow_mut().response_began = true;
    }

    /// Nobody waits for this side any more: what comes for it is dropped.
    pub(super) fn leave(&self, side: Side) {
        let mut inner = self.inner.borrow_mut();
        let queue = inner.queue(side);
        queue.gone = true;
        queue.waiting.clear();
        queue.bytes = 0;
        drop(inner);
        self.wakers.wake_by_ref();
    }

    /// Whether the processor has ended the stream, as far as we have read.
    pub(super) fn closed(&self) -> Option<Closed> {
        match self.inner.borrow().incoming {
            Incoming::Closed(how) => Some(how),
            _ => None,
        }
    }

    /// The next answer for this side.
    pub(super) fn poll_next(
        &self,
        side: Side,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ProcessingResponse, Closed>> {
        let [request, response] = &self.wakers.0;
        match side {
            Side::Request => request.register(cx.waker()),
            Side::Response => response.register(cx.waker()),
        }
        let waker = Waker::from(Arc::clone(&self.wakers));
        let mut both = Context::from_waker(&waker);
        let mut inner = self.inner.borrow_mut();
        loop {
            let queue = inner.queue(side);
            if let Some((size, answer)) = queue.waiting.pop_front() {
                queue.bytes -= size;
                // The other side may have stopped because this queue was full.
                match side {
                    Side::Request => response.wake(),
                    Side::Response => request.wake(),
                }
                return Poll::Ready(Ok(answer));
            }
            let full = |q: &Queue| !q.gone && (q.waiting.len() >= QUEUE || q.bytes >= QUEUE_BYTES);
            if full(&inner.request) || full(&inner.response) {
                return Poll::Pending;
            }
            match &mut inner.incoming {
                Incoming::Closed(how) => return Poll::Ready(Err(*how)),
                Incoming::Connecting(call) => match call.as_mut().poll(&mut both) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(open)) => inner.incoming = Incoming::Open(Box::new(open)),
                    Poll::Ready(Err(_)) => {
                        inner.incoming = Incoming::Closed(Closed::Failed);
                        self.wakers.wake_by_ref();
                    }
                },
                Incoming::Open(stream) => match Pin::new(stream.as_mut()).poll_next(&mut both) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Some(Ok(answer))) => {
                        let to = inner.addressee(&answer);
                        let queue = inner.queue(to);
                        if !queue.gone {
                            let size = answer.encoded_len();
                            queue.bytes += size;
                            queue.waiting.push_back((size, answer));
                        }
                        match to {
                            Side::Request => request.wake(),
                            Side::Response => response.wake(),
                        }
                    }
                    Poll::Ready(end) => {
                        let how = match end {
                            None => Closed::Done,
                            Some(_) => Closed::Failed,
                        };
                        inner.incoming = Incoming::Closed(how);
                        self.wakers.wake_by_ref();
                    }
                },
            }
        }
    }
}

impl Inner {
    fn queue(&mut self, side: Side) -> &mut Queue {
        match side {
            Side::Request => &mut self.request,
            Side::Response => &mut self.response,
        }
    }

    fn addressee(&self, answer: &ProcessingResponse) -> Side {
        match answer.response {
            Some(
                Response::RequestHeaders(_)
                | Response::RequestBody(_)
                | Response::RequestTrailers(_),
            ) => Side::Request,
            Some(
                Response::ResponseHeaders(_)
                | Response::ResponseBody(_)
                | Response::ResponseTrailers(_),
            ) => Side::Response,
            _ if self.response_began => Side::Response,
            _ => Side::Request,
        }
    }
}
