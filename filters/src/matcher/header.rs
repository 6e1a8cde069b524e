//! `envoy.config.route.v3.HeaderMatcher`.

use std::borrow::Cow;

use envoy_types::pb::envoy::config::route::v3::HeaderMatcher as Config;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier as Spec;
use envoy_types::pb::envoy::r#type::matcher::v3 as pb;
use http::{HeaderMap, HeaderName};
use xds_client::error::{At, ConfigError};

use super::string::StringMatcher;
use crate::head::{RequestHead, ResponseHead};

/// A header by name, pseudo-headers included; the name is parsed once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderRef {
    /// `:method`
    Method,
    /// `:scheme`
    Scheme,
    /// `:authority` or `host`
    Authority,
    /// `:path`, with the query
    Path,
    /// `:protocol`
    Protocol,
    /// `:status` of a response
    Status,
    /// An ordinary header.
    Name(HeaderName),
}

impl HeaderRef {
    /// Parses a name, in any case.
    ///
    /// # Errors
    /// Not a header name, or an unknown pseudo-header.
    pub fn parse(name: &str) -> Result<Self, ConfigError> {
        let lower = name.to_ascii_lowercase();
        Ok(match lower.as_str() {
            ":method" => Self::Method,
            ":scheme" => Self::Scheme,
            ":authority" | "host" => Self::Authority,
            ":path" => Self::Path,
            ":protocol" => Self::Protocol,
            ":status" => Self::Status,
            _ => Self::Name(
                HeaderName::from_bytes(lower.as_bytes())
                    .map_err(|_| ConfigError::new(format!("invalid header name {name:?}")))?,
            ),
        })
    }

    /// The header's value in a request; several lines are joined by `,`, as Envoy's generic matchers and
    /// formatters see them.
    pub fn in_request<'a>(&self, head: &'a RequestHead) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Name(name) => joined(&head.headers, name),
            pseudo => pseudo.pseudo_in_request(head).map(Cow::Borrowed),
        }
    }

    fn pseudo_in_request<'a>(&self, head: &'a RequestHead) -> Option<&'a [u8]> {
        let text: &str = match self {
            Self::Method => head.method.as_str(),
            Self::Scheme => &head.scheme,
            Self::Authority => &head.authority,
            Self::Path => &head.path,
            Self::Protocol => head.upgrade.as_deref()?,
            Self::Status | Self::Name(_) => return None,
        };
        (!text.is_empty()).then_some(text.as_bytes())
    }

    /// The value of the header's first line in a request.
    pub fn first_in_request<'a>(&self, head: &'a RequestHead) -> Option<&'a [u8]> {
        match self {
            Self::Name(name) => head.headers.get(name).map(http::HeaderValue::as_bytes),
            pseudo => pseudo.pseudo_in_request(head),
        }
    }

    /// The values of all the header's lines in a request.
    pub fn lines_in_request<'a>(
        &self,
        head: &'a RequestHead,
    ) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let (lines, pseudo) = match self {
            Self::Name(name) => (Some(head.headers.get_all(name)), None),
            pseudo => (None, pseudo.pseudo_in_request(head)),
        };
        let lines = lines.into_iter().flatten().map(http::HeaderValue::as_bytes);
        lines.chain(pseudo)
    }

    /// The header's value in a response.
    pub fn in_response<'a>(&self, head: &'a ResponseHead) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Status => Some(Cow::Owned(head.status.as_str().as_bytes().to_vec())),
            Self::Name(name) => joined(&head.headers, name),
            _ => None,
        }
    }

    /// The header's value in trailers.
    pub fn in_map<'a>(&self, headers: &'a HeaderMap) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Name(name) => joined(headers, name),
            _ => None,
        }
    }
}

fn joined<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    let Some(second) = values.next() else {
        return Some(Cow::Borrowed(first.as_bytes()));
    };
    let mut all = first.as_bytes().to_vec();
    for value in std::iter::once(second).chain(values) {
        all.push(b',');
        all.extend_from_slice(value.as_bytes());
    }
    Some(Cow::Owned(all))
}

#[derive(Debug, Clone)]
enum Rule {
    Present(bool),
    Text(StringMatcher),
    Range(i64, i64),
}

impl Rule {
    /// Whether one value fits a rule about values.
    fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Present(present) => *present,
            Self::Text(matcher) => matcher.matches(value),
            Self::Range(start, end) => std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse::<i64>().ok())
                .is_some_and(|n| n >= *start && n < *end),
        }
    }
}

/// A compiled header matcher.
#[derive(Debug, Clone)]
pub struct HeaderMatcher {
    header: HeaderRef,
    rule: Rule,
    invert: bool,
    missing_is_empty: bool,
}

