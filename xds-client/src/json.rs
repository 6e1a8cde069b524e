//! Proto3 JSON, both ways, for every message that `envoy-types` and this crate know.
//!
//! Works on [`prost_reflect::DynamicMessage`], because neither crate's generated types carry serde. The
//! descriptors take tens of megabytes when decoded: a [`Pool`] is loaded when one is needed and goes when
//! the last holder drops it, so nothing of it is left at run time.

mod encode;
mod parse;
mod print;
mod unknown;

use std::sync::{Arc, Mutex, PoisonError, Weak};

use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};

use crate::error::ConfigError;

pub(crate) use encode::encode;

static DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
static CACHE: Mutex<Weak<Pool>> = Mutex::new(Weak::new());

/// How JSON is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownFields {
    /// A field the message does not have is an error that names its path.
    #[default]
    Reject,
    /// Such a field is passed over (`--allow-unknown-static-fields`).
    Allow,
}

/// How messages are printed.
#[derive(Debug, Clone, Copy)]
pub struct PrintOptions {
    /// Replaces what is secret by `[redacted]`: the fields that Envoy's API marks as sensitive and fields
    /// named like a key or password. On by default.
    pub redact: bool,
}

impl Default for PrintOptions {
    fn default() -> Self {
        Self { redact: true }
    }
}

/// The descriptors of all known messages. Hold one across a batch of conversions: loading takes tens of
/// milliseconds.
#[derive(Debug)]
pub struct Pool(DescriptorPool);

impl Pool {
    /// The pool, shared with whoever holds one already.
    ///
    /// # Errors
    /// If the embedded descriptors are damaged, which the build script rules out.
    pub fn load() -> Result<Arc<Self>, ConfigError> {
        let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = cache.upgrade() {
            return Ok(pool);
        }
        let pool = DescriptorPool::decode(DESCRIPTORS)
            .map_err(|e| ConfigError::new(format!("message descriptors: {e}")))?;
        let pool = Arc::new(Self(pool));
        *cache = Arc::downgrade(&pool);
        Ok(pool)
    }

    /// Whether the message `full_name` (without `type.googleapis.com/`) is known.
    pub fn contains(&self, full_name: &str) -> bool {
        self.0.get_message_by_name(full_name).is_some()
    }

    /// The names of a message's fields; none if it is not known.
    pub fn fields(&self, full_name: &str) -> Vec<String> {
        let message = self.0.get_message_by_name(full_name);
        let fields = message.iter().flat_map(MessageDescriptor::fields);
        fields.map(|f| f.name().to_owned()).collect()
    }

    fn message(&self, full_name: &str) -> Result<MessageDescriptor, ConfigError> {
        self.0
            .get_message_by_name(full_name)
            .ok_or_else(|| ConfigError::new(format!("unknown message type {full_name}")))
    }

    /// Reads JSON: field names in lowerCamelCase or snake_case, 64-bit (and other) integers as numbers or
    /// strings, durations like `"0.250s"`, bytes in base64, `Any` with `@type`.
    ///
    /// # Errors
    /// Names the path of the field and what is wrong with it.
    pub fn parse(
        &self,
        full_name: &str,
        json: &serde_json::Value,
        unknown: UnknownFields,
    ) -> Result<DynamicMessage, ConfigError> {
        parse::message(&self.message(full_name)?, json, unknown)
    }

