//! JSON Web Tokens (`envoy.extensions.filters.http.jwt_authn.v3`): who a request is from, proved by local keys.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/jwt_authn_filter>

mod keys;
mod location;
mod provider;
mod requirement;
mod token;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use envoy_types::pb::envoy::config::route::v3::{RouteMatch, route_match::PathSpecifier};
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::{
    JwtAuthentication, PerRouteConfig, RequirementRule, per_route_config::RequirementSpecifier,
    requirement_rule::RequirementType,
};
use envoy_types::pb::google::protobuf::Any;
use http::header::{
    ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, HeaderName, ORIGIN, WWW_AUTHENTICATE,
};
use http::{HeaderValue, Method, StatusCode};
use serde_json::Map;
use xds_client::any::unpack;
use xds_client::error::{At, ConfigError};

use self::requirement::{Providers, Requirement, Round};
use self::token::Failure;
use crate::body::Body;
use crate::chain::route_config;
use crate::filter::{Flow, HttpFilter, LocalReply, SharedInfo, Slot, Step};
use crate::head::RequestHead;
use crate::matcher::HeaderMatcher;
use crate::registry::{FactoryContext, FilterCounter, HttpFilterFactory};
use crate::stream::{FilterId, RouteFilterConfig};

/// The namespace of what is taken from tokens.
const NAMESPACE: &str = "envoy.filters.http.jwt_authn";
/// The most of a path that a client is told it needs a token for, in bytes.
const MAX_PATH: usize = 256;

/// Compiles the filter.
pub struct JwtAuthnFactory;

/// A route's settings.
enum PerRoute {
    Off,
    Named(String),
}

/// Which requests a rule is for.
struct Match {
    path: Path,
    headers: Vec<HeaderMatcher>,
}

enum Path {
    Prefix(String),
    Exact(String),
}

struct JwtAuthnFilter {
    id: FilterId,
    providers: Providers,
    rules: Vec<(Match, Requirement)>,
    named: HashMap<String, Requirement>,
    /// Headers that clients must not set.
    own_headers: Vec<HeaderName>,
    bypass_preflight: bool,
    strip_response: bool,
    allowed: Arc<dyn FilterCounter>,
    denied: Arc<dyn FilterCounter>,
    preflights: Arc<dyn FilterCounter>,
}

impl Match {
    fn compile(config: &RouteMatch) -> Result<Self, ConfigError> {
        let known = RouteMatch {
            path_specifier: config.path_specifier.clone(),
            headers: config.headers.clone(),
            ..RouteMatch::default()
        };
        if known != *config {
            return Err(ConfigError::unsupported(
                "other conditions than a path and headers",
            ));
        }
        let headers = config.headers.iter().map(HeaderMatcher::compile);
        Ok(Self {
            path: match &config.path_specifier {
                Some(PathSpecifier::Prefix(prefix)) => Path::Prefix(prefix.clone()),
                Some(PathSpecifier::Path(path)) => Path::Exact(path.clone()),
                _ => return Err(ConfigError::unsupported("path_specifier")),
            },
            headers: headers.collect::<Result<_, _>>().at("headers")?,
        })
    }

    fn fits(&self, head: &RequestHead) -> bool {
        let path = match &self.path {
            Path::Prefix(prefix) => head.path.starts_with(prefix.as_str()),
            Path::Exact(path) => head.path_only() == path,
        };
        path && self.headers.iter().all(|m| m.matches(head))
    }
}

impl JwtAuthnFactory {
    fn rule(
        rule: &RequirementRule,
        proto: &JwtAuthentication,
        providers: &Providers,
    ) -> Result<(Match, Requirement), ConfigError> {
        let fits = rule.r#match.as_ref();
        let fits = fits.ok_or_else(|| ConfigError::new("is required").at("match"))?;
        let requirement = match &rule.requirement_type {
            None => Requirement::Nothing,
            Some(RequirementType::Requires(config)) => {
                Requirement::compile(config, providers).at("requires")?
            }
            Some(RequirementType::RequirementName(name)) => {
                let config = proto.requirement_map.get(name);
                let config = config.ok_or_else(|| ConfigError::new("is not in requirement_map"));
                Requirement::compile(config.at("requirement_name")?, providers)?
            }
        };
        Ok((Match::compile(fits).at("match")?, requirement))
    }
}

impl HttpFilterFactory for JwtAuthnFactory {
    fn compile(&self, any: &Any, cx: &FactoryContext) -> Result<Arc<dyn HttpFilter>, ConfigError> {
        let proto: JwtAuthentication = unpack(any)?;
        if proto.filter_state_rules.is_some() {
            return Err(ConfigError::unsupported("filter_state_rules"));
        }
        let providers = Providers::compile(proto.providers.iter()).at("providers")?;
        let rules = proto.rules.iter().enumerate();
        let rules =
            rules.map(|(i, rule)| Self::rule(rule, &proto, &providers).at(format!("rules[{i}]")));
        let rules = rules.collect::<Result<_, _>>()?;
        let named = proto.requirement_map.iter().map(|(name, config)| {
            let requirement = Requirement::compile(config, &providers).at("requirement_map");
            Ok((name.clone(), requirement?))
        });
        let named = named.collect::<Result<_, ConfigError>>()?;
        let prefix = match proto.stat_prefix.trim_end_matches('.') {
            "" => "jwt_authn.".to_owned(),
            prefix => format!("jwt_authn.{prefix}."),
        };
        let counter = |name: &str| cx.stats.counter(&format!("{prefix}{name}"));
        Ok(Arc::new(JwtAuthnFilter {
            id: cx.id,
            own_headers: providers
                .iter()
                .flat_map(|p| p.own_headers().cloned())
                .collect(),
            providers,
            rules,
            named,
            bypass_preflight: proto.bypass_cors_preflight,
            strip_response: proto.strip_failure_response,
            allowed: counter("allowed"),
            denied: counter("denied"),
            preflights: counter("cors_preflight_bypassed"),
        }))
    }

