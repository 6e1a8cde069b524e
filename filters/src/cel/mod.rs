//! Conditions in the Common Expression Language, as the syntax trees that Envoy's API carries
//! (`google.api.expr.v1alpha1.Expr`).
//!
//! The dialect is that of Envoy's settings: no comprehensions, no joining of strings or lists. An expression is
//! therefore evaluated in a time proportional to its size and that of the values it compares. An error (an attribute
//! that is not there, an operator for other types) is no match, unless `&&`, `||` or `?:` do not need the value.

mod attributes;
mod compile;
#[cfg(test)]
mod tests;
mod value;

use std::borrow::Cow;
use std::cmp::Ordering;

use regex::bytes::Regex;

use self::attributes::Group;
use self::value::{Fault, Outcome, Value};

pub use self::attributes::Attributes;

/// A compiled expression.
#[derive(Debug)]
pub struct Expression(Node);

#[derive(Debug)]
enum Node {
    Constant(Value<'static>),
    Group(Group),
    /// A name that nothing has.
    Unknown,
    Select(Box<Node>, String),
    Has(Box<Node>, String),
    Index(Box<Node>, Box<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Not(Box<Node>),
    Negate(Box<Node>),
    If(Box<Node>, Box<Node>, Box<Node>),
    Equal(Box<Node>, Box<Node>),
    Order(Box<Node>, Box<Node>, fn(Ordering) -> bool),
    Arithmetic(Arithmetic, Box<Node>, Box<Node>),
    In(Box<Node>, Box<Node>),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
    Size(Box<Node>),
    Part(Part, Box<Node>, Box<Node>),
    Matches(Box<Node>, Regex),
    Convert(Conversion, Box<Node>),
}

#[derive(Debug, Clone, Copy)]
enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

/// How a string may be in another one.
#[derive(Debug, Clone, Copy)]
enum Part {
    Anywhere,
    Start,
    End,
}

#[derive(Debug, Clone, Copy)]
enum Conversion {
    Int,
    Uint,
    Double,
    Bytes,
    None,
}

impl Expression {
    /// Whether the expression is true of `facts`.
    pub fn is_true(&self, facts: &Attributes<'_>) -> bool {
        matches!(self.0.value(facts), Ok(Value::Bool(true)))
    }
}

impl Node {
    /// How deeply this goes is bounded by the decoder that made the expression: a hundred messages.
    fn value<'a>(&'a self, facts: &Attributes<'a>) -> Outcome<'a> {
        let of = |node: &'a Self| node.value(facts);
        Ok(match self {
            Self::Constant(value) => value.borrowed(),
            Self::Group(group) => Value::Group(*group),
            Self::Unknown => return Err(Fault),
            Self::Select(operand, field) => {
                of(operand)?.get(field.as_bytes(), facts)?.ok_or(Fault)?
            }
            Self::Has(operand, field) => Value::Bool(of(operand)?.has(field.as_bytes(), facts)?),
            Self::Index(operand, key) => of(operand)?.at(&of(key)?, facts)?,
            Self::And(a, b) => Value::Bool(unless(of(a), false, || of(b))?),
            Self::Or(a, b) => Value::Bool(unless(of(a), true, || of(b))?),
            Self::Not(operand) => Value::Bool(!of(operand)?.bool()?),
            Self::Negate(operand) => match of(operand)? {
                Value::Int(n) => Value::Int(n.checked_neg().ok_or(Fault)?),
                Value::Double(n) => Value::Double(-n),
                _ => return Err(Fault),
            },
            Self::If(condition, yes, no) => match of(condition)?.bool()? {
                true => of(yes)?,
                false => of(no)?,
            },
            Self::Equal(a, b) => Value::Bool(of(a)?.equals(&of(b)?)?),
            Self::Order(a, b, holds) => Value::Bool(of(a)?.order(&of(b)?)?.is_some_and(*holds)),
            Self::Arithmetic(how, a, b) => calculate(*how, &of(a)?, &of(b)?)?,
            Self::In(value, list) => Value::Bool(of(list)?.contains(&of(value)?, facts)?),
            Self::List(nodes) => Value::List(nodes.iter().map(of).collect::<Result<_, _>>()?),
            Self::Map(nodes) => {
                let pair = |(key, value): &'a (Self, Self)| Ok((of(key)?, of(value)?));
                Value::Map(nodes.iter().map(pair).collect::<Result<_, _>>()?)
            }
            Self::Size(operand) => Value::Int(of(operand)?.size()?),
            Self::Part(part, text, wanted) => {
                let (text, wanted) = (of(text)?, of(wanted)?);
                let (text, wanted) = (text.text()?, wanted.text()?);
                Value::Bool(match part {
                    Part::Anywhere => memchr::memmem::find(text, wanted).is_some(),
                    Part::Start => text.starts_with(wanted),
                    Part::End => text.ends_with(wanted),
                })
            }
            Self::Matches(text, regex) => Value::Bool(regex.is_match(of(text)?.text()?)),
            Self::Convert(to, operand) => convert(*to, of(operand)?)?,
        })
    }
}

/// `decided` if one of the two is it, even if the other is an error; else the other value.
fn unless<'a>(
    first: Outcome<'a>,
    decided: bool,
    second: impl FnOnce() -> Outcome<'a>,
) -> Result<bool, Fault> {
    let first = first.and_then(|value| value.bool());
    if first == Ok(decided) {
        return Ok(decided);
    }
    let second = second().and_then(|value| value.bool());
    match second == Ok(decided) {
        true => second,
        false => first.and(second),
    }
}

fn calculate<'a>(how: Arithmetic, a: &Value<'a>, b: &Value<'a>) -> Outcome<'a> {
    use Arithmetic as A;
    // A macro: the methods of the two kinds have no trait.
    macro_rules! whole {
        ($a:expr, $b:expr) => {
            match how {
                A::Add => $a.checked_add(*$b),
                A::Subtract => $a.checked_sub(*$b),
                A::Multiply => $a.checked_mul(*$b),
                A::Divide => $a.checked_div(*$b),
                A::Remainder => $a.checked_rem(*$b),
            }
            .ok_or(Fault)?
        };
    }
    Ok(match (a, b) {
        (Value::Int(a), Value::Int(b)) => Value::Int(whole!(a, b)),
        (Value::Uint(a), Value::Uint(b)) => Value::Uint(whole!(a, b)),
        (Value::Double(a), Value::Double(b)) => Value::Double(match how {
            A::Add => a + b,
            A::Subtract => a - b,
            A::Multiply => a * b,
            A::Divide => a / b,
            A::Remainder => return Err(Fault),
        }),
        _ => return Err(Fault),
    })
}

fn convert(to: Conversion, value: Value<'_>) -> Outcome<'_> {
    fn parsed<T: std::str::FromStr>(text: &[u8]) -> Result<T, Fault> {
        let text = std::str::from_utf8(text).map_err(|_| Fault)?;
        text.parse().map_err(|_| Fault)
    }
    /// The whole part of a number that is in the range.
    #[allow(clippy::cast_possible_truncation)]
    fn whole(n: f64) -> Result<i128, Fault> {
        match n.is_finite() && n.abs() < 2_f64.powi(64) {
            true => Ok(n as i128),
            false => Err(Fault),
        }
    }
    let number = |value: &Value<'_>| match value {
        Value::Int(n) => Ok(i128::from(*n)),
        Value::Uint(n) => Ok(i128::from(*n)),
        Value::Double(n) => whole(*n),
        Value::Text(text) => parsed(text),
        _ => Err(Fault),
    };
    Ok(match (to, value) {
        (Conversion::None, value) => value,
        (Conversion::Bytes, Value::Text(text)) => Value::Bytes(text),
        (Conversion::Bytes, Value::Bytes(bytes)) => Value::Bytes(bytes),
        (Conversion::Bytes, _) => return Err(Fault),
        (Conversion::Int, value) => Value::Int(number(&value)?.try_into().map_err(|_| Fault)?),
        (Conversion::Uint, value) => Value::Uint(number(&value)?.try_into().map_err(|_| Fault)?),
        #[allow(clippy::cast_precision_loss)] // so it is defined
        (Conversion::Double, value) => Value::Double(match value {
            Value::Int(n) => n as f64,
            Value::Uint(n) => n as f64,
            Value::Double(n) => n,
            Value::Text(text) => parsed(&text)?,
            _ => return Err(Fault),
        }),
    })
}

/// Text that was made up.
fn owned(text: String) -> Cow<'static, [u8]> {
    Cow::Owned(text.into_bytes())
}
