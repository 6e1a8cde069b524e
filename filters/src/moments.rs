//! When what happened to a stream: noted only if something was configured that tells it, for every look at the clock
//! costs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Whether anything that was ever configured wants to know.
static WANTED: AtomicBool = AtomicBool::new(false);

/// A moment of a stream. Those of its upstream are of the last attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The upstream connection was begun.
    ConnectBegin,
    /// It was there.
    ConnectEnd,
    /// Its TLS handshake was done.
    HandshakeEnd,
    /// The request's first byte went to the upstream.
    UpstreamSendBegin,
    /// Its last one.
    UpstreamSendEnd,
    /// The first byte of the response came.
    UpstreamReceiveBegin,
    /// The first byte of its body.
    UpstreamBodyBegin,
    /// The last one.
    UpstreamReceiveEnd,
    /// The response's first byte went to the client.
    DownstreamSendBegin,
    /// The last one.
    DownstreamSendEnd,
}

const MOMENTS: usize = Moment::DownstreamSendEnd as usize + 1;
/// Those before this one belong to one attempt.
const OF_THE_STREAM: usize = Moment::DownstreamSendBegin as usize;

/// The moments of one stream.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moments([Option<Instant>; MOMENTS]);

impl Moments {
    /// From now on streams note their moments.
    pub fn want() {
        WANTED.store(true, Ordering::Relaxed);
    }

    /// Whether they do.
    pub fn wanted() -> bool {
        WANTED.load(Ordering::Relaxed)
    }

    /// It is now.
    pub fn mark(&mut self, moment: Moment) {
        if Self::wanted() {
            self.set(moment, Some(Instant::now()));
        }
    }

    /// The same, if it has not been before.
    pub fn mark_first(&mut self, moment: Moment) {
        if self.get(moment).is_none() {
            self.mark(moment);
        }
    }

    /// It was then.
    pub fn set(&mut self, moment: Moment, at: Option<Instant>) {
        if let Some(slot) = self.0.get_mut(moment as usize) {
            *slot = at;
        }
    }

    /// When it was.
    pub fn get(&self, moment: Moment) -> Option<Instant> {
        self.0.get(moment as usize).copied().flatten()
    }

    /// Another attempt begins.
    pub fn forget_attempt(&mut self) {
        for slot in self.0.iter_mut().take(OF_THE_STREAM) {
            *slot = None;
        }
    }
}
