//! Asks connections to end, each at its time, and then closes those that stay idle.

use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::drain::DrainPlan;
use crate::http::service::ConnectionControl;

/// How long an HTTP/1 connection that was asked to end stays open while it is idle. The client may be sending a
/// request, which would be lost; a client that is busy is told by a response within this time.
const IDLE_GRACE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
enum Step {
    AskAt(Instant),
    CloseIdleAt(Instant),
    Done,
}

/// A drain of some of a listener's connections.
pub(super) struct ConnectionDrain {
    plan: DrainPlan,
    steps: FxHashMap<u64, Step>,
}

impl ConnectionDrain {
    /// A drain of the connections `ids`.
    pub(super) fn new(plan: DrainPlan, ids: impl IntoIterator<Item = u64>) -> Self {
        let ask = |id| (id, Step::AskAt(plan.start + plan.delay()));
        Self {
            plan,
            steps: ids.into_iter().map(ask).collect(),
        }
    }

    /// Takes in connections that came since. They are asked at the next step, so that they can send a request.
    pub(super) fn add(&mut self, ids: impl IntoIterator<Item = u64>) {
        for id in ids {
            self.steps
                .entry(id)
                .or_insert_with(|| Step::AskAt(Instant::now()));
        }
    }

    /// Takes the steps that are due. `control` finds a connection that is still open. Gives whether any is.
    pub(super) fn step(&mut self, control: impl Fn(u64) -> Option<ConnectionControl>) -> bool {
        let now = Instant::now();
        self.steps.retain(|id, step| {
            let Some(control) = control(*id) else {
                return false;
            };
            match *step {
                Step::AskAt(at) if at <= now => {
                    control.drain();
                    *step = Step::CloseIdleAt(now + IDLE_GRACE.min(self.plan.time / 2));
                }
                Step::CloseIdleAt(at) if at <= now => {
                    control.close_idle();
                    *step = Step::Done;
                }
                _ => {}
            }
            true
        });
        !self.steps.is_empty()
    }

    /// How long to wait before the next step.
    pub(super) fn tick(&self) -> Duration {
        (self.plan.time / 20).clamp(Duration::from_millis(5), Duration::from_millis(250))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::drain::DrainStrategy;

    #[test]
    fn a_connection_is_asked_first_and_closed_when_idle_later() {
        let plan = DrainPlan::new(Duration::from_secs(600), DrainStrategy::Immediate);
        let mut drain = ConnectionDrain::new(plan, [1]);
        let control = ConnectionControl::default();
        let find = |id| (id == 1).then(|| control.clone());
        assert!(drain.step(find));
        assert!(control.is_draining() && !control.closes_idle());
        // As if the grace were over.
        drain.steps.insert(1, Step::CloseIdleAt(Instant::now()));
        assert!(drain.step(find));
        assert!(control.closes_idle());
        assert!(!drain.step(|_| None), "it is gone");
    }
}
