//! One value against its rules.

use regex::bytes::Regex;

use super::table::{Header, Kind, Rules, Scalar};
use super::wire::{self, Wire};
use crate::error::ConfigError;

type Result<T> = std::result::Result<T, ConfigError>;

/// Rules with their regexes compiled.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) of: Rules,
    /// For each element of a list, or value of a map.
    pub(super) items: Option<Box<Compiled>>,
    /// For the keys of a map.
    pub(super) keys: Option<Box<Compiled>>,
    pattern: Option<Regex>,
    none: bool,
}

fn fail<T>(reason: impl Into<String>) -> Result<T> {
    Err(ConfigError::new(reason))
}

impl Compiled {
    pub(super) fn new(mut of: Rules) -> Result<Self> {
        let none = of == Rules::default();
        let nested = |rules: Option<Box<Rules>>| {
            let made = rules.map(|r| Self::new(*r).map(Box::new));
            made.transpose()
        };
        let pattern = of.pattern.as_deref().map(Regex::new).transpose();
        Ok(Self {
            items: nested(of.items.take())?,
            keys: nested(of.keys.take())?,
            pattern: pattern.map_err(|e| ConfigError::new(format!("constraint: {e}")))?,
            of,
            none,
        })
    }

    pub(super) fn is_none(&self) -> bool {
        self.none
    }

    /// Checks one value; `None` is the field's default.
    pub(super) fn check(&self, kind: Kind, value: Option<Wire<'_>>) -> Result<()> {
        if self.none {
            return Ok(());
        }
        if let Some(number) = wire::number(kind, value)? {
            return self.check_number(kind, number);
        }
        match kind {
            Kind::String | Kind::Bytes | Kind::StringValue => {
                self.check_text(kind, wire::text(kind, value)?)
            }
            _ => Ok(()),
        }
    }

    #[allow(clippy::float_cmp)] // both sides were made from the same decimals in the same way
    fn check_number(&self, kind: Kind, n: f64) -> Result<()> {
        let of = &self.of;
        if of.ignore_empty && n == 0.0 {
            return Ok(());
        }
        let unit = if kind == Kind::Duration { "s" } else { "" };
        let equals = |s: &Scalar| matches!(s, Scalar::Number(v) if *v == n);
        if of.constant.as_ref().is_some_and(|s| !equals(s)) {
            let wanted = of.constant.as_ref().map_or_else(String::new, show);
            return fail(format!("value must be {}", truth(kind, wanted)));
        }
        if !of.only.is_empty() && !of.only.iter().any(equals) {
            return fail(format!("value must be one of {}", list(&of.only)));
        }
        if of.not.iter().any(equals) {
            return fail(format!("value must not be one of {}", list(&of.not)));
        }
        if !of.defined.is_empty() && !of.defined.iter().any(|d| f64::from(*d) == n) {
            return fail("value must be one of the defined enum values");
        }
        let above = of.gt.is_none_or(|b| n > b) && of.gte.is_none_or(|b| n >= b);
        let below = of.lt.is_none_or(|b| n < b) && of.lte.is_none_or(|b| n <= b);
        let (bottom, top) = (of.gt.or(of.gte), of.lt.or(of.lte));
        let outside = matches!((bottom, top), (Some(b), Some(t)) if t < b);
        if n.is_nan()
            || if outside {
                !above && !below
            } else {
                !above || !below
            }
        {
            let (mut words, join) = (Vec::new(), if outside { " or " } else { " and " });
            let bounds = [
                ("greater than", of.gt),
                ("greater than or equal to", of.gte),
                ("less than", of.lt),
                ("less than or equal to", of.lte),
            ];
            for (word, bound) in bounds {
                words.extend(bound.map(|b| format!("{word} {b}{unit}")));
            }
            if !words.is_empty() {
                return fail(format!("value must be {}", words.join(join)));
            }
        }
        Ok(())
    }

