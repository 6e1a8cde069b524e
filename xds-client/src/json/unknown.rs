//! Finds fields that a message's type does not have (`--reject-unknown-dynamic-fields`).

use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage as _, Value};

use super::name_of;

/// As deep as printing goes.
const MAX_DEPTH: usize = 64;

/// The path of the first unknown field inside of an encoded message, each `Any` opened; a field that is unknown has
/// no name, only a number. What cannot be decoded is not judged here.
pub(super) fn in_any(
    pool: &DescriptorPool,
    type_url: &str,
    value: &[u8],
    depth: usize,
) -> Option<String> {
    if depth > MAX_DEPTH {
        return None;
    }
    let descriptor = pool.get_message_by_name(name_of(type_url))?;
    let message = DynamicMessage::decode(descriptor, value).ok()?;
    in_message(pool, &message, depth)
}

fn in_message(pool: &DescriptorPool, message: &DynamicMessage, depth: usize) -> Option<String> {
    if let Some(unknown) = message.unknown_fields().next() {
        return Some(format!("field number {}", unknown.number()));
    }
    if message.descriptor().full_name() == "google.protobuf.Any" {
        let (url, value) = (
            message.get_field_by_number(1)?,
            message.get_field_by_number(2)?,
        );
        return in_any(pool, url.as_str()?, value.as_bytes()?, depth + 1);
    }
    message.fields().find_map(|(field, value)| {
        let below = in_value(pool, value, depth)?;
        let dot = if below.starts_with('[') { "" } else { "." };
        Some(format!("{}{dot}{below}", field.name()))
    })
}

fn in_value(pool: &DescriptorPool, value: &Value, depth: usize) -> Option<String> {
    match value {
        Value::Message(message) => in_message(pool, message, depth + 1),
        Value::List(list) => list.iter().enumerate().find_map(|(i, value)| {
            let below = in_value(pool, value, depth)?;
            Some(format!("[{i}].{below}"))
        }),
        Value::Map(map) => map.values().find_map(|v| in_value(pool, v, depth)),
        _ => None,
    }
}