impl HeaderMatcher {
    /// Compiles the message. No specifier means that the header must be present.
    ///
    /// # Errors
    /// A bad name, pattern or range.
    pub fn compile(config: &Config) -> Result<Self, ConfigError> {
        use pb::string_matcher::MatchPattern as P;
        if config.name.is_empty() {
            return Err(ConfigError::new("must not be empty").at("name"));
        }
        let text = |pattern: P| {
            StringMatcher::compile(&pb::StringMatcher {
                ignore_case: false,
                match_pattern: Some(pattern),
            })
            .map(Rule::Text)
        };
        #[allow(deprecated)] // the deprecated forms mean the same and are still sent
        let rule = match &config.header_match_specifier {
            None => Rule::Present(true),
            Some(Spec::PresentMatch(present)) => Rule::Present(*present),
            Some(Spec::ExactMatch(s)) => text(P::Exact(s.clone()))?,
            Some(Spec::PrefixMatch(s)) => text(P::Prefix(s.clone()))?,
            Some(Spec::SuffixMatch(s)) => text(P::Suffix(s.clone()))?,
            Some(Spec::ContainsMatch(s)) => text(P::Contains(s.clone()))?,
            Some(Spec::SafeRegexMatch(r)) => text(P::SafeRegex(r.clone()))?,
            Some(Spec::StringMatch(m)) => Rule::Text(StringMatcher::compile(m).at("string_match")?),
            Some(Spec::RangeMatch(range)) => Rule::Range(range.start, range.end),
        };
        Ok(Self {
            header: HeaderRef::parse(&config.name).at("name")?,
            rule,
            invert: config.invert_match,
            missing_is_empty: config.treat_missing_header_as_empty,
        })
    }

    /// Whether a request matches.
    pub fn matches(&self, head: &RequestHead) -> bool {
        match &self.header {
            HeaderRef::Name(name) => self.matches_name(&head.headers, name),
            pseudo => self.matches_values(pseudo.in_request(head).as_deref().into_iter()),
        }
    }

    /// Whether a response matches.
    pub fn matches_response(&self, head: &ResponseHead) -> bool {
        match &self.header {
            HeaderRef::Name(name) => self.matches_name(&head.headers, name),
            pseudo => self.matches_values(pseudo.in_response(head).as_deref().into_iter()),
        }
    }

    /// Whether a header block (trailers) matches.
    pub fn matches_map(&self, headers: &HeaderMap) -> bool {
        match &self.header {
            HeaderRef::Name(name) => self.matches_name(headers, name),
            _ => self.matches_values(std::iter::empty()),
        }
    }

    /// The header.
    pub fn header(&self) -> &HeaderRef {
        &self.header
    }

    fn matches_name(&self, headers: &HeaderMap, name: &HeaderName) -> bool {
        let values = headers.get_all(name).iter();
        self.matches_values(values.map(http::HeaderValue::as_bytes))
    }

    /// The header's lines, each by itself (Envoy since 1.39): one that matches is enough.
    fn matches_values<'a>(&self, values: impl Iterator<Item = &'a [u8]>) -> bool {
        let mut values = values.peekable();
        let missing = values.peek().is_none();
        let matched = match &self.rule {
            Rule::Present(present) => (!missing || self.missing_is_empty) == *present,
            // A rule about the value says no for a missing header, inverted or not.
            rule if missing => match self.missing_is_empty {
                true => rule.matches(b""),
                false => return false,
            },
            rule => values.any(|value| rule.matches(value)),
        };
        matched != self.invert
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, Method};

    fn matches(spec: Option<Spec>, invert: bool, missing: bool, values: &[&'static str]) -> bool {
        let mut head = RequestHead::new(Method::GET, "/");
        for value in values {
            head.headers.append("h", HeaderValue::from_static(value));
        }
        let config = Config {
            name: "H".into(),
            invert_match: invert,
            treat_missing_header_as_empty: missing,
            header_match_specifier: spec,
        };
        HeaderMatcher::compile(&config).unwrap().matches(&head)
    }

    // The examples in route_components.proto.
    #[test]
    #[allow(deprecated)] // ExactMatch is still sent
    fn missing_headers_and_inversion() {
        let range = || {
            Some(Spec::RangeMatch(
                envoy_types::pb::envoy::r#type::v3::Int64Range { start: -10, end: 0 },
            ))
        };
        assert!(matches(range(), false, false, &["-1"]));
        assert!(!matches(range(), false, false, &["0"]));
        assert!(!matches(range(), true, false, &["-1"]));
        assert!(matches(range(), true, true, &[]));
        assert!(!matches(range(), true, false, &[]));
        assert!(matches(None, false, false, &["x"]) && !matches(None, false, false, &[]));
        assert!(matches(Some(Spec::PresentMatch(true)), true, false, &[]));
        let exact = |text: &str| Some(Spec::ExactMatch(text.into()));
        assert!(matches(exact("b"), false, false, &["a", "b"]));
        assert!(!matches(exact("a,b"), false, false, &["a", "b"]));
        assert!(matches(exact("a,b"), false, false, &["a,b"]));
        assert!(!matches(exact("b"), true, false, &["a", "b"]));
        assert!(matches(exact("c"), true, false, &["a", "b"]));
    }
}
