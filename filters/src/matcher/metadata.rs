//! Matchers over metadata and filter state: `MetadataMatcher`, `ValueMatcher`, `FilterStateMatcher`.

use envoy_types::pb::envoy::r#type::matcher::v3 as pb;
use envoy_types::pb::google::protobuf as wkt;
use serde_json::{Map, Value};
use xds_client::error::{At, ConfigError};

use super::cidr::CidrSet;
use super::string::StringMatcher;
use crate::stream::{FilterState, StreamInfo};

/// The deepest nesting of value matchers and of metadata that is read.
const MAX_DEPTH: usize = 16;

/// A compiled value matcher.
#[derive(Debug, Clone)]
pub enum ValueMatcher {
    /// The value is null.
    Null,
    /// A number in `[start, end)`.
    Range(f64, f64),
    /// Exactly this number.
    Number(f64),
    /// A string.
    Text(StringMatcher),
    /// A boolean.
    Bool(bool),
    /// The value exists, if true; an inverted rule is never met, as in Envoy.
    Present(bool),
    /// A list with such an element.
    OneOf(Box<ValueMatcher>),
    /// One of these.
    Or(Vec<ValueMatcher>),
}

impl ValueMatcher {
    /// Compiles the message.
    ///
    /// # Errors
    /// No pattern, a bad one, or more than 16 levels.
    pub fn compile(config: &pb::ValueMatcher) -> Result<Self, ConfigError> {
        Self::nested(config, 0)
    }

    fn nested(config: &pb::ValueMatcher, depth: usize) -> Result<Self, ConfigError> {
        use pb::value_matcher::MatchPattern as P;
        if depth > MAX_DEPTH {
            return Err(ConfigError::new("nested too deeply"));
        }
        Ok(match &config.match_pattern {
            Some(P::NullMatch(_)) => Self::Null,
            Some(P::DoubleMatch(m)) => match &m.match_pattern {
                Some(pb::double_matcher::MatchPattern::Exact(x)) => Self::Number(*x),
                Some(pb::double_matcher::MatchPattern::Range(r)) => Self::Range(r.start, r.end),
                None => {
                    return Err(ConfigError::new("match_pattern is required").at("double_match"));
                }
            },
            Some(P::StringMatch(m)) => Self::Text(StringMatcher::compile(m).at("string_match")?),
            Some(P::BoolMatch(b)) => Self::Bool(*b),
            Some(P::PresentMatch(b)) => Self::Present(*b),
            Some(P::ListMatch(m)) => match &m.match_pattern {
                Some(pb::list_matcher::MatchPattern::OneOf(v)) => Self::OneOf(Box::new(
                    Self::nested(v, depth + 1).at("list_match.one_of")?,
                )),
                None => return Err(ConfigError::new("one_of is required").at("list_match")),
            },
            Some(P::OrMatch(m)) => Self::Or(
                m.value_matchers
                    .iter()
                    .map(|v| Self::nested(v, depth + 1).at("or_match"))
                    .collect::<Result<_, _>>()?,
            ),
            None => return Err(ConfigError::new("match_pattern is required")),
        })
    }

    /// Whether a value (None: there is none) matches.
    pub fn matches(&self, value: Option<&Value>) -> bool {
        match (self, value) {
            (Self::Or(all), value) => all.iter().any(|m| m.matches(value)),
            (_, None) => false,
            (Self::Null, Some(v)) => v.is_null(),
            (Self::Range(start, end), Some(v)) => {
                v.as_f64().is_some_and(|x| x >= *start && x < *end)
            }
            #[allow(clippy::float_cmp)] // exact by definition
            (Self::Number(n), Some(v)) => v.as_f64().is_some_and(|x| x == *n),
            (Self::Text(m), Some(v)) => v.as_str().is_some_and(|s| m.matches(s)),
            (Self::Bool(b), Some(v)) => v.as_bool() == Some(*b),
            (Self::Present(b), Some(v)) => *b && !v.is_null(),
            (Self::OneOf(m), Some(v)) => v
                .as_array()
                .is_some_and(|list| list.iter().any(|v| m.matches(Some(v)))),
        }
    }
}

/// A compiled metadata matcher.
#[derive(Debug, Clone)]
pub struct MetadataMatcher {
    filter: Box<str>,
    path: Vec<Box<str>>,
    value: ValueMatcher,
    invert: bool,
}

impl MetadataMatcher {
    /// Compiles the message.
    ///
    /// # Errors
    /// No filter, path or value.
    pub fn compile(config: &pb::MetadataMatcher) -> Result<Self, ConfigError> {
        if config.filter.is_empty() || config.path.is_empty() {
            return Err(ConfigError::new("filter and path are required"));
        }
        let path = config.path.iter().map(|p| match &p.segment {
            Some(pb::metadata_matcher::path_segment::Segment::Key(k)) => Ok(k.as_str().into()),
            None => Err(ConfigError::new("key is required").at("path")),
        });
        let value = config
            .value
            .as_ref()
            .ok_or_else(|| ConfigError::new("value is required"))?;
        Ok(Self {
            filter: config.filter.as_str().into(),
            path: path.collect::<Result<_, _>>()?,
            value: ValueMatcher::compile(value).at("value")?,
            invert: config.invert,
        })
    }