    fn compile_route(
        &self,
        any: &Any,
        _: &FactoryContext,
    ) -> Result<RouteFilterConfig, ConfigError> {
        let config = match unpack::<PerRouteConfig>(any)?.requirement_specifier {
            Some(RequirementSpecifier::Disabled(true)) => PerRoute::Off,
            Some(RequirementSpecifier::RequirementName(name)) => PerRoute::Named(name),
            _ => return Err(ConfigError::new("is required").at("requirement_specifier")),
        };
        Ok(RouteFilterConfig::Config(Arc::new(config)))
    }
}

impl JwtAuthnFilter {
    /// What a request is asked for; an error is told to the client.
    fn requirement(&self, head: &RequestHead, info: &SharedInfo) -> Result<&Requirement, String> {
        let is_preflight = || {
            let has = |name| head.headers.get(name).is_some_and(|v| !v.is_empty());
            head.method == Method::OPTIONS && has(ORIGIN) && has(ACCESS_CONTROL_REQUEST_METHOD)
        };
        if self.bypass_preflight && is_preflight() {
            self.preflights.inc();
            return Ok(&Requirement::Nothing);
        }
        match route_config::<PerRoute>(info, self.id).as_deref() {
            Some(PerRoute::Off) => Ok(&Requirement::Nothing),
            Some(PerRoute::Named(name)) => self.named.get(name).ok_or_else(|| {
                let mut names: Vec<&str> = self.named.keys().map(String::as_str).collect();
                names.sort_unstable();
                let names = names.join(",");
                format!("Wrong requirement_name: {name}. It should be one of [{names}]")
            }),
            None => {
                let mut rules = self.rules.iter();
                let rule = rules.find(|(fits, _)| fits.fits(head));
                Ok(rule.map_or(&Requirement::Nothing, |(_, requirement)| requirement))
            }
        }
    }

    fn reply(&self, status: StatusCode, text: String, reason: &str) -> LocalReply {
        let details = format!("jwt_authn_access_denied{{{}}}", reason.replace(' ', "_"));
        let text = if self.strip_response {
            String::new()
        } else {
            text
        };
        LocalReply::new(status, text, details)
    }

    /// The answer to a request without a good token.
    fn refuse(&self, failure: Failure, uri: &str) -> LocalReply {
        let status = match failure {
            Failure::Audiences => StatusCode::FORBIDDEN,
            _ => StatusCode::UNAUTHORIZED,
        };
        let text = failure.to_string();
        let mut reply = self.reply(status, text.clone(), &text);
        let error = match failure {
            Failure::Missing => "",
            _ => ", error=\"invalid_token\"",
        };
        let challenge = format!("Bearer realm=\"{uri}\"{error}");
        if let Ok(value) = HeaderValue::from_bytes(challenge.as_bytes())
            && !self.strip_response
        {
            reply.headers.insert(WWW_AUTHENTICATE, value);
        }
        reply
    }

    /// Looks at a request's tokens; the answer to one that lacks them.
    fn authenticate(&self, head: &mut RequestHead, info: &SharedInfo) -> Option<LocalReply> {
        // Nobody but this filter may say what was proved.
        for name in &self.own_headers {
            head.headers.remove(name);
        }
        join_authorization(head);
        let requirement = match self.requirement(head, info) {
            Ok(requirement) => requirement,
            Err(reason) => {
                self.denied.inc();
                let text = format!("Failed JWT authentication: {reason}");
                return Some(self.reply(StatusCode::FORBIDDEN, text, &reason));
            }
        };
        if matches!(requirement, Requirement::Nothing) {
            self.allowed.inc();
            return None;
        }
        // As the client knows it: a token in the path may be gone later.
        let path = head.path.get(..MAX_PATH).unwrap_or(&head.path);
        let uri = format!("{}://{}{path}", head.scheme, head.authority);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let mut round = Round {
            head,
            now: now.unwrap_or_default().as_secs(),
            extracted: Map::new(),
            reroute: false,
        };
        let outcome = requirement.check(&self.providers, &mut round);
        let (extracted, reroute) = (round.extracted, round.reroute);
        let mut info = info.borrow_mut();
        if !extracted.is_empty() {
            let object = info.dynamic_metadata.entry(NAMESPACE.to_owned());
            object.or_default().extend(extracted);
        }
        match outcome {
            Ok(()) => {
                info.route_stale |= reroute;
                self.allowed.inc();
                None
            }
            Err(failure) => {
                self.denied.inc();
                Some(self.refuse(failure, &uri))
            }
        }
    }
}

/// Makes one line of several: what is judged must be what the next reader takes.
fn join_authorization(head: &mut RequestHead) {
    let lines: Vec<&[u8]> = (head.headers.get_all(AUTHORIZATION).iter())
        .map(HeaderValue::as_bytes)
        .collect();
    if lines.len() > 1
        && let Ok(one) = HeaderValue::from_bytes(&lines.join(&b","[..]))
    {
        head.headers.insert(AUTHORIZATION, one);
    }
}

impl HttpFilter for JwtAuthnFilter {
    fn on_request<'a>(
        &'a self,
        head: &'a mut RequestHead,
        _: &'a mut Body,
        _: &'a mut Slot,
        info: &'a SharedInfo,
    ) -> Step<'a> {
        match self.authenticate(head, info) {
            None => Step::CONTINUE,
            Some(reply) => Step::Ready(Flow::Reply(Box::new(reply))),
        }
    }
}

#[cfg(test)]
mod tests;
