//! Redirects (Envoy's `RedirectAction`).

use bytestring::ByteString;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, SchemeRewriteSpecifier,
};
use filters::head::RequestHead;
use http::{HeaderName, HeaderValue, StatusCode};
use xds_client::error::{At, ConfigError};

use crate::router::rewrite::{MatchedPath, PathRewrite};

const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

#[derive(Debug, Clone)]
enum PathChange {
    Keep,
    /// `path_redirect`, and whether it has a query of its own.
    Replace(ByteString, bool),
    Rewrite(PathRewrite),
}

/// A compiled redirect.
#[derive(Debug, Clone)]
pub struct Redirect {
    status: StatusCode,
    scheme: Option<ByteString>,
    host: ByteString,
    port: Option<u32>,
    path: PathChange,
    strip_query: bool,
}

impl Redirect {
    /// Compiles the message of a route that matches `matched`.
    ///
    /// # Errors
    /// An invalid or unsupported field, with its path.
    pub fn compile(proto: &pb::RedirectAction, matched: &MatchedPath) -> Result<Self, ConfigError> {
        let status = match proto.response_code {
            0 => StatusCode::MOVED_PERMANENTLY,
            1 => StatusCode::FOUND,
            2 => StatusCode::SEE_OTHER,
            3 => StatusCode::TEMPORARY_REDIRECT,
            4 => StatusCode::PERMANENT_REDIRECT,
            n => return Err(ConfigError::new(format!("unknown value {n}")).at("response_code")),
        };
        let scheme = match &proto.scheme_rewrite_specifier {
            Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
            Some(SchemeRewriteSpecifier::SchemeRedirect(s)) if !s.is_empty() => {
                Some(s.to_ascii_lowercase().into())
            }
            _ => None,
        };
        if proto.port_redirect > 65_535 {
            return Err(ConfigError::new("must be at most 65535").at("port_redirect"));
        }
        for (field, text) in [
            ("host_redirect", &proto.host_redirect),
            (
                "scheme_redirect",
                &scheme.as_ref().map(ToString::to_string).unwrap_or_default(),
            ),
        ] {
            HeaderValue::from_str(text).map_err(|_| ConfigError::new("invalid text").at(field))?;
        }
        let path = match &proto.path_rewrite_specifier {
            None => PathChange::Keep,
            Some(PathRewriteSpecifier::PathRedirect(p)) if p.is_empty() => PathChange::Keep,
            Some(PathRewriteSpecifier::PathRedirect(p)) => {
                HeaderValue::from_str(p)
                    .map_err(|_| ConfigError::new("invalid text").at("path_redirect"))?;
                PathChange::Replace(p.clone().into(), p.contains('?'))
            }
            Some(PathRewriteSpecifier::PrefixRewrite(p)) if p.is_empty() => PathChange::Keep,
            Some(PathRewriteSpecifier::PrefixRewrite(p)) => {
                PathChange::Rewrite(matched.rewrite_prefix(p).at("prefix_rewrite")?)
            }
            Some(PathRewriteSpecifier::RegexRewrite(r)) => {
                PathChange::Rewrite(PathRewrite::regex(r).at("regex_rewrite")?)
            }
            Some(PathRewriteSpecifier::PathRewrite(_)) => {
                return Err(ConfigError::unsupported("path_rewrite"));
            }
        };
        Ok(Self {
            status,
            scheme,
            host: proto.host_redirect.clone().into(),
            port: (proto.port_redirect != 0).then_some(proto.port_redirect),
            path,
            strip_query: proto.strip_query,
        })
    }

    /// A redirect to the same URL over https, for `require_tls`.
    pub fn to_https() -> Self {
        Self {
            scheme: Some(ByteString::from_static("https")),
            ..Self::to_itself()
        }
    }

    /// A redirect that changes nothing.
    pub fn to_itself() -> Self {
        Self {
            status: StatusCode::MOVED_PERMANENTLY,
            scheme: None,
            host: ByteString::new(),
            port: None,
            path: PathChange::Keep,
            strip_query: false,
        }
    }