    /// [`parse`](Self::parse) into a generated type.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_as<M: Message + Name + Default>(
        &self,
        json: &serde_json::Value,
        unknown: UnknownFields,
    ) -> Result<M, ConfigError> {
        let message = self.parse(&M::full_name(), json, unknown)?;
        M::decode(encode(&message).as_slice())
            .map_err(|e| ConfigError::new(format!("{}: {e}", M::full_name())))
    }

    /// The JSON of an encoded message, with snake_case names as Envoy's admin prints them, and every `Any`
    /// opened. An `Any` that cannot be opened is printed as `{"@type": ..., "value": base64}`.
    ///
    /// # Errors
    /// If the type is unknown or the bytes are not such a message; never for what is nested inside.
    pub fn print(
        &self,
        full_name: &str,
        bytes: &[u8],
        options: PrintOptions,
    ) -> Result<serde_json::Value, ConfigError> {
        let message = DynamicMessage::decode(self.message(full_name)?, bytes)
            .map_err(|e| ConfigError::new(format!("{full_name}: {e}")))?;
        Ok(print::message(&message, options))
    }

    /// [`print`](Self::print) for a generated type. A type without a descriptor prints as null.
    pub fn print_message<M: Message + Name>(
        &self,
        message: &M,
        options: PrintOptions,
    ) -> serde_json::Value {
        self.print(&M::full_name(), &message.encode_to_vec(), options)
            .unwrap_or_default()
    }

    /// The path of the first field that an encoded message of this type has and the type does not, inside of
    /// every `Any` too; none if there is no such field, or the bytes are no such message.
    pub fn unknown_field(&self, type_url: &str, value: &[u8]) -> Option<String> {
        unknown::in_any(&self.0, type_url, value, 0)
    }

    /// The JSON of an `Any`, with its `@type`. Never fails: see [`print`](Self::print).
    pub fn print_any(
        &self,
        type_url: &str,
        value: &[u8],
        options: PrintOptions,
    ) -> serde_json::Value {
        print::any(&self.0, type_url, value, options, 0)
    }
}

/// The message name in a type URL: what follows the last slash.
pub(crate) fn name_of(type_url: &str) -> &str {
    type_url.rsplit_once('/').map_or(type_url, |(_, name)| name)
}