    fn check_text(&self, kind: Kind, text: &[u8]) -> Result<()> {
        let of = &self.of;
        if of.ignore_empty && text.is_empty() {
            return Ok(());
        }
        if kind != Kind::Bytes && std::str::from_utf8(text).is_err() {
            return fail("value must be UTF-8");
        }
        let characters = || String::from_utf8_lossy(text).chars().count();
        at_least(of.min_len, characters, "characters")?;
        at_most(of.max_len, characters, "characters")?;
        at_least(of.min_bytes, || text.len(), "bytes")?;
        at_most(of.max_bytes, || text.len(), "bytes")?;
        let is = |s: &Scalar| matches!(s, Scalar::Text(t) if t.as_bytes() == text);
        if let Some(wanted) = of.constant.as_ref().filter(|s| !is(s)) {
            return fail(format!("value must be {}", show(wanted)));
        }
        if !of.only.is_empty() && !of.only.iter().any(is) {
            return fail(format!("value must be one of {}", list(&of.only)));
        }
        if of.not.iter().any(is) {
            return fail(format!("value must not be one of {}", list(&of.not)));
        }
        if let Some(pattern) = self.pattern.as_ref().filter(|p| !p.is_match(text)) {
            return fail(format!("value must match the regex \"{pattern}\""));
        }
        if let Some(p) = of
            .prefix
            .as_ref()
            .filter(|p| !text.starts_with(p.as_bytes()))
        {
            return fail(format!("value must begin with \"{p}\""));
        }
        if let Some(s) = of.suffix.as_ref().filter(|s| !text.ends_with(s.as_bytes())) {
            return fail(format!("value must end with \"{s}\""));
        }
        let found = |part: &&String| memchr::memmem::find(text, part.as_bytes()).is_some();
        if let Some(part) = of.contains.as_ref().filter(|p| !found(p)) {
            return fail(format!("value must contain \"{part}\""));
        }
        if let Some(part) = of.not_contains.as_ref().filter(found) {
            return fail(format!("value must not contain \"{part}\""));
        }
        match of.header {
            Some(header) if !is_header(header, text) => fail(match header {
                Header::Name | Header::LooseName => "value must be a valid header name",
                Header::Value | Header::LooseValue => "value must be a valid header value",
            }),
            _ => Ok(()),
        }
    }

    /// Checks how many elements a list or map has.
    pub(super) fn check_count(&self, count: usize) -> Result<()> {
        if self.of.ignore_empty && count == 0 {
            return Ok(());
        }
        at_least(self.of.min_items, || count, "item(s)")?;
        at_most(self.of.max_items, || count, "item(s)")
    }
}

fn at_least(bound: Option<u64>, count: impl Fn() -> usize, what: &str) -> Result<()> {
    match bound {
        Some(n) if (count() as u64) < n => fail(format!("value must have at least {n} {what}")),
        _ => Ok(()),
    }
}

fn at_most(bound: Option<u64>, count: impl Fn() -> usize, what: &str) -> Result<()> {
    match bound {
        Some(n) if (count() as u64) > n => fail(format!("value must have at most {n} {what}")),
        _ => Ok(()),
    }
}

/// Refuses a list with two equal elements.
pub(super) fn unique(values: &[Wire<'_>]) -> Result<()> {
    let repeated = |(i, v): (usize, &Wire<'_>)| values.iter().take(i).any(|other| other == v);
    if values.iter().enumerate().any(repeated) {
        return fail("value must not have the same item twice");
    }
    Ok(())
}

fn show(scalar: &Scalar) -> String {
    match scalar {
        Scalar::Number(n) => n.to_string(),
        Scalar::Text(t) => format!("\"{t}\""),
    }
}

fn truth(kind: Kind, shown: String) -> String {
    match (kind, shown.as_str()) {
        (Kind::Bool | Kind::BoolValue, "1") => "true".to_owned(),
        (Kind::Bool | Kind::BoolValue, "0") => "false".to_owned(),
        _ => shown,
    }
}

fn list(scalars: &[Scalar]) -> String {
    let shown: Vec<_> = scalars.iter().map(show).collect();
    format!("[{}]", shown.join(", "))
}

/// The character classes that protoc-gen-validate gives header names and values.
fn is_header(header: Header, text: &[u8]) -> bool {
    let loose = |b: &u8| !matches!(b, 0 | b'\n' | b'\r');
    match header {
        // Loose names may be empty: other rules see to that.
        Header::LooseName | Header::LooseValue => text.iter().all(loose),
        Header::Value => text
            .iter()
            .all(|b| matches!(b, b'\t' | b' '..=0x7e | 0x80..)),
        Header::Name => {
            let name = text.strip_prefix(b":").unwrap_or(text);
            let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+,-.^_|~`".contains(b);
            !name.is_empty() && name.iter().all(token)
        }
    }
}
