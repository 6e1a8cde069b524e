//! Requests that wait for a connection of a pool, first come, first served.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use filters::body::ResetReason;
use tokio::sync::oneshot;

use super::Missed;
use super::guard::{PendingGuard, Place};
use crate::upstream::connect::ConnectError;

/// Those who wait for a `T`.
pub(super) struct Waiting<T>(RefCell<VecDeque<oneshot::Sender<Result<T, Missed>>>>);

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<T> Waiting<T> {
    /// Waits for a turn; `grow` has the pool make what is lacking. `pending` is the request's share while it waits,
    /// which it keeps if it has to turn to the other pool.
    pub(super) async fn turn(
        &self,
        place: &Rc<Place>,
        pending: &mut Option<PendingGuard>,
        grow: impl FnOnce(),
    ) -> Result<T, Missed> {
        PendingGuard::begin(pending, place)?;
        let (sender, receiver) = oneshot::channel();
        self.0.borrow_mut().push_back(sender);
        grow();
        // The sender is dropped unused only with the pool itself.
        let given = receiver.await.unwrap_or_else(|_| Err(overflow()));
        if !matches!(given, Err(Missed::Turned)) {
            PendingGuard::finish(pending, given.is_err());
        }
        given
    }

    /// Gives to whoever has waited longest and still does; gives it back if nobody does.
    pub(super) fn give(&self, mut thing: T) -> Option<T> {
        loop {
            let Some(waiter) = self.0.borrow_mut().pop_front() else {
                return Some(thing);
            };
            match waiter.send(Ok(thing)) {
                Err(Ok(back)) => thing = back,
                Ok(()) | Err(Err(_)) => return None,
            }
        }
    }

    /// Nobody who waits gets anything.
    pub(super) fn miss(&self, why: &Missed) {
        for waiter in self.0.take() {
            let _ = waiter.send(Err(why.clone()));
        }
    }

    /// Forgets those who have gone away; tells whether nobody is left.
    pub(super) fn forget_gone(&self) -> bool {
        let mut waiting = self.0.borrow_mut();
        waiting.retain(|waiter| !waiter.is_closed());
        waiting.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.borrow().len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }
}

/// A limit of the circuit breaker is reached.
pub(super) fn overflow() -> Missed {
    Missed::Failed(ConnectError {
        reason: ResetReason::Overflow,
        transport_failure: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait<T>(waiting: &Waiting<T>) -> oneshot::Receiver<Result<T, Missed>> {
        let (sender, receiver) = oneshot::channel();
        waiting.0.borrow_mut().push_back(sender);
        receiver
    }

    #[test]
    fn gives_in_order_to_those_who_are_still_there() {
        let waiting = Waiting::default();
        let (gone, mut first, mut second) = (wait(&waiting), wait(&waiting), wait(&waiting));
        drop(gone);
        assert_eq!(waiting.len(), 3);
        assert_eq!(waiting.give("a"), None);
        assert!(matches!(first.try_recv(), Ok(Ok("a"))));
        assert!(second.try_recv().is_err());
        assert!(!waiting.forget_gone());
        waiting.miss(&Missed::Turned);
        assert!(matches!(second.try_recv(), Ok(Err(Missed::Turned))));
        assert_eq!(waiting.give("b"), Some("b"));
        assert!(waiting.is_empty());
    }
}
