//! Jittered exponential back-off between attempts to reach the management server.

use std::time::Duration;

/// A wait is drawn from between nothing and an interval, which doubles from `base` up to `max`.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Envoy's defaults are 500 ms and 30 s.
    pub fn new(base: Duration, max: Duration) -> Self {
        Self {
            base,
            max,
            next: base,
        }
    }

    /// Back to `base`: the server has answered.
    pub fn reset(&mut self) {
        self.next = self.base;
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        let interval = self.next.min(self.max);
        self.next = interval.saturating_mul(2).min(self.max);
        interval.mul_f64(fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_the_limit_and_resets() {
        let mut b = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        for limit in [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000] {
            assert!(b.next_wait() <= Duration::from_millis(limit));
        }
        assert_eq!(b.next, Duration::from_secs(30));
        b.reset();
        assert!(b.next_wait() <= Duration::from_millis(500));
    }
}