    /// Whether a stream's dynamic metadata matches.
    pub fn matches(&self, info: &StreamInfo) -> bool {
        self.matches_object(info.dynamic_metadata.get(&*self.filter))
    }

    /// Whose metadata it is about.
    pub fn namespace(&self) -> &str {
        &self.filter
    }

    /// Whether there is anything in that namespace at the path.
    pub fn finds(&self, object: Option<&Map<String, Value>>) -> bool {
        object.and_then(|o| lookup(o, &self.path)).is_some()
    }

    /// Whether the metadata in that namespace matches.
    pub fn matches_object(&self, object: Option<&Map<String, Value>>) -> bool {
        let value = object.and_then(|o| lookup(o, &self.path));
        self.value.matches(value) != self.invert
    }
}

/// The value at a path of keys.
pub fn lookup<'a>(object: &'a Map<String, Value>, path: &[Box<str>]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter()
        .try_fold(object.get(&**first)?, |value, key| value.get(&**key))
}

/// A compiled filter-state matcher.
#[derive(Debug, Clone)]
pub struct FilterStateMatcher {
    key: Box<str>,
    rule: FilterStateRule,
}

#[derive(Debug, Clone)]
enum FilterStateRule {
    Text(StringMatcher),
    Address(CidrSet, bool),
}

impl FilterStateMatcher {
    /// Compiles the message.
    ///
    /// # Errors
    /// No key or matcher, or a bad one.
    pub fn compile(config: &pb::FilterStateMatcher) -> Result<Self, ConfigError> {
        use pb::filter_state_matcher::Matcher as M;
        if config.key.is_empty() {
            return Err(ConfigError::new("must not be empty").at("key"));
        }
        let rule = match &config.matcher {
            Some(M::StringMatch(m)) => {
                FilterStateRule::Text(StringMatcher::compile(m).at("string_match")?)
            }
            Some(M::AddressMatch(m)) => FilterStateRule::Address(
                CidrSet::compile_xds(&m.ranges).at("address_match.ranges")?,
                m.invert_match,
            ),
            None => return Err(ConfigError::new("matcher is required")),
        };
        Ok(Self {
            key: config.key.as_str().into(),
            rule,
        })
    }

    /// Whether a filter state matches; an absent object does not.
    pub fn matches(&self, state: &FilterState) -> bool {
        let Some(text) = state.text(&self.key) else {
            return false;
        };
        match &self.rule {
            FilterStateRule::Text(m) => m.matches(&*text),
            FilterStateRule::Address(set, invert) => {
                let ip = match state.address(&self.key) {
                    Some(address) => Some(address.ip()),
                    None => text.parse().ok(),
                };
                ip.is_some_and(|ip| set.contains(ip) != *invert)
            }
        }
    }
}

/// A protobuf struct as JSON; what is nested deeper than 16 levels becomes null.
pub fn struct_to_json(object: &wkt::Struct) -> Map<String, Value> {
    fields(object, 0)
}

fn fields(object: &wkt::Struct, depth: usize) -> Map<String, Value> {
    let each = |(k, v): (&String, &wkt::Value)| (k.clone(), value_to_json(v, depth + 1));
    object.fields.iter().map(each).collect()
}

/// The same back.
pub fn json_to_struct(object: &Map<String, Value>) -> wkt::Struct {
    let each = |(k, v): (&String, &Value)| (k.clone(), json_to_value(v));
    wkt::Struct {
        fields: object.iter().map(each).collect(),
    }
}

/// As deep as the JSON is, and metadata is not deep.
fn json_to_value(value: &Value) -> wkt::Value {
    use wkt::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(b) => Kind::BoolValue(*b),
        Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or_default()),
        Value::String(s) => Kind::StringValue(s.clone()),
        Value::Object(o) => Kind::StructValue(json_to_struct(o)),
        Value::Array(items) => Kind::ListValue(wkt::ListValue {
            values: items.iter().map(json_to_value).collect(),
        }),
    };
    wkt::Value { kind: Some(kind) }
}

/// A value as JSON, without what is deeper than 16 levels.
pub fn value_to_json(value: &wkt::Value, depth: usize) -> Value {
    use wkt::value::Kind;
    match &value.kind {
        _ if depth > MAX_DEPTH => Value::Null,
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(b)) => Value::Bool(*b),
        // Whole numbers stay whole, so that `%DYNAMIC_METADATA%` prints 5 and not 5.0.
        #[allow(clippy::cast_possible_truncation)]
        Some(Kind::NumberValue(n)) if n.fract() == 0.0 && n.abs() < 9e15 => Value::from(*n as i64),
        Some(Kind::NumberValue(n)) => Value::from(*n),
        Some(Kind::StringValue(s)) => Value::String(s.clone()),
        Some(Kind::StructValue(s)) => Value::Object(fields(s, depth)),
        Some(Kind::ListValue(l)) => l
            .values
            .iter()
            .map(|v| value_to_json(v, depth + 1))
            .collect(),
    }
}
