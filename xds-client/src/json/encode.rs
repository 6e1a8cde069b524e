//! Message to bytes, each nested message once.
//!
//! [`DynamicMessage`]'s own encoder measures a nested message anew at every level above it: for a configuration
//! of many thousand resources, eight levels deep, that was a quarter of what loading it from a file cost.

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, Value};

/// The wire format of a message that was made from JSON, so that has no unknown fields. The entries of a map are
/// in the order of their keys: the same JSON always gives the same bytes.
pub(crate) fn encode(message: &DynamicMessage) -> Vec<u8> {
    let mut out = Vec::new();
    write_message(message, &mut out);
    out
}

fn write_message(message: &DynamicMessage, out: &mut Vec<u8>) {
    for (field, value) in message.fields() {
        write_field(&field, value, out);
    }
}

fn write_field(field: &FieldDescriptor, value: &Value, out: &mut Vec<u8>) {
    let (number, kind) = (field.number(), field.kind());
    match value {
        Value::List(list) if field.is_packed() => {
            let mut packed = Vec::new();
            for value in list {
                write_value(&kind, value, &mut packed);
            }
            write_block(number, &packed, out);
        }
        Value::List(list) => {
            for value in list {
                write_single(number, &kind, value, out);
            }
        }
        Value::Map(map) => {
            let Some(entry) = kind.as_message() else {
                return;
            };
            let key_kind = entry.map_entry_key_field().kind();
            let value_kind = entry.map_entry_value_field().kind();
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by(|a, b| a.0.cmp(b.0));
            let mut one = Vec::new();
            for (key, value) in entries {
                one.clear();
                write_single(1, &key_kind, &key_value(key), &mut one);
                write_single(2, &value_kind, value, &mut one);
                write_block(number, &one, out);
            }
        }
        value => write_single(number, &kind, value, out),
    }
}

fn key_value(key: &MapKey) -> Value {
    match key {
        MapKey::Bool(v) => Value::Bool(*v),
        MapKey::I32(v) => Value::I32(*v),
        MapKey::I64(v) => Value::I64(*v),
        MapKey::U32(v) => Value::U32(*v),
        MapKey::U64(v) => Value::U64(*v),
        MapKey::String(v) => Value::String(v.clone()),
    }
}

fn write_single(number: u32, kind: &Kind, value: &Value, out: &mut Vec<u8>) {
    let wire_type = match (value, kind) {
        (Value::String(_) | Value::Bytes(_) | Value::Message(_), _) => 2,
        (Value::F64(_), _) | (_, Kind::Fixed64 | Kind::Sfixed64) => 1,
        (Value::F32(_), _) | (_, Kind::Fixed32 | Kind::Sfixed32) => 5,
        _ => 0,
    };
    write_varint(u64::from(number) << 3 | wire_type, out);
    write_value(kind, value, out);
}

/// A value without its key.
fn write_value(kind: &Kind, value: &Value, out: &mut Vec<u8>) {
    match (value, kind) {
        (Value::Bool(v), _) => out.push(u8::from(*v)),
        (Value::I32(v), Kind::Sfixed32) => out.extend(v.to_le_bytes()),
        (Value::I32(v), Kind::Sint32) => write_varint(zigzag(i64::from(*v)), out),
        (Value::I32(v) | Value::EnumNumber(v), _) => {
            write_varint(i64::from(*v).cast_unsigned(), out);
        }
        (Value::I64(v), Kind::Sfixed64) => out.extend(v.to_le_bytes()),
        (Value::I64(v), Kind::Sint64) => write_varint(zigzag(*v), out),
        (Value::I64(v), _) => write_varint(v.cast_unsigned(), out),
        (Value::U32(v), Kind::Fixed32) => out.extend(v.to_le_bytes()),
        (Value::U32(v), _) => write_varint(u64::from(*v), out),
        (Value::U64(v), Kind::Fixed64) => out.extend(v.to_le_bytes()),
        (Value::U64(v), _) => write_varint(*v, out),
        (Value::F32(v), _) => out.extend(v.to_le_bytes()),
        (Value::F64(v), _) => out.extend(v.to_le_bytes()),
        (Value::String(v), _) => write_bytes(v.as_bytes(), out),
        (Value::Bytes(v), _) => write_bytes(v, out),
        (Value::Message(v), _) => write_bytes(&encode(v), out),
        // Neither is ever an element of a list or a map.
        (Value::List(_) | Value::Map(_), _) => {}
    }
}

