//! `Http2ProtocolOptions`, validated and compiled for the server side.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Http2ProtocolOptions;
use envoy_types::pb::google::protobuf::UInt32Value;
use xds_client::error::{At, ConfigError};

use super::keepalive::Keepalive;
use super::limits::FieldLimits;
use super::stats::Http2Stats;
use crate::http::h1::UnderscoreAction;

/// HTTP/2 settings of one side of a connection (Envoy's `Http2ProtocolOptions`).
#[derive(Debug, Clone)]
pub struct Http2Settings {
    /// `SETTINGS_MAX_CONCURRENT_STREAMS` that we advertise.
    pub max_concurrent_streams: u32,
    /// Initial window of a stream, in bytes.
    pub initial_stream_window: u32,
    /// Window of the connection, in bytes.
    pub initial_connection_window: u32,
    /// `SETTINGS_HEADER_TABLE_SIZE`, in bytes; None for the protocol's default.
    pub header_table_size: Option<u32>,
    /// Of a request's fields, pseudo-headers included, and of its trailers.
    pub limits: FieldLimits,
    /// What happens to names with underscores.
    pub underscores: UnderscoreAction,
    /// Whether extended CONNECT (RFC 8441) is advertised.
    pub allow_connect: bool,
    /// Whether a malformed message costs its stream only.
    pub keep_connection_on_bad_message: bool,
    /// When and how to ask whether the peer is still there.
    pub keepalive: Option<Keepalive>,
    /// How much of each kind of cheap frame is too much.
    pub floods: FloodLimits,
    /// How long a connection that we end waits for its client to read the rest (`delayed_close_timeout`).
    pub linger: Option<Duration>,
    /// What is counted.
    pub stats: Arc<Http2Stats>,
}

/// Envoy's flood limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloodLimits {
    /// HEADERS, CONTINUATION and DATA in a row with no payload.
    pub empty_frames: u32,
    /// PRIORITY frames for each stream.
    pub priority_frames: u32,
    /// WINDOW_UPDATE frames for each DATA frame that we sent.
    pub window_updates: u32,
}

impl Default for FloodLimits {
    fn default() -> Self {
        Self {
            empty_frames: 1,
            priority_frames: 100,
            window_updates: 10,
        }
    }
}

impl Default for Http2Settings {
    /// Envoy 1.40's numbers for streams and header sizes. Windows are smaller than Envoy's 16 and 24 MiB:
    /// a window is memory that a peer can make us hold.
    fn default() -> Self {
        Self {
            max_concurrent_streams: 1024,
            initial_stream_window: 1 << 20,
            initial_connection_window: 4 << 20,
            header_table_size: None,
            limits: FieldLimits {
                bytes: 60 << 10,
                count: 100,
            },
            underscores: UnderscoreAction::Allow,
            allow_connect: false,
            keep_connection_on_bad_message: false,
            keepalive: None,
            floods: FloodLimits::default(),
            linger: Some(Duration::from_secs(1)),
            stats: Arc::default(),
        }
    }
}

impl Http2Settings {
    /// Changes the defaults as `proto` says.
    ///
    /// # Errors
    /// The path of a field that is out of its range or cannot be honoured.
    pub fn apply(&mut self, proto: &Http2ProtocolOptions) -> Result<(), ConfigError> {
        let refused = [
            (proto.allow_metadata, "allow_metadata"),
            (
                !proto.custom_settings_parameters.is_empty(),
                "custom_settings_parameters",
            ),
        ];
        if let Some((_, field)) = refused.iter().find(|(set, _)| *set) {
            return Err(ConfigError::unsupported(field));
        }
        const MOST: u32 = i32::MAX as u32;
        const LEAST_WINDOW: u32 = 65_535;
        set(
            &mut self.max_concurrent_streams,
            &proto.max_concurrent_streams,
            1,
            MOST,
        )
        .at("max_concurrent_streams")?;
        let window = &proto.initial_stream_window_size;
        set(&mut self.initial_stream_window, window, LEAST_WINDOW, MOST)
            .at("initial_stream_window_size")?;
        let window = &proto.initial_connection_window_size;
        set(
            &mut self.initial_connection_window,
            window,
            LEAST_WINDOW,
            MOST,
        )
        .at("initial_connection_window_size")?;
        self.header_table_size = proto.hpack_table_size.as_ref().map(|v| v.value);
        self.allow_connect = proto.allow_connect;
        let floods = &mut self.floods;
        let limit = &proto.max_consecutive_inbound_frames_with_empty_payload;
        set(&mut floods.empty_frames, limit, 0, u32::MAX)?;
        let limit = &proto.max_inbound_priority_frames_per_stream;
        set(&mut floods.priority_frames, limit, 0, u32::MAX)?;
        let limit = &proto.max_inbound_window_update_frames_per_data_frame_sent;
        set(&mut floods.window_updates, limit, 1, u32::MAX)
            .at("max_inbound_window_update_frames_per_data_frame_sent")?;
        #[allow(deprecated, reason = "Envoy honours the old name too")]
        let old = proto.stream_error_on_invalid_http_messaging;
        if let Some(keep) = &proto.override_stream_error_on_invalid_http_message {
            self.keep_connection_on_bad_message = keep.value;
        } else if old {
            self.keep_connection_on_bad_message = true;
        }
        self.keepalive = match &proto.connection_keepalive {
            None => None,
            Some(keepalive) => Keepalive::compile(keepalive).at("connection_keepalive")?,
        };
        Ok(())
    }
}

fn set(to: &mut u32, from: &Option<UInt32Value>, least: u32, most: u32) -> Result<(), ConfigError> {
    match from.as_ref().map(|v| v.value) {
        None => Ok(()),
        Some(value) if (least..=most).contains(&value) => {
            *to = value;
            Ok(())
        }
        Some(_) => Err(ConfigError::new(format!("must be from {least} to {most}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_names() {
        let mut settings = Http2Settings::default();
        let proto = Http2ProtocolOptions {
            initial_stream_window_size: Some(UInt32Value { value: 65_535 }),
            max_concurrent_streams: Some(UInt32Value { value: 7 }),
            ..Default::default()
        };
        settings.apply(&proto).unwrap();
        assert_eq!(settings.initial_stream_window, 65_535);
        assert_eq!(settings.max_concurrent_streams, 7);
        let low = Http2ProtocolOptions {
            initial_connection_window_size: Some(UInt32Value { value: 65_534 }),
            ..Default::default()
        };
        let error = settings.apply(&low).unwrap_err().to_string();
        assert!(error.contains("initial_connection_window_size"), "{error}");
        let metadata = Http2ProtocolOptions {
            allow_metadata: true,
            ..Default::default()
        };
        assert!(settings.apply(&metadata).is_err());
    }
}
