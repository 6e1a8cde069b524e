//! `google.protobuf.Duration` as the standard library's.

use std::time::Duration;

use envoy_types::pb::google::protobuf as wkt;

use crate::error::{At, ConfigError};

/// The most seconds that protobuf allows, some 10,000 years. An `Instant` counts its seconds in 64 bits, so that no
/// sum of one and durations within this bound overflows.
const MAX_SECONDS: u64 = 315_576_000_000;

/// Reads a duration.
///
/// # Errors
/// It is negative, longer than protobuf allows, or has a second or more of nanoseconds.
pub fn read(value: &wkt::Duration) -> Result<Duration, ConfigError> {
    let seconds = u64::try_from(value.seconds).ok();
    let nanos = u32::try_from(value.nanos).ok();
    let (seconds, nanos) = (
        seconds.filter(|s| *s <= MAX_SECONDS),
        nanos.filter(|n| *n < 1_000_000_000),
    );
    seconds
        .zip(nanos)
        .map(|(seconds, nanos)| Duration::new(seconds, nanos))
        .ok_or_else(|| ConfigError::new("is not a valid duration"))
}

/// Reads the duration of a field, if it is set.
///
/// # Errors
/// See [`read`]; names the field.
pub fn of_field(
    value: Option<&wkt::Duration>,
    field: &str,
) -> Result<Option<Duration>, ConfigError> {
    value.map(read).transpose().at(field)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn only_what_protobuf_allows_forwards_in_time_is_read() {
        let duration = |seconds, nanos| wkt::Duration { seconds, nanos };
        let get = |seconds, nanos| read(&duration(seconds, nanos)).ok();
        assert_eq!(get(1, 500_000_000), Some(Duration::from_millis(1500)));
        assert_eq!(get(0, 0), Some(Duration::ZERO));
        for (seconds, nanos) in [
            (-1, 0),
            (0, -1),
            (0, 1_000_000_000),
            (315_576_000_001, 0),
            (i64::MAX, 0),
        ] {
            assert_eq!(get(seconds, nanos), None);
        }
        let longest = get(315_576_000_000, 999_999_999).unwrap();
        assert!(Instant::now().checked_add(longest * 1000).is_some());
    }

    #[test]
    fn the_error_names_the_field() {
        assert_eq!(of_field(None, "timeout"), Ok(None));
        let bad = wkt::Duration {
            seconds: -1,
            nanos: 0,
        };
        let error = of_field(Some(&bad), "timeout").unwrap_err();
        assert_eq!(error.to_string(), "timeout: is not a valid duration");
    }
}
