//! What watches a stream's request body, and reads it while nobody else does.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll};

use filters::body::{Body, BodyError, BodyStream, Frame, ResetReason};
use filters::filter::{LocalReply, SharedInfo};
use filters::flags::ResponseFlags;
use http::StatusCode;

/// Most bytes that are read before somebody wants them: enough for most bodies, and with as many streams as a client may
/// open no more than a small part of their windows.
const AHEAD: usize = 16 * 1024;

/// What a frame counts for beside its bytes: frames without any would be kept without a bound.
const FRAME: usize = 64;

/// Wraps a request body that is not empty: counts it and notes when it is complete. The second part reads it ahead.
pub(super) fn observe(body: Body, info: &SharedInfo) -> (Body, ReadAhead) {
    if body.is_end() {
        let mut info = info.borrow_mut();
        info.request_end = Some(info.start);
        return (body, ReadAhead(None));
    }
    // Shared by the two, for bodies that are streams or at hand: most requests have none.
    let observed = Rc::new(RefCell::new(Observed {
        left: body.remaining(),
        body,
        info: info.clone(),
        ahead: VecDeque::new(),
        bytes: 0,
        wanted: false,
        ended: false,
    }));
    let body = Body::stream(RequestBody(observed.clone()));
    (body, ReadAhead(Some(observed)))
}

/// Reads a request body as Envoy does: it comes in while the request waits for filters or for its connection, and
/// starts the clocks that count from its end. Reads no more once the body is wanted.
pub(super) struct ReadAhead(Option<Rc<RefCell<Observed>>>);

impl ReadAhead {
    /// Reads what there is. To be called by the task that serves the request, while it waits. True if that was the
    /// end of the body.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> bool {
        let observed = self.0.as_ref();
        observed.is_some_and(|observed| observed.borrow_mut().poll_ahead(cx))
    }
}

struct Observed {
    body: Body,
    /// How much is still to be handed out, if that was known at the beginning. Not what the body says later: one in
    /// chunks knows its length once it has been read, and may have trailers behind it.
    left: Option<u64>,
    info: SharedInfo,
    /// What was read and not wanted yet.
    ahead: VecDeque<Result<Frame, BodyError>>,
    bytes: usize,
    /// Somebody reads: from now on their task is the one to be woken.
    wanted: bool,
    /// Nothing more is to be read of `body`.
    ended: bool,
}

impl Observed {
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> bool {
        let before = self.ended;
        while !self.wanted && !self.ended && self.bytes < AHEAD {
            match self.poll_body(cx) {
                Poll::Ready(Some(frame)) => {
                    if let Ok(Frame::Data(data)) = &frame {
                        self.bytes += data.len() + FRAME;
                    }
                    self.ahead.push_back(frame);
                }
                Poll::Ready(None) => {}
                Poll::Pending => break,
            }
        }
        self.ended && !before
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let polled = self.body.poll_frame(cx);
        if let Poll::Ready(frame) = &polled {
            let mut info = self.info.borrow_mut();
            info.touch();
            match frame {
                Some(Ok(Frame::Data(data))) => info.bytes_received += data.len() as u64,
                Some(Err(error)) => {
                    // The client's fault, whatever becomes of the upstream's request by it.
                    if error.reason == ResetReason::ProtocolError {
                        let details = error.details.unwrap_or(error.reason.as_str());
                        let reply =
                            LocalReply::new(StatusCode::BAD_REQUEST, "Bad Request", details)
                                .with_flags(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR);
                        info.body_reply = Some(Box::new(reply));
                    }
                    info.request_error = Some(error.clone());
                }
                _ => {}
            }
            if self.body.is_end() || !matches!(frame, Some(Ok(Frame::Data(_)))) {
                self.ended = true;
                info.request_end = Some(info.last_activity);
            }
        }
        polled
    }
}

/// The body as the request's filters and its upstream see it.
struct RequestBody(Rc<RefCell<Observed>>);

