//! What expressions calculate with.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value as Json;

use super::attributes::{Attributes, Group};

/// An error of an evaluation: what is not there, or an operator for other types. Nobody is told which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault;

/// A value, or why there is none.
pub(super) type Outcome<'a> = Result<Value<'a>, Fault>;

/// A value. Strings are bytes here, for headers need not be UTF-8.
#[derive(Debug, Clone)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Cow<'a, [u8]>),
    Bytes(Cow<'a, [u8]>),
    List(Vec<Value<'a>>),
    Map(Vec<(Value<'a>, Value<'a>)>),
    /// A list or an object of metadata.
    Json(&'a Json),
    /// Attributes, by name.
    Group(Group),
}

impl<'a> Value<'a> {
    /// Metadata; its numbers are doubles.
    pub(super) fn json(value: &'a Json) -> Self {
        match value {
            Json::Null => Self::Null,
            Json::Bool(b) => Self::Bool(*b),
            Json::Number(n) => Self::Double(n.as_f64().unwrap_or_default()),
            Json::String(text) => Self::Text(Cow::Borrowed(text.as_bytes())),
            Json::Array(_) | Json::Object(_) => Self::Json(value),
        }
    }

    /// A constant, without a copy of it.
    pub(super) fn borrowed(&'a self) -> Self {
        match self {
            Self::Text(text) => Self::Text(Cow::Borrowed(text)),
            Self::Bytes(bytes) => Self::Bytes(Cow::Borrowed(bytes)),
            other => other.clone(),
        }
    }

    pub(super) fn bool(&self) -> Result<bool, Fault> {
        match self {
            Self::Bool(b) => Ok(*b),
            _ => Err(Fault),
        }
    }

    pub(super) fn text(&self) -> Result<&[u8], Fault> {
        match self {
            Self::Text(text) => Ok(text),
            _ => Err(Fault),
        }
    }

    /// What is under a string key of a map, if there is anything.
    pub(super) fn get(&self, key: &[u8], facts: &Attributes<'a>) -> Result<Option<Self>, Fault> {
        Ok(match self {
            Self::Group(group) => facts.get(*group, key),
            Self::Json(Json::Object(object)) => {
                let key = std::str::from_utf8(key).ok();
                key.and_then(|key| object.get(key)).map(Self::json)
            }
            Self::Map(entries) => entries
                .iter()
                .find(|(k, _)| matches!(k, Self::Text(k) if **k == *key))
                .map(|(_, value)| value.clone()),
            _ => return Err(Fault),
        })
    }

    /// Whether there is anything under a string key of a map. A message has no field that is empty.
    pub(super) fn has(&self, key: &[u8], facts: &Attributes<'a>) -> Result<bool, Fault> {
        let found = self.get(key, facts)?;
        Ok(match self {
            Self::Group(Group::Metadata) => {
                found.is_some() && facts.metadata.is_some_and(|all| !all.is_empty())
            }
            _ => found.is_some(),
        })
    }

    /// What is under a key of a map, or at a position of a list.
    pub(super) fn at(&self, key: &Self, facts: &Attributes<'a>) -> Outcome<'a> {
        let position = || match key {
            Self::Int(n) => usize::try_from(*n).map_err(|_| Fault),
            Self::Uint(n) => usize::try_from(*n).map_err(|_| Fault),
            // A position that a double can say exactly, and no list is as long.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            Self::Double(n) if n.fract() == 0.0 && (0.0..1e9).contains(n) => Ok(*n as usize),
            _ => Err(Fault),
        };
        match (self, key) {
            (Self::List(list), _) => list.get(position()?).cloned().ok_or(Fault),
            (Self::Json(Json::Array(list)), _) => {
                list.get(position()?).map(Self::json).ok_or(Fault)
            }
            (_, Self::Text(key)) => self.get(key, facts)?.ok_or(Fault),
            (Self::Map(entries), _) => {
                for (k, value) in entries {
                    if k.equals(key)? {
                        return Ok(value.clone());
                    }
                }
                Err(Fault)
            }
            _ => Err(Fault),
        }
    }

    /// Whether a list has this element, or a map this key.
    pub(super) fn contains(&self, wanted: &Self, facts: &Attributes<'a>) -> Result<bool, Fault> {
        let among = |mut values: &mut dyn Iterator<Item = Value<'a>>| {
            for value in &mut values {
                if value.equals(wanted)? {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        match (self, wanted) {
            (Self::List(list), _) => among(&mut list.iter().cloned()),
            (Self::Json(Json::Array(list)), _) => among(&mut list.iter().map(Self::json)),
            (Self::Map(entries), _) => among(&mut entries.iter().map(|(key, _)| key.clone())),
            (_, Self::Text(key)) => Ok(self.get(key, facts)?.is_some()),
            _ => Err(Fault),
        }
    }

    pub(super) fn size(&self) -> Result<i64, Fault> {
        let size = match self {
            Self::Text(text) => String::from_utf8_lossy(text).chars().count(),
            Self::Bytes(bytes) => bytes.len(),
            Self::List(list) => list.len(),
            Self::Map(entries) => entries.len(),
            Self::Json(Json::Array(list)) => list.len(),
            Self::Json(Json::Object(object)) => object.len(),
            _ => return Err(Fault),
        };
        i64::try_from(size).map_err(|_| Fault)
    }

    /// Values of different types are not equal, but for numbers of equal value.
    pub(super) fn equals(&self, other: &Self) -> Result<bool, Fault> {
        Ok(match (self, other) {
            (Self::Group(_), _) | (_, Self::Group(_)) => return Err(Fault),
            (Self::Null, Self::Null) => true,
            (Self::List(a), Self::List(b)) => {
                let mut equal = a.len() == b.len();
                for (a, b) in a.iter().zip(b) {
                    equal = equal && a.equals(b)?;
                }
                equal
            }
            (Self::Json(a), Self::Json(b)) => a == b,
            (Self::Json(Json::Array(a)), Self::List(_)) => {
                Self::List(a.iter().map(Self::json).collect()).equals(other)?
            }
            (Self::List(_), Self::Json(_)) => other.equals(self)?,
            (Self::Map(_), Self::Map(_) | Self::Json(_)) | (Self::Json(_), Self::Map(_)) => {
                return Err(Fault);
            }
            _ => self.order(other) == Ok(Some(Ordering::Equal)),
        })
    }

    /// The order of two values of one type, or of two numbers; none with a number that is not one.
    pub(super) fn order(&self, other: &Self) -> Result<Option<Ordering>, Fault> {
        #[allow(clippy::cast_precision_loss)] // as good as a comparison with a double can be
        let double = |value: &Self| match value {
            Self::Int(n) => Ok(*n as f64),
            Self::Uint(n) => Ok(*n as f64),
            Self::Double(n) => Ok(*n),
            _ => Err(Fault),
        };
        Ok(match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(b)),
            (Self::Uint(a), Self::Uint(b)) => Some(a.cmp(b)),
            (Self::Int(a), Self::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Self::Uint(a), Self::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Self::Text(a), Self::Text(b)) | (Self::Bytes(a), Self::Bytes(b)) => Some(a.cmp(b)),
            (a, b) => double(a)?.partial_cmp(&double(b)?),
        })
    }
}
