//! The generic matcher, `xds.type.matcher.v3.Matcher`: a decision tree from what is known about a connection or
//! a request to an action, compiled once.
//!
//! As in Envoy, a branch that is taken and leads to nothing (a nested matcher without a match) is as good as not
//! taken: the next one is tried, `on_no_match` last. A part of the tree is looked at once at most. What cannot be
//! known, as the certificate of a peer without TLS, ends the search: there is no guess.

mod compile;
mod domains;
mod input;
mod keys;
mod ranges;
#[cfg(test)]
mod tests;

use smallvec::SmallVec;

use self::domains::Domains;
use self::input::{Input, Value};
use self::keys::{ExactKeys, PrefixKeys};
use self::ranges::Ranges;
use super::cidr::CidrSet;
use super::metadata::ValueMatcher;
use super::string::StringMatcher;
use crate::cel::Expression;

pub use self::input::{MatchInput, Place};

/// A compiled matcher. `A` is what it leads to.
#[derive(Debug)]
pub struct MatcherTree<A> {
    branches: Branches<A>,
    on_no_match: Option<OnMatch<A>>,
}

/// What follows on a match.
#[derive(Debug)]
enum OnMatch<A> {
    Action(A),
    Matcher(Box<MatcherTree<A>>),
}

/// Something was asked for that cannot be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unknown;

/// An action, none, or neither.
type Found<'t, A> = Result<Option<&'t A>, Unknown>;

#[derive(Debug)]
enum Branches<A> {
    /// None: `on_no_match` decides.
    None,
    /// The first of these that holds.
    List(Vec<(Predicate, OnMatch<A>)>),
    Exact(Input, ExactKeys<OnMatch<A>>),
    Prefix(Input, PrefixKeys<OnMatch<A>>),
    Ranges(Input, Ranges, Vec<OnMatch<A>>),
    Domains(Input, Domains, Vec<OnMatch<A>>),
}

#[derive(Debug)]
enum Predicate {
    Single(Input, Test),
    And(Vec<Predicate>),
    Or(Vec<Predicate>),
    Not(Box<Predicate>),
}

/// What is asked about one input.
#[derive(Debug)]
enum Test {
    Text(StringMatcher),
    Ip(CidrSet),
    Metadata { value: ValueMatcher, invert: bool },
    Condition(Box<Expression>),
}

impl<A> MatcherTree<A> {
    /// The action for what is known, if there is one.
    ///
    /// # Errors
    /// It depends on what is not known.
    pub fn find(&self, input: &MatchInput<'_>) -> Found<'_, A> {
        let found = match &self.branches {
            Branches::None => None,
            Branches::List(list) => {
                let mut found = None;
                for (predicate, on_match) in list {
                    if predicate.matches(input)? {
                        found = on_match.find(input)?;
                    }
                    if found.is_some() {
                        break;
                    }
                }
                found
            }
            Branches::Exact(of, keys) => of
                .value(input)?
                .with_text(|key| first(keys.get(key), input))
                .transpose()?
                .flatten(),
            Branches::Prefix(of, keys) => of
                .value(input)?
                .with_text(|text| first(keys.prefixes(text), input))
                .transpose()?
                .flatten(),
            Branches::Ranges(of, ranges, all) => of
                .value(input)?
                .ip()
                .map(|ip| first(once(ranges.matching(ip), all), input))
                .transpose()?
                .flatten(),
            Branches::Domains(of, domains, all) => of
                .value(input)?
                .with_text(|name| first(once(domains.matching(name), all), input))
                .transpose()?
                .flatten(),
        };
        match (found, &self.on_no_match) {
            (None, Some(on_no_match)) => on_no_match.find(input),
            (found, _) => Ok(found),
        }
    }
}

impl<A> OnMatch<A> {
    fn find(&self, input: &MatchInput<'_>) -> Found<'_, A> {
        match self {
            Self::Action(action) => Ok(Some(action)),
            Self::Matcher(matcher) => matcher.find(input),
        }
    }
}

/// What the first of `branches` leads to that leads to something.
fn first<'t, A: 't>(
    branches: impl IntoIterator<Item = &'t OnMatch<A>>,
    input: &MatchInput<'_>,
) -> Found<'t, A> {
    for branch in branches {
        if let Some(action) = branch.find(input)? {
            return Ok(Some(action));
        }
    }
    Ok(None)
}

/// The branches of these numbers, each the first time only: nesting must not multiply the work.
fn once<A>(
    numbers: impl Iterator<Item = usize>,
    all: &[OnMatch<A>],
) -> impl Iterator<Item = &OnMatch<A>> {
    let mut tried = SmallVec::<[usize; 8]>::new();
    numbers.filter_map(move |number| {
        if tried.contains(&number) {
            return None;
        }
        tried.push(number);
        all.get(number)
    })
}

impl Predicate {
    fn matches(&self, input: &MatchInput<'_>) -> Result<bool, Unknown> {
        match self {
            Self::Single(of, test) => Ok(test.matches(&of.value(input)?)),
            Self::And(all) => {
                for predicate in all {
                    if !predicate.matches(input)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Self::Or(all) => {
                // What is true is so whatever the others are.
                let mut result = Ok(false);
                for predicate in all {
                    match predicate.matches(input) {
                        Ok(true) => return Ok(true),
                        Ok(false) => {}
                        Err(unknown) => result = Err(unknown),
                    }
                }
                result
            }
            Self::Not(predicate) => Ok(!predicate.matches(input)?),
        }
    }
}

impl Test {
    fn matches(&self, value: &Value<'_>) -> bool {
        match self {
            Self::Text(matcher) => value.with_text(|text| matcher.matches(text)) == Some(true),
            Self::Ip(set) => value.ip().is_some_and(|ip| set.contains(ip)),
            Self::Condition(condition) => match value {
                Value::Attributes(facts) => condition.is_true(facts),
                _ => false,
            },
            Self::Metadata {
                value: matcher,
                invert,
            } => match value {
                Value::Metadata(value) => matcher.matches(*value) != *invert,
                _ => false,
            },
        }
    }
}
