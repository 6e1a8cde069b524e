//! The constraints that Envoy's API puts on its fields (`validate.rules`): required fields, lengths, ranges.
//!
//! Checked on the encoded form, so that neither descriptors nor generated code are needed: the build script
//! writes a table of the rules, and of it only the messages that occur are read. What an `Any` or a
//! TypedStruct carries is checked too, as far as its type is known. On the same walk the fields are refused that
//! the caller does not support.

mod rules;
mod table;
mod wire;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;

use crate::any;
use crate::error::{At, ConfigError};
use rules::Compiled;
use table::{Kind, Shape};
use wire::{Record, Wire};

static TABLE: &str = include_str!(concat!(env!("OUT_DIR"), "/constraints.txt"));
/// The messages that have occurred so far; a few dozen, whatever is configured.
static CACHE: Mutex<Option<HashMap<String, Option<Arc<Message>>>>> = Mutex::new(None);
/// As deep as the decoder goes; `Any` inside `Any` gets past that.
const MAX_DEPTH: usize = 100;

/// The fields that are refused where they are set, by message. A `BoolValue` of false counts as not set.
pub type Refused = HashMap<&'static str, Vec<&'static str>>;

static NONE: LazyLock<Refused> = LazyLock::new(HashMap::new);

type Result<T> = std::result::Result<T, ConfigError>;

/// A message of the table, ready to check with.
#[derive(Debug)]
struct Message {
    oneofs: Vec<table::Oneof>,
    fields: Vec<Field>,
}

#[derive(Debug)]
struct Field {
    number: u32,
    name: String,
    kind: Kind,
    shape: Shape,
    message: Option<String>,
    rules: Compiled,
    /// Nothing can be wrong in it.
    idle: bool,
}

/// Checks an encoded message and everything in it.
///
/// # Errors
/// The path of the first field that breaks a rule, and the rule.
pub fn check(full_name: &str, bytes: &[u8]) -> Result<()> {
    check_with(full_name, bytes, &NONE)
}

/// [`check`], and refuses fields besides.
///
/// # Errors
/// The path of the first field that breaks a rule or is refused.
pub fn check_with(full_name: &str, bytes: &[u8], refused: &Refused) -> Result<()> {
    message(full_name, bytes, refused, 0)
}

/// The constraints of a message; `None` if there are none, or it is not known.
fn find(full_name: &str) -> Result<Option<Arc<Message>>> {
    let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    let cache = cache.get_or_insert_default();
    if let Some(known) = cache.get(full_name) {
        return Ok(known.clone());
    }
    let read = line(full_name).map(|json| compile(full_name, json));
    let read = read.transpose()?.map(Arc::new);
    // Names come from type URLs too: what is not in the table must not fill the memory.
    if read.is_some() {
        cache.insert(full_name.to_owned(), read.clone());
    }
    Ok(read)
}

/// The line of a message, found by halving: the lines are sorted.
fn line(full_name: &str) -> Option<&'static str> {
    let (mut low, mut high) = (0, TABLE.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let start = TABLE.get(..middle)?.rfind('\n').map_or(0, |at| at + 1);
        let rest = TABLE.get(start..)?;
        let text = rest.split('\n').next()?;
        let (name, json) = text.split_once('\t')?;
        match name.cmp(full_name) {
            std::cmp::Ordering::Equal => return Some(json),
            std::cmp::Ordering::Less => low = start + text.len() + 1,
            std::cmp::Ordering::Greater => high = start,
        }
    }
    None
}

fn compile(full_name: &str, json: &str) -> Result<Message> {
    let table: table::Message = serde_json::from_str(json)
        .map_err(|e| ConfigError::new(format!("constraints of {full_name}: {e}")))?;
    let mut fields = Vec::with_capacity(table.fields.len());
    for field in table.fields {
        let rules = Compiled::new(field.rules)?;
        let leads = field.message.is_some() || field.kind == Kind::Any;
        fields.push(Field {
            idle: rules.is_none() && !leads,
            rules,
            number: field.number,
            name: field.name,
            kind: field.kind,
            shape: field.shape,
            message: field.message,
        });
    }
    Ok(Message {
        oneofs: table.oneofs,
        fields,
    })
}

