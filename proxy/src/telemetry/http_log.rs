//! Access logs of HTTP streams: which streams, in which format, to which file.
//!
//! Envoy: `envoy.config.accesslog.v3.AccessLog` with `FileAccessLog`.

use std::sync::Arc;

use envoy_types::pb::envoy::config::accesslog::v3::{
    self as pb, ComparisonFilter, access_log, access_log_filter::FilterSpecifier,
    comparison_filter::Op,
};
use envoy_types::pb::envoy::config::core::v3::{
    SubstitutionFormatString, data_source, substitution_format_string,
};
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::{
    FileAccessLog, file_access_log::AccessLogFormat,
};
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3::{
    StderrAccessLog, StdoutAccessLog, stderr_access_log::AccessLogFormat as stderr,
    stdout_access_log::AccessLogFormat as stdout,
};
use envoy_types::pb::google::protobuf::{Struct, Value, value};
use filters::flags::ResponseFlags;
use filters::formatter::{FormatContext, Formatter};
use filters::head::{RequestHead, ResponseHead};
use filters::matcher::HeaderMatcher;
use filters::stream::StreamInfo;
use http::HeaderMap;
use xds_client::error::{At, ConfigError};

use super::access_log::AccessLogFile;

/// Envoy's default format.
const DEFAULT_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// One compiled access log.
pub struct AccessLog {
    file: Arc<AccessLogFile>,
    format: Format,
    filter: Option<Filter>,
}

/// A compiled format of log lines or local replies' bodies.
pub(crate) enum Format {
    Text(Formatter),
    Json(Json),
}

/// A JSON template with format strings in it.
pub(crate) enum Json {
    Text(Formatter),
    Constant(serde_json::Value),
    Object(Vec<(String, Json)>),
    List(Vec<Json>),
}

/// A compiled access log filter: which streams it admits.
pub(crate) enum Filter {
    Status(Op, u32),
    Duration(Op, u32),
    Flags(Vec<ResponseFlags>),
    Header(Box<HeaderMatcher>),
    /// By [`AccessLogType`]'s number; `true`: all but these.
    Moment(Vec<i32>, bool),
    And(Vec<Filter>),
    Or(Vec<Filter>),
}

impl AccessLog {
    /// Compiles a log; `open` gives the file of a path.
    ///
    /// # Errors
    /// Names the field that is not supported or invalid.
    pub fn compile(
        proto: &pb::AccessLog,
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
            Some(filter) => Some(Filter::compile(filter).at("filter")?),
            None => None,
        };
        Ok(Self {
            file: open(&path).at("path")?,
            format: Format::compile(format)?,
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
        if self
            .filter
            .as_ref()
            .is_some_and(|filter| !filter.admits(info, request))
        {
            return;
        }
        let context = FormatContext {
            info,
            request,
            response,
            trailers,
            local_reply: None,
        };
        let mut line = Vec::with_capacity(256);
        self.format.write(&context, &mut line);
        self.file.write(line);
    }
}

impl Format {
    /// Appends the formatted text; JSON ends its line.
    pub(crate) fn write(&self, context: &FormatContext<'_>, out: &mut Vec<u8>) {
        match self {
            Self::Text(format) => format.write(context, out),
            Self::Json(json) => {
                out.extend_from_slice(json.value(context).to_string().as_bytes());
                out.push(b'\n');
            }
        }
    }

    fn compile(format: Option<AccessLogFormat>) -> Result<Self, ConfigError> {
        match format {
            None => Formatter::compile(DEFAULT_FORMAT).map(Self::Text),
            Some(AccessLogFormat::Format(text)) if text.is_empty() => {
                Formatter::compile(DEFAULT_FORMAT).map(Self::Text)
            }
            Some(AccessLogFormat::Format(text)) => {
                Formatter::compile(&text).map(Self::Text).at("format")
            }
            Some(AccessLogFormat::JsonFormat(json) | AccessLogFormat::TypedJsonFormat(json)) => {
                Json::object(&json).map(Self::Json).at("json_format")
            }
            Some(AccessLogFormat::LogFormat(format)) => Self::substitution(format).at("log_format"),
        }
    }

    /// Compiles a format string or JSON template; without either, the access log's default.
    ///
    /// # Errors
    /// The path of the field that is not supported.
    pub(crate) fn substitution(format: SubstitutionFormatString) -> Result<Self, ConfigError> {
        use substitution_format_string::Format as Spec;
        if !format.formatters.is_empty() {
            return Err(ConfigError::unsupported("formatters"));
        }
        match format.format {
            Some(Spec::JsonFormat(json)) => Json::object(&json).map(Self::Json).at("json_format"),
            Some(Spec::TextFormatSource(source)) => match source.specifier {
                Some(data_source::Specifier::InlineString(text)) => Formatter::compile(&text)
                    .map(Self::Text)
                    .at("text_format_source.inline_string"),
                _ => Err(ConfigError::unsupported("text_format_source")),
            },
            #[allow(deprecated)]
            Some(Spec::TextFormat(text)) => {
                Formatter::compile(&text).map(Self::Text).at("text_format")
            }
            None => Formatter::compile(DEFAULT_FORMAT).map(Self::Text),
        }
    }
}

impl Json {
    fn object(proto: &Struct) -> Result<Self, ConfigError> {
        let mut fields: Vec<_> = proto.fields.iter().collect();
        fields.sort_by_key(|(name, _)| *name);
        fields
            .into_iter()
            .map(|(name, value)| Ok((name.clone(), Self::compile(value).at(name)?)))
            .collect::<Result<_, _>>()
            .map(Self::Object)
    }

