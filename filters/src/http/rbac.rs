//! Access control for requests (`envoy.extensions.filters.http.rbac.v3`), over the engine of [`crate::rbac`].

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::{Rbac, RbacPerRoute};
use envoy_types::pb::google::protobuf::Any;
use http::StatusCode;
use serde_json::Value;
use xds_client::any::unpack;
use xds_client::error::{At, ConfigError};

use crate::body::Body;
use crate::chain::route_config;
use crate::filter::{Flow, HttpFilter, LocalReply, SharedInfo, Slot, Step};
use crate::head::RequestHead;
use crate::rbac::{Engine, LOG_HINT, Layer, Subject};
use crate::registry::{FactoryContext, FilterCounter, FilterStats, HttpFilterFactory};
use crate::stream::{FilterId, RouteFilterConfig};

/// The namespace of what the rules find.
const NAMESPACE: &str = "envoy.filters.http.rbac";

/// Compiles the filter.
pub struct RbacFactory;

/// Rules of the filter, or of a route in their place.
struct Rules {
    enforced: Option<Engine>,
    shadow: Option<Engine>,
    prefix: String,
    shadow_prefix: String,
}

struct Counters {
    allowed: Arc<dyn FilterCounter>,
    denied: Arc<dyn FilterCounter>,
    shadow_allowed: Arc<dyn FilterCounter>,
    shadow_denied: Arc<dyn FilterCounter>,
}

struct RbacFilter {
    id: FilterId,
    rules: Rules,
    counters: Counters,
}

impl Rules {
    fn compile(proto: &Rbac) -> Result<Self, ConfigError> {
        let refused = [
            (proto.matcher.is_some(), "matcher"),
            (proto.shadow_matcher.is_some(), "shadow_matcher"),
            (proto.track_per_rule_stats, "track_per_rule_stats"),
        ];
        if let Some((_, field)) = refused.iter().find(|(set, _)| *set) {
            return Err(ConfigError::unsupported(field));
        }
        let compile = |rules| Engine::compile(rules, Layer::Http);
        let shadow = proto.shadow_rules.as_ref();
        Ok(Self {
            enforced: proto.rules.as_ref().map(compile).transpose().at("rules")?,
            shadow: shadow.map(compile).transpose().at("shadow_rules")?,
            prefix: proto.rules_stat_prefix.clone(),
            shadow_prefix: proto.shadow_rules_stat_prefix.clone(),
        })
    }
}

impl Counters {
    fn new(proto: &Rbac, stats: &dyn FilterStats) -> Self {
        let counter = |prefix: &str, name: &str| match prefix {
            "" => stats.counter(&format!("rbac.{name}")),
            prefix => stats.counter(&format!("rbac.{}.{name}", prefix.trim_end_matches('.'))),
        };
        let (rules, shadow) = (&proto.rules_stat_prefix, &proto.shadow_rules_stat_prefix);
        Self {
            allowed: counter(rules, "allowed"),
            denied: counter(rules, "denied"),
            shadow_allowed: counter(shadow, "shadow_allowed"),
            shadow_denied: counter(shadow, "shadow_denied"),
        }
    }
}

impl HttpFilterFactory for RbacFactory {
    fn compile(&self, any: &Any, cx: &FactoryContext) -> Result<Arc<dyn HttpFilter>, ConfigError> {
        let proto: Rbac = unpack(any)?;
        Ok(Arc::new(RbacFilter {
            id: cx.id,
            rules: Rules::compile(&proto)?,
            counters: Counters::new(&proto, &*cx.stats),
        }))
    }

    fn compile_route(
        &self,
        any: &Any,
        _: &FactoryContext,
    ) -> Result<RouteFilterConfig, ConfigError> {
        match unpack::<RbacPerRoute>(any)?.rbac {
            None => Ok(RouteFilterConfig::Disabled),
            Some(rbac) => {
                let rules = Rules::compile(&rbac).at("rbac")?;
                Ok(RouteFilterConfig::Config(Arc::new(rules)))
            }
        }
    }
}

impl RbacFilter {
    /// Decides, counts and notes; the details of a refusal.
    fn refuse(&self, rules: &Rules, head: &RequestHead, info: &SharedInfo) -> Option<String> {
        let info = &mut *info.borrow_mut();
        let shadow = rules
            .shadow
            .as_ref()
            .map(|engine| engine.decide(&Subject::request(head, info)));
        let mut noted = serde_json::Map::new();
        if let Some(decision) = &shadow {
            match decision.allowed {
                true => self.counters.shadow_allowed.inc(),
                false => self.counters.shadow_denied.inc(),
            }
            decision.note_shadow(
                own(&rules.shadow_prefix, &self.rules.shadow_prefix),
                &mut noted,
            );
        }
        let enforced = rules.enforced.as_ref();
        let enforced = enforced.map(|engine| engine.decide(&Subject::request(head, info)));
        if let Some(decision) = &enforced {
            match decision.allowed {
                true => self.counters.allowed.inc(),
                false => self.counters.denied.inc(),
            }
            decision.note_enforced(own(&rules.prefix, &self.rules.prefix), &mut noted);
            if let Some(hint) = decision.log_hint {
                let object = info
                    .dynamic_metadata
                    .entry(LOG_HINT.0.to_owned())
                    .or_default();
                object.insert(LOG_HINT.1.to_owned(), Value::Bool(hint));
            }
        }
        if !noted.is_empty() {
            let object = info
                .dynamic_metadata
                .entry(NAMESPACE.to_owned())
                .or_default();
            object.extend(noted);
        }
        enforced
            .filter(|decision| !decision.allowed)
            .map(|decision| decision.details())
    }
}