fn message(full_name: &str, bytes: &[u8], refused: &Refused, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(ConfigError::new("nested too deeply"));
    }
    let Some(known) = find(full_name)? else {
        return Ok(());
    };
    let records = wire::records(bytes)?;
    for oneof in &known.oneofs {
        if !records.iter().any(|r| oneof.fields.contains(&r.number)) {
            return Err(ConfigError::new("value is required").at(&oneof.name));
        }
    }
    let refused_here = refused.get(full_name).map(Vec::as_slice);
    for f in &known.fields {
        if refused_here.is_some_and(|names| names.contains(&f.name.as_str())) {
            refuse(f, &records)?;
        }
        if !f.idle {
            field(f, &records, refused, depth).at(&f.name)?;
        }
    }
    Ok(())
}

/// Refuses a field that is set.
fn refuse(f: &Field, records: &[Record<'_>]) -> Result<()> {
    let set = |r: &Record<'_>| {
        r.number == f.number
            && match (f.kind, r.value) {
                (Kind::BoolValue, value) => {
                    wire::number(f.kind, Some(value)).ok().flatten() != Some(0.0)
                }
                (Kind::String | Kind::Bytes, Wire::Bytes(bytes)) => !bytes.is_empty(),
                _ => true,
            }
    };
    if records.iter().any(set) {
        return Err(ConfigError::unsupported(&f.name));
    }
    Ok(())
}

fn field(f: &Field, records: &[Record<'_>], refused: &Refused, depth: usize) -> Result<()> {
    let mut present = records.iter().filter(|r| r.number == f.number);
    match f.shape {
        Shape::Plain | Shape::Optional => {
            let last = present.clone().next_back();
            if last.is_none() && f.rules.of.required {
                return Err(ConfigError::new("value is required"));
            }
            if last.is_none() && (f.shape == Shape::Optional || f.rules.is_none()) {
                return Ok(());
            }
            f.rules.check(f.kind, last.map(|r| r.value))?;
            // A message in several parts is their merge; each part must be right by itself, nearly always so.
            present.try_for_each(|r| inside(f, r.value, refused, depth))
        }
        Shape::List => {
            let mut values = Vec::new();
            for record in present {
                wire::elements(f.kind, record.value, &mut values)?;
            }
            f.rules.check_count(values.len())?;
            if f.rules.of.unique {
                rules::unique(&values)?;
            }
            for (i, value) in values.into_iter().enumerate() {
                let step = format!("[{i}]");
                if let Some(items) = &f.rules.items {
                    items.check(f.kind, Some(value)).at(&step)?;
                }
                inside(f, value, refused, depth).at(&step)?;
            }
            Ok(())
        }
        Shape::Map => {
            f.rules.check_count(present.clone().count())?;
            for record in present {
                entry(f, record, refused, depth)?;
            }
            Ok(())
        }
    }
}

/// One entry of a map: a message of a key and a value.
fn entry(f: &Field, record: &Record<'_>, refused: &Refused, depth: usize) -> Result<()> {
    let Wire::Bytes(bytes) = record.value else {
        return Err(wire::malformed());
    };
    let parts = wire::records(bytes)?;
    let part = |n| parts.iter().rfind(|r| r.number == n).map(|r| r.value);
    let (key, value) = (part(1), part(2));
    let step = match key {
        Some(Wire::Bytes(text)) => format!("[{}]", String::from_utf8_lossy(text)),
        Some(Wire::Varint(n)) => format!("[{n}]"),
        _ => "[]".to_owned(),
    };
    if let Some(keys) = &f.rules.keys {
        keys.check(Kind::String, key).at(&step)?;
    }
    if let Some(items) = &f.rules.items {
        items.check(f.kind, value).at(&step)?;
    }
    value
        .map_or(Ok(()), |v| inside(f, v, refused, depth))
        .at(&step)
}

/// Checks what is inside a message or an `Any`.
fn inside(f: &Field, value: Wire<'_>, refused: &Refused, depth: usize) -> Result<()> {
    if f.rules.of.skip {
        return Ok(());
    }
    match (f.kind, value, &f.message) {
        (Kind::Message, Wire::Bytes(bytes), Some(name)) => message(name, bytes, refused, depth + 1),
        (Kind::Any, Wire::Bytes(bytes), _) => inside_any(bytes, refused, depth + 1),
        _ => Ok(()),
    }
}

fn inside_any(bytes: &[u8], refused: &Refused, depth: usize) -> Result<()> {
    let any = Any::decode(bytes).map_err(|e| ConfigError::new(e.to_string()))?;
    // What is wrong with a TypedStruct, or has no type here, is for the one to say who uses it.
    match any::opened(&any) {
        Ok(Some(inner)) => message(&inner.full_name, &inner.bytes, refused, depth).at("value"),
        Ok(None) => message(
            crate::json::name_of(&any.type_url),
            &any.value,
            refused,
            depth,
        ),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