    /// The response's status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The `location` header. Empty only if the request's path holds what no header may.
    pub fn location(&self, head: &RequestHead, matched: &MatchedPath) -> HeaderValue {
        let scheme = self.scheme.as_ref().unwrap_or(&head.scheme);
        let host: &str = match self.host.is_empty() {
            true => self.request_host(head, scheme),
            false => &self.host,
        };
        let mut url = format!("{scheme}://{host}");
        if let Some(port) = self.port {
            url.push(':');
            url.push_str(itoa::Buffer::new().format(port));
        }
        let query = head.path.find('?').and_then(|at| head.path.get(at..));
        match &self.path {
            PathChange::Keep => url.push_str(self.without_query(&head.path)),
            // Its own query is never stripped, and replaces the request's.
            PathChange::Replace(path, has_query) => {
                url.push_str(path);
                if !has_query && !self.strip_query {
                    url.push_str(query.unwrap_or_default());
                }
            }
            PathChange::Rewrite(rewrite) => {
                let path = rewrite.apply(&head.path, matched);
                url.push_str(self.without_query(&path));
            }
        }
        HeaderValue::from_maybe_shared(bytes::Bytes::from(url))
            .unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    fn without_query<'a>(&self, path: &'a str) -> &'a str {
        match path.split_once('?') {
            Some((path, _)) if self.strip_query => path,
            _ => path,
        }
    }

    /// The request's host; without its port if the redirect has one, or changes the scheme that the
    /// port is the default of.
    fn request_host<'a>(&self, head: &'a RequestHead, scheme: &str) -> &'a str {
        let host: &str = &head.authority;
        let colon = if host.starts_with('[') {
            host.rfind("]:").map(|at| at + 1)
        } else {
            host.rfind(':')
        };
        let Some((name, port)) = colon.and_then(|at| host.split_at_checked(at)) else {
            return host;
        };
        // The scheme of the connection that the client itself made.
        let forwarded = head.headers.get(FORWARDED_PROTO);
        let scheme_now: &str = &head.scheme;
        let from = forwarded.map_or(scheme_now.as_bytes(), |v| v.as_bytes());
        let default = matches!(
            (from, port.as_bytes()),
            (b"https", b":443") | (b"http", b":80")
        );
        match self.port.is_some() || (from != scheme.as_bytes() && default) {
            true => name,
            false => host,
        }
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
    use http::Method;

    use super::*;

    struct Case {
        proto: pb::RedirectAction,
        host: &'static str,
        forwarded: Option<&'static str>,
    }

    fn case(proto: pb::RedirectAction) -> Case {
        Case {
            proto,
            host: "a.test:8080",
            forwarded: None,
        }
    }

    impl Case {
        fn of(mut self, host: &'static str) -> Self {
            self.host = host;
            self
        }

        fn on(mut self, scheme: &'static str) -> Self {
            self.forwarded = Some(scheme);
            self
        }

        /// Where a request for `/p/x?q` under a route with the prefix `/p` is sent.
        fn location(&self) -> String {
            let redirect = Redirect::compile(&self.proto, &MatchedPath::Regex).unwrap();
            let mut head = RequestHead::new(Method::GET, "/p/x?q");
            head.authority = self.host.into();
            if let Some(scheme) = self.forwarded {
                head.scheme = scheme.into();
                let value = HeaderValue::from_static(scheme);
                head.headers.insert(FORWARDED_PROTO, value);
            }
            let location = redirect.location(&head, &MatchedPath::Prefix("/p".into()));
            location.to_str().unwrap().to_owned()
        }
    }

    fn base() -> pb::RedirectAction {
        pb::RedirectAction::default()
    }

    #[test]
    fn hosts_schemes_and_ports() {
        use SchemeRewriteSpecifier as Scheme;
        let https = || pb::RedirectAction {
            scheme_rewrite_specifier: Some(Scheme::HttpsRedirect(true)),
            ..base()
        };
        let http = || pb::RedirectAction {
            scheme_rewrite_specifier: Some(Scheme::SchemeRedirect("HTTP".into())),
            ..base()
        };
        let port = || pb::RedirectAction {
            port_redirect: 9,
            ..base()
        };
        let host = pb::RedirectAction {
            host_redirect: "b.test:1".into(),
            ..base()
        };
        for (case, want) in [
            (case(base()), "http://a.test:8080/p/x?q"),
            (case(host), "http://b.test:1/p/x?q"),
            (case(https()), "https://a.test:8080/p/x?q"),
            (
                case(https()).of("a.test:80").on("http"),
                "https://a.test/p/x?q",
            ),
            (
                case(https()).of("a.test:443").on("http"),
                "https://a.test:443/p/x?q",
            ),
            (
                case(http()).of("a.test:443").on("https"),
                "http://a.test/p/x?q",
            ),
            (case(port()), "http://a.test:9/p/x?q"),
            (case(port()).of("[::1]:80"), "http://[::1]:9/p/x?q"),
            (case(port()).of("[::1]"), "http://[::1]:9/p/x?q"),
        ] {
            assert_eq!(case.location(), want);
        }
    }

    #[test]
    fn paths_and_queries() {
        use PathRewriteSpecifier as Path;
        let path = |specifier, strip_query| {
            case(pb::RedirectAction {
                path_rewrite_specifier: Some(specifier),
                strip_query,
                ..base()
            })
        };
        let regex = matcher::RegexMatchAndSubstitute {
            pattern: Some(matcher::RegexMatcher {
                regex: "^/p/(.*)$".into(),
                ..Default::default()
            }),
            substitution: "/got/\\1".into(),
        };
        for (case, want) in [
            (path(Path::PathRedirect("/n".into()), false), "/n?q"),
            (path(Path::PathRedirect("/n".into()), true), "/n"),
            (path(Path::PathRedirect("/n?own".into()), false), "/n?own"),
            (path(Path::PathRedirect("/n?own".into()), true), "/n?own"),
            (path(Path::PrefixRewrite("/n".into()), false), "/n/x?q"),
            (path(Path::PrefixRewrite("/n".into()), true), "/n/x"),
            (path(Path::RegexRewrite(regex), false), "/got/x?q"),
            (path(Path::PathRedirect(String::new()), true), "/p/x"),
        ] {
            assert_eq!(case.location(), format!("http://a.test:8080{want}"));
        }
    }

    #[test]
    fn statuses_and_errors() {
        for (code, status) in [(0, 301), (1, 302), (2, 303), (3, 307), (4, 308)] {
            let proto = pb::RedirectAction {
                response_code: code,
                ..base()
            };
            assert_eq!(
                Redirect::compile(&proto, &MatchedPath::Regex)
                    .unwrap()
                    .status(),
                status
            );
        }
        let refused = |proto: pb::RedirectAction| {
            Redirect::compile(&proto, &MatchedPath::Regex)
                .unwrap_err()
                .to_string()
        };
        let port = pb::RedirectAction {
            port_redirect: 70_000,
            ..base()
        };
        assert!(refused(port).starts_with("port_redirect: "));
        let host = pb::RedirectAction {
            host_redirect: "a\r\nb".into(),
            ..base()
        };
        assert!(refused(host).starts_with("host_redirect: "));
    }
}
