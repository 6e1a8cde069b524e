//! `custom_tags`: values by name, from where Envoy's tracing takes them.

use envoy_types::pb::envoy::r#type::metadata::v3::metadata_key::path_segment::Segment;
use envoy_types::pb::envoy::r#type::metadata::v3::metadata_kind::Kind;
use envoy_types::pb::envoy::r#type::tracing::v3::CustomTag;
use envoy_types::pb::envoy::r#type::tracing::v3::custom_tag::{Metadata, Type};
use filters::formatter::{FormatContext, Formatter};
use filters::matcher::header::HeaderRef;
use xds_client::error::{At, ConfigError};

/// A tag: its name, and where its value is.
pub(super) struct Tag {
    name: String,
    value: Value,
    default: String,
}

enum Value {
    Format(Formatter),
    /// The first of its lines.
    Header(HeaderRef),
}

impl Tag {
    /// Compiles a tag.
    ///
    /// # Errors
    /// No type or one that is not supported, or a name that no operator can have.
    pub(super) fn compile(proto: &CustomTag) -> Result<Self, ConfigError> {
        let (format, default) = match &proto.r#type {
            Some(Type::Literal(literal)) => (literal.value.replace('%', "%%"), String::new()),
            Some(Type::Environment(from)) => match std::env::var(&from.name) {
                Ok(value) => (value.replace('%', "%%"), String::new()),
                Err(_) => (from.default_value.replace('%', "%%"), String::new()),
            },
            Some(Type::RequestHeader(from)) => {
                let header = HeaderRef::parse(&from.name).at("request_header.name")?;
                return Ok(Self {
                    name: proto.tag.clone(),
                    value: Value::Header(header),
                    default: from.default_value.clone(),
                });
            }
            Some(Type::Metadata(from)) => (path(from).at("metadata")?, from.default_value.clone()),
            _ => return Err(ConfigError::new("is not supported").at("type")),
        };
        Ok(Self {
            name: proto.tag.clone(),
            value: Value::Format(Formatter::compile(&format)?),
            default,
        })
    }

    /// Its name and value; none if it is empty.
    pub(super) fn of(&self, context: &FormatContext<'_>) -> Option<(String, String)> {
        let mut value = Vec::new();
        let default = self.default.as_bytes();
        match &self.value {
            Value::Format(format) => format.write_or(context, &mut value, default),
            Value::Header(header) => {
                let found = context
                    .request
                    .and_then(|head| header.first_in_request(head));
                value.extend_from_slice(found.unwrap_or(default));
            }
        }
        let value = super::entry::text(&value);
        (!value.is_empty()).then(|| (self.name.clone(), value))
    }
}

/// The operator for a value of metadata.
fn path(proto: &Metadata) -> Result<String, ConfigError> {
    let kind = proto.kind.as_ref().and_then(|k| k.kind.as_ref());
    let source = match kind {
        Some(Kind::Request(_)) => "DYNAMIC",
        Some(Kind::Route(_)) => "ROUTE",
        Some(Kind::Cluster(_)) => "CLUSTER",
        Some(Kind::Host(_)) => "UPSTREAM_HOST",
        None => return Err(ConfigError::new("is required").at("kind")),
    };
    let key = proto.metadata_key.as_ref();
    let key = key.ok_or_else(|| ConfigError::new("is required").at("metadata_key"))?;
    let mut operator = format!("%METADATA({source}:{}", key.key);
    let mut whole = key.key.clone();
    for segment in &key.path {
        let Some(Segment::Key(key)) = &segment.segment else {
            return Err(ConfigError::new("key is required").at("metadata_key.path"));
        };
        operator.push(':');
        operator.push_str(key);
        whole.push_str(key);
    }
    if whole.contains([':', ')', '%']) {
        let text = "keys with ':', ')' or '%' are not supported";
        return Err(ConfigError::new(text).at("metadata_key"));
    }
    operator.push_str(")%");
    Ok(operator)
}
