//! The form in which the build script hands the constraints over: one line of JSON for each message.

use serde::{Deserialize, Serialize};

/// The fields of a message that have rules, lead to messages that have, or can be refused.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Message {
    /// Oneofs of which one field must be set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub oneofs: Vec<Oneof>,
    /// Its fields.
    pub fields: Vec<Field>,
}

/// A oneof that is required.
#[derive(Debug, Serialize, Deserialize)]
pub struct Oneof {
    /// Its name.
    pub name: String,
    /// The numbers of its fields.
    pub fields: Vec<u32>,
}

/// A field.
#[derive(Debug, Serialize, Deserialize)]
pub struct Field {
    /// Its number on the wire.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// How it is encoded; of a map, how its values are.
    pub kind: Kind,
    /// The type of a message field, or of a map's values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// One value, a list or a map.
    pub shape: Shape,
    /// The rules for the field as a whole.
    #[serde(default)]
    pub rules: Rules,
}

/// How many values a field has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shape {
    /// One, which is its default when it is not on the wire.
    Plain,
    /// One or none.
    Optional,
    /// Any number.
    List,
    /// A map; of its keys only strings are looked at.
    Map,
}

/// The encodings of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Varint, signed or an enum.
    Int,
    /// Varint.
    Uint,
    /// Varint, zigzag.
    Sint,
    /// Varint.
    Bool,
    /// Four bytes, signed or not.
    Fixed32,
    /// Eight bytes, signed or not.
    Fixed64,
    /// Four bytes.
    Float,
    /// Eight bytes.
    Double,
    /// Text.
    String,
    /// Bytes.
    Bytes,
    /// A message.
    Message,
    /// A `google.protobuf.Duration`, in seconds.
    Duration,
    /// A wrapper (`google.protobuf.UInt32Value` and its like) of a number without sign.
    UintValue,
    /// A wrapper of a signed number.
    IntValue,
    /// A wrapper of a float.
    FloatValue,
    /// A wrapper of a double.
    DoubleValue,
    /// A wrapper of a truth value.
    BoolValue,
    /// A wrapper of a text.
    StringValue,
    /// A `google.protobuf.Any`.
    Any,
}

/// What `validate.rules` says of a value.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rules {
    /// The message must be set.
    #[serde(skip_serializing_if = "is_false")]
    pub required: bool,
    /// The message is not looked into.
    #[serde(skip_serializing_if = "is_false")]
    pub skip: bool,
    /// The default value passes.
    #[serde(skip_serializing_if = "is_false")]
    pub ignore_empty: bool,
    /// The one value allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constant: Option<Scalar>,
    /// The values allowed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<Scalar>,
    /// Values not allowed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not: Vec<Scalar>,
    /// Bounds of numbers, and of durations in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gt: Option<f64>,
    /// See `gt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gte: Option<f64>,
    /// See `gt`; below `gt` the two mean "outside of".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lt: Option<f64>,
    /// See `lt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lte: Option<f64>,
    /// Bounds of the number of characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_len: Option<u64>,
    /// See `min_len`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_len: Option<u64>,
    /// Bounds of the number of bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_bytes: Option<u64>,
    /// See `min_bytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// A regex that must be found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// How the text begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// How the text ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suffix: Option<String>,
    /// What is in the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
    /// What is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_contains: Option<String>,
    /// The text is a header's name or value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<Header>,
    /// The numbers that an enum has, if it must be one of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub defined: Vec<i32>,
    /// Bounds of the number of elements of a list or a map.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_items: Option<u64>,
    /// See `min_items`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_items: Option<u64>,
    /// No two elements are equal.
    #[serde(skip_serializing_if = "is_false")]
    pub unique: bool,
    /// The rules of each element, or of each value of a map.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub items: Option<Box<Rules>>,
    /// The rules of a map's keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<Box<Rules>>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_false(value: &bool) -> bool {
    !value
}

/// What a header rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Header {
    /// A token (RFC 9110), perhaps with a colon in front.
    Name,
    /// Anything without NUL, CR and LF; may be empty.
    LooseName,
    /// No control characters but tabs.
    Value,
    /// Anything without NUL, CR and LF; may be empty.
    LooseValue,
}

/// A value in a rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    /// A number, a truth value as 0 or 1.
    Number(f64),
    /// Text.
    Text(String),
}
