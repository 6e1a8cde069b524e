//! `envoy.config.route.v3.CookieMatcher`, and how cookies are found.

use envoy_types::pb::envoy::config::route::v3::CookieMatcher as Config;
use http::header;
use xds_client::error::{At, ConfigError};

use super::string::StringMatcher;
use crate::head::RequestHead;

/// A compiled cookie matcher.
#[derive(Debug, Clone)]
pub struct CookieMatcher {
    name: Box<str>,
    value: StringMatcher,
    invert: bool,
}

impl CookieMatcher {
    /// Compiles the message.
    ///
    /// # Errors
    /// An empty name, no pattern or a bad one.
    pub fn compile(config: &Config) -> Result<Self, ConfigError> {
        if config.name.is_empty() {
            return Err(ConfigError::new("must not be empty").at("name"));
        }
        let value = config.string_match.as_ref();
        let value = value.ok_or_else(|| ConfigError::new("is required").at("string_match"))?;
        Ok(Self {
            name: config.name.as_str().into(),
            value: StringMatcher::compile(value).at("string_match")?,
            invert: config.invert_match,
        })
    }

    /// Whether a request has such a cookie. One that is missing does not match, unless the match is inverted.
    pub fn matches(&self, head: &RequestHead) -> bool {
        let value = value_of(head, &self.name);
        value.is_some_and(|value| self.value.matches(value)) != self.invert
    }
}

/// The value of the first cookie of this name, without the quotes around it. As in Envoy, only spaces before a name do
/// not count.
pub fn value_of<'a>(head: &'a RequestHead, name: &str) -> Option<&'a str> {
    let lines = head.headers.get_all(header::COOKIE).iter();
    let mut pairs = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(n, _)| n.trim_start_matches(' ') == name)?;
    let bare = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    Some(bare.unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher as Text;
    use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
    use http::{HeaderValue, Method};

    use super::*;

    fn head() -> RequestHead {
        let mut head = RequestHead::new(Method::GET, "/");
        for line in ["a=1;  b=\"2\"", "c=; d=4; a=5; f =6; g= 7 "] {
            let value = HeaderValue::from_static(line);
            head.headers.append(header::COOKIE, value);
        }
        head
    }

    #[test]
    fn they_are_found_in_any_line_and_unquoted() {
        for (name, want) in [
            ("a", Some("1")),
            ("b", Some("2")),
            ("c", Some("")),
            ("d", Some("4")),
            ("e", None),
            ("f", None),
            ("g", Some(" 7 ")),
        ] {
            assert_eq!(value_of(&head(), name), want, "{name}");
        }
    }

    #[test]
    fn one_that_is_missing_matches_only_what_is_inverted() {
        let matches = |name: &str, value: &str, invert| {
            let text = Text {
                match_pattern: Some(MatchPattern::Exact(value.into())),
                ..Default::default()
            };
            let config = Config {
                name: name.into(),
                string_match: Some(text),
                invert_match: invert,
            };
            CookieMatcher::compile(&config).unwrap().matches(&head())
        };
        assert!(matches("a", "1", false) && !matches("a", "5", false));
        assert!(matches("c", "", false) && !matches("e", "", false));
        assert!(!matches("a", "1", true) && matches("a", "2", true) && matches("e", "", true));
        assert!(CookieMatcher::compile(&Config::default()).is_err());
    }
}
