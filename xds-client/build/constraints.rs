//! Takes the constraints that Envoy's API puts on its fields (`validate.rules`) out of the descriptors.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;

use prost_reflect::{
    DescriptorPool, DynamicMessage, ExtensionDescriptor, FieldDescriptor, Kind as ProtoKind,
    MessageDescriptor, ReflectMessage, Value,
};

#[allow(dead_code, unused)]
#[path = "../src/constraints/table.rs"]
mod table;

use table::{Field, Header, Kind, Message, Oneof, Rules, Scalar, Shape};

/// Messages of which every field is kept, so that a field can be refused by its name.
const WHOLE: &[&str] = &[
    "envoy.config.bootstrap.v3.",
    "envoy.config.cluster.v3.",
    "envoy.config.core.v3.",
    "envoy.config.endpoint.v3.",
    "envoy.config.listener.v3.",
    "envoy.config.route.v3.",
    "envoy.extensions.filters.network.http_connection_manager.v3.",
    "envoy.extensions.upstreams.http.v3.",
];

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// One line for each message that has constraints or leads to some: name, tab, JSON; sorted by name.
pub fn table(pool: &DescriptorPool) -> Result<String> {
    let find = |name: &str| {
        let found = pool.get_extension_by_name(name);
        found.ok_or_else(|| format!("the descriptors have no {name}"))
    };
    let (rules, required) = (find("validate.rules")?, find("validate.required")?);
    let mut messages = BTreeMap::new();
    for message in pool.all_messages().filter(|m| !m.is_map_entry()) {
        if !message.full_name().starts_with("google.protobuf.") {
            let made = read(&message, &rules, &required)
                .map_err(|e| format!("{}: {e}", message.full_name()))?;
            messages.insert(message.full_name().to_owned(), made);
        }
    }
    keep_what_matters(&mut messages);
    let lines = messages.into_iter().map(|(name, message)| {
        let json = serde_json::to_string(&message)?;
        Ok(format!("{name}\t{json}"))
    });
    let lines: serde_json::Result<Vec<String>> = lines.collect();
    Ok(lines?.join("\n"))
}

/// Takes out the messages and fields under which there is no rule at all, except in what is kept whole.
fn keep_what_matters(messages: &mut BTreeMap<String, Message>) {
    let own = |f: &Field| f.rules != Rules::default() || f.kind == Kind::Any;
    let mut matter: BTreeSet<String> = BTreeSet::new();
    loop {
        let before = matter.len();
        for (name, message) in &*messages {
            let leads = |f: &Field| f.message.as_ref().is_some_and(|m| matter.contains(m));
            if !message.oneofs.is_empty() || message.fields.iter().any(|f| own(f) || leads(f)) {
                matter.insert(name.clone());
            }
        }
        if matter.len() == before {
            break;
        }
    }
    let whole = |name: &str| WHOLE.iter().any(|package| name.starts_with(package));
    matter.extend(messages.keys().filter(|name| whole(name)).cloned());
    messages.retain(|name, _| matter.contains(name));
    for (name, message) in messages {
        message.fields.retain_mut(|f| {
            f.message = f.message.take().filter(|m| matter.contains(m));
            own(f) || f.message.is_some() || whole(name)
        });
    }
}

fn read(
    message: &MessageDescriptor,
    rules: &ExtensionDescriptor,
    required: &ExtensionDescriptor,
) -> Result<Message> {
    let mut made = Message::default();
    for oneof in message.oneofs() {
        if oneof.options().get_extension(required).as_bool() == Some(true) {
            made.oneofs.push(Oneof {
                name: oneof.name().to_owned(),
                fields: oneof.fields().map(|f| f.number()).collect(),
            });
        }
    }
    for field in message.fields() {
        let of = field.options();
        let mut own = match &*of.get_extension(rules) {
            Value::Message(m) if of.has_extension(rules) => {
                field_rules(m, &value_of(&field)).map_err(|e| format!("{}: {e}", field.name()))?
            }
            _ => Rules::default(),
        };
        // Of a oneof only the field that was chosen is looked at.
        own.required &= field.containing_oneof().is_none();
        let value = value_of(&field);
        let kind = kind(&value);
        made.fields.push(Field {
            number: field.number(),
            name: field.name().to_owned(),
            message: match (kind, value) {
                (Kind::Message, ProtoKind::Message(m)) => Some(m.full_name().to_owned()),
                _ => None,
            },
            kind,
            shape: if field.is_map() {
                Shape::Map
            } else if field.is_list() {
                Shape::List
            } else if field.supports_presence() {
                Shape::Optional
            } else {
                Shape::Plain
            },
            rules: own,
        });
    }
    Ok(made)
}

/// The kind of a field's values; of a map, of the values in it.
fn value_of(field: &FieldDescriptor) -> ProtoKind {
    match field.kind() {
        ProtoKind::Message(entry) if field.is_map() => entry.map_entry_value_field().kind(),
        kind => kind,
    }
}

