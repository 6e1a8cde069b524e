//! Token buckets that all workers draw from, without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::r#type::v3 as pb;
use xds_client::duration;
use xds_client::error::ConfigError;

/// Envoy's shortest `fill_interval`.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(50);

/// A bucket that fills evenly with time. It is full at first.
#[derive(Debug)]
pub(super) struct TokenBucket {
    began: Instant,
    /// Nanoseconds in which a token comes; at least 1.
    per_token: u64,
    /// Nanoseconds in which an empty bucket is full.
    full_after: u64,
    /// When it was empty, in nanoseconds after `began` less `full_after`: tokens are a distance in time.
    empty_at: AtomicU64,
}

impl TokenBucket {
    /// Compiles the message.
    ///
    /// # Errors
    /// A number is missing or zero, or the interval is too short, by field.
    pub(super) fn compile(proto: &pb::TokenBucket) -> Result<Self, ConfigError> {
        let at_least_one = |value: u32, field: &str| match value {
            0 => Err(ConfigError::new("must be at least 1").at(field)),
            value => Ok(u64::from(value)),
        };
        let max = at_least_one(proto.max_tokens, "max_tokens")?;
        let fill = proto.tokens_per_fill.as_ref().map_or(1, |v| v.value);
        let fill = at_least_one(fill, "tokens_per_fill")?;
        let interval = duration::of_field(proto.fill_interval.as_ref(), "fill_interval")?;
        let missing = || ConfigError::new("value is required").at("fill_interval");
        let interval = interval.ok_or_else(missing)?;
        if interval < SHORTEST_INTERVAL {
            return Err(ConfigError::new("must be at least 50 ms").at("fill_interval"));
        }
        let interval = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        let per_token = (interval / fill).max(1);
        Ok(Self {
            began: Instant::now(),
            per_token,
            full_after: per_token.saturating_mul(max),
            empty_at: AtomicU64::new(0),
        })
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&self) -> bool {
        self.take_at(Instant::now())
    }

    fn take_at(&self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.began).as_nanos();
        let now = u64::try_from(since)
            .unwrap_or(u64::MAX)
            .saturating_add(self.full_after);
        let next = |empty_at: u64| {
            // Older time than what fills it is lost: it would flow over.
            let from = empty_at.max(now.saturating_sub(self.full_after));
            from.checked_add(self.per_token).filter(|at| *at <= now)
        };
        self.empty_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::protobuf as wkt;

    use super::*;

    fn proto(max_tokens: u32, fill: u32, millis: i32) -> pb::TokenBucket {
        pb::TokenBucket {
            max_tokens,
            tokens_per_fill: Some(wkt::UInt32Value { value: fill }),
            fill_interval: Some(wkt::Duration {
                seconds: 0,
                nanos: millis * 1_000_000,
            }),
        }
    }

    #[test]
    fn it_is_full_at_first_fills_evenly_and_never_flows_over() {
        let bucket = TokenBucket::compile(&proto(3, 2, 100)).unwrap();
        let taken = |millis: u64| {
            let now = bucket.began + Duration::from_millis(millis);
            (0..10).filter(|_| bucket.take_at(now)).count()
        };
        assert_eq!(taken(0), 3);
        assert_eq!(taken(49), 0);
        assert_eq!(taken(50), 1);
        assert_eq!(taken(149), 1);
        assert_eq!(taken(150), 1);
        assert_eq!(taken(10_000), 3);
        assert_eq!(taken(10_000), 0);
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (proto, field) in [
            (proto(0, 1, 100), "max_tokens"),
            (proto(1, 0, 100), "tokens_per_fill"),
            (proto(1, 1, 49), "fill_interval"),
            (
                pb::TokenBucket {
                    fill_interval: None,
                    ..proto(1, 1, 100)
                },
                "fill_interval",
            ),
        ] {
            let error = TokenBucket::compile(&proto).unwrap_err();
            assert_eq!(error.path(), field);
        }
        let extreme = TokenBucket::compile(&pb::TokenBucket {
            fill_interval: Some(wkt::Duration {
                seconds: 315_576_000_000,
                nanos: 0,
            }),
            ..proto(u32::MAX, 1, 0)
        })
        .unwrap();
        assert!(extreme.take());
    }
}
