//! `Any` to typed messages.
//!
//! Extensions are told apart by the type URL, never by their name. A configuration can come in a
//! `TypedStruct`, udpa's or xds's: then the type URL inside of it counts, and its value is the JSON of that
//! message.

use std::borrow::Cow;

use envoy_types::pb::google::protobuf::{Any, ListValue, Struct, Value, value::Kind};
use prost::{Message, Name};
use serde_json::Value as Json;

use crate::error::{At, ConfigError};
use crate::json::{Pool, UnknownFields, name_of};
use crate::proto;

const UDPA_TYPED_STRUCT: &str = "udpa.type.v1.TypedStruct";
const XDS_TYPED_STRUCT: &str = "xds.type.v3.TypedStruct";

fn typed_struct(any: &Any) -> Result<Option<proto::xds::r#type::v3::TypedStruct>, ConfigError> {
    // Both messages have the same fields.
    match name_of(&any.type_url) {
        UDPA_TYPED_STRUCT | XDS_TYPED_STRUCT => Message::decode(any.value.as_slice())
            .map(Some)
            .map_err(|e| ConfigError::new(format!("{} does not decode: {e}", any.type_url))),
        _ => Ok(None),
    }
}

/// The type URL of the configuration itself: the inner one of a `TypedStruct`.
///
/// # Errors
/// If a `TypedStruct` does not decode or names no type, or the `Any` is empty.
pub fn inner_type_url(any: &Any) -> Result<Cow<'_, str>, ConfigError> {
    let url = match typed_struct(any)? {
        Some(inner) => Cow::Owned(inner.type_url),
        None => Cow::Borrowed(any.type_url.as_str()),
    };
    if url.is_empty() {
        return Err(ConfigError::new("no type_url"));
    }
    Ok(url)
}

/// The message name of [`inner_type_url`], without the `type.googleapis.com/` in front.
///
/// # Errors
/// As [`inner_type_url`].
pub fn inner_type_name(any: &Any) -> Result<String, ConfigError> {
    inner_type_url(any).map(|url| name_of(&url).to_owned())
}

/// Decodes the configuration as an `M`, out of a `TypedStruct` if need be. Unknown fields are passed over,
/// as Envoy does in dynamic configuration.
///
/// # Errors
/// If the type is another one, or the bytes (or the `TypedStruct`'s JSON) are no such message.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Result<M, ConfigError> {
    let wanted = M::full_name();
    let check = |url: &str| match name_of(url) {
        found if found == wanted => Ok(()),
        "" => Err(ConfigError::new(format!("empty, expected a {wanted}"))),
        found => Err(ConfigError::new(format!(
            "expected a {wanted}, found {found}"
        ))),
    };
    match typed_struct(any)? {
        Some(inner) => {
            check(&inner.type_url)?;
            let json = inner
                .value
                .as_ref()
                .map_or_else(|| Json::Object(serde_json::Map::new()), struct_to_json);
            Pool::load()?
                .parse_as(&json, UnknownFields::Allow)
                .at("value")
        }
        None => {
            check(&any.type_url)?;
            M::decode(any.value.as_slice())
                .map_err(|e| ConfigError::new(format!("{wanted} does not decode: {e}")))
        }
    }
}

/// The message in a `TypedStruct`, encoded.
pub(crate) struct Opened {
    /// Its type.
    pub(crate) full_name: String,
    /// Its encoding.
    pub(crate) bytes: Vec<u8>,
}

/// Opens a `TypedStruct`; `None` if `any` is not one, or the type in it is not known.
pub(crate) fn opened(any: &Any) -> Result<Option<Opened>, ConfigError> {
    let Some(inner) = typed_struct(any)? else {
        return Ok(None);
    };
    let (pool, full_name) = (Pool::load()?, name_of(&inner.type_url).to_owned());
    if !pool.contains(&full_name) {
        return Ok(None);
    }
    let json = struct_to_json(&inner.value.unwrap_or_default());
    let message = pool.parse(&full_name, &json, UnknownFields::Allow)?;
    Ok(Some(Opened {
        full_name,
        bytes: message.encode_to_vec(),
    }))
}

