//! The operators of format strings: which module knows one by its name.

use std::borrow::Cow;
use std::time::SystemTime;

use serde_json::Value;
use xds_client::error::{At, ConfigError};

use super::address::AddressFact;
use super::durations::Span;
use super::facts::{Fact, without_spaces};
use super::grpc::GrpcStatus;
use super::metadata::MetadataPath;
use super::request::RequestFact;
use super::state::Form;
use super::time::TimeFormat;
use super::tls::TlsFact;
use super::{FormatContext, cut};
use crate::matcher::header::HeaderRef;

#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    Request,
    Response,
    Trailers,
}

/// A header, or another one if it is not there.
#[derive(Debug, Clone)]
pub(super) struct Header {
    side: Side,
    name: HeaderRef,
    alternative: Option<HeaderRef>,
    without_query: bool,
}

/// A compiled operator.
#[derive(Debug, Clone)]
pub(super) enum Operator {
    Header(Box<Header>),
    StartTime(TimeFormat),
    EmitTime(TimeFormat),
    Address(AddressFact),
    Fact(Fact),
    Span(Span),
    /// `true`: with its spaces.
    Details(bool),
    Text(Option<Box<str>>),
    Metadata(Box<MetadataPath>),
    FilterState(Box<str>, Form),
    Request(Box<RequestFact>),
    GrpcStatus(GrpcStatus),
    Tls(Box<TlsFact>),
    Coalesce(Box<[(Operator, Option<usize>)]>),
    /// What only the log of an upstream request has.
    Nothing,
}

impl Operator {
    /// Compiles an operator that is written as its kind is (see [`super::syntax`]).
    ///
    /// # Errors
    /// An unknown name, or a bad argument.
    pub(super) fn compile(name: &str, argument: Option<&str>) -> Result<Self, ConfigError> {
        let given = argument.unwrap_or_default();
        if let Some(fact) = Fact::named(name) {
            return Ok(Self::Fact(fact));
        }
        let header = |side| Header::compile(side, given, name == "REQ_WITHOUT_QUERY").at(name);
        Ok(match name {
            "REQ" | "REQUEST_HEADER" | "REQ_WITHOUT_QUERY" => Self::Header(header(Side::Request)?),
            "RESP" | "RESPONSE_HEADER" => Self::Header(header(Side::Response)?),
            "TRAILER" | "RESPONSE_TRAILER" => Self::Header(header(Side::Trailers)?),
            "START_TIME" => Self::StartTime(TimeFormat::or_default(argument)?),
            "START_TIME_LOCAL" => Self::StartTime(TimeFormat::local(argument)?),
            "EMIT_TIME" => Self::EmitTime(TimeFormat::or_default(argument)?),
            "EMIT_TIME_LOCAL" => Self::EmitTime(TimeFormat::local(argument)?),
            "RESPONSE_CODE_DETAILS" => Self::Details(given == "ALLOW_WHITESPACES"),
            "FILTER_STATE" => match given.split_once(':') {
                Some((key, form)) => Self::FilterState(key.into(), Form::compile(form)?),
                None => Self::FilterState(given.into(), Form::Typed),
            },
            "UPSTREAM_FILTER_STATE" => Self::Nothing,
            "ENVIRONMENT" => Self::Text(std::env::var(given).ok().map(Into::into)),
            "HOSTNAME" => Self::Text(
                std::fs::read_to_string("/proc/sys/kernel/hostname")
                    .ok()
                    .map(|s| s.trim().into()),
            ),
            "COALESCE" => Self::Coalesce(super::coalesce::compile(given)?.into()),
            _ => return Self::of_a_kind(name, argument, given),
        })
    }

    /// An operator that one of the modules knows.
    fn of_a_kind(name: &str, argument: Option<&str>, given: &str) -> Result<Self, ConfigError> {
        if let Some(path) = MetadataPath::compile(name, given)? {
            return Ok(Self::Metadata(path.into()));
        }
        if let Some(fact) = RequestFact::compile(name, argument)? {
            return Ok(Self::Request(fact.into()));
        }
        if let Some(span) = Span::compile(name, argument)? {
            return Ok(Self::Span(span));
        }
        if let Some(status) = GrpcStatus::compile(name, argument)? {
            return Ok(Self::GrpcStatus(status));
        }
        if let Some(fact) = TlsFact::compile(name, argument)? {
            return Ok(Self::Tls(fact.into()));
        }
        if let Some(fact) = AddressFact::compile(name, argument)? {
            return Ok(Self::Address(fact));
        }
        let text = format!("not supported in StreamInfo: %{name}%");
        Err(ConfigError::new(text))
    }

