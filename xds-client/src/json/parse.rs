//! JSON to message.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value, bytes::Bytes,
};
use serde_json::Value as Json;

use super::encode::encode;
use super::{UnknownFields, has_own_json, name_of};
use crate::error::{At, ConfigError};

type Result<T> = std::result::Result<T, ConfigError>;

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// The recursion is bounded by the depth of `json`, which serde_json and the YAML reader limit to 128.
pub(super) fn message(
    desc: &MessageDescriptor,
    json: &Json,
    unknown: UnknownFields,
) -> Result<DynamicMessage> {
    if desc.full_name() == "google.protobuf.Any" {
        return any(desc, json, unknown);
    }
    if has_own_json(desc.full_name()) {
        return DynamicMessage::deserialize(desc.clone(), json)
            .map_err(|e| ConfigError::new(format!("not a {}: {e}", desc.full_name())));
    }
    fields(desc, json, unknown, false)
}

fn fields(
    desc: &MessageDescriptor,
    json: &Json,
    unknown: UnknownFields,
    in_any: bool,
) -> Result<DynamicMessage> {
    let Json::Object(object) = json else {
        return Err(wrong("an object", json));
    };
    let mut message = DynamicMessage::new(desc.clone());
    for (key, value) in object {
        if in_any && key == "@type" {
            continue;
        }
        let field = desc
            .get_field_by_name(key)
            .or_else(|| desc.get_field_by_json_name(key));
        let Some(field) = field else {
            if unknown == UnknownFields::Allow {
                continue;
            }
            return Err(ConfigError::new(format!(
                "no such field in {}",
                desc.full_name()
            )))
            .at(key);
        };
        if value.is_null() && !null_means_something(&field) {
            continue;
        }
        if let Some(oneof) = field.containing_oneof()
            && let Some(other) = oneof.fields().find(|f| message.has_field(f))
        {
            return Err(ConfigError::new(format!(
                "only one of {} and {key} can be set",
                other.name()
            )))
            .at(key);
        }
        let value = field_value(&field, value, unknown).at(key)?;
        if let Some(value) = value {
            message
                .try_set_field(&field, value)
                .map_err(|e| ConfigError::new(e.to_string()))
                .at(key)?;
        }
    }
    Ok(message)
}

/// `None` for an enum value that is unknown and may be.
fn field_value(
    field: &FieldDescriptor,
    json: &Json,
    unknown: UnknownFields,
) -> Result<Option<Value>> {
    let kind = field.kind();
    if field.is_map() {
        let (Json::Object(object), Some(entry)) = (json, kind.as_message()) else {
            return Err(wrong("an object", json));
        };
        let (key_kind, value_kind) = (
            entry.map_entry_key_field().kind(),
            entry.map_entry_value_field().kind(),
        );
        let mut map = std::collections::HashMap::with_capacity(object.len());
        for (key, value) in object {
            let step = format!("[{key}]");
            let key = map_key(&key_kind, key).at(&step)?;
            map.insert(key, single(&value_kind, value, unknown).at(&step)?);
        }
        Ok(Some(Value::Map(map)))
    } else if field.is_list() {
        let Json::Array(array) = json else {
            return Err(wrong("an array", json));
        };
        let list = array
            .iter()
            .enumerate()
            .filter(|(_, value)| !may_be_skipped(&kind, value, unknown))
            .map(|(i, value)| single(&kind, value, unknown).at(format!("[{i}]")))
            .collect::<Result<_>>()?;
        Ok(Some(Value::List(list)))
    } else if may_be_skipped(&kind, json, unknown) {
        Ok(None)
    } else {
        single(&kind, json, unknown).map(Some)
    }
}

/// Whether this is the name of an enum value that is unknown and may be, as protobuf's own JSON has it.
fn may_be_skipped(kind: &Kind, json: &Json, unknown: UnknownFields) -> bool {
    match (kind, json) {
        (Kind::Enum(desc), Json::String(name)) => {
            unknown == UnknownFields::Allow && desc.get_value_by_name(name).is_none()
        }
        _ => false,
    }
}

fn single(kind: &Kind, json: &Json, unknown: UnknownFields) -> Result<Value> {
    Ok(match kind {
        Kind::Message(desc) => Value::Message(message(desc, json, unknown)?),
        Kind::Enum(desc) => match json {
            Json::String(name) => desc
                .get_value_by_name(name)
                .map(|v| Value::EnumNumber(v.number()))
                .ok_or_else(|| {
                    ConfigError::new(format!("no value {name} in enum {}", desc.full_name()))
                })?,
            Json::Null => Value::EnumNumber(0),
            _ => Value::EnumNumber(integer(json)?),
        },
        Kind::Bool => Value::Bool(json.as_bool().ok_or_else(|| wrong("a bool", json))?),
        Kind::String => Value::String(text(json)?.to_owned()),
        Kind::Bytes => Value::Bytes(Bytes::from(base64(text(json)?)?)),
        Kind::Double => Value::F64(float(json)?),
        #[allow(clippy::cast_possible_truncation)] // what the field can hold
        Kind::Float => Value::F32(float(json)? as f32),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(integer(json)?),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(integer(json)?),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(integer(json)?),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(integer(json)?),
    })
}

