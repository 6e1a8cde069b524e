//! The formats of log lines and of local replies' bodies: text, or a JSON template.
//!
//! Envoy: `SubstitutionFormatString`, "Format dictionaries".

use envoy_types::pb::envoy::config::core::v3::{
    SubstitutionFormatString, substitution_format_string,
};
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::file_access_log::AccessLogFormat;
use envoy_types::pb::google::protobuf::{Struct, Value, value};
use filters::formatter::{FormatContext, Formatter, check_extensions, text_format};
use filters::matcher::metadata::value_to_json;
use xds_client::error::{At, ConfigError};

/// Envoy's default format.
const DEFAULT_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// How deeply a JSON template may be nested.
const MAX_DEPTH: usize = 16;

/// A compiled format.
pub(crate) struct Format {
    form: Form,
    /// What stands for a value that is not there is nothing (`omit_empty_values`).
    omit_empty: bool,
}

enum Form {
    Text(Formatter),
    Json(Json),
}

/// A JSON template with format strings in it.
enum Json {
    Text(Formatter),
    Constant(serde_json::Value),
    Object(Vec<(String, Json)>),
    List(Vec<Json>),
}

impl Format {
    /// Appends the formatted text; JSON ends its line.
    pub(crate) fn write(&self, context: &FormatContext<'_>, out: &mut Vec<u8>) {
        match &self.form {
            Form::Text(format) => format.write_or(context, out, self.missing()),
            Form::Json(json) => {
                out.extend_from_slice(json.value(context, self).to_string().as_bytes());
                out.push(b'\n');
            }
        }
    }

    fn missing(&self) -> &'static [u8] {
        if self.omit_empty { b"" } else { b"-" }
    }

    /// Compiles the format of a file's log.
    ///
    /// # Errors
    /// The path of the field that is not supported.
    pub(crate) fn of_log(format: Option<AccessLogFormat>) -> Result<Self, ConfigError> {
        let whole = |form| Self {
            form,
            omit_empty: false,
        };
        Ok(match format {
            None => whole(Form::Text(Formatter::compile(DEFAULT_FORMAT)?)),
            Some(AccessLogFormat::Format(text)) if text.is_empty() => {
                whole(Form::Text(Formatter::compile(DEFAULT_FORMAT)?))
            }
            Some(AccessLogFormat::Format(text)) => {
                whole(Form::Text(Formatter::compile(&text).at("format")?))
            }
            Some(AccessLogFormat::JsonFormat(json) | AccessLogFormat::TypedJsonFormat(json)) => {
                whole(Form::Json(Json::object(&json, 0).at("json_format")?))
            }
            Some(AccessLogFormat::LogFormat(format)) => {
                Self::substitution(format).at("log_format")?
            }
        })
    }

    /// Compiles a format string or JSON template; without either, the access log's default.
    ///
    /// # Errors
    /// The path of the field that is not supported.
    pub(crate) fn substitution(format: SubstitutionFormatString) -> Result<Self, ConfigError> {
        use substitution_format_string::Format as Spec;
        check_extensions(&format.formatters)?;
        let form = match format.format {
            Some(Spec::JsonFormat(json)) => Form::Json(Json::object(&json, 0).at("json_format")?),
            Some(Spec::TextFormatSource(source)) => Form::Text(text_format(&source)?),
            #[allow(deprecated)]
            Some(Spec::TextFormat(text)) => {
                Form::Text(Formatter::compile(&text).at("text_format")?)
            }
            None => Form::Text(Formatter::compile(DEFAULT_FORMAT)?),
        };
        Ok(Self {
            form,
            omit_empty: format.omit_empty_values,
        })
    }
}

impl Json {
    /// Its keys are sorted, as Envoy's are.
    fn object(proto: &Struct, depth: usize) -> Result<Self, ConfigError> {
        let mut fields: Vec<_> = proto.fields.iter().collect();
        fields.sort_by_key(|(name, _)| *name);
        let field = |(name, value): (&String, &Value)| {
            Ok((name.clone(), Self::compile(value, depth + 1).at(name)?))
        };
        let fields = fields.into_iter().map(field);
        fields.collect::<Result<_, _>>().map(Self::Object)
    }

    fn compile(value: &Value, depth: usize) -> Result<Self, ConfigError> {
        if depth > MAX_DEPTH {
            return Err(ConfigError::new("nested too deeply"));
        }
        Ok(match &value.kind {
            Some(value::Kind::StringValue(text)) => Self::Text(Formatter::compile(text)?),
            Some(value::Kind::StructValue(object)) => Self::object(object, depth)?,
            Some(value::Kind::ListValue(list)) => {
                let items = list.values.iter().map(|v| Self::compile(v, depth + 1));
                Self::List(items.collect::<Result<_, _>>()?)
            }
            _ => Self::Constant(value_to_json(value, 0)),
        })
    }

    fn value(&self, context: &FormatContext<'_>, format: &Format) -> serde_json::Value {
        let kept = |value: &serde_json::Value| !format.omit_empty || !value.is_null();
        match self {
            Self::Text(text) if text.as_literal().is_none() => text.json(context, format.missing()),
            Self::Text(text) => {
                let text = text.as_literal().unwrap_or_default();
                String::from_utf8_lossy(text).into()
            }
            Self::Constant(value) => value.clone(),
            Self::Object(fields) => {
                let made = fields.iter().filter_map(|(name, json)| {
                    let value = json.value(context, format);
                    // Objects of which nothing is left are omitted, and lists are not.
                    let empty = value.as_object().is_some_and(|o| o.is_empty());
                    let kept = kept(&value) && !(format.omit_empty && empty);
                    kept.then(|| (name.clone(), value))
                });
                serde_json::Value::Object(made.collect())
            }
            Self::List(items) => {
                let made = items.iter().map(|json| json.value(context, format));
                serde_json::Value::Array(made.filter(kept).collect())
            }
        }
    }
}
