//! Cross-origin resource sharing (WHATWG Fetch, "CORS protocol"; `envoy.extensions.filters.http.cors.v3`).
//! The policy comes from the route alone.

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::filters::http::cors::v3::{Cors, CorsPolicy};
use envoy_types::pb::envoy::r#type::matcher::v3::{self as pb, string_matcher::MatchPattern};
use envoy_types::pb::google::protobuf::Any;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use xds_client::any::unpack;
use xds_client::error::{At, ConfigError};

use crate::body::Body;
use crate::chain::route_config;
use crate::filter::{Flow, HttpFilter, LocalReply, SharedInfo, Slot, Step};
use crate::head::{RequestHead, ResponseHead};
use crate::matcher::StringMatcher;
use crate::registry::{FactoryContext, FilterCounter, HttpFilterFactory};
use crate::runtime::{Fraction, Setting, share};
use crate::stream::{FilterId, RouteFilterConfig};

const REQUEST_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-allow-private-network");
const TRUE: HeaderValue = HeaderValue::from_static("true");

/// Compiles the CORS filter.
pub struct CorsFactory;

struct CorsFilter {
    id: FilterId,
    origin_valid: Arc<dyn FilterCounter>,
    origin_invalid: Arc<dyn FilterCounter>,
}

/// A matcher of origins.
enum Origin {
    Any,
    Like(StringMatcher),
}

impl Origin {
    fn compile(matcher: &pb::StringMatcher) -> Result<Self, ConfigError> {
        match &matcher.match_pattern {
            // Envoy takes an exact `*` as any origin.
            Some(MatchPattern::Exact(s)) if s == "*" => Ok(Self::Any),
            _ => StringMatcher::compile(matcher).map(Self::Like),
        }
    }

    fn matches(&self, origin: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Like(matcher) => matcher.matches(origin),
        }
    }
}

struct Policy {
    enabled: Setting<Fraction>,
    /// Only count origins, where the filter is not enabled.
    shadow: Option<Setting<Fraction>>,
    origins: Vec<Origin>,
    methods: Option<HeaderValue>,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    credentials: bool,
    private_network: bool,
    forward_not_matching: bool,
}

/// What the request noted for its response.
struct Matched {
    policy: Arc<Policy>,
    origin: HeaderValue,
}

fn header(text: &str, field: &str) -> Result<Option<HeaderValue>, ConfigError> {
    if text.is_empty() {
        return Ok(None);
    }
    let value = HeaderValue::from_str(text);
    value
        .map(Some)
        .map_err(|_| ConfigError::new("not a header value").at(field))
}

impl HttpFilterFactory for CorsFactory {
    fn compile(&self, any: &Any, cx: &FactoryContext) -> Result<Arc<dyn HttpFilter>, ConfigError> {
        unpack::<Cors>(any)?;
        Ok(Arc::new(CorsFilter::new(cx)))
    }