fn map_key(kind: &Kind, key: &str) -> Result<MapKey> {
    let number = || Json::String(key.to_owned());
    Ok(match kind {
        Kind::String => MapKey::String(key.to_owned()),
        Kind::Bool => MapKey::Bool(key.parse().map_err(|_| wrong("a bool", &number()))?),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => MapKey::I32(integer(&number())?),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => MapKey::I64(integer(&number())?),
        Kind::Uint32 | Kind::Fixed32 => MapKey::U32(integer(&number())?),
        Kind::Uint64 | Kind::Fixed64 => MapKey::U64(integer(&number())?),
        _ => return Err(ConfigError::new("not a map key")),
    })
}

fn any(desc: &MessageDescriptor, json: &Json, unknown: UnknownFields) -> Result<DynamicMessage> {
    let Json::Object(object) = json else {
        return Err(wrong("an object with @type", json));
    };
    let mut message = DynamicMessage::new(desc.clone());
    let Some(type_url) = object.get("@type") else {
        if object.is_empty() {
            return Ok(message);
        }
        return Err(ConfigError::new("an Any needs @type"));
    };
    let type_url = text(type_url).at("@type")?;
    let name = name_of(type_url);
    let bytes = match desc.parent_pool().get_message_by_name(name) {
        Some(inner) if has_own_json(name) || name == "google.protobuf.Any" => {
            let value = object.get("value").unwrap_or(&Json::Null);
            encode(&self::message(&inner, value, unknown).at("value")?)
        }
        Some(inner) => encode(&fields(&inner, json, unknown, true)?),
        // What the printer made of a type it did not know.
        None => match (object.len(), object.get("value")) {
            (2, Some(Json::String(value))) => base64(value).at("value")?,
            _ => return Err(ConfigError::new(format!("unknown type {type_url}"))).at("@type"),
        },
    };
    let type_url = Value::String(type_url.to_owned());
    message
        .try_set_field_by_number(1, type_url)
        .and_then(|()| message.try_set_field_by_number(2, Value::Bytes(bytes.into())))
        .map_err(|e| ConfigError::new(e.to_string()))?;
    Ok(message)
}

fn null_means_something(field: &FieldDescriptor) -> bool {
    match field.kind() {
        Kind::Message(m) => m.full_name() == "google.protobuf.Value" && !field.is_list(),
        Kind::Enum(e) => e.full_name() == "google.protobuf.NullValue",
        _ => false,
    }
}

fn wrong(wanted: &str, json: &Json) -> ConfigError {
    let found = match json {
        Json::Null => "null".to_owned(),
        Json::Bool(b) => b.to_string(),
        Json::Number(n) => n.to_string(),
        Json::String(s) => format!("\"{}\"", s.chars().take(64).collect::<String>()),
        Json::Array(_) => "an array".to_owned(),
        Json::Object(_) => "an object".to_owned(),
    };
    ConfigError::new(format!("expected {wanted}, found {found}"))
}

fn text(json: &Json) -> Result<&str> {
    json.as_str().ok_or_else(|| wrong("a string", json))
}

fn base64(text: &str) -> Result<Vec<u8>> {
    STANDARD
        .decode(text)
        .or_else(|_| URL_SAFE.decode(text))
        .map_err(|e| ConfigError::new(format!("not base64: {e}")))
}

fn float(json: &Json) -> Result<f64> {
    match json {
        Json::Number(n) => n.as_f64(),
        Json::String(s) => match s.as_str() {
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            "NaN" => Some(f64::NAN),
            s => s.parse().ok(),
        },
        _ => None,
    }
    .ok_or_else(|| wrong("a number", json))
}

fn integer<T: TryFrom<i128>>(json: &Json) -> Result<T> {
    let number = match json {
        Json::Number(n) => n
            .as_i64()
            .map(i128::from)
            .or_else(|| n.as_u64().map(i128::from))
            .or_else(|| n.as_f64().and_then(whole)),
        Json::String(s) => s
            .parse()
            .ok()
            .or_else(|| s.parse::<f64>().ok().and_then(whole)),
        _ => None,
    };
    number
        .ok_or_else(|| wrong("an integer", json))?
        .try_into()
        .map_err(|_| ConfigError::new(format!("{json} is out of range")))
}

/// `1e3` and `5.0` are integers in proto3 JSON.
#[allow(clippy::cast_possible_truncation)] // checked to be whole and small
fn whole(f: f64) -> Option<i128> {
    (f.fract() == 0.0 && f.abs() < 1e20).then_some(f as i128)
}