    /// Whether JSON logs print the value as a number.
    fn is_number(&self) -> bool {
        match self {
            Self::Address(fact) => fact.is_port(),
            Self::Fact(fact) => fact.is_number(),
            Self::GrpcStatus(status) => status.is_number(),
            Self::Span(_) => true,
            _ => false,
        }
    }

    /// The value as text.
    pub(super) fn value<'a>(&'a self, cx: &FormatContext<'a>) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Header(header) => header.value(cx),
            Self::StartTime(format) => text(format.format(cx.info.start_time)),
            Self::EmitTime(format) => text(format.format(SystemTime::now())),
            Self::Address(fact) => fact.value(cx),
            Self::Fact(fact) => fact.value(cx),
            Self::Span(span) => span.value(cx),
            Self::Details(whole) => match cx.info.details.as_deref()? {
                details if *whole || !details.contains(|c: char| c.is_ascii_whitespace()) => {
                    Some(Cow::Borrowed(details.as_bytes()))
                }
                details => without_spaces(details),
            },
            // As in Envoy: what is not set is told as text.
            Self::Text(text) => Some(Cow::Borrowed(text.as_deref().unwrap_or("-").as_bytes())),
            Self::Metadata(path) => path.text(cx),
            Self::FilterState(key, form) => form.of(cx.info.filter_state.get(key)?),
            Self::Request(fact) => fact.value(cx),
            Self::GrpcStatus(status) => status.value(cx),
            Self::Tls(fact) => fact.value(cx.info),
            Self::Coalesce(operators) => operators.iter().find_map(|(operator, limit)| {
                let value = operator.value(cx).filter(|value| !value.is_empty())?;
                Some(cut(value, *limit))
            }),
            Self::Nothing => None,
        }
    }

    /// The value for JSON logs, strings at most so long.
    pub(super) fn json(&self, cx: &FormatContext<'_>, limit: Option<usize>) -> Value {
        match self {
            Self::Metadata(path) => match path.json(cx).map(Cow::into_owned) {
                Some(Value::String(text)) => string(&cut(Cow::Borrowed(text.as_bytes()), limit)),
                other => other.unwrap_or_default(),
            },
            Self::FilterState(_, Form::Typed) => {
                let value = self.value(cx);
                let json = value.and_then(|value| serde_json::from_slice(&value).ok());
                json.unwrap_or_default()
            }
            Self::Coalesce(operators) => {
                let values = operators
                    .iter()
                    .map(|(operator, own)| operator.json(cx, *own));
                let mut some = values.filter(|v| !v.is_null() && v.as_str() != Some(""));
                match some.next() {
                    Some(Value::String(text)) => {
                        string(&cut(Cow::Borrowed(text.as_bytes()), limit))
                    }
                    other => other.unwrap_or_default(),
                }
            }
            _ => {
                let Some(value) = self.value(cx) else {
                    return Value::Null;
                };
                let number = || std::str::from_utf8(&value).ok()?.parse::<u64>().ok();
                match number().filter(|_| self.is_number()) {
                    Some(number) => number.into(),
                    None => string(&cut(value, limit)),
                }
            }
        }
    }
}

impl Header {
    fn compile(side: Side, given: &str, without_query: bool) -> Result<Box<Self>, ConfigError> {
        let mut names = given.split('?');
        let name = HeaderRef::parse(names.next().unwrap_or_default())?;
        let alternative = names.next().map(HeaderRef::parse).transpose()?;
        if names.next().is_some() {
            let text = format!("more than one alternative header: {given}");
            return Err(ConfigError::new(text));
        }
        Ok(Box::new(Self {
            side,
            name,
            alternative,
            without_query,
        }))
    }

    fn value<'a>(&self, cx: &FormatContext<'a>) -> Option<Cow<'a, [u8]>> {
        let read = |name: &HeaderRef| match self.side {
            Side::Request => name.in_request(cx.request?),
            Side::Response => name.in_response(cx.response?),
            Side::Trailers => name.in_map(cx.trailers?),
        };
        let value = read(&self.name).or_else(|| read(self.alternative.as_ref()?))?;
        let query = memchr::memchr(b'?', &value).filter(|_| self.without_query);
        Some(cut(value, query))
    }
}

fn text<'a>(text: String) -> Option<Cow<'a, [u8]>> {
    Some(Cow::Owned(text.into_bytes()))
}

/// Bytes as a JSON string: what is not UTF-8 is told byte by byte, as in Envoy.
pub(super) fn string(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => bytes
            .iter()
            .map(|b| char::from(*b))
            .collect::<String>()
            .into(),
    }
}