    fn compile_route(
        &self,
        any: &Any,
        cx: &FactoryContext,
    ) -> Result<RouteFilterConfig, ConfigError> {
        let proto: CorsPolicy = unpack(any)?;
        let shadow = proto.shadow_enabled.as_ref();
        let shadow = shadow.map(|shadow| share(Some(shadow), &*cx.runtime).at("shadow_enabled"));
        let mut origins = Vec::with_capacity(proto.allow_origin_string_match.len());
        for (i, matcher) in proto.allow_origin_string_match.iter().enumerate() {
            let at = || format!("allow_origin_string_match[{i}]");
            origins.push(Origin::compile(matcher).map_err(|e| e.at(at()))?);
        }
        let flag = |b: Option<envoy_types::pb::google::protobuf::BoolValue>, default| {
            b.map_or(default, |b| b.value)
        };
        Ok(RouteFilterConfig::Config(Arc::new(Policy {
            enabled: share(proto.filter_enabled.as_ref(), &*cx.runtime).at("filter_enabled")?,
            shadow: shadow.transpose()?,
            origins,
            methods: header(&proto.allow_methods, "allow_methods")?,
            headers: header(&proto.allow_headers, "allow_headers")?,
            expose: header(&proto.expose_headers, "expose_headers")?,
            max_age: header(&proto.max_age, "max_age")?,
            credentials: flag(proto.allow_credentials, false),
            private_network: flag(proto.allow_private_network_access, false),
            forward_not_matching: flag(proto.forward_not_matching_preflights, true),
        })))
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &Option<HeaderValue>) {
    if let Some(value) = value {
        headers.insert(name, value.clone());
    }
}

impl CorsFilter {
    fn new(cx: &FactoryContext) -> Self {
        Self {
            id: cx.id,
            origin_valid: cx.stats.counter("cors.origin_valid"),
            origin_invalid: cx.stats.counter("cors.origin_invalid"),
        }
    }
}

impl HttpFilter for CorsFilter {
    fn on_request<'a>(
        &'a self,
        head: &'a mut RequestHead,
        _: &'a mut Body,
        slot: &'a mut Slot,
        info: &'a SharedInfo,
    ) -> Step<'a> {
        let Some(origin) = head.headers.get(ORIGIN).filter(|o| !o.is_empty()) else {
            return Step::CONTINUE;
        };
        let Some(policy) = route_config::<Policy>(info, self.id) else {
            return Step::CONTINUE;
        };
        let taken = |share: &Setting<Fraction>| share.get().takes(fastrand::u64(..));
        let enabled = taken(&policy.enabled);
        if !enabled && !policy.shadow.as_ref().is_some_and(taken) {
            return Step::CONTINUE;
        }
        let allowed = policy.origins.iter().any(|m| m.matches(origin.as_bytes()));
        match allowed {
            true => self.origin_valid.inc(),
            false => self.origin_invalid.inc(),
        }
        if !enabled {
            return Step::CONTINUE;
        }
        let preflight = head.method == Method::OPTIONS
            && (head.headers.get(ACCESS_CONTROL_REQUEST_METHOD)).is_some_and(|m| !m.is_empty());
        let reply = (preflight && (allowed || !policy.forward_not_matching)).then(|| {
            let mut reply = LocalReply::new(StatusCode::OK, "", "cors_response");
            if allowed {
                let headers = &mut reply.headers;
                let asks = head.headers.get(REQUEST_PRIVATE_NETWORK);
                if policy.private_network && asks == Some(&TRUE) {
                    headers.insert(ALLOW_PRIVATE_NETWORK, TRUE);
                }
                set(headers, ACCESS_CONTROL_ALLOW_METHODS, &policy.methods);
                set(headers, ACCESS_CONTROL_ALLOW_HEADERS, &policy.headers);
                set(headers, ACCESS_CONTROL_MAX_AGE, &policy.max_age);
            }
            Box::new(reply)
        });
        if allowed {
            let origin = origin.clone();
            // One allocation for a cross-origin request: the response, a preflight's too, needs its origin.
            *slot = Some(Box::new(Matched { policy, origin }));
        }
        match reply {
            Some(reply) => Step::Ready(Flow::Reply(reply)),
            None => Step::CONTINUE,
        }
    }

    fn on_response<'a>(
        &'a self,
        head: &'a mut ResponseHead,
        _: &'a mut Body,
        slot: &'a mut Slot,
        _: &'a SharedInfo,
    ) -> Step<'a> {
        if let Some(matched) = slot.as_ref().and_then(|s| s.downcast_ref::<Matched>()) {
            let headers = &mut head.headers;
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, matched.origin.clone());
            if matched.policy.credentials {
                headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
            }
            set(
                headers,
                ACCESS_CONTROL_EXPOSE_HEADERS,
                &matched.policy.expose,
            );
        }
        Step::CONTINUE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::tests::info;

    #[derive(Debug)]
    struct Route(RouteFilterConfig);
    impl crate::stream::RouteView for Route {
        fn name(&self) -> &str {
            ""
        }
        fn virtual_host(&self) -> &str {
            ""
        }
        fn filter_config(&self, _: FilterId) -> Option<&RouteFilterConfig> {
            Some(&self.0)
        }
        fn metadata(&self, _: &str) -> Option<&serde_json::Value> {
            None
        }
    }

    fn run(method: Method, origin: &str, forward: bool) -> (Option<LocalReply>, HeaderMap) {
        let facts = info();
        let matcher = |ignore_case, pattern| {
            Origin::compile(&pb::StringMatcher {
                ignore_case,
                match_pattern: Some(pattern),
            })
            .unwrap()
        };
        let regex = pb::RegexMatcher {
            regex: "https://[a-z]+\\.example".into(),
            ..pb::RegexMatcher::default()
        };
        let policy = Policy {
            enabled: Setting::Fixed(Fraction::ALL),
            shadow: None,
            origins: vec![
                matcher(false, MatchPattern::SafeRegex(regex)),
                matcher(true, MatchPattern::Prefix("http://local".into())),
            ],
            methods: Some(HeaderValue::from_static("GET,POST")),
            headers: None,
            expose: Some(HeaderValue::from_static("x-a")),
            max_age: Some(HeaderValue::from_static("60")),
            credentials: true,
            private_network: false,
            forward_not_matching: forward,
        };
        let route = Route(RouteFilterConfig::Config(Arc::new(policy)));
        facts.borrow_mut().route = Some(Arc::new(route));
        let filter = CorsFilter::new(&crate::registry::tests::cx());
        let mut head = RequestHead::new(method, "/");
        (head.headers).insert(ORIGIN, HeaderValue::from_str(origin).unwrap());
        (head.headers).insert(
            ACCESS_CONTROL_REQUEST_METHOD,
            HeaderValue::from_static("GET"),
        );
        let (mut slot, mut body) = (None, Body::Empty);
        let reply = match filter.on_request(&mut head, &mut body, &mut slot, &facts) {
            Step::Ready(Flow::Reply(reply)) => Some(*reply),
            _ => None,
        };
        let mut response = ResponseHead::new(StatusCode::OK);
        filter.on_response(&mut response, &mut body, &mut slot, &facts);
        (reply, response.headers)
    }

    #[test]
    fn preflight_and_actual_requests() {
        let (reply, headers) = run(Method::OPTIONS, "https://a.example", true);
        let reply = reply.unwrap();
        assert_eq!(reply.status, 200);
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_ORIGIN], "https://a.example");
        assert_eq!(reply.headers[ACCESS_CONTROL_ALLOW_METHODS], "GET,POST");
        assert_eq!(reply.headers[ACCESS_CONTROL_MAX_AGE], "60");
        assert!(!reply.headers.contains_key(ACCESS_CONTROL_EXPOSE_HEADERS));
        let (reply, headers) = run(Method::GET, "HTTP://LOCAL:80", true);
        assert!(reply.is_none());
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_ORIGIN], "HTTP://LOCAL:80");
        assert_eq!(headers[ACCESS_CONTROL_EXPOSE_HEADERS], "x-a");
    }

    #[test]
    fn the_chain_and_the_routes_have_their_own_types() {
        let cx = crate::registry::tests::cx();
        let chain = xds_client::any::pack(&Cors::default());
        let route = xds_client::any::pack(&CorsPolicy::default());
        assert!(CorsFactory.compile(&chain, &cx).is_ok());
        assert!(CorsFactory.compile(&route, &cx).is_err());
        assert!(CorsFactory.compile_route(&route, &cx).is_ok());
        assert!(CorsFactory.compile_route(&chain, &cx).is_err());
    }

    #[test]
    fn other_origins_get_nothing() {
        let (reply, headers) = run(Method::GET, "https://a.example.evil", true);
        assert!(reply.is_none() && headers.is_empty());
        let (reply, headers) = run(Method::OPTIONS, "https://evil", true);
        assert!(reply.is_none() && headers.is_empty());
        let (reply, _) = run(Method::OPTIONS, "https://evil", false);
        assert!(reply.unwrap().headers.is_empty());
    }
}
