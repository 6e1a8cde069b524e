//! `RouteMatch`: what a request must be for a route to take it.

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::google::protobuf::BoolValue;
use filters::head::RequestHead;
use filters::matcher::{
    CookieMatcher, FilterStateMatcher, FullRegex, HeaderMatcher, MetadataMatcher, QueryMatcher,
    UriTemplate,
};
use filters::runtime::{self, Fraction, RuntimeKeys, Setting};
use filters::stream::StreamInfo;
use http::Method;
use xds_client::error::{At, ConfigError};

use super::path_index::Key;

/// The path rule of a route. All but `Connect` look at the path without query and fragment.
#[derive(Debug)]
pub(super) enum PathRule {
    /// Equal to this.
    Exact(Box<str>),
    /// Begins with this.
    Prefix(Box<str>),
    /// Is this, or continues it with `/`.
    Segments(Box<str>),
    /// Matches entirely; the text is the literal that every match begins with.
    Regex(FullRegex, Box<str>),
    /// Fits.
    Template(UriTemplate),
    /// Any CONNECT, with or without a path.
    Connect,
}

/// `tls_context`: what a client must have shown of itself, or must not.
#[derive(Debug)]
struct Certificate {
    presented: Option<bool>,
    validated: Option<bool>,
}

impl Certificate {
    fn matches(&self, info: &StreamInfo) -> bool {
        if self.presented.is_none() && self.validated.is_none() {
            return true;
        }
        let tls = info.connection.tls.as_deref();
        let peer = tls.and_then(|tls| tls.peer.as_deref());
        self.presented.is_none_or(|p| p == peer.is_some())
            && self
                .validated
                .is_none_or(|v| v == peer.is_some_and(|peer| peer.validated))
    }
}

/// A compiled `RouteMatch`.
#[derive(Debug)]
pub(super) struct Conditions {
    path: PathRule,
    case_sensitive: bool,
    headers: Box<[HeaderMatcher]>,
    query: Box<[QueryMatcher]>,
    cookies: Box<[CookieMatcher]>,
    fraction: Option<Setting<Fraction>>,
    grpc: bool,
    certificate: Certificate,
    metadata: Box<[MetadataMatcher]>,
    filter_state: Box<[FilterStateMatcher]>,
}

impl Conditions {
    /// Compiles the message.
    ///
    /// # Errors
    /// No path rule, a bad pattern, or a condition that is not supported.
    pub(super) fn compile(
        config: &pb::RouteMatch,
        runtime: &dyn RuntimeKeys,
    ) -> Result<Self, ConfigError> {
        let tls = config.tls_context.as_ref();
        let wanted = |field: Option<&BoolValue>| field.map(|wanted| wanted.value);
        let fraction = config.runtime_fraction.as_ref();
        let fraction = fraction.map(|f| runtime::share(Some(f), runtime).at("runtime_fraction"));
        Ok(Self {
            path: PathRule::compile(config)?,
            case_sensitive: config.case_sensitive.is_none_or(|c| c.value),
            headers: each(&config.headers, "headers", HeaderMatcher::compile)?,
            query: each(
                &config.query_parameters,
                "query_parameters",
                QueryMatcher::compile,
            )?,
            cookies: each(&config.cookies, "cookies", CookieMatcher::compile)?,
            fraction: fraction.transpose()?,
            grpc: config.grpc.is_some(),
            certificate: Certificate {
                presented: wanted(tls.and_then(|t| t.presented.as_ref())),
                validated: wanted(tls.and_then(|t| t.validated.as_ref())),
            },
            metadata: each(
                &config.dynamic_metadata,
                "dynamic_metadata",
                MetadataMatcher::compile,
            )?,
            filter_state: each(
                &config.filter_state,
                "filter_state",
                FilterStateMatcher::compile,
            )?,
        })
    }

    /// Where the path index files the route, and whether case counts.
    pub(super) fn key(&self) -> (Key<'_>, bool) {
        match &self.path {
            PathRule::Exact(path) => (Key::Exact(path), self.case_sensitive),
            PathRule::Prefix(prefix) => (Key::Prefix(prefix), self.case_sensitive),
            PathRule::Segments(prefix) => (Key::Segments(prefix), self.case_sensitive),
            // Envoy's case_sensitive does not reach regular expressions.
            PathRule::Regex(_, literal) => (Key::Prefix(literal), true),
            PathRule::Template(template) => (Key::Prefix(template.literal_prefix()), true),
            PathRule::Connect => (Key::Prefix(""), true),
        }
    }