impl BodyStream for RequestBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let mut observed = self.0.borrow_mut();
        observed.wanted = true;
        let polled = match observed.ahead.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None if observed.ended => Poll::Ready(None),
            None => observed.poll_body(cx),
        };
        if let (Poll::Ready(Some(Ok(Frame::Data(data)))), Some(left)) = (&polled, observed.left) {
            observed.left = Some(left.saturating_sub(data.len() as u64));
        }
        polled
    }

    fn remaining(&self) -> Option<u64> {
        self.0.borrow().left
    }

    fn is_end(&self) -> bool {
        let observed = self.0.borrow();
        observed.ahead.is_empty() && (observed.ended || observed.body.is_end())
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use futures_util::FutureExt;

    use super::*;
    use crate::http::testing::stream_info;

    /// Frames, with a wait in front of each `None`.
    struct Script(VecDeque<Option<Result<Frame, BodyError>>>);

    impl BodyStream for Script {
        fn poll_frame(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
            match self.0.pop_front() {
                Some(Some(frame)) => Poll::Ready(Some(frame)),
                Some(None) => Poll::Pending,
                None => Poll::Ready(None),
            }
        }
    }

    fn data(text: &'static str) -> Option<Result<Frame, BodyError>> {
        Some(Ok(Frame::Data(text.into())))
    }

    fn start(
        script: impl IntoIterator<Item = Option<Result<Frame, BodyError>>>,
    ) -> (Body, ReadAhead, SharedInfo) {
        let info = Rc::new(RefCell::new(stream_info()));
        let body = Body::stream(Script(script.into_iter().collect()));
        let (body, ahead) = observe(body, &info);
        (body, ahead, info)
    }

    #[test]
    fn what_comes_while_nobody_reads_is_received_and_read_later() {
        let mut cx = Context::from_waker(Waker::noop());
        let (mut body, ahead, info) = start([data("a"), None, data("b"), data("c")]);
        assert!(!ahead.poll(&mut cx));
        assert_eq!(info.borrow().bytes_received, 1);
        assert!(!info.borrow().request_complete());
        assert!(ahead.poll(&mut cx));
        assert_eq!(info.borrow().bytes_received, 3);
        assert!(info.borrow().request_complete());
        assert!(!body.is_end());
        let whole = body.collect(10).now_or_never().unwrap().unwrap();
        assert_eq!(whole.data, "abc");
    }

    #[test]
    fn trailers_that_were_read_ahead_are_kept_and_no_length_is_made_up() {
        let mut cx = Context::from_waker(Waker::noop());
        let trailers = Frame::Trailers(http::HeaderMap::new());
        let (mut body, ahead, _info) = start([data("a"), Some(Ok(trailers.clone()))]);
        assert!(ahead.poll(&mut cx));
        assert_eq!((body.remaining(), body.is_end()), (None, false));
        let whole = body.collect(10).now_or_never().unwrap().unwrap();
        assert_eq!((&*whole.data, whole.trailers.is_some()), (&b"a"[..], true));
    }

    #[test]
    fn nothing_is_read_ahead_of_a_reader() {
        let mut cx = Context::from_waker(Waker::noop());
        let (mut body, ahead, info) = start([data("a"), data("b"), data("c")]);
        assert!(body.poll_frame(&mut cx).is_ready());
        ahead.poll(&mut cx);
        assert_eq!(info.borrow().bytes_received, 1);
    }

    #[test]
    fn not_more_than_the_bound_is_read_ahead() {
        let mut cx = Context::from_waker(Waker::noop());
        let piece: &'static str = Box::leak("x".repeat(AHEAD / 2).into_boxed_str());
        let (_body, ahead, info) = start((0..5).map(|_| data(piece)));
        ahead.poll(&mut cx);
        assert_eq!(info.borrow().bytes_received, AHEAD as u64);
    }

    #[test]
    fn frames_without_bytes_are_bounded_too() {
        let mut cx = Context::from_waker(Waker::noop());
        let (body, ahead, _info) = start((0..AHEAD).map(|_| data("")));
        ahead.poll(&mut cx);
        assert!(ahead.0.unwrap().borrow().ahead.len() <= AHEAD / FRAME);
        assert!(!body.is_end());
    }

    #[test]
    fn an_error_that_was_read_ahead_is_told_and_met_later() {
        let mut cx = Context::from_waker(Waker::noop());
        let error = BodyError::new(ResetReason::ProtocolError);
        let (mut body, ahead, info) = start([data("a"), Some(Err(error.clone()))]);
        ahead.poll(&mut cx);
        assert_eq!(info.borrow().request_error, Some(error.clone()));
        assert!(info.borrow().body_reply.is_some());
        assert!(matches!(body.poll_frame(&mut cx), Poll::Ready(Some(Ok(_)))));
        assert_eq!(body.poll_frame(&mut cx), Poll::Ready(Some(Err(error))));
    }
}
