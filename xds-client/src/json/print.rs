//! Message to JSON.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, SerializeOptions, Value,
};
use serde_json::{Map, Value as Json};

use super::{PrintOptions, has_own_json, name_of};

/// Fields marked sensitive in Envoy's API, one full name a line, sorted.
static SENSITIVE: &str = include_str!(concat!(env!("OUT_DIR"), "/sensitive.txt"));
const REDACTED: &str = "[redacted]";
/// `Any` inside `Any` escapes the recursion limit of the decoder; deeper ones are printed as bytes.
const MAX_DEPTH: usize = 64;

pub(super) fn message(message: &DynamicMessage, options: PrintOptions) -> Json {
    Printer { options }.message(message, false, 0)
}

pub(super) fn any(
    pool: &DescriptorPool,
    type_url: &str,
    value: &[u8],
    options: PrintOptions,
    depth: usize,
) -> Json {
    Printer { options }.any(pool, type_url, value, false, depth)
}

struct Printer {
    options: PrintOptions,
}

impl Printer {
    fn message(&self, message: &DynamicMessage, secret: bool, depth: usize) -> Json {
        let desc = message_descriptor(message);
        let name = desc.full_name();
        if name == "google.protobuf.Any" {
            let (type_url, value) = (
                message.get_field_by_number(1),
                message.get_field_by_number(2),
            );
            let type_url = type_url.as_deref().and_then(Value::as_str).unwrap_or("");
            let value = value.as_deref().and_then(Value::as_bytes);
            if type_url.is_empty() {
                return Json::Object(Map::new());
            }
            let value = value.map_or(&[][..], |v| v.as_ref());
            return self.any(desc.parent_pool(), type_url, value, secret, depth);
        }
        if has_own_json(name) {
            let options = SerializeOptions::new().stringify_64_bit_integers(true);
            // Fails for a duration or a number outside of what JSON can say.
            let mut json = message
                .serialize_with_options(serde_json::value::Serializer, &options)
                .unwrap_or(Json::Null);
            if self.options.redact {
                redact(&mut json, secret);
            }
            return json;
        }
        let mut object = Map::new();
        for field in desc.fields().filter(|f| message.has_field(f)) {
            let secret = secret || (self.options.redact && is_secret(&field));
            if let Some(json) = self.field(&field, &message.get_field(&field), secret, depth) {
                object.insert(field.name().to_owned(), json);
            }
        }
        Json::Object(object)
    }

    fn field(
        &self,
        field: &FieldDescriptor,
        value: &Value,
        secret: bool,
        depth: usize,
    ) -> Option<Json> {
        let kind = field.kind();
        match value {
            Value::List(list) => Some(Json::Array(
                list.iter()
                    .filter_map(|v| self.single(&kind, v, secret, depth))
                    .collect(),
            )),
            Value::Map(map) => {
                let value_kind = kind.as_message()?.map_entry_value_field().kind();
                let entries = map.iter().filter_map(|(key, value)| {
                    Some((
                        key_text(key),
                        self.single(&value_kind, value, secret, depth)?,
                    ))
                });
                Some(Json::Object(entries.collect()))
            }
            value => self.single(&kind, value, secret, depth),
        }
    }

    /// `None` for a number that is a secret: it has no redacted form.
    fn single(&self, kind: &Kind, value: &Value, secret: bool, depth: usize) -> Option<Json> {
        Some(match value {
            Value::Message(m) => self.message(m, secret, depth + 1),
            Value::String(_) if secret => REDACTED.into(),
            Value::Bytes(_) if secret => BASE64_STANDARD.encode(REDACTED).into(),
            _ if secret => return None,
            Value::String(s) => s.as_str().into(),
            Value::Bytes(b) => BASE64_STANDARD.encode(b).into(),
            Value::Bool(b) => (*b).into(),
            Value::I32(n) => (*n).into(),
            Value::U32(n) => (*n).into(),
            Value::I64(n) => n.to_string().into(),
            Value::U64(n) => n.to_string().into(),
            Value::F32(n) => float(f64::from(*n), || n.to_string()),
            Value::F64(n) => float(*n, || n.to_string()),
            Value::EnumNumber(n) => match kind.as_enum() {
                Some(e) if e.full_name() == "google.protobuf.NullValue" => Json::Null,
                Some(e) => e
                    .get_value(*n)
                    .map_or_else(|| (*n).into(), |v| v.name().into()),
                None => (*n).into(),
            },
            Value::List(_) | Value::Map(_) => return None,
        })
    }

    fn any(
        &self,
        pool: &DescriptorPool,
        type_url: &str,
        value: &[u8],
        secret: bool,
        depth: usize,
    ) -> Json {
        let name = name_of(type_url);
        let inner = (depth < MAX_DEPTH)
            .then(|| pool.get_message_by_name(name))
            .flatten()
            .and_then(|desc| DynamicMessage::decode(desc, value).ok());
        let mut object = match inner {
            Some(inner) => match self.message(&inner, secret, depth + 1) {
                Json::Object(object) if !has_own_json(name) && name != "google.protobuf.Any" => {
                    object
                }
                value => Map::from_iter([("value".to_owned(), value)]),
            },
            None if secret => Map::new(),
            None => Map::from_iter([("value".to_owned(), BASE64_STANDARD.encode(value).into())]),
        };
        object.insert("@type".to_owned(), type_url.into());
        Json::Object(object)
    }
}

fn message_descriptor(message: &DynamicMessage) -> prost_reflect::MessageDescriptor {
    use prost_reflect::ReflectMessage;
    message.descriptor()
}

fn is_secret(field: &FieldDescriptor) -> bool {
    is_secret_name(field.name()) || SENSITIVE.lines().any(|line| line == field.full_name())
}

/// Names that hold a secret whatever message they are in; the same words tell in a `Struct`.
fn is_secret_name(name: &str) -> bool {
    matches!(
        name,
        "private_key"
            | "privateKey"
            | "password"
            | "token_secret"
            | "hmac_secret"
            | "client_secret"
    )
}

/// In the JSON of a `Struct` (a TypedStruct's value, node metadata).
fn redact(json: &mut Json, secret: bool) {
    match json {
        Json::Object(object) => {
            for (key, value) in object {
                redact(value, secret || is_secret_name(key));
            }
        }
        Json::Array(list) => list.iter_mut().for_each(|value| redact(value, secret)),
        json if secret => *json = REDACTED.into(),
        _ => {}
    }
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(k) => k.to_string(),
        MapKey::I32(k) => k.to_string(),
        MapKey::I64(k) => k.to_string(),
        MapKey::U32(k) => k.to_string(),
        MapKey::U64(k) => k.to_string(),
        MapKey::String(k) => k.clone(),
    }
}

fn float(number: f64, text: impl FnOnce() -> String) -> Json {
    if number.is_finite() {
        // By its shortest text, or an f32 would print with an f64's digits.
        return text().parse::<f64>().map_or(Json::Null, Json::from);
    }
    match number {
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        _ => "NaN".into(),
    }
}
