//! Operators that print the time between two moments of a stream.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use xds_client::error::ConfigError;

use super::FormatContext;
use super::facts::owned;
use crate::moments::{Moment, Moments};
use crate::stream::StreamInfo;

/// A moment by its name.
#[derive(Debug, Clone, Copy)]
pub(super) enum Point {
    Start,
    RequestEnd,
    /// The ends of a connection that is not HTTP.
    ConnectionStart,
    ConnectionEnd,
    Other(Moment),
    /// A name of its own, which nothing sets.
    Unknown,
}

/// Two moments, and the unit in which the time between them is told.
#[derive(Debug, Clone, Copy)]
pub(super) enum Span {
    Between(Point, Point, Unit),
    /// Until now, in milliseconds.
    Total,
    /// What it took to get an upstream connection.
    PoolReady,
    Never,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Unit {
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

impl Span {
    /// Compiles an operator; `None` if it is not one of these. From then on streams note their moments.
    ///
    /// # Errors
    /// Not two moments and a unit.
    pub(super) fn compile(name: &str, argument: Option<&str>) -> Result<Option<Self>, ConfigError> {
        let since_start = |to| Self::Between(Point::Start, to, Unit::Milliseconds);
        let made = match name {
            "DURATION" => return Ok(Some(Self::Total)),
            "REQUEST_DURATION" => since_start(Point::RequestEnd),
            "REQUEST_TX_DURATION" => since_start(Point::Other(Moment::UpstreamSendEnd)),
            "RESPONSE_DURATION" => since_start(Point::Other(Moment::UpstreamReceiveBegin)),
            "RESPONSE_TX_DURATION" => Self::Between(
                Point::Other(Moment::UpstreamReceiveBegin),
                Point::Other(Moment::DownstreamSendEnd),
                Unit::Milliseconds,
            ),
            "UPSTREAM_CONNECTION_POOL_READY_DURATION" => Self::PoolReady,
            // QUIC's; and one that connections tell whose handshake is over before any filter runs.
            "ROUNDTRIP_DURATION" | "DOWNSTREAM_HANDSHAKE_DURATION" => Self::Never,
            "COMMON_DURATION" => {
                let mut parts = argument.unwrap_or_default().split(':');
                let (from, to) = (parts.next(), parts.next());
                let unit = match parts.next() {
                    None | Some("ms") => Unit::Milliseconds,
                    Some("us") => Unit::Microseconds,
                    Some("ns") => Unit::Nanoseconds,
                    Some(other) => {
                        let text = format!("invalid common duration precision: {other}");
                        return Err(ConfigError::new(text));
                    }
                };
                match (from, to, parts.next()) {
                    (Some(from), Some(to), None) => {
                        Self::Between(Point::named(from), Point::named(to), unit)
                    }
                    _ => {
                        let text = "COMMON_DURATION takes two time points and a precision";
                        return Err(ConfigError::new(text));
                    }
                }
            }
            _ => return Ok(None),
        };
        Moments::want();
        Ok(Some(made))
    }

    pub(super) fn value<'a>(self, cx: &FormatContext<'a>) -> Option<Cow<'a, [u8]>> {
        let info = cx.info;
        let millis = |time: Duration| owned(time.as_millis().to_string());
        match self {
            Self::Total => millis(info.start.elapsed()),
            Self::PoolReady => millis(info.upstream.pool_ready?),
            Self::Never => None,
            Self::Between(from, to, unit) => {
                let time = to.of(info)?.checked_duration_since(from.of(info)?)?;
                match unit {
                    Unit::Milliseconds => millis(time),
                    Unit::Microseconds => owned(time.as_micros().to_string()),
                    Unit::Nanoseconds => owned(time.as_nanos().to_string()),
                }
            }
        }
    }
}

impl Point {
    fn named(name: &str) -> Self {
        match name {
            "DS_RX_BEG" => Self::Start,
            "DS_RX_END" => Self::RequestEnd,
            "DS_CX_BEG" => Self::ConnectionStart,
            "DS_CX_END" => Self::ConnectionEnd,
            "US_CX_BEG" => Self::Other(Moment::ConnectBegin),
            "US_CX_END" => Self::Other(Moment::ConnectEnd),
            "US_HS_END" => Self::Other(Moment::HandshakeEnd),
            "US_TX_BEG" => Self::Other(Moment::UpstreamSendBegin),
            "US_TX_END" => Self::Other(Moment::UpstreamSendEnd),
            "US_RX_BEG" => Self::Other(Moment::UpstreamReceiveBegin),
            "US_RX_BODY_BEG" => Self::Other(Moment::UpstreamBodyBegin),
            "US_RX_END" => Self::Other(Moment::UpstreamReceiveEnd),
            "DS_TX_BEG" => Self::Other(Moment::DownstreamSendBegin),
            "DS_TX_END" => Self::Other(Moment::DownstreamSendEnd),
            _ => Self::Unknown,
        }
    }

    fn of(self, info: &StreamInfo) -> Option<Instant> {
        let http = info.protocol.is_some();
        match self {
            Self::Start => Some(info.start),
            Self::RequestEnd => info.request_end,
            Self::ConnectionStart => (!http).then_some(info.start),
            Self::ConnectionEnd => (!http && info.log_type.is_end()).then(Instant::now),
            Self::Other(moment) => info.moments.get(moment),
            Self::Unknown => None,
        }
    }
}
