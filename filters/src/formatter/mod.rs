//! Envoy's substitution format strings, compiled once: header values, access logs, response bodies.
//! The operators are in [`operators`]; this module knows the syntax.

mod address;
mod coalesce;
mod durations;
mod facts;
mod grpc;
mod metadata;
mod operators;
mod request;
mod source;
mod state;
mod syntax;
mod text;
mod time;
mod tls;

use std::borrow::Cow;

use http::HeaderMap;
use xds_client::error::ConfigError;

use crate::head::{RequestHead, ResponseHead};
use crate::stream::StreamInfo;
use operators::{Operator, string};
use syntax::Written;

pub use source::{check_extensions, text_format};
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

impl<'a> FormatContext<'a> {
    /// Of a connection, or of a stream without a message at hand.
    pub fn without_message(info: &'a StreamInfo) -> Self {
        Self {
            info,
            request: None,
            response: None,
            trailers: None,
            local_reply: None,
        }
    }
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
            let (written, after) = Written::parse(after)?;
            let operator = Operator::compile(written.name, written.argument)?;
            if !literal.is_empty() {
                parts.push(Part::Literal(
                    std::mem::take(&mut literal).into_bytes().into(),
                ));
            }
            parts.push(Part::Operator(operator, written.limit));
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
                    let value = operator.value(context).map(|value| cut(value, *limit));
                    out.extend_from_slice(value.as_deref().unwrap_or(missing));
                }
            }
        }
    }

    /// The value for JSON logs: what it is (a number, an object, null) where one operator is all there is, else a
    /// string with `missing` for values that are not there.
    pub fn json(&self, context: &FormatContext<'_>, missing: &[u8]) -> serde_json::Value {
        if let [Part::Operator(operator, limit)] = &*self.parts {
            return operator.json(context, *limit);
        }
        let mut out = Vec::new();
        self.write_or(context, &mut out, missing);
        string(&out)
    }
}

/// At most so many bytes.
fn cut(value: Cow<'_, [u8]>, limit: Option<usize>) -> Cow<'_, [u8]> {
    let limit = limit.filter(|limit| *limit < value.len());
    match (value, limit) {
        (value, None) => value,
        (Cow::Borrowed(bytes), Some(limit)) => Cow::Borrowed(bytes.get(..limit).unwrap_or(bytes)),
        (Cow::Owned(mut bytes), Some(limit)) => {
            bytes.truncate(limit);
            Cow::Owned(bytes)
        }
    }
}

#[cfg(test)]
mod tests;
