//! Access control for requests (`envoy.extensions.filters.http.rbac.v3`), over the engine of [`crate::rbac`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

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
use crate::rbac::{Decision, Engine, LOG_HINT, Layer, Subject};
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
    /// Whether numbers are kept by policy.
    per_policy: bool,
    prefix: String,
    shadow_prefix: String,
}

/// The numbers of one engine.
struct Counters {
    allowed: Arc<dyn FilterCounter>,
    denied: Arc<dyn FilterCounter>,
    stats: Arc<dyn FilterStats>,
    /// In front of the counters' names: `rbac.` and the prefix of the rules.
    prefix: String,
    /// In front of what they count.
    kind: &'static str,
    /// Those by policy, which routes may name, too: found under a lock, which only who asks for
    /// `track_per_rule_stats` pays for. (Envoy locks its table of names there.)
    by_policy: Mutex<HashMap<String, Arc<dyn FilterCounter>>>,
}

struct RbacFilter {
    id: FilterId,
    rules: Rules,
    enforced: Counters,
    shadow: Counters,
}

impl Rules {
    fn compile(proto: &Rbac) -> Result<Self, ConfigError> {
        let (rules, matcher) = (proto.rules.as_ref(), proto.matcher.as_ref());
        let shadow = (proto.shadow_rules.as_ref(), proto.shadow_matcher.as_ref());
        Ok(Self {
            enforced: Engine::compile(rules, matcher, Layer::Http, "")?,
            shadow: Engine::compile(shadow.0, shadow.1, Layer::Http, "shadow_")?,
            per_policy: proto.track_per_rule_stats,
            prefix: proto.rules_stat_prefix.clone(),
            shadow_prefix: proto.shadow_rules_stat_prefix.clone(),
        })
    }
}

impl Counters {
    fn new(prefix: &str, kind: &'static str, stats: &Arc<dyn FilterStats>) -> Self {
        let prefix = match prefix.trim_end_matches('.') {
            "" => "rbac.".to_owned(),
            prefix => format!("rbac.{prefix}."),
        };
        Self {
            allowed: stats.counter(&format!("{prefix}{kind}allowed")),
            denied: stats.counter(&format!("{prefix}{kind}denied")),
            stats: stats.clone(),
            prefix,
            kind,
            by_policy: Mutex::default(),
        }
    }

    fn count(&self, decision: &Decision<'_>, per_policy: bool) {
        match decision.allowed {
            true => self.allowed.inc(),
            false => self.denied.inc(),
        }
        if let Some(policy) = decision.policy.filter(|_| per_policy) {
            let name = format!("{}policy.{policy}.{}{decision}", self.prefix, self.kind);
            let mut counters = self
                .by_policy
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let make = |name: &String| self.stats.counter(name);
            counters.entry(name).or_insert_with_key(make).inc();
        }
    }
}

impl HttpFilterFactory for RbacFactory {
    fn compile(&self, any: &Any, cx: &FactoryContext) -> Result<Arc<dyn HttpFilter>, ConfigError> {
        let proto: Rbac = unpack(any)?;
        Ok(Arc::new(RbacFilter {
            id: cx.id,
            rules: Rules::compile(&proto)?,
            enforced: Counters::new(&proto.rules_stat_prefix, "", &cx.stats),
            shadow: Counters::new(&proto.shadow_rules_stat_prefix, "shadow_", &cx.stats),
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
            self.shadow.count(decision, rules.per_policy);
            decision.note_shadow(
                own(&rules.shadow_prefix, &self.rules.shadow_prefix),
                &mut noted,
            );
        }
        let enforced = rules.enforced.as_ref();
        let enforced = enforced.map(|engine| engine.decide(&Subject::request(head, info)));
        if let Some(decision) = &enforced {
            self.enforced.count(decision, rules.per_policy);
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
                shadow_matcher: Some(keep_matching()),
                ..Default::default()
            }),
        };
        let error = RbacFactory.compile_route(&pack(&own), &cx()).unwrap_err();
        assert_eq!(
            error.path(),
            "rbac.shadow_matcher.on_no_match.keep_matching"
        );
    }

    fn keep_matching() -> envoy_types::pb::xds::r#type::matcher::v3::Matcher {
        use envoy_types::pb::xds::r#type::matcher::v3::{Matcher, matcher::OnMatch};
        Matcher {
            on_no_match: Some(Box::new(OnMatch {
                keep_matching: true,
                on_match: None,
            })),
            matcher_type: None,
        }
    }
}