/// Messages whose JSON is not an object of their fields; `Any` is not among them.
fn has_own_json(full_name: &str) -> bool {
    matches!(
        full_name.strip_prefix("google.protobuf."),
        Some(
            "Timestamp"
                | "Duration"
                | "FieldMask"
                | "Struct"
                | "Value"
                | "ListValue"
                | "Empty"
                | "FloatValue"
                | "DoubleValue"
                | "Int32Value"
                | "Int64Value"
                | "UInt32Value"
                | "UInt64Value"
                | "BoolValue"
                | "StringValue"
                | "BytesValue"
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use serde_json::json;

    fn cluster(json: serde_json::Value) -> Result<Cluster, ConfigError> {
        Pool::load()?.parse_as(&json, UnknownFields::Reject)
    }

    #[test]
    fn both_spellings_and_string_numbers_are_read() {
        let a = cluster(json!({
            "name": "c", "connectTimeout": "0.250s", "type": "STATIC",
            "circuit_breakers": {"thresholds": [{"maxRequests": "4294967295", "max_retries": 7}]}
        }))
        .unwrap();
        assert_eq!(a.connect_timeout.unwrap().nanos, 250_000_000);
        let t = &a.circuit_breakers.unwrap().thresholds[0];
        assert_eq!(t.max_requests.unwrap().value, u32::MAX);
        assert_eq!(t.max_retries.unwrap().value, 7);
    }

    #[test]
    fn unknown_fields_of_encoded_messages_are_found() {
        let pool = Pool::load().unwrap();
        let url = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
        let known = json!({"name": "c", "load_assignment": {"cluster_name": "c", "endpoints": [{"priority": 1}]}});
        let bytes = cluster(known).unwrap().encode_to_vec();
        assert_eq!(pool.unknown_field(url, &bytes), None);
        // Field 1000 as a varint, after the message and inside of its first endpoints.
        let mut after = bytes.clone();
        after.extend([0xc0, 0x3e, 0x01]);
        let found = pool.unknown_field(url, &after);
        assert_eq!(found.as_deref(), Some("field number 1000"));
        // load_assignment (33) { endpoints (2) { 1000: 1 } }, merged into the one before.
        let mut inside = bytes;
        inside.extend([0x8a, 0x02, 0x05, 0x12, 0x03, 0xc0, 0x3e, 0x01]);
        let found = pool.unknown_field(url, &inside);
        assert_eq!(
            found.as_deref(),
            Some("load_assignment.endpoints[1].field number 1000")
        );
    }

    #[test]
    fn an_error_names_the_path() {
        let e = cluster(json!({"circuit_breakers": {"thresholds": [{}, {"max_request": 1}]}}));
        assert_eq!(
            e.unwrap_err().path(),
            "circuit_breakers.thresholds[1].max_request"
        );
        let e = cluster(json!({"connect_timeout": "soon"})).unwrap_err();
        assert_eq!(e.path(), "connect_timeout");
        let e = cluster(json!({"lb_policy": "BEST"})).unwrap_err();
        assert!(e.reason().contains("BEST"), "{e}");
        let e = cluster(json!({"type": 0, "cluster_type": {"name": "x"}})).unwrap_err();
        assert!(e.reason().contains("one of"), "{e}");
    }

    #[test]
    fn unknown_fields_can_be_allowed() {
        let json = json!({"name": "c", "new_field": {"a": 1}});
        let pool = Pool::load().unwrap();
        let c: Cluster = pool.parse_as(&json, UnknownFields::Allow).unwrap();
        assert_eq!(c.name, "c");
        assert!(
            pool.parse_as::<Cluster>(&json, UnknownFields::Reject)
                .is_err()
        );
        let json = json!({"name": "c", "lb_policy": "BEST"});
        let c: Cluster = pool.parse_as(&json, UnknownFields::Allow).unwrap();
        assert_eq!((c.name.as_str(), c.lb_policy), ("c", 0));
    }

    #[test]
    fn any_is_opened_and_an_unknown_one_survives() {
        let pool = Pool::load().unwrap();
        let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        let json = json!({
            "name": "c",
            "typed_extension_protocol_options": {
                options: {"@type": format!("type.googleapis.com/{options}"),
                          "explicit_http_config": {"http2_protocol_options": {}}},
                "other": {"@type": "type.googleapis.com/no.such.Type", "value": "AQI="},
                "struct": {"@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
                           "type_url": "type.googleapis.com/no.such.Type", "value": {"a": [1.0, null]}}
            }
        });
        let c: Cluster = pool.parse_as(&json, UnknownFields::Reject).unwrap();
        assert_eq!(c.typed_extension_protocol_options["other"].value, [1, 2]);
        assert_eq!(pool.print_message(&c, PrintOptions::default()), json);
    }

    #[test]
    fn an_unknown_type_is_an_error() {
        let json = json!({"name": "c", "typed_extension_protocol_options": {
            "a": {"@type": "type.googleapis.com/no.such.Type"}}});
        let e = cluster(json).unwrap_err();
        assert_eq!(e.path(), "typed_extension_protocol_options[a].@type");
    }

    #[test]
    fn keys_are_redacted() {
        use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
        let pool = Pool::load().unwrap();
        let json = json!({"name": "s", "tls_certificate": {
            "certificate_chain": {"inline_string": "CERT"},
            "private_key": {"inline_string": "KEY"}, "password": {"inline_bytes": "S0VZ"}}});
        let s: Secret = pool.parse_as(&json, UnknownFields::Reject).unwrap();
        let shown = pool.print_message(&s, PrintOptions::default());
        assert_eq!(
            shown["tls_certificate"]["certificate_chain"]["inline_string"],
            "CERT"
        );
        assert_eq!(
            shown["tls_certificate"]["private_key"]["inline_string"],
            "[redacted]"
        );
        assert!(!shown.to_string().contains("KEY"), "{shown}");
        assert!(!shown.to_string().contains("S0VZ"), "{shown}");
        assert_eq!(pool.print_message(&s, PrintOptions { redact: false }), json);
    }

    #[test]
    fn a_deep_any_is_not_followed_forever() {
        use prost::Message as _;
        let mut any = envoy_types::pb::google::protobuf::Any::default();
        for _ in 0..2000 {
            any = envoy_types::pb::google::protobuf::Any {
                type_url: "type.googleapis.com/google.protobuf.Any".into(),
                value: any.encode_to_vec(),
            };
        }
        let pool = Pool::load().unwrap();
        let shown = pool.print_any(&any.type_url, &any.value, PrintOptions::default());
        assert!(shown.get("value").is_some());
    }
}
