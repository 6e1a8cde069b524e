//! What of a path a route matched, and how it rewrites path and host.

use std::borrow::Cow;

use bytestring::ByteString;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::route_action::HostRewriteSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use filters::head::RequestHead;
use filters::matcher::UriTemplate;
use filters::matcher::regex::Substitution;
use http::{HeaderName, HeaderValue};
use xds_client::error::{At, ConfigError};

use crate::router::context::header_name;

const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

/// What a route's match takes of the path: what `prefix_rewrite` replaces.
#[derive(Debug, Clone)]
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
    /// A URI template, which takes variables instead of a part
    Template(UriTemplate),
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
            Some(PathSpecifier::PathMatchPolicy(policy)) => {
                Self::Template(UriTemplate::of_extension(policy).at("path_match_policy")?)
            }
        })
    }

    /// Compiles a `prefix_rewrite` of what is matched.
    ///
    /// # Errors
    /// It is matched by a template, or the new prefix holds what no path may.
    pub fn rewrite_prefix(&self, text: &str) -> Result<PathRewrite, ConfigError> {
        if matches!(self, Self::Template(_)) {
            return Err(ConfigError::new("cannot be used with path_match_policy"));
        }
        HeaderValue::from_str(text).map_err(|_| ConfigError::new("invalid path"))?;
        Ok(PathRewrite::Prefix(text.into()))
    }

    /// How many bytes of `path` the match took.
    fn len_in(&self, path: &str) -> usize {
        match self {
            Self::Prefix(p) | Self::PathSeparatedPrefix(p) | Self::Exact(p) => p.len(),
            Self::Template(_) | Self::Regex | Self::Connect => path_len(path),
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
    /// Compiles `regex_rewrite`.
    ///
    /// # Errors
    /// The pattern or the substitution is invalid.
    pub fn regex(proto: &RegexMatchAndSubstitute) -> Result<Self, ConfigError> {
        Ok(Self::Regex(Box::new(Substitution::compile(proto)?)))
    }

    /// Compiles `path_rewrite_policy` of a route that matches this.
    ///
    /// # Errors
    /// Not a URI template, or none that fits what is matched.
    pub fn policy(
        config: &core::TypedExtensionConfig,
        matched: &MatchedPath,
    ) -> Result<Self, ConfigError> {
        let MatchedPath::Template(template) = matched else {
            return Err(ConfigError::new(
                "needs a path_match_policy to take its variables from",
            ));
        };
        Ok(Self::Regex(Box::new(template.rewrite(config)?)))
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

    /// Rewrites a request's path and, if wanted, keeps the old one in `x-envoy-original-path`.
    pub fn rewrite(&self, head: &mut RequestHead, matched: &MatchedPath, keep_original: bool) {
        let new = ByteString::from(self.apply(&head.path, matched).into_owned());
        let old = std::mem::replace(&mut head.path, new);
        if keep_original {
            set(head, ORIGINAL_PATH, &old);
        }
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
    pub fn rewrite(&self, head: &mut RequestHead, append_forwarded: bool, keep_original: bool) {
        let host = match self {
            Self::Literal(host) => host.clone(),
            Self::Auto => return,
            Self::Header(name) => match head.headers.get(name).and_then(|v| v.to_str().ok()) {
                Some(host) if !host.is_empty() => host.into(),
                _ => return,
            },
            Self::PathRegex(substitution) => substitution.apply(head.path_only()).as_ref().into(),
        };
        replace_host(head, host, append_forwarded, keep_original);
    }
}

/// Replaces a request's host. The old one goes to `x-envoy-original-host` if `keep_original`, and to
/// `x-forwarded-host` if `append_forwarded`, unless it is that header's last value already.
pub fn replace_host(
    head: &mut RequestHead,
    host: ByteString,
    append_forwarded: bool,
    keep_original: bool,
) {
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
    if keep_original {
        set(head, ORIGINAL_HOST, &old);
    }
}

fn set(head: &mut RequestHead, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        head.headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatcher;
    use envoy_types::pb::google::protobuf::BoolValue;
    use http::Method;

    use super::*;

    fn regex(pattern: &str, substitution: &str) -> RegexMatchAndSubstitute {
        RegexMatchAndSubstitute {
            pattern: Some(RegexMatcher {
                regex: pattern.into(),
                ..RegexMatcher::default()
            }),
            substitution: substitution.into(),
        }
    }

    #[test]
    fn what_was_matched_is_replaced() {
        let to = |text: &str| MatchedPath::Regex.rewrite_prefix(text).unwrap();
        for (matched, rewrite, path, want) in [
            (
                MatchedPath::Prefix("/a".into()),
                to("/b"),
                "/a/x?y",
                "/b/x?y",
            ),
            (MatchedPath::Prefix("/a/".into()), to("/"), "/a/", "/"),
            (
                MatchedPath::PathSeparatedPrefix("/a".into()),
                to("/b"),
                "/a",
                "/b",
            ),
            (
                MatchedPath::Exact("/a".into()),
                to("/b"),
                "/a?q=/a",
                "/b?q=/a",
            ),
            (MatchedPath::Regex, to("/b"), "/a/c?q", "/b?q"),
            (MatchedPath::Connect, to("/b"), "", "/b"),
            // A filter made the path shorter than what the route had matched.
            (MatchedPath::Prefix("/long".into()), to("/b"), "/a", "/b"),
        ] {
            assert_eq!(rewrite.apply(path, &matched), want, "{path}");
        }
    }

    #[test]
    fn a_regex_sees_no_query() {
        let rewrite = PathRewrite::regex(&regex("a", "b")).unwrap();
        let matched = MatchedPath::Prefix("/".into());
        assert_eq!(rewrite.apply("/banana?a", &matched), "/bbnbnb?a");
        assert_eq!(rewrite.apply("/x?a", &matched), "/x?a");
        let groups = PathRewrite::regex(&regex("^/([^/]+)/(.*)$", "/\\2/\\1")).unwrap();
        assert_eq!(groups.apply("/a/b/c?d", &matched), "/b/c/a?d");
    }

    #[test]
    fn the_original_path_is_kept_if_wanted() {
        let matched = MatchedPath::Prefix("/a".into());
        let rewrite = matched.rewrite_prefix("/b").unwrap();
        for keep in [true, false] {
            let mut head = RequestHead::new(Method::GET, "/a/x");
            rewrite.rewrite(&mut head, &matched, keep);
            assert_eq!(&*head.path, "/b/x");
            let original = head.headers.get(ORIGINAL_PATH);
            assert_eq!(original.map(|v| v.as_bytes()), keep.then_some(&b"/a/x"[..]));
        }
    }

    fn host_after(spec: &HostRewriteSpecifier, header: Option<&'static str>) -> String {
        let rewrite = HostRewrite::compile(spec).unwrap().unwrap();
        let mut head = RequestHead::new(Method::GET, "/one/two?three");
        head.authority = "old.test".into();
        if let Some(value) = header {
            let name = HeaderName::from_static("x-host");
            head.headers.insert(name, HeaderValue::from_static(value));
        }
        rewrite.rewrite(&mut head, false, true);
        head.authority.to_string()
    }

    #[test]
    fn hosts_come_from_literals_headers_and_paths() {
        use HostRewriteSpecifier as Spec;
        let literal = Spec::HostRewriteLiteral("new.test".into());
        assert_eq!(host_after(&literal, None), "new.test");
        let header = Spec::HostRewriteHeader("x-host".into());
        assert_eq!(host_after(&header, Some("from.test")), "from.test");
        assert_eq!(host_after(&header, Some("")), "old.test");
        assert_eq!(host_after(&header, None), "old.test");
        let path = Spec::HostRewritePathRegex(regex("^/([^/]+)/.*$", "\\1.test"));
        assert_eq!(host_after(&path, None), "one.test");
        // The chosen host's name is not known yet.
        let auto = Spec::AutoHostRewrite(BoolValue { value: true });
        assert_eq!(host_after(&auto, None), "old.test");
        let off = Spec::AutoHostRewrite(BoolValue { value: false });
        assert!(HostRewrite::compile(&off).unwrap().is_none());
        let bad = HostRewrite::compile(&Spec::HostRewriteLiteral("a\nb".into()));
        assert!(
            bad.unwrap_err()
                .to_string()
                .starts_with("host_rewrite_literal")
        );
    }

    #[test]
    fn the_forwarded_host_grows_once_for_each_host() {
        let mut head = RequestHead::new(Method::GET, "/");
        for (from, to, want) in [
            ("a.test", "b.test", "a.test"),
            ("a.test", "b.test", "a.test"),
            ("b.test", "c.test", "a.test,b.test"),
        ] {
            head.authority = from.into();
            replace_host(&mut head, to.into(), true, true);
            assert_eq!(&*head.authority, to);
            assert_eq!(head.headers[FORWARDED_HOST], want);
            assert_eq!(head.headers[ORIGINAL_HOST], from);
        }
    }
}
