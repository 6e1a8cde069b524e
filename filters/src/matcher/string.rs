//! `envoy.type.matcher.v3.StringMatcher`.

use envoy_types::pb::envoy::r#type::matcher::v3 as pb;
use xds_client::error::{At, ConfigError};

use super::regex::FullRegex;

#[derive(Debug, Clone)]
enum Pattern {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    Contains(Box<[u8]>),
    Regex(FullRegex),
}

/// A compiled string matcher. It matches bytes, for header values need not be UTF-8.
#[derive(Debug, Clone)]
pub struct StringMatcher {
    pattern: Pattern,
    ignore_case: bool,
}

impl StringMatcher {
    /// Compiles the message. `ignore_case` has no effect on `safe_regex`, as in Envoy.
    ///
    /// # Errors
    /// No pattern, an empty one where Envoy refuses it, an invalid regex, or a custom matcher.
    pub fn compile(config: &pb::StringMatcher) -> Result<Self, ConfigError> {
        use pb::string_matcher::MatchPattern as P;
        let text = |s: &str| -> Box<[u8]> { s.as_bytes().into() };
        let filled = |s: &str, field: &str| match s {
            "" => Err(ConfigError::new("must not be empty").at(field)),
            s => Ok(text(s)),
        };
        let pattern = match &config.match_pattern {
            Some(P::Exact(s)) => Pattern::Exact(text(s)),
            Some(P::Prefix(s)) => Pattern::Prefix(filled(s, "prefix")?),
            Some(P::Suffix(s)) => Pattern::Suffix(filled(s, "suffix")?),
            Some(P::Contains(s)) => Pattern::Contains(filled(s, "contains")?),
            Some(P::SafeRegex(r)) => Pattern::Regex(FullRegex::compile(r).at("safe_regex")?),
            Some(P::Custom(_)) => return Err(ConfigError::unsupported("custom")),
            None => return Err(ConfigError::new("match_pattern is required")),
        };
        Ok(Self {
            pattern,
            ignore_case: config.ignore_case,
        })
    }

    /// Matches exactly `text`.
    pub fn exact(text: &str) -> Self {
        Self {
            pattern: Pattern::Exact(text.as_bytes().into()),
            ignore_case: false,
        }
    }

    /// Matches what begins with `text`, even the empty one.
    pub fn prefix(text: &str) -> Self {
        Self {
            pattern: Pattern::Prefix(text.as_bytes().into()),
            ignore_case: false,
        }
    }

    /// The text that must match exactly, if that is the rule and case counts: for indexes.
    pub fn as_exact(&self) -> Option<&[u8]> {
        match &self.pattern {
            Pattern::Exact(text) if !self.ignore_case => Some(text),
            _ => None,
        }
    }

    /// Whether `value` matches.
    pub fn matches(&self, value: impl AsRef<[u8]>) -> bool {
        let value = value.as_ref();
        let same = |a: &[u8], b: &[u8]| match self.ignore_case {
            true => a.eq_ignore_ascii_case(b),
            false => a == b,
        };
        match &self.pattern {
            Pattern::Exact(p) => same(value, p),
            Pattern::Prefix(p) => value.get(..p.len()).is_some_and(|v| same(v, p)),
            Pattern::Suffix(p) => value
                .len()
                .checked_sub(p.len())
                .and_then(|at| value.get(at..))
                .is_some_and(|v| same(v, p)),
            Pattern::Contains(p) if self.ignore_case => value
                .windows(p.len().max(1))
                .any(|w| w.eq_ignore_ascii_case(p)),
            Pattern::Contains(p) => memchr::memmem::find(value, p).is_some(),
            Pattern::Regex(re) => re.is_match(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pb::string_matcher::MatchPattern as P;

    fn matches(pattern: P, ignore_case: bool, value: &str) -> bool {
        StringMatcher::compile(&pb::StringMatcher {
            ignore_case,
            match_pattern: Some(pattern),
        })
        .unwrap()
        .matches(value)
    }

    #[test]
    fn each_pattern() {
        assert!(matches(P::Exact("abc".into()), false, "abc"));
        assert!(!matches(P::Exact("abc".into()), false, "ABC"));
        assert!(matches(P::Exact("abc".into()), true, "ABC"));
        assert!(matches(P::Prefix("abc".into()), false, "abc.xyz"));
        assert!(matches(P::Suffix("abc".into()), true, "xyz.ABC"));
        assert!(!matches(P::Suffix("abc".into()), false, "bc"));
        assert!(matches(P::Contains("abc".into()), false, "xyz.abc.def"));
        assert!(matches(P::Contains("abc".into()), true, "xyz.aBc.def"));
    }

    #[test]
    fn refuses_empty_and_missing() {
        for pattern in [
            None,
            Some(P::Prefix(String::new())),
            Some(P::Suffix(String::new())),
        ] {
            let config = pb::StringMatcher {
                ignore_case: false,
                match_pattern: pattern,
            };
            assert!(StringMatcher::compile(&config).is_err());
        }
    }
}
