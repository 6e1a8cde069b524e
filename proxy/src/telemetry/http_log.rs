//! Access logs: which streams, in which form, and where to.
//!
//! Envoy: `envoy.config.accesslog.v3.AccessLog`.

use std::sync::Arc;

use envoy_types::pb::envoy::config::accesslog::v3::{self as pb, access_log};
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::{
    FileAccessLog, file_access_log::AccessLogFormat,
};
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3::{
    StderrAccessLog, StdoutAccessLog, stderr_access_log::AccessLogFormat as stderr,
    stdout_access_log::AccessLogFormat as stdout,
};
use envoy_types::pb::google::protobuf::Any;
use filters::formatter::FormatContext;
use filters::head::{RequestHead, ResponseHead};
use filters::runtime::RuntimeKeys;
use filters::stream::StreamInfo;
use http::HeaderMap;
use xds_client::error::{At, ConfigError};

use super::access_log::AccessLogFile;
use super::grpc_log::{GrpcLog, GrpcLogContext};
use super::log_filter::Filter;
use super::log_format::Format;

/// One compiled access log.
pub struct AccessLog {
    sink: Sink,
    filter: Option<Filter>,
}

/// Where it goes.
enum Sink {
    File(Arc<AccessLogFile>, Format),
    Grpc(GrpcLog),
}

/// What compiling takes from the process.
#[derive(Clone, Copy)]
pub struct AccessLogContext<'a> {
    /// What the runtime may change.
    pub runtime: &'a dyn RuntimeKeys,
    /// The file at a path.
    pub open: &'a dyn Fn(&str) -> Result<Arc<AccessLogFile>, ConfigError>,
    /// For logs over gRPC.
    pub grpc: GrpcLogContext<'a>,
}

impl AccessLog {
    /// Compiles a log.
    ///
    /// # Errors
    /// Names the field that is not supported or invalid.
    pub fn compile(proto: &pb::AccessLog, cx: AccessLogContext<'_>) -> Result<Self, ConfigError> {
        let Some(access_log::ConfigType::TypedConfig(any)) = &proto.config_type else {
            return Err(ConfigError::new("is required").at("typed_config"));
        };
        let filter = proto.filter.as_ref();
        let filter = filter.and_then(|f| f.filter_specifier.as_ref());
        let filter = filter.map(|filter| Filter::compile(filter, cx.runtime));
        Ok(Self {
            sink: Sink::compile(any, cx)?,
            filter: filter.transpose().at("filter")?,
        })
    }

    /// Writes a line about a stream that has ended, if the filter lets it through. Never blocks.
    pub fn record(
        &self,
        info: &StreamInfo,
        request: Option<&RequestHead>,
        response: Option<&ResponseHead>,
        trailers: Option<&HeaderMap>,
    ) {
        let context = FormatContext {
            info,
            request,
            response,
            trailers,
            local_reply: None,
        };
        let filter = self.filter.as_ref();
        if filter.is_some_and(|filter| !filter.admits(&context)) {
            return;
        }
        match &self.sink {
            Sink::File(file, format) => {
                let mut line = Vec::with_capacity(256);
                format.write(&context, &mut line);
                file.write(line);
            }
            Sink::Grpc(log) => log.record(&context),
        }
    }
}

impl Sink {
    fn compile(any: &Any, cx: AccessLogContext<'_>) -> Result<Self, ConfigError> {
        let file = |path: &str, format: Option<AccessLogFormat>| {
            Ok(Self::File(
                (cx.open)(path).at("path")?,
                Format::of_log(format)?,
            ))
        };
        match any.type_url.rsplit('/').next().unwrap_or_default() {
            "envoy.extensions.access_loggers.file.v3.FileAccessLog" => {
                let log: FileAccessLog = xds_client::any::unpack(any).at("typed_config")?;
                file(&log.path, log.access_log_format)
            }
            "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
                let log: StdoutAccessLog = xds_client::any::unpack(any).at("typed_config")?;
                let format = log.access_log_format;
                let format = format.map(|stdout::LogFormat(format)| format);
                file("/dev/stdout", format.map(AccessLogFormat::LogFormat))
            }
            "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" => {
                let log: StderrAccessLog = xds_client::any::unpack(any).at("typed_config")?;
                let format = log.access_log_format;
                let format = format.map(|stderr::LogFormat(format)| format);
                file("/dev/stderr", format.map(AccessLogFormat::LogFormat))
            }
            "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig" => {
                let log = xds_client::any::unpack(any);
                let log = log.and_then(|log| GrpcLog::http(&log, cx.grpc));
                log.at("typed_config").map(Self::Grpc)
            }
            "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig" => {
                let log = xds_client::any::unpack(any);
                let log = log.and_then(|log| GrpcLog::tcp(&log, cx.grpc));
                log.at("typed_config").map(Self::Grpc)
            }
            other => {
                let error = ConfigError::new(format!("access logger {other} is not supported"));
                Err(error.at("typed_config"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use envoy_types::pb::envoy::config::core::v3::{
        DataSource, SubstitutionFormatString, data_source, substitution_format_string,
    };
    use xds_client::any::pack;

    use super::*;
    use crate::telemetry::stats::Stats;

    fn format(text: &str) -> SubstitutionFormatString {
        SubstitutionFormatString {
            format: Some(substitution_format_string::Format::TextFormatSource(
                DataSource {
                    specifier: Some(data_source::Specifier::InlineString(text.into())),
                    ..Default::default()
                },
            )),
            ..Default::default()
        }
    }

    #[test]
    fn logs_to_streams_have_formats_of_their_own() {
        let compile = |config: Any, to: &str| {
            let log = pb::AccessLog {
                config_type: Some(access_log::ConfigType::TypedConfig(config)),
                ..Default::default()
            };
            let open = |path: &str| {
                assert_eq!(path, to);
                let file = AccessLogFile::open("/dev/null", Duration::from_secs(1));
                Ok(Arc::new(file.unwrap()))
            };
            let context = crate::config::testing::context(Default::default(), Stats::new());
            let compiled = AccessLog::compile(&log, context.logs(&open));
            compiled.map(drop).map_err(|e| e.path().to_owned())
        };
        let out = |text: &str| {
            let format = Some(stdout::LogFormat(format(text)));
            pack(&StdoutAccessLog {
                access_log_format: format,
            })
        };
        let err = |text: &str| {
            let format = Some(stderr::LogFormat(format(text)));
            pack(&StderrAccessLog {
                access_log_format: format,
            })
        };
        let path = "log_format.text_format_source.inline_string".to_owned();
        assert_eq!(compile(out("%DURATION%"), "/dev/stdout"), Ok(()));
        assert_eq!(compile(out("%NO%"), "/dev/stdout"), Err(path.clone()));
        assert_eq!(compile(err("%NO%"), "/dev/stderr"), Err(path));
        let plain = pack(&StdoutAccessLog::default());
        assert_eq!(compile(plain, "/dev/stdout"), Ok(()));
    }
}
