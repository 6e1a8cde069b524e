//! `filter_chain_matcher`: the generic matcher in the place of the chains' own rules. Its actions are names of chains.

use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener};
use envoy_types::pb::google::protobuf::StringValue;
use envoy_types::pb::xds::r#type::matcher::v3::Matcher;
use filters::matcher::tree::Place;
use filters::matcher::{MatchInput, MatcherTree};
use rustc_hash::FxHashMap;
use xds_client::any;
use xds_client::error::{At, ConfigError};

use super::filter_chain_match::FilterChainIndex;

/// Chooses among the chains of a listener.
#[derive(Debug)]
pub struct FilterChainSelector {
    rule: Rule,
    /// Position of the default chain.
    default: Option<usize>,
}

#[derive(Debug)]
enum Rule {
    Index(FilterChainIndex),
    /// A name that no chain has leads to none, and not to the default chain.
    Matcher(MatcherTree<Option<usize>>),
}

impl FilterChainSelector {
    /// Compiles the choice for a listener, whose positions are those of `filter_chains`, and of the default chain
    /// behind them. `address` is the listener's, for the error texts.
    ///
    /// # Errors
    /// What is wrong with a chain's rules, or with the matcher; with a matcher, a chain without a name or with
    /// another one's.
    pub fn compile(address: &str, listener: &Listener) -> Result<Self, ConfigError> {
        let chains = &listener.filter_chains;
        let rule = match &listener.filter_chain_matcher {
            Some(matcher) => {
                Rule::Matcher(compile(address, matcher, chains).at("filter_chain_matcher")?)
            }
            None => {
                let rules = chains
                    .iter()
                    .map(|c| (c.name.as_str(), c.filter_chain_match.as_ref()));
                Rule::Index(FilterChainIndex::compile(address, rules)?)
            }
        };
        Ok(Self {
            rule,
            default: listener.default_filter_chain.as_ref().map(|_| chains.len()),
        })
    }

    /// The position of the chain for a connection.
    pub fn find(&self, input: &MatchInput<'_>) -> Option<usize> {
        match &self.rule {
            Rule::Index(index) => index.find(input).or(self.default),
            Rule::Matcher(matcher) => match matcher.find(input) {
                Ok(Some(chain)) => *chain,
                Ok(None) | Err(_) => self.default,
            },
        }
    }
}

fn compile(
    address: &str,
    matcher: &Matcher,
    chains: &[FilterChain],
) -> Result<MatcherTree<Option<usize>>, ConfigError> {
    let refused = |reason: String| {
        ConfigError::new(format!(
            "error adding listener '{address}': \"name\" field is {reason}"
        ))
    };
    let mut by_name = FxHashMap::default();
    for (position, chain) in chains.iter().enumerate() {
        if chain.name.is_empty() {
            return Err(refused("required when using a listener matcher".into()));
        }
        if by_name.insert(chain.name.as_str(), position).is_some() {
            return Err(refused(format!("duplicated with value '{}'", chain.name)));
        }
    }
    MatcherTree::compile(matcher, Place::FilterChain, &|action| {
        let name: StringValue = any::unpack(action)?;
        Ok(by_name.get(name.value.as_str()).copied())
    })
}

#[cfg(test)]
#[path = "filter_chain_matcher_tests.rs"]
mod tests;
