//! Access logs over gRPC (Envoy: "Access log service (ALS)", `HttpGrpcAccessLogConfig`, `TcpGrpcAccessLogConfig`).
//!
//! Each worker gathers entries and sends them over a stream of its own ([`outbox`]); what an entry says is in [`entry`],
//! and what is configured of it in [`tags`].

mod entry;
mod outbox;
mod tags;

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{ApiVersion, Node};
use envoy_types::pb::envoy::extensions::access_loggers::grpc::v3::{
    CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig,
};
use filters::formatter::FormatContext;
use filters::matcher::header::HeaderRef;
use filters::moments::Moments;
use filters::registry::GrpcConnector;
use xds_client::duration;
use xds_client::error::{At, ConfigError};

use self::entry::Entry;
use self::outbox::{Counters, Target};
use self::tags::Tag;
use super::stats::Stats;

/// Envoy's defaults.
const BUFFER_BYTES: u32 = 16 * 1024;
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// A log over gRPC.
pub(super) struct GrpcLog {
    contents: Contents,
    target: Arc<Target>,
}

/// What entries have.
struct Contents {
    http: bool,
    request_headers: Vec<(String, HeaderRef)>,
    response_headers: Vec<(String, HeaderRef)>,
    response_trailers: Vec<(String, HeaderRef)>,
    filter_state: Vec<String>,
    tags: Vec<Tag>,
}

/// What compiling takes from the process.
#[derive(Clone, Copy)]
pub struct GrpcLogContext<'a> {
    /// The way to services.
    pub grpc: &'a dyn GrpcConnector,
    /// This process.
    pub node: &'a Arc<Node>,
    /// All stats.
    pub stats: &'a Arc<Stats>,
}

impl GrpcLog {
    /// Compiles the log of requests.
    ///
    /// # Errors
    /// The path of the field that is not supported or invalid.
    pub(super) fn http(
        proto: &HttpGrpcAccessLogConfig,
        cx: GrpcLogContext<'_>,
    ) -> Result<Self, ConfigError> {
        let headers = |names: &[String], field: &str| {
            let name = |name: &String| Ok((name.to_ascii_lowercase(), HeaderRef::parse(name)?));
            let all = names.iter().map(name).collect::<Result<Vec<_>, _>>();
            all.at(field)
        };
        let mut made = Self::new(true, proto.common_config.as_ref(), cx)?;
        let contents = &mut made.contents;
        contents.request_headers = headers(
            &proto.additional_request_headers_to_log,
            "additional_request_headers_to_log",
        )?;
        contents.response_headers = headers(
            &proto.additional_response_headers_to_log,
            "additional_response_headers_to_log",
        )?;
        contents.response_trailers = headers(
            &proto.additional_response_trailers_to_log,
            "additional_response_trailers_to_log",
        )?;
        Ok(made)
    }

    /// Compiles the log of connections.
    ///
    /// # Errors
    /// As above.
    pub(super) fn tcp(
        proto: &TcpGrpcAccessLogConfig,
        cx: GrpcLogContext<'_>,
    ) -> Result<Self, ConfigError> {
        Self::new(false, proto.common_config.as_ref(), cx)
    }

    fn new(
        http: bool,
        common: Option<&CommonGrpcAccessLogConfig>,
        cx: GrpcLogContext<'_>,
    ) -> Result<Self, ConfigError> {
        let compile = || {
            let proto = common.ok_or_else(|| ConfigError::new("is required"))?;
            if proto.transport_api_version() != ApiVersion::V3 {
                let text = "only V3 is supported";
                return Err(ConfigError::new(text).at("transport_api_version"));
            }
            if proto.grpc_stream_retry_policy.is_some() {
                return Err(ConfigError::unsupported("grpc_stream_retry_policy"));
            }
            if proto.log_name.is_empty() {
                return Err(ConfigError::new("is required").at("log_name"));
            }
            let service = proto.grpc_service.as_ref();
            let service = service.ok_or_else(|| ConfigError::new("is required"));
            let channel = service
                .and_then(|s| cx.grpc.channel(s))
                .at("grpc_service")?;
            let interval = proto.buffer_flush_interval.as_ref();
            let interval = interval
                .map(duration::read)
                .transpose()
                .at("buffer_flush_interval")?;
            let size = proto
                .buffer_size_bytes
                .as_ref()
                .map_or(BUFFER_BYTES, |v| v.value);
            let stats = cx.stats.scope("access_logs.grpc_access_log.");
            let tags = proto.custom_tags.iter().enumerate();
            let tags = tags.map(|(i, tag)| Tag::compile(tag).at(format!("custom_tags[{i}]")));
            Ok(Self {
                contents: Contents {
                    http,
                    request_headers: Vec::new(),
                    response_headers: Vec::new(),
                    response_trailers: Vec::new(),
                    filter_state: proto.filter_state_objects_to_log.clone(),
                    tags: tags.collect::<Result<_, _>>()?,
                },
                target: Target::new(
                    channel,
                    (cx.node.clone(), proto.log_name.clone()),
                    size as usize,
                    interval.unwrap_or(FLUSH_INTERVAL),
                    Counters {
                        written: stats.counter("logs_written"),
                        dropped: stats.counter("logs_dropped"),
                        flushed: stats.counter("grpc_entries_flushed"),
                    },
                ),
            })
        };
        let made = compile().at("common_config")?;
        Moments::want();
        Ok(made)
    }

    /// Tells of a stream, or counts that it did not. Never blocks.
    pub(super) fn record(&self, context: &FormatContext<'_>) {
        let entry = match self.contents.http {
            true => Entry::Http(Box::new(self.contents.http_entry(context))),
            false => Entry::Tcp(Box::new(self.contents.tcp_entry(context))),
        };
        outbox::put(&self.target, entry);
    }
}
