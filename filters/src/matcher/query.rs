//! `envoy.config.route.v3.QueryParameterMatcher`.

use std::borrow::Cow;

use envoy_types::pb::envoy::config::route::v3::QueryParameterMatcher as Config;
use envoy_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier as Spec;
use percent_encoding::percent_decode_str;
use xds_client::error::{At, ConfigError};

use super::string::StringMatcher;

#[derive(Debug, Clone)]
enum Rule {
    Present(bool),
    Text(StringMatcher),
}

/// A compiled query-parameter matcher; the first value of a repeated parameter counts, as in Envoy.
#[derive(Debug, Clone)]
pub struct QueryMatcher {
    name: Box<str>,
    rule: Rule,
}

impl QueryMatcher {
    /// Compiles the message. No specifier means that the parameter must be present.
    ///
    /// # Errors
    /// An empty name or a bad pattern.
    pub fn compile(config: &Config) -> Result<Self, ConfigError> {
        if config.name.is_empty() {
            return Err(ConfigError::new("must not be empty").at("name"));
        }
        let rule = match &config.query_parameter_match_specifier {
            None => Rule::Present(true),
            Some(Spec::PresentMatch(present)) => Rule::Present(*present),
            Some(Spec::StringMatch(m)) => Rule::Text(StringMatcher::compile(m).at("string_match")?),
        };
        Ok(Self {
            name: config.name.as_str().into(),
            rule,
        })
    }

    /// Whether a raw query (without the `?`) matches.
    pub fn matches(&self, query: Option<&str>) -> bool {
        let value = query.and_then(|q| parameter(q, &self.name));
        match (&self.rule, value) {
            (Rule::Present(present), value) => value.is_some() == *present,
            (Rule::Text(matcher), Some(value)) => matcher.matches(&*value),
            (Rule::Text(_), None) => false,
        }
    }
}

/// The first value of parameter `name`, percent-decoded; a parameter without `=` is empty.
pub fn parameter<'a>(query: &'a str, name: &str) -> Option<Cow<'a, [u8]>> {
    let query = query.split('#').next().unwrap_or(query);
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let same = key == name || (key.contains('%') && percent_decode_str(key).eq(name.bytes()));
        same.then(|| Cow::from(percent_decode_str(value)))
    })
}