fn kind(kind: &ProtoKind) -> Kind {
    match kind {
        ProtoKind::Int32 | ProtoKind::Int64 | ProtoKind::Enum(_) => Kind::Int,
        ProtoKind::Uint32 | ProtoKind::Uint64 => Kind::Uint,
        ProtoKind::Sint32 | ProtoKind::Sint64 => Kind::Sint,
        ProtoKind::Fixed32 | ProtoKind::Sfixed32 => Kind::Fixed32,
        ProtoKind::Fixed64 | ProtoKind::Sfixed64 => Kind::Fixed64,
        ProtoKind::Bool => Kind::Bool,
        ProtoKind::Float => Kind::Float,
        ProtoKind::Double => Kind::Double,
        ProtoKind::String => Kind::String,
        ProtoKind::Bytes => Kind::Bytes,
        ProtoKind::Message(m) => match m.full_name() {
            "google.protobuf.Any" => Kind::Any,
            "google.protobuf.Duration" => Kind::Duration,
            "google.protobuf.UInt32Value" | "google.protobuf.UInt64Value" => Kind::UintValue,
            "google.protobuf.Int32Value" | "google.protobuf.Int64Value" => Kind::IntValue,
            "google.protobuf.FloatValue" => Kind::FloatValue,
            "google.protobuf.DoubleValue" => Kind::DoubleValue,
            "google.protobuf.BoolValue" => Kind::BoolValue,
            "google.protobuf.StringValue" => Kind::StringValue,
            _ => Kind::Message,
        },
    }
}

fn field_rules(rules: &DynamicMessage, value: &ProtoKind) -> Result<Rules> {
    let mut made = Rules::default();
    for (field, set) in rules.fields() {
        let Value::Message(inner) = set else {
            return Err(format!("no message: {}", field.name()).into());
        };
        let strict = inner
            .get_field_by_name("strict")
            .is_none_or(|v| v.as_bool() != Some(false));
        for (rule, set) in inner.fields() {
            one(&mut made, rule.name(), set, strict, value)
                .map_err(|e| format!("{}.{}: {e}", field.name(), rule.name()))?;
        }
    }
    Ok(made)
}

fn one(made: &mut Rules, rule: &str, set: &Value, strict: bool, value: &ProtoKind) -> Result<()> {
    let nested = || match set {
        Value::Message(m) => field_rules(m, value).map(|r| Some(Box::new(r))),
        _ => Err("not rules".into()),
    };
    let flag = set.as_bool() == Some(true);
    match rule {
        "required" => made.required = flag,
        "skip" => made.skip = flag,
        "ignore_empty" => made.ignore_empty = flag,
        "unique" => made.unique = flag,
        "strict" => {} // read with the rule it belongs to
        "const" => made.constant = Some(scalar(set)?),
        "in" => made.only = scalars(set)?,
        "not_in" => made.not = scalars(set)?,
        "gt" => made.gt = Some(number(set)?),
        "gte" => made.gte = Some(number(set)?),
        "lt" => made.lt = Some(number(set)?),
        "lte" => made.lte = Some(number(set)?),
        // Of bytes the length is in bytes anyway.
        "min_len" if matches!(value, ProtoKind::Bytes) => made.min_bytes = set.as_u64(),
        "max_len" if matches!(value, ProtoKind::Bytes) => made.max_bytes = set.as_u64(),
        "min_len" => made.min_len = set.as_u64(),
        "max_len" => made.max_len = set.as_u64(),
        "min_bytes" => made.min_bytes = set.as_u64(),
        "max_bytes" => made.max_bytes = set.as_u64(),
        "pattern" => made.pattern = text(set),
        "prefix" => made.prefix = text(set),
        "suffix" => made.suffix = text(set),
        "contains" => made.contains = text(set),
        "not_contains" => made.not_contains = text(set),
        "well_known_regex" => {
            made.header = Some(match (set.as_enum_number(), strict) {
                (Some(1), true) => Header::Name,
                (Some(1), false) => Header::LooseName,
                (Some(2), true) => Header::Value,
                (Some(2), false) => Header::LooseValue,
                _ => return Err("unknown".into()),
            });
        }
        "defined_only" => {
            let ProtoKind::Enum(e) = value else {
                return Err("of no enum".into());
            };
            made.defined = e.values().map(|v| v.number()).collect();
        }
        "min_items" | "min_pairs" => made.min_items = set.as_u64(),
        "max_items" | "max_pairs" => made.max_items = set.as_u64(),
        "items" | "values" => made.items = nested()?,
        "keys" => {
            let Value::Message(m) = set else {
                return Err("not rules".into());
            };
            made.keys = Some(Box::new(field_rules(m, &ProtoKind::String)?));
        }
        // A rule that is passed over would go unnoticed for ever.
        other => return Err(format!("the build script does not know the rule {other}").into()),
    }
    Ok(())
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

#[allow(clippy::cast_precision_loss)] // the bounds in the API are far below 2^53, or at the end of the range
fn number(value: &Value) -> Result<f64> {
    Ok(match value {
        Value::I32(n) => f64::from(*n),
        Value::U32(n) => f64::from(*n),
        Value::I64(n) => *n as f64,
        Value::U64(n) => *n as f64,
        Value::F32(n) => f64::from(*n),
        Value::F64(n) => *n,
        Value::EnumNumber(n) => f64::from(*n),
        Value::Bool(b) => f64::from(u8::from(*b)),
        Value::Message(m) if m.descriptor().full_name() == "google.protobuf.Duration" => {
            let part = |name: &str| m.get_field_by_name(name).map(|v| number(&v));
            let (seconds, nanos) = (part("seconds"), part("nanos"));
            seconds.transpose()?.unwrap_or(0.0) + nanos.transpose()?.unwrap_or(0.0) / 1e9
        }
        _ => return Err("not a number".into()),
    })
}

fn scalar(value: &Value) -> Result<Scalar> {
    match value {
        Value::String(s) => Ok(Scalar::Text(s.clone())),
        value => number(value).map(Scalar::Number),
    }
}

fn scalars(value: &Value) -> Result<Vec<Scalar>> {
    let list = value.as_list().ok_or("not a list")?;
    list.iter().map(scalar).collect()
}
