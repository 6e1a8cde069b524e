//! `envoy.config.route.v3.QueryParameterMatcher`.

use envoy_types::pb::envoy::config::route::v3::QueryParameterMatcher as Config;
use envoy_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier as Spec;
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
            (Rule::Text(matcher), Some(value)) => matcher.matches(value),
            (Rule::Text(_), None) => false,
        }
    }
}

/// The first value of parameter `name`, as it stands there: Envoy does not decode what it matches. A
/// parameter without `=` is empty.
pub fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let query = query.split('#').next().unwrap_or(query);
    let mut pairs = query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_matched_as_they_stand() {
        for (query, want) in [
            ("a=1&a=2", Some("1")),
            ("b&a", Some("")),
            ("b=a", None),
            ("a=%31", Some("%31")),
            ("%61=1", None),
            ("a=b=c#a=2", Some("b=c")),
            ("&&a=1", Some("1")),
        ] {
            assert_eq!(parameter(query, "a"), want, "{query}");
        }
    }

    #[test]
    fn presence_and_text() {
        let matcher = |spec| {
            QueryMatcher::compile(&Config {
                name: "a".into(),
                query_parameter_match_specifier: spec,
            })
            .unwrap()
        };
        assert!(matcher(None).matches(Some("a")));
        assert!(!matcher(None).matches(Some("b")));
        assert!(matcher(Some(Spec::PresentMatch(false))).matches(None));
        assert!(QueryMatcher::compile(&Config::default()).is_err());
    }
}