/// The value of a `TypedStruct` as JSON, for configurations that have no message here; `None` if `any` is
/// not one.
///
/// # Errors
/// If the `TypedStruct` does not decode.
pub fn typed_struct_value(any: &Any) -> Result<Option<Json>, ConfigError> {
    Ok(typed_struct(any)?.map(|inner| struct_to_json(&inner.value.unwrap_or_default())))
}

/// Packs a message under its `type.googleapis.com/` URL.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: format!("type.googleapis.com/{}", M::full_name()),
        value: message.encode_to_vec(),
    }
}

/// The JSON that a `Struct` stands for; its depth is bounded by the decoder's.
pub fn struct_to_json(value: &Struct) -> Json {
    Json::Object(
        value
            .fields
            .iter()
            .map(|(key, value)| (key.clone(), value_to_json(value)))
            .collect(),
    )
}

fn value_to_json(value: &Value) -> Json {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        // A Struct only has doubles; integer fields accept a whole one.
        Some(Kind::NumberValue(n)) => Json::from(*n),
        Some(Kind::StringValue(s)) => Json::String(s.clone()),
        Some(Kind::BoolValue(b)) => Json::Bool(*b),
        Some(Kind::StructValue(s)) => struct_to_json(s),
        Some(Kind::ListValue(ListValue { values })) => {
            Json::Array(values.iter().map(value_to_json).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::stats::PluginConfig;

    fn typed_struct_of(type_url: &str, url: &str, fields: &[(&str, Kind)]) -> Any {
        let value = Struct {
            fields: fields
                .iter()
                .map(|(k, v)| {
                    (
                        (*k).to_owned(),
                        Value {
                            kind: Some(v.clone()),
                        },
                    )
                })
                .collect(),
        };
        let inner = proto::udpa::r#type::v1::TypedStruct {
            type_url: url.into(),
            value: Some(value),
        };
        Any {
            type_url: format!("type.googleapis.com/{type_url}"),
            value: inner.encode_to_vec(),
        }
    }

    #[test]
    fn unpacks_both_typed_structs_and_the_plain_form() {
        let url = "type.googleapis.com/stats.PluginConfig";
        let plain = PluginConfig {
            disable_host_header_fallback: true,
            reporter: 1,
            ..PluginConfig::default()
        };
        assert_eq!(unpack::<PluginConfig>(&pack(&plain)).unwrap(), plain);
        for wrapper in [UDPA_TYPED_STRUCT, XDS_TYPED_STRUCT] {
            let any = typed_struct_of(
                wrapper,
                url,
                &[
                    ("disable_host_header_fallback", Kind::BoolValue(true)),
                    ("reporter", Kind::StringValue("SERVER_GATEWAY".into())),
                ],
            );
            assert_eq!(inner_type_url(&any).unwrap(), url);
            assert_eq!(unpack::<PluginConfig>(&any).unwrap(), plain);
        }
    }

    #[test]
    fn errors_name_both_types_and_the_field() {
        let any = pack(&PluginConfig::default());
        let e = unpack::<proto::xds::r#type::matcher::v3::IpMatcher>(&any).unwrap_err();
        assert!(
            e.reason().contains("IPMatcher") && e.reason().contains("stats.PluginConfig"),
            "{e}"
        );
        let any = typed_struct_of(
            UDPA_TYPED_STRUCT,
            "x/stats.PluginConfig",
            &[("reporter", Kind::BoolValue(true))],
        );
        assert_eq!(
            unpack::<PluginConfig>(&any).unwrap_err().path(),
            "value.reporter"
        );
        let any = Any {
            type_url: format!("x/{UDPA_TYPED_STRUCT}"),
            value: vec![0xff],
        };
        assert!(inner_type_url(&any).is_err());
        assert!(inner_type_url(&Any::default()).is_err());
    }
}