    /// Whether a request matches whose path (`path`, without the query) fits [`key`](Self::key).
    pub(super) fn matches(
        &self,
        head: &RequestHead,
        path: &str,
        info: &StreamInfo,
        random: u64,
    ) -> bool {
        let path_matches = match &self.path {
            PathRule::Connect => is_connect(head),
            // A plain CONNECT has no path, and only the rule made for it takes it.
            _ if head.path.is_empty() => false,
            PathRule::Regex(regex, _) => regex.is_match(path.as_bytes()),
            PathRule::Template(template) => template.matches(path),
            PathRule::Exact(_) | PathRule::Prefix(_) | PathRule::Segments(_) => true,
        };
        path_matches
            && self.fraction.as_ref().is_none_or(|f| f.get().takes(random))
            && (!self.grpc || head.is_grpc())
            && self.certificate.matches(info)
            && self.headers.iter().all(|m| m.matches(head))
            && (self.query.is_empty() || {
                let query = head.query();
                self.query.iter().all(|m| m.matches(query))
            })
            && self.cookies.iter().all(|m| m.matches(head))
            && self.metadata.iter().all(|m| m.matches(info))
            && self
                .filter_state
                .iter()
                .all(|m| m.matches(&info.filter_state))
    }
}

impl PathRule {
    fn compile(config: &pb::RouteMatch) -> Result<Self, ConfigError> {
        use pb::route_match::PathSpecifier as P;
        Ok(match &config.path_specifier {
            Some(P::Path(path)) => Self::Exact(path.as_str().into()),
            Some(P::Prefix(prefix)) => Self::Prefix(prefix.as_str().into()),
            Some(P::PathSeparatedPrefix(prefix)) => {
                if prefix.len() < 2 || prefix.ends_with('/') || prefix.contains(['?', '#']) {
                    return Err(ConfigError::new(
                        "must have two characters at least, no '?' or '#', and no '/' at its end",
                    )
                    .at("path_separated_prefix"));
                }
                Self::Segments(prefix.as_str().into())
            }
            Some(P::SafeRegex(regex)) => Self::Regex(
                FullRegex::compile(regex).at("safe_regex")?,
                leading_literal(&regex.regex).into(),
            ),
            Some(P::ConnectMatcher(_)) => Self::Connect,
            Some(P::PathMatchPolicy(policy)) => {
                Self::Template(UriTemplate::of_extension(policy).at("path_match_policy")?)
            }
            None => return Err(ConfigError::new("path_specifier is required")),
        })
    }
}

fn each<P, T>(
    config: &[P],
    field: &str,
    compile: impl Fn(&P) -> Result<T, ConfigError>,
) -> Result<Box<[T]>, ConfigError> {
    let one = |(i, p)| compile(p).at(format!("{field}[{i}]"));
    config.iter().enumerate().map(one).collect()
}

/// A plain CONNECT or CONNECT-UDP. Envoy turns every other extended CONNECT into an upgrade GET before
/// it chooses a route.
fn is_connect(head: &RequestHead) -> bool {
    match head.upgrade.as_deref() {
        None => head.method == Method::CONNECT,
        Some(protocol) => protocol.eq_ignore_ascii_case("connect-udp"),
    }
}

/// The text that every match of a pattern begins with, as far as a look at its plain characters tells.
fn leading_literal(pattern: &str) -> String {
    let mut literal = String::new();
    // An alternative may begin otherwise.
    if pattern.contains('|') {
        return literal;
    }
    let mut chars = pattern.strip_prefix('^').unwrap_or(pattern).chars();
    loop {
        match chars.next() {
            Some(c) if c.is_ascii_alphanumeric() || "/-_~%:@!=&,;<>\"'".contains(c) => {
                literal.push(c);
            }
            // An escaped letter or digit is a class, an assertion or a code.
            Some('\\') => match chars.next() {
                Some(c) if c.is_ascii_punctuation() => literal.push(c),
                _ => break,
            },
            Some('?' | '*' | '{') => {
                literal.pop();
                break;
            }
            _ => break,
        }
    }
    literal
}

#[cfg(test)]
#[path = "conditions_tests.rs"]
mod tests;
