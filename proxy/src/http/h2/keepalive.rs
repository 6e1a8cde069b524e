//! `connection_keepalive`: pings that find out whether the peer is still there.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::KeepaliveSettings;
use envoy_types::pb::google::protobuf as wkt;
use h2::{Ping, PingPong};
use xds_client::duration;
use xds_client::error::{At, ConfigError};

/// When and how to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// How often to ask.
    interval: Duration,
    /// How long an answer may take.
    timeout: Duration,
    /// Up to how many thousandths of the interval are added at random.
    jitter: u32,
}

impl Keepalive {
    /// Compiles the message; None if it names no interval. `connection_idle_interval` has no effect.
    ///
    /// # Errors
    /// The path of a field that is missing or out of its range.
    pub fn compile(proto: &KeepaliveSettings) -> Result<Option<Self>, ConfigError> {
        let timeout = proto.timeout.as_ref();
        let timeout = timeout.ok_or_else(|| ConfigError::new("is required").at("timeout"))?;
        let timeout = at_least_a_millisecond(timeout).at("timeout")?;
        let Some(interval) = &proto.interval else {
            return Ok(None);
        };
        let percent = proto.interval_jitter.as_ref().map_or(15.0, |p| p.value);
        if !(0.0..=100.0).contains(&percent) {
            return Err(ConfigError::new("must be from 0 to 100").at("interval_jitter"));
        }
        Ok(Some(Self {
            interval: at_least_a_millisecond(interval).at("interval")?,
            timeout,
            jitter: (percent * 10.0) as u32,
        }))
    }

    /// Asks until an answer fails to come (true) or the connection ends (false).
    pub(super) async fn until_lost(self, mut pings: PingPong) -> bool {
        loop {
            let jitter = fastrand::u32(..=self.jitter);
            tokio::time::sleep(self.interval + self.interval * jitter / 1000).await;
            let answer = pings.ping(Ping::opaque());
            match tokio::time::timeout(self.timeout, answer).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return false,
                Err(_) => return true,
            }
        }
    }
}

fn at_least_a_millisecond(value: &wkt::Duration) -> Result<Duration, ConfigError> {
    match duration::read(value)? {
        short if short < Duration::from_millis(1) => Err(ConfigError::new("must be at least 1ms")),
        duration => Ok(duration),
    }
}