    fn compile(value: &Value) -> Result<Self, ConfigError> {
        Ok(match &value.kind {
            Some(value::Kind::StringValue(text)) => Self::Text(Formatter::compile(text)?),
            Some(value::Kind::StructValue(object)) => Self::object(object)?,
            Some(value::Kind::ListValue(list)) => Self::List(
                list.values
                    .iter()
                    .map(Self::compile)
                    .collect::<Result<_, _>>()?,
            ),
            Some(value::Kind::NumberValue(number)) => Self::Constant((*number).into()),
            Some(value::Kind::BoolValue(yes)) => Self::Constant((*yes).into()),
            Some(value::Kind::NullValue(_)) | None => Self::Constant(serde_json::Value::Null),
        })
    }

    fn value(&self, context: &FormatContext<'_>) -> serde_json::Value {
        match self {
            Self::Text(format) => format.json(context),
            Self::Constant(value) => value.clone(),
            Self::Object(fields) => serde_json::Value::Object(
                fields
                    .iter()
                    .map(|(name, json)| (name.clone(), json.value(context)))
                    .collect(),
            ),
            Self::List(items) => {
                serde_json::Value::Array(items.iter().map(|json| json.value(context)).collect())
            }
        }
    }
}

impl Filter {
    /// Compiles a filter.
    ///
    /// # Errors
    /// The path of the field that is not supported.
    pub(crate) fn compile(spec: &FilterSpecifier) -> Result<Self, ConfigError> {
        let comparison = |c: &Option<ComparisonFilter>| match c {
            Some(c) => Ok((c.op(), c.value.as_ref().map_or(0, |v| v.default_value))),
            None => Err(ConfigError::new("is required").at("comparison")),
        };
        let all = |filters: &[pb::AccessLogFilter]| {
            filters
                .iter()
                .enumerate()
                .map(|(i, filter)| match &filter.filter_specifier {
                    Some(spec) => Self::compile(spec).at(format!("filters[{i}]")),
                    None => Err(ConfigError::new("is required").at(format!("filters[{i}]"))),
                })
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(match spec {
            FilterSpecifier::StatusCodeFilter(filter) => {
                let (op, value) = comparison(&filter.comparison).at("status_code_filter")?;
                Self::Status(op, value)
            }
            FilterSpecifier::DurationFilter(filter) => {
                let (op, value) = comparison(&filter.comparison).at("duration_filter")?;
                Self::Duration(op, value)
            }
            FilterSpecifier::ResponseFlagFilter(filter) => Self::Flags(
                filter
                    .flags
                    .iter()
                    .map(|name| {
                        ResponseFlags::from_short(name).ok_or_else(|| {
                            ConfigError::new(format!("unknown flag {name}"))
                                .at("response_flag_filter.flags")
                        })
                    })
                    .collect::<Result<_, _>>()?,
            ),
            FilterSpecifier::HeaderFilter(filter) => {
                let header = filter.header.clone().unwrap_or_default();
                Self::Header(Box::new(
                    HeaderMatcher::compile(&header).at("header_filter.header")?,
                ))
            }
            FilterSpecifier::LogTypeFilter(filter) => {
                Self::Moment(filter.types.clone(), filter.exclude)
            }
            FilterSpecifier::AndFilter(filter) => Self::And(all(&filter.filters).at("and_filter")?),
            FilterSpecifier::OrFilter(filter) => Self::Or(all(&filter.filters).at("or_filter")?),
            other => {
                let name = format!("{other:?}");
                let name = name.split('(').next().unwrap_or_default();
                return Err(ConfigError::new(format!("{name} is not supported")));
            }
        })
    }

    /// Whether the stream passes.
    pub(crate) fn admits(&self, info: &StreamInfo, request: Option<&RequestHead>) -> bool {
        match self {
            Self::Status(op, value) => {
                compare(*op, u128::from(info.response_code.unwrap_or(0)), *value)
            }
            Self::Duration(op, value) => compare(*op, info.start.elapsed().as_millis(), *value),
            Self::Flags(flags) if flags.is_empty() => !info.flags.is_empty(),
            Self::Flags(flags) => flags.iter().any(|flag| info.flags.contains(*flag)),
            Self::Header(matcher) => request.is_some_and(|head| matcher.matches(head)),
            Self::Moment(numbers, exclude) => {
                numbers.contains(&info.log_type.name_and_number().1) != *exclude
            }
            Self::And(filters) => filters.iter().all(|f| f.admits(info, request)),
            Self::Or(filters) => filters.iter().any(|f| f.admits(info, request)),
        }
    }
}

fn compare(op: Op, left: u128, right: u32) -> bool {
    let right = u128::from(right);
    match op {
        Op::Eq => left == right,
        Op::Ge => left >= right,
        Op::Le => left <= right,
        Op::Ne => left != right,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use envoy_types::pb::envoy::config::core::v3::DataSource;
    use envoy_types::pb::google::protobuf::Any;
    use xds_client::any::pack;

    use super::*;

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
            let compiled = AccessLog::compile(&log, |path| {
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