/// A route's own prefix, or that of the filter.
fn own<'a>(of_route: &'a str, of_filter: &'a str) -> &'a str {
    match of_route {
        "" => of_filter,
        own => own,
    }
}

impl HttpFilter for RbacFilter {
    fn on_request<'a>(
        &'a self,
        head: &'a mut RequestHead,
        _: &'a mut Body,
        _: &'a mut Slot,
        info: &'a SharedInfo,
    ) -> Step<'a> {
        let own = route_config::<Rules>(info, self.id);
        let rules = own.as_deref().unwrap_or(&self.rules);
        match self.refuse(rules, head, info) {
            None => Step::CONTINUE,
            Some(details) => Step::Ready(Flow::Reply(Box::new(LocalReply::new(
                StatusCode::FORBIDDEN,
                "RBAC: access denied",
                details,
            )))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use envoy_types::pb::envoy::config::rbac::v3 as policies;
    use envoy_types::pb::envoy::config::rbac::v3::{permission::Rule, principal::Identifier};
    use http::Method;
    use xds_client::any::pack;

    use super::*;
    use crate::chain::tests::info;
    use crate::registry::tests::cx;

    fn rules(action: policies::rbac::Action, path: &str) -> policies::Rbac {
        use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
        let exact = matcher::StringMatcher {
            match_pattern: Some(matcher::string_matcher::MatchPattern::Exact(path.into())),
            ignore_case: false,
        };
        let policy = policies::Policy {
            permissions: vec![policies::Permission {
                rule: Some(Rule::UrlPath(matcher::PathMatcher {
                    rule: Some(matcher::path_matcher::Rule::Path(exact)),
                })),
            }],
            principals: vec![policies::Principal {
                identifier: Some(Identifier::Any(true)),
            }],
            ..Default::default()
        };
        policies::Rbac {
            action: action as i32,
            policies: HashMap::from([("p".to_owned(), policy)]),
            ..Default::default()
        }
    }

    fn ask(proto: &Rbac, path: &str, info: &SharedInfo) -> Option<LocalReply> {
        let filter = RbacFactory.compile(&pack(proto), &cx()).unwrap();
        let mut head = RequestHead::new(Method::GET, path.to_owned());
        let (mut body, mut slot) = (Body::Empty, None);
        match filter.on_request(&mut head, &mut body, &mut slot, info) {
            Step::Ready(Flow::Continue) => None,
            Step::Ready(Flow::Reply(reply)) => Some(*reply),
            _ => panic!("neither"),
        }
    }

    #[test]
    fn what_no_policy_allows_is_refused() {
        let proto = Rbac {
            rules: Some(rules(policies::rbac::Action::Allow, "/a")),
            shadow_rules: Some(rules(policies::rbac::Action::Deny, "/b")),
            shadow_rules_stat_prefix: "s_".into(),
            ..Default::default()
        };
        let facts = info();
        assert!(ask(&proto, "/a?x", &facts).is_none());
        let reply = ask(&proto, "/b", &facts).unwrap();
        assert_eq!(
            (reply.status, &reply.body[..]),
            (StatusCode::FORBIDDEN, &b"RBAC: access denied"[..])
        );
        assert_eq!(reply.details, "rbac_access_denied_matched_policy[none]");
        let noted = facts.borrow().dynamic_metadata[NAMESPACE].clone();
        assert_eq!(noted["s_shadow_engine_result"], "denied");
        assert_eq!(noted["s_shadow_effective_policy_id"], "p");
        assert_eq!(noted["enforced_engine_result"], "denied");
    }

    #[test]
    fn nothing_configured_allows_and_empty_rules_do_not() {
        assert!(ask(&Rbac::default(), "/a", &info()).is_none());
        let empty = Rbac {
            rules: Some(policies::Rbac::default()),
            ..Default::default()
        };
        assert!(ask(&empty, "/a", &info()).is_some());
    }

    #[test]
    fn routes_replace_the_rules_or_switch_them_off() {
        let off = RbacFactory.compile_route(&pack(&RbacPerRoute::default()), &cx());
        assert!(matches!(off, Ok(RouteFilterConfig::Disabled)));
        let own = RbacPerRoute {
            rbac: Some(Rbac {
                matcher: Some(Default::default()),
                ..Default::default()
            }),
        };
        let error = RbacFactory.compile_route(&pack(&own), &cx()).unwrap_err();
        assert_eq!(error.path(), "rbac.matcher");
    }
}
