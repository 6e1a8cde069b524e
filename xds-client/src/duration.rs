//! `google.protobuf.Duration` as the standard library's.

use std::time::Duration;

use envoy_types::pb::google::protobuf as wkt;

/// The duration, unless it is negative or has a second or more of nanoseconds.
pub fn read(value: &wkt::Duration) -> Option<Duration> {
    let seconds = u64::try_from(value.seconds).ok()?;
    let nanos = u32::try_from(value.nanos).ok()?;
    (nanos < 1_000_000_000).then(|| Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_protobuf_allows_forwards_in_time_is_read() {
        let read = |seconds, nanos| read(&wkt::Duration { seconds, nanos });
        assert_eq!(read(1, 500_000_000), Some(Duration::from_millis(1500)));
        assert_eq!(read(0, 0), Some(Duration::ZERO));
        for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000)] {
            assert_eq!(read(seconds, nanos), None);
        }
    }
}
