//! Draining: how connections are asked to end, and how long they may take.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How the requests to end are spread over the drain time (`--drain-strategy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainStrategy {
    /// Evenly, at random.
    Gradual,
    /// All at once, at the beginning.
    Immediate,
}

/// When a listener that drains while it serves stops listening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainEnd {
    /// Never; connections are asked to end for as long as the process lives.
    Never,
    /// When the drain time is over. Connections that are left then stay.
    Deadline,
    /// When no worker has a connection of it, or the drain time is over. What is left then is closed.
    Idle,
}

/// One drain, as the workers are told it.
#[derive(Debug, Clone, Copy)]
pub struct DrainPlan {
    /// When it began.
    pub start: Instant,
    /// After this long, what is left is closed hard.
    pub time: Duration,
    /// See [`DrainStrategy`].
    pub strategy: DrainStrategy,
}

impl DrainPlan {
    /// A plan that begins now.
    pub fn new(time: Duration, strategy: DrainStrategy) -> Self {
        Self {
            start: Instant::now(),
            time,
            strategy,
        }
    }

    /// When one connection is to be asked; drawn anew for each.
    pub fn delay(&self) -> Duration {
        match self.strategy {
            DrainStrategy::Immediate => Duration::ZERO,
            // The last tenth is left for finishing.
            DrainStrategy::Gradual => self.time.mul_f64(fastrand::f64() * 0.9),
        }
    }

    /// When the hard close is due.
    pub fn deadline(&self) -> Instant {
        self.start + self.time
    }
}

/// The drain of the whole server. Shared; the readiness probe and the connection managers read it.
#[derive(Debug)]
pub struct DrainManager {
    time: Duration,
    strategy: DrainStrategy,
    draining: AtomicBool,
    plan: Mutex<Option<DrainPlan>>,
}

impl DrainManager {
    /// A manager that is not draining.
    pub fn new(time: Duration, strategy: DrainStrategy) -> Self {
        Self {
            time,
            strategy,
            draining: AtomicBool::new(false),
            plan: Mutex::new(None),
        }
    }

    /// Begins the drain and gives its plan; a second call gives the first one's. Without `graceful`
    /// everything is due at once.
    pub fn start(&self, graceful: bool) -> DrainPlan {
        let mut plan = self
            .plan
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let time = if graceful { self.time } else { Duration::ZERO };
        let plan = *plan.get_or_insert_with(|| DrainPlan::new(time, self.strategy));
        self.draining.store(true, Ordering::Release);
        plan
    }

    /// A plan for one listener or chain that is going away, by the same settings.
    pub fn plan(&self) -> DrainPlan {
        DrainPlan::new(self.time, self.strategy)
    }

    /// Whether the server drains.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// What is left until the hard close; `None` when not draining.
    pub fn remaining(&self) -> Option<Duration> {
        self.plan
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .map(|p| p.deadline().saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_follow_the_strategy() {
        let time = Duration::from_secs(10);
        let plan = DrainPlan::new(time, DrainStrategy::Immediate);
        assert_eq!(plan.delay(), Duration::ZERO);
        let plan = DrainPlan::new(time, DrainStrategy::Gradual);
        let delays: Vec<_> = (0..1000).map(|_| plan.delay()).collect();
        assert!(delays.iter().all(|d| *d < time));
        let late = delays.iter().filter(|d| **d > time / 2).count();
        assert!((300..600).contains(&late), "{late}");
    }

    #[test]
    fn a_second_start_keeps_the_first_deadline() {
        let drain = DrainManager::new(Duration::from_secs(600), DrainStrategy::Gradual);
        assert!(!drain.is_draining());
        assert_eq!(drain.remaining(), None);
        let deadline = drain.start(true).deadline();
        assert_eq!(drain.start(false).deadline(), deadline);
        assert!(drain.is_draining());
        assert!(drain.remaining().unwrap() > Duration::from_secs(590));
    }
}
