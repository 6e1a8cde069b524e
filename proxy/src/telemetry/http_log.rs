//! Access logs of HTTP streams: which streams, in which format, to which file.
//!
//! Envoy: `envoy.config.accesslog.v3.AccessLog` with `FileAccessLog`.

use std::sync::Arc;

use envoy_types::pb::envoy::config::accesslog::v3::{self as pb, access_log};
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::{
    FileAccessLog, file_access_log::AccessLogFormat,
};
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3::{
    StderrAccessLog, StdoutAccessLog, stderr_access_log::AccessLogFormat as stderr,
    stdout_access_log::AccessLogFormat as stdout,
};
use filters::formatter::FormatContext;
use filters::head::{RequestHead, ResponseHead};
use filters::runtime::RuntimeKeys;
use filters::stream::StreamInfo;
use http::HeaderMap;
use xds_client::error::{At, ConfigError};

use super::access_log::AccessLogFile;
use super::log_filter::Filter;
use super::log_format::Format;

/// One compiled access log.
pub struct AccessLog {
    file: Arc<AccessLogFile>,
    format: Format,
    filter: Option<Filter>,
}

impl AccessLog {
    /// Compiles a log; `open` gives the file of a path.
    ///
    /// # Errors
    /// Names the field that is not supported or invalid.
    pub fn compile(
        proto: &pb::AccessLog,
        runtime: &dyn RuntimeKeys,
        open: impl Fn(&str) -> Result<Arc<AccessLogFile>, ConfigError>,
    ) -> Result<Self, ConfigError> {
        let Some(access_log::ConfigType::TypedConfig(any)) = &proto.config_type else {
            return Err(ConfigError::new("is required").at("typed_config"));
        };
        let url = any.type_url.rsplit('/').next().unwrap_or_default();
        let path_and_format = match url {
            "envoy.extensions.access_loggers.file.v3.FileAccessLog" => {
                let file: FileAccessLog = xds_client::any::unpack(any).at("typed_config")?;
                (file.path, file.access_log_format)
            }
            "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
                let log: StdoutAccessLog = xds_client::any::unpack(any).at("typed_config")?;
                let format = log
                    .access_log_format
                    .map(|stdout::LogFormat(format)| format);
                (
                    "/dev/stdout".to_owned(),
                    format.map(AccessLogFormat::LogFormat),
                )
            }
            "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" => {
                let log: StderrAccessLog = xds_client::any::unpack(any).at("typed_config")?;
                let format = log
                    .access_log_format
                    .map(|stderr::LogFormat(format)| format);
                (
                    "/dev/stderr".to_owned(),
                    format.map(AccessLogFormat::LogFormat),
                )
            }
            other => {
                return Err(
                    ConfigError::new(format!("access logger {other} is not supported"))
                        .at("typed_config"),
                );
            }
        };
        let (path, format) = path_and_format;
        let filter = match proto
            .filter
            .as_ref()
            .and_then(|f| f.filter_specifier.as_ref())
        {
            Some(filter) => Some(Filter::compile(filter, runtime).at("filter")?),
            None => None,
        };
        Ok(Self {
            file: open(&path).at("path")?,
            format: Format::of_log(format)?,
            filter,
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
        let mut line = Vec::with_capacity(256);
        self.format.write(&context, &mut line);
        self.file.write(line);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use envoy_types::pb::envoy::config::core::v3::{
        DataSource, SubstitutionFormatString, data_source, substitution_format_string,
    };
    use envoy_types::pb::google::protobuf::Any;
    use xds_client::any::pack;

    use super::*;
    use crate::config::runtime::Runtime;

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
            let compiled = AccessLog::compile(&log, &Runtime::default(), |path| {
                assert_eq!(path, to);
                let file = AccessLogFile::open("/dev/null", Duration::from_secs(1));
                Ok(Arc::new(file.unwrap()))
            });
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
