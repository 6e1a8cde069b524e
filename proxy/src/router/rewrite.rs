//! What of a path a route matched, and how it rewrites path and host.

use std::borrow::Cow;

use bytestring::ByteString;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::route_action::HostRewriteSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use filters::head::RequestHead;
use filters::matcher::regex::Substitution;
use http::{HeaderName, HeaderValue};
use xds_client::error::{At, ConfigError};

use crate::router::context::header_name;

const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

/// What a route's match takes of the path: what `prefix_rewrite` replaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MatchedPath {
    /// `prefix`
    Prefix(ByteString),
    /// `path_separated_prefix`
    PathSeparatedPrefix(ByteString),
    /// `path`
    Exact(ByteString),
    /// `safe_regex`: the whole path
    Regex,
    /// `connect_matcher`: the whole path
    Connect,
}

impl MatchedPath {
    /// From a route's match.
    ///
    /// # Errors
    /// No path, or an unsupported one.
    pub fn compile(proto: &pb::RouteMatch) -> Result<Self, ConfigError> {
        Ok(match &proto.path_specifier {
            None => return Err(ConfigError::new("a path specifier is required")),
            Some(PathSpecifier::Prefix(p)) => Self::Prefix(p.clone().into()),
            Some(PathSpecifier::PathSeparatedPrefix(p)) => {
                Self::PathSeparatedPrefix(p.clone().into())
            }
            Some(PathSpecifier::Path(p)) => Self::Exact(p.clone().into()),
            Some(PathSpecifier::SafeRegex(_)) => Self::Regex,
            Some(PathSpecifier::ConnectMatcher(_)) => Self::Connect,
            Some(PathSpecifier::PathMatchPolicy(_)) => {
                return Err(ConfigError::unsupported("path_match_policy"));
            }
        })
    }

    /// How many bytes of `path` the match took.
    fn len_in(&self, path: &str) -> usize {
        match self {
            Self::Prefix(p) | Self::PathSeparatedPrefix(p) | Self::Exact(p) => p.len(),
            Self::Regex | Self::Connect => path_len(path),
        }
    }
}

fn path_len(path: &str) -> usize {
    path.find(['?', '#']).unwrap_or(path.len())
}

/// `prefix_rewrite` or `regex_rewrite`.
#[derive(Debug, Clone)]
pub enum PathRewrite {
    /// What was matched becomes this.
    Prefix(ByteString),
    /// The path, without the query, goes through this.
    Regex(Box<Substitution>),
}

impl PathRewrite {
    /// Compiles `prefix_rewrite`.
    ///
    /// # Errors
    /// It holds what no path may.
    pub fn prefix(text: &str) -> Result<Self, ConfigError> {
        HeaderValue::from_str(text).map_err(|_| ConfigError::new("invalid path"))?;
        Ok(Self::Prefix(text.into()))
    }

    /// Compiles `regex_rewrite`.
    ///
    /// # Errors
    /// The pattern or the substitution is invalid.
    pub fn regex(proto: &RegexMatchAndSubstitute) -> Result<Self, ConfigError> {
        Ok(Self::Regex(Box::new(Substitution::compile(proto)?)))
    }

    /// The rewritten path. A query stays.
    pub fn apply<'a>(&self, path: &'a str, matched: &MatchedPath) -> Cow<'a, str> {
        match self {
            Self::Prefix(prefix) => {
                // A filter may have changed the path since it was matched; then there may be no rest.
                let rest = path.get(matched.len_in(path)..).unwrap_or_default();
                Cow::Owned([prefix, rest].concat())
            }
            Self::Regex(substitution) => {
                let Some((only, query)) = path.split_at_checked(path_len(path)) else {
                    return Cow::Borrowed(path);
                };
                match substitution.apply(only) {
                    Cow::Borrowed(_) => Cow::Borrowed(path),
                    Cow::Owned(only) => Cow::Owned(only + query),
                }
            }
        }
    }

    /// Rewrites a request's path and remembers the old one in `x-envoy-original-path`.
    pub fn rewrite(&self, head: &mut RequestHead, matched: &MatchedPath) {
        let new = ByteString::from(self.apply(&head.path, matched).into_owned());
        let old = std::mem::replace(&mut head.path, new);
        set(head, ORIGINAL_PATH, &old);
    }
}

/// How a route rewrites the host.
#[derive(Debug, Clone)]
pub enum HostRewrite {
    /// `host_rewrite_literal`
    Literal(ByteString),
    /// `auto_host_rewrite`: the chosen upstream host's name, which only the forwarder knows.
    Auto,
    /// `host_rewrite_header`: the value of this header, if there is one.
    Header(HeaderName),
    /// `host_rewrite_path_regex`: the path, without the query, through this.
    PathRegex(Box<Substitution>),
}

impl HostRewrite {
    /// Compiles the specifier; None for one that does nothing.
    ///
    /// # Errors
    /// An invalid or unsupported field, with its path.
    pub fn compile(proto: &HostRewriteSpecifier) -> Result<Option<Self>, ConfigError> {
        use HostRewriteSpecifier as Spec;
        Ok(match proto {
            Spec::HostRewriteLiteral(host) => Self::literal(host)?,
            Spec::AutoHostRewrite(on) => on.value.then_some(Self::Auto),
            Spec::HostRewriteHeader(name) => {
                Some(Self::Header(header_name(name).at("host_rewrite_header")?))
            }
            Spec::HostRewritePathRegex(regex) => {
                let regex = Substitution::compile(regex).at("host_rewrite_path_regex")?;
                Some(Self::PathRegex(Box::new(regex)))
            }
            Spec::HostRewrite(_) => return Err(ConfigError::unsupported("host_rewrite")),
        })
    }

    /// Compiles a literal; None if it is empty.
    ///
    /// # Errors
    /// It holds what no host may.
    pub fn literal(host: &str) -> Result<Option<Self>, ConfigError> {
        HeaderValue::from_str(host)
            .map_err(|_| ConfigError::new("invalid host").at("host_rewrite_literal"))?;
        Ok((!host.is_empty()).then(|| Self::Literal(host.into())))
    }

    /// Rewrites a request's host, unless this is [`Auto`](Self::Auto).
    pub fn rewrite(&self, head: &mut RequestHead, append_forwarded: bool) {
        let host = match self {
            Self::Literal(host) => host.clone(),
            Self::Auto => return,
            Self::Header(name) => match head.headers.get(name).and_then(|v| v.to_str().ok()) {
                Some(host) if !host.is_empty() => host.into(),
                _ => return,
            },
            Self::PathRegex(substitution) => substitution.apply(head.path_only()).as_ref().into(),
        };
        replace_host(head, host, append_forwarded);
    }
}

/// Replaces a request's host. The old one goes to `x-envoy-original-host` and, if `append_forwarded`, to
/// `x-forwarded-host`, unless it is that header's last value already.
pub fn replace_host(head: &mut RequestHead, host: ByteString, append_forwarded: bool) {
    let old = std::mem::replace(&mut head.authority, host);
    if append_forwarded && !old.is_empty() {
        let before = head.headers.get_all(FORWARDED_HOST).iter();
        let before: Vec<_> = before.filter_map(|v| v.to_str().ok()).collect();
        let before = before.join(",");
        if before.is_empty() {
            set(head, FORWARDED_HOST, &old);
        } else if before.rsplit(',').next() != Some(&*old) {
            set(head, FORWARDED_HOST, &format!("{before},{old}"));
        }
    }
    set(head, ORIGINAL_HOST, &old);
}

fn set(head: &mut RequestHead, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        head.headers.insert(name, value);
    }
}