fn write_block(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    write_varint(u64::from(number) << 3 | 2, out);
    write_bytes(bytes, out);
}

fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    write_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn zigzag(v: i64) -> u64 {
    ((v << 1) ^ (v >> 63)).cast_unsigned()
}

fn write_varint(mut v: u64, out: &mut Vec<u8>) {
    while v >= 0x80 {
        out.push((v & 0x7f) as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_reflect::prost_types::{
        DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
        field_descriptor_proto::{Label, Type},
    };
    use prost_reflect::{DescriptorPool, MessageDescriptor};

    use super::*;

    /// A message with one field of every scalar kind, numbered by the kind, and a list of each, 100 higher.
    fn every_kind() -> MessageDescriptor {
        let scalars = (1..=18).filter(|t| ![10, 11, 14].contains(t)); // group, message, enum
        let field = |name: String, number: i32, kind: i32, label: Label| FieldDescriptorProto {
            name: Some(name),
            number: Some(number),
            r#type: Some(Type::try_from(kind).unwrap() as i32),
            label: Some(label as i32),
            ..Default::default()
        };
        let fields = scalars.flat_map(|t| {
            [
                field(format!("f{t}"), t, t, Label::Optional),
                field(format!("l{t}"), 100 + t, t, Label::Repeated),
            ]
        });
        let file = FileDescriptorProto {
            name: Some("t.proto".into()),
            syntax: Some("proto3".into()),
            message_type: vec![DescriptorProto {
                name: Some("T".into()),
                field: fields.collect(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let set = FileDescriptorSet { file: vec![file] };
        let pool = DescriptorPool::decode(set.encode_to_vec().as_slice()).unwrap();
        pool.get_message_by_name("T").unwrap()
    }

    #[test]
    fn every_scalar_kind_reads_back() {
        let desc = every_kind();
        let mut message = DynamicMessage::new(desc.clone());
        for field in desc.fields().filter(|f| !f.is_list()) {
            let values = match field.kind() {
                Kind::Bool => [Value::Bool(true), Value::Bool(false)],
                Kind::String => [Value::String("x".into()), Value::String(String::new())],
                Kind::Bytes => [
                    Value::Bytes(vec![0, 255].into()),
                    Value::Bytes(vec![].into()),
                ],
                Kind::Double => [Value::F64(-0.5), Value::F64(1e300)],
                Kind::Float => [Value::F32(-0.5), Value::F32(1e30)],
                Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
                    [Value::I32(i32::MIN), Value::I32(300)]
                }
                Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
                    [Value::I64(i64::MIN), Value::I64(-1)]
                }
                Kind::Uint32 | Kind::Fixed32 => [Value::U32(u32::MAX), Value::U32(0)],
                Kind::Uint64 | Kind::Fixed64 => [Value::U64(u64::MAX), Value::U64(128)],
                Kind::Message(_) | Kind::Enum(_) => unreachable!(),
            };
            message.set_field(&field, values[0].clone());
            message.set_field_by_number(100 + field.number(), Value::List(values.into()));
        }
        assert_eq!(message.fields().count(), 30);
        let bytes = encode(&message);
        assert_eq!(bytes, message.encode_to_vec());
        assert_eq!(
            DynamicMessage::decode(desc, bytes.as_slice()).unwrap(),
            message
        );
    }
}
