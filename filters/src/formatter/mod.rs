//! Envoy's substitution format strings, compiled once: header values, access logs, response bodies.
//! The operators are in [`operators`]; this module knows the syntax.

mod operators;
mod text;
mod time;
mod tls;

use std::borrow::Cow;

use http::HeaderMap;
use xds_client::error::ConfigError;

use crate::head::{RequestHead, ResponseHead};
use crate::stream::StreamInfo;
use operators::Operator;

pub use text::TextFormat;

/// What a format string may speak of. What is not known yet prints as `-`.
#[derive(Debug, Clone, Copy)]
pub struct FormatContext<'a> {
    /// The stream.
    pub info: &'a StreamInfo,
    /// The request.
    pub request: Option<&'a RequestHead>,
    /// The response.
    pub response: Option<&'a ResponseHead>,
    /// The response's trailers.
    pub trailers: Option<&'a HeaderMap>,
    /// The body of the local reply that is being formatted: `%LOCAL_REPLY_BODY%`.
    pub local_reply: Option<&'a [u8]>,
}

#[derive(Debug, Clone)]
enum Part {
    Literal(Box<[u8]>),
    Operator(Operator, Option<usize>),
}

/// A compiled format string.
#[derive(Debug, Clone)]
pub struct Formatter {
    parts: Box<[Part]>,
}

impl Formatter {
    /// Compiles `text`: literals, `%%` and `%OPERATOR(ARGUMENT):LENGTH%`.
    ///
    /// # Errors
    /// A `%` that begins no operator, an unknown operator, or a bad argument.
    pub fn compile(text: &str) -> Result<Self, ConfigError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            literal.push_str(before);
            if let Some(after) = after.strip_prefix('%') {
                literal.push('%');
                rest = after;
                continue;
            }
            let (part, after) = operator(after)?;
            if !literal.is_empty() {
                parts.push(Part::Literal(
                    std::mem::take(&mut literal).into_bytes().into(),
                ));
            }
            parts.push(part);
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal.into_bytes().into()));
        }
        Ok(Self {
            parts: parts.into(),
        })
    }

    /// The text, if it has no operator.
    pub fn as_literal(&self) -> Option<&[u8]> {
        match &*self.parts {
            [] => Some(&[]),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// Appends the text to `out`, with `-` for every missing value (access logs, header values).
    pub fn write(&self, context: &FormatContext<'_>, out: &mut Vec<u8>) {
        self.write_or(context, out, b"-");
    }

    /// The same with something else for missing values (`omit_empty_values`: nothing).
    pub fn write_or(&self, context: &FormatContext<'_>, out: &mut Vec<u8>, missing: &[u8]) {
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.extend_from_slice(text),
                Part::Operator(operator, limit) => {
                    let value = operator.value(context);
                    let value = value.as_deref().unwrap_or(missing);
                    let limit = limit.unwrap_or(usize::MAX).min(value.len());
                    out.extend_from_slice(value.get(..limit).unwrap_or(value));
                }
            }
        }
    }

    /// The value for JSON logs: a number or null where one operator is all there is and says so, else a
    /// string (with U+FFFD for what is not UTF-8).
    pub fn json(&self, context: &FormatContext<'_>) -> serde_json::Value {
        if let [Part::Operator(operator, limit)] = &*self.parts {
            let Some(value) = operator.value(context) else {
                return serde_json::Value::Null;
            };
            if operator.is_number()
                && let Some(n) = std::str::from_utf8(&value)
                    .ok()
                    .and_then(|s| s.parse::<u64>().ok())
            {
                return n.into();
            }
            let limit = limit.unwrap_or(usize::MAX).min(value.len());
            return String::from_utf8_lossy(value.get(..limit).unwrap_or(&value)).into();
        }
        let mut out = Vec::new();
        self.write(context, &mut out);
        Cow::into_owned(String::from_utf8_lossy(&out)).into()
    }
}

/// Parses `NAME(ARGUMENT):LENGTH%` and returns what follows.
fn operator(text: &str) -> Result<(Part, &str), ConfigError> {
    let bad = || ConfigError::new(format!("incorrect format operator: %{text}"));
    let end = text
        .find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
        .ok_or_else(bad)?;
    let (name, mut rest) = text.split_at(end);
    let mut argument = None;
    if let Some(inner) = rest.strip_prefix('(') {
        // A time format has `%` but no `)`.
        let (inside, after) = inner.split_once(')').ok_or_else(bad)?;
        argument = Some(inside);
        rest = after;
    }
    let mut limit = None;
    if let Some(after) = rest.strip_prefix(':') {
        let (digits, _) = after.split_once('%').ok_or_else(bad)?;
        limit = Some(digits.parse().map_err(|_| bad())?);
        rest = after.get(digits.len()..).ok_or_else(bad)?;
    }
    let rest = rest.strip_prefix('%').ok_or_else(bad)?;
    Ok((
        Part::Operator(Operator::compile(name, argument)?, limit),
        rest,
    ))
}

#[cfg(test)]
mod tests;
