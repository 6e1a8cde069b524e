//! A request body that can be sent again: what went out is kept, up to a bound.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll};

use filters::body::{Body, BodyError, BodyStream, Frame};

/// The body of a request that may be retried.
pub(super) struct ReplayBuffer(Rc<RefCell<Shared>>);

struct Shared {
    source: Body,
    kept: Vec<Frame>,
    bytes: usize,
    limit: usize,
    /// Whether what goes out is kept.
    keep: bool,
    overflowed: bool,
    failed: bool,
}

impl ReplayBuffer {
    /// Keeps at most `limit` bytes of `source`.
    pub(super) fn new(source: Body, limit: usize) -> Self {
        Self(Rc::new(RefCell::new(Shared {
            source,
            kept: Vec::new(),
            bytes: 0,
            limit,
            keep: true,
            overflowed: false,
            failed: false,
        })))
    }

    /// Whether the body can be sent from its beginning again.
    pub(super) fn can_replay(&self) -> bool {
        let shared = self.0.borrow();
        !shared.overflowed && !shared.failed
    }

    /// Whether the body was too long to be kept.
    pub(super) fn is_overflowed(&self) -> bool {
        self.0.borrow().overflowed
    }

    /// There will be no other attempt: nothing more is kept.
    pub(super) fn release(&self) {
        self.0.borrow_mut().keep = false;
    }

    /// The body from its beginning, for the next attempt. The previous attempt's must be gone.
    pub(super) fn body(&self) -> Body {
        if self.0.borrow().kept.is_empty() && self.0.borrow().source.is_end() {
            return Body::Empty;
        }
        Body::stream(Replay {
            shared: self.0.clone(),
            next: 0,
        })
    }
}

struct Replay {
    shared: Rc<RefCell<Shared>>,
    next: usize,
}

impl BodyStream for Replay {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let mut shared = self.shared.borrow_mut();
        if let Some(frame) = shared.kept.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(frame.clone())));
        }
        if !shared.keep && !shared.kept.is_empty() {
            shared.kept = Vec::new();
            self.next = 0;
        }
        let polled = shared.source.poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) if shared.keep => {
                if let Frame::Data(data) = frame {
                    shared.bytes += data.len();
                }
                if shared.bytes > shared.limit {
                    shared.overflowed = true;
                    shared.keep = false;
                    shared.kept = Vec::new();
                    self.next = 0;
                } else {
                    shared.kept.push(frame.clone());
                    self.next += 1;
                }
            }
            Poll::Ready(Some(Err(_))) => shared.failed = true,
            _ => {}
        }
        polled
    }

    fn remaining(&self) -> Option<u64> {
        let shared = self.shared.borrow();
        let ahead: usize = shared
            .kept
            .iter()
            .skip(self.next)
            .map(|frame| match frame {
                Frame::Data(data) => data.len(),
                Frame::Trailers(_) => 0,
            })
            .sum();
        shared.source.remaining().map(|rest| rest + ahead as u64)
    }

    fn is_end(&self) -> bool {
        let shared = self.shared.borrow();
        self.next >= shared.kept.len() && shared.source.is_end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use filters::body::Collected;
    use futures_util::FutureExt;

    struct Pieces(Vec<&'static str>);

    impl BodyStream for Pieces {
        fn poll_frame(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
            Poll::Ready(
                (!self.0.is_empty())
                    .then(|| Ok(Frame::Data(Bytes::from_static(self.0.remove(0).as_bytes())))),
            )
        }
    }

    fn collect(mut body: Body) -> Collected {
        body.collect(1 << 20).now_or_never().unwrap().unwrap()
    }

    #[test]
    fn a_half_sent_body_is_sent_again_from_its_beginning() {
        let buffer = ReplayBuffer::new(Body::stream(Pieces(vec!["a", "b", "c"])), 10);
        let mut first = buffer.body();
        assert_eq!(
            first.frame().now_or_never().unwrap().unwrap(),
            Ok(Frame::Data("a".into()))
        );
        drop(first);
        assert!(buffer.can_replay());
        assert_eq!(collect(buffer.body()).data, "abc");
        assert_eq!(collect(buffer.body()).data, "abc");
    }

    #[test]
    fn beyond_the_limit_the_body_goes_on_but_is_not_kept() {
        let buffer = ReplayBuffer::new(Body::stream(Pieces(vec!["aaa", "bbb", "ccc"])), 5);
        assert_eq!(collect(buffer.body()).data, "aaabbbccc");
        assert!(!buffer.can_replay());
    }

    #[test]
    fn once_released_the_body_goes_on_and_what_was_kept_is_forgotten() {
        let buffer = ReplayBuffer::new(Body::stream(Pieces(vec!["a", "b", "c"])), 10);
        let next = |body: &mut Body| body.frame().now_or_never().unwrap();
        let mut first = buffer.body();
        assert!(next(&mut first).is_some());
        drop(first);
        let mut second = buffer.body();
        buffer.release();
        assert_eq!(collect(std::mem::take(&mut second)).data, "abc");
        assert!(buffer.0.borrow().kept.is_empty());
    }
}
