//! For which connections a listener filter is off: `ListenerFilterChainMatchPredicate`.

use envoy_types::pb::envoy::config::listener::v3::ListenerFilterChainMatchPredicate as Proto;
use envoy_types::pb::envoy::config::listener::v3::listener_filter_chain_match_predicate::Rule;
use xds_client::error::{At, ConfigError};

/// The deepest nesting.
const MAX_DEPTH: usize = 8;

/// A compiled predicate over the port that a connection goes to.
#[derive(Debug)]
pub(super) enum Predicate {
    Or(Vec<Predicate>),
    And(Vec<Predicate>),
    Not(Box<Predicate>),
    Any(bool),
    /// From, up to and without.
    Ports(i32, i32),
}

impl Predicate {
    /// Compiles the message.
    ///
    /// # Errors
    /// A missing rule, or rules nested too deeply.
    pub(super) fn compile(proto: &Proto) -> Result<Self, ConfigError> {
        Self::nested(proto, MAX_DEPTH)
    }

    fn nested(proto: &Proto, left: usize) -> Result<Self, ConfigError> {
        let left = left
            .checked_sub(1)
            .ok_or_else(|| ConfigError::new("nested too deeply"))?;
        let all = |rules: &[Proto]| -> Result<Vec<Self>, ConfigError> {
            let each = |(i, rule)| Self::nested(rule, left).at(format!("rules[{i}]"));
            rules.iter().enumerate().map(each).collect()
        };
        Ok(match &proto.rule {
            Some(Rule::OrMatch(set)) => Self::Or(all(&set.rules).at("or_match")?),
            Some(Rule::AndMatch(set)) => Self::And(all(&set.rules).at("and_match")?),
            Some(Rule::NotMatch(rule)) => {
                Self::Not(Box::new(Self::nested(rule, left).at("not_match")?))
            }
            Some(Rule::AnyMatch(any)) => Self::Any(*any),
            Some(Rule::DestinationPortRange(range)) => Self::Ports(range.start, range.end),
            None => return Err(ConfigError::new("value is required").at("rule")),
        })
    }

    /// Whether a connection to `port` is meant. One that has no port, as it goes to no IP address, is in every range,
    /// as in Envoy.
    pub(super) fn matches(&self, port: Option<u16>) -> bool {
        match self {
            Self::Or(all) => all.iter().any(|p| p.matches(port)),
            Self::And(all) => all.iter().all(|p| p.matches(port)),
            Self::Not(rule) => !rule.matches(port),
            Self::Any(any) => *any,
            Self::Ports(start, end) => {
                port.is_none_or(|port| (*start..*end).contains(&i32::from(port)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::r#type::v3::Int32Range;

    use super::*;

    #[test]
    fn a_range_has_its_ports_and_connections_without_one() {
        let range = Proto {
            rule: Some(Rule::DestinationPortRange(Int32Range {
                start: 80,
                end: 90,
            })),
        };
        let range = Predicate::compile(&range).unwrap();
        let met = [Some(79), Some(80), Some(89), Some(90), None].map(|p| range.matches(p));
        assert_eq!(met, [false, true, true, false, true]);
    }
}
