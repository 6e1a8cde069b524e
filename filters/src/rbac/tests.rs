//! Policies over made-up connections and requests.

mod extensions;

use std::rc::Rc;

use envoy_types::pb::envoy::config::core::v3::CidrRange;
use envoy_types::pb::envoy::config::rbac::v3::permission::Rule;
use envoy_types::pb::envoy::config::rbac::v3::principal::Identifier;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    self as matcher, metadata_matcher, string_matcher::MatchPattern, value_matcher,
};
use envoy_types::pb::envoy::r#type::v3::Int32Range;
use envoy_types::pb::google::protobuf as wkt;
use http::Method;
use serde_json::json;

use envoy_types::pb::envoy::config::rbac::v3::rbac;

use super::*;
use crate::stream::{FilterId, Protocol, RouteFilterConfig};
use crate::tls::{CertificateFacts, PeerCertificate, TlsInfo};

fn connection() -> ConnectionInfo {
    let ip = |text: &str| Address::Ip(text.parse().unwrap());
    ConnectionInfo {
        id: 1,
        remote: ip("192.0.2.1:1111"),
        direct_remote: ip("10.0.0.1:2222"),
        local: ip("198.51.100.2:443"),
        direct_local: ip("198.51.100.2:443"),
        server_name: Some("a.test".into()),
        alpn: None,
        ja4: None,
        secure: true,
        tls: None,
        listener: "".into(),
        filter_chain: "".into(),
        listener_metadata: Default::default(),
        filter_chain_metadata: Default::default(),
        proxy_tlvs: None,
        filter_state: None,
        local_restored: false,
        notes: None,
    }
}

fn compile(rules: &pb::Rbac, layer: Layer) -> Result<Engine, ConfigError> {
    Engine::compile(Some(rules), None, layer, "").map(Option::unwrap)
}

fn permission(rule: Rule) -> pb::Permission {
    pb::Permission { rule: Some(rule) }
}

fn principal(identifier: Identifier) -> pb::Principal {
    pb::Principal {
        identifier: Some(identifier),
    }
}

fn policy(rule: Rule, identifier: Identifier) -> pb::Policy {
    pb::Policy {
        permissions: vec![permission(rule)],
        principals: vec![principal(identifier)],
        ..Default::default()
    }
}

fn rules(action: rbac::Action, policies: Vec<(&str, pb::Policy)>) -> pb::Rbac {
    pb::Rbac {
        action: action as i32,
        policies: policies
            .into_iter()
            .map(|(n, p)| (n.to_owned(), p))
            .collect(),
        ..Default::default()
    }
}

/// Whether one policy with this permission matches a connection.
fn can(rule: Rule, connection: &ConnectionInfo) -> bool {
    let rules = rules(
        rbac::Action::Allow,
        vec![("it", policy(rule, Identifier::Any(true)))],
    );
    let engine = compile(&rules, Layer::Network).unwrap();
    engine
        .decide(&Subject::connection(connection, None))
        .allowed
}

/// Whether one policy with this principal matches a connection.
fn is(identifier: Identifier, connection: &ConnectionInfo) -> bool {
    let rules = rules(
        rbac::Action::Allow,
        vec![("it", policy(Rule::Any(true), identifier))],
    );
    let engine = compile(&rules, Layer::Network).unwrap();
    engine
        .decide(&Subject::connection(connection, None))
        .allowed
}

fn refused(policy: pb::Policy, layer: Layer) -> String {
    let rules = rules(rbac::Action::Allow, vec![("it", policy)]);
    compile(&rules, layer).unwrap_err().to_string()
}

fn range(address: &str, length: u32) -> CidrRange {
    CidrRange {
        address_prefix: address.into(),
        prefix_len: Some(wkt::UInt32Value { value: length }),
    }
}

fn exact(text: &str) -> matcher::StringMatcher {
    matcher::StringMatcher {
        match_pattern: Some(MatchPattern::Exact(text.into())),
        ignore_case: false,
    }
}

fn url_path(text: &str) -> PathMatcher {
    PathMatcher {
        rule: Some(path_matcher::Rule::Path(exact(text))),
    }
}

fn metadata(key: &str, value: &str, invert: bool) -> MetadataMatcherProto {
    MetadataMatcherProto {
        filter: "ns".into(),
        path: vec![metadata_matcher::PathSegment {
            segment: Some(metadata_matcher::path_segment::Segment::Key(key.into())),
        }],
        value: Some(matcher::ValueMatcher {
            match_pattern: Some(value_matcher::MatchPattern::StringMatch(exact(value))),
        }),
        invert,
    }
}

#[test]
fn what_is_allowed_and_what_is_told_of_it() {
    let here = connection();
    let subject = Subject::connection(&here, None);
    let both = |action| {
        let yes = || policy(Rule::Any(true), Identifier::Any(true));
        let no = policy(Rule::DestinationPort(1), Identifier::Any(true));
        rules(action, vec![("c", yes()), ("b\t x", yes()), ("a", no)])
    };
    let decide = |rules: &pb::Rbac, allowed, policy, log_hint| {
        let engine = compile(rules, Layer::Network).unwrap();
        let decision = Decision {
            allowed,
            policy,
            log_hint,
        };
        assert_eq!(engine.decide(&subject), decision);
        decision.details()
    };
    decide(&both(rbac::Action::Allow), true, Some("b\t x"), None);
    let details = decide(&both(rbac::Action::Deny), false, Some("b\t x"), None);
    assert_eq!(details, "rbac_access_denied_matched_policy[b__x]");
    decide(&both(rbac::Action::Log), true, Some("b\t x"), Some(true));
    let details = decide(&rules(rbac::Action::Allow, vec![]), false, None, None);
    assert_eq!(details, "rbac_access_denied_matched_policy[none]");
    decide(&rules(rbac::Action::Deny, vec![]), true, None, None);
    decide(&rules(rbac::Action::Log, vec![]), true, None, Some(false));
}

#[test]
fn shadow_decisions_as_metadata() {
    let mut noted = Map::new();
    let mut decision = Decision {
        allowed: false,
        policy: None,
        log_hint: None,
    };
    decision.note_shadow("", &mut noted);
    decision.policy = Some("p");
    decision.allowed = true;
    decision.note_shadow("x.", &mut noted);
    let expected = json!({
        "shadow_engine_result": "denied",
        "x.shadow_engine_result": "allowed",
        "x.shadow_effective_policy_id": "p",
    });
    assert_eq!(Value::Object(noted), expected);
}

#[test]
fn permissions_of_connections() {
    let here = connection();
    let port = |n| permission(Rule::DestinationPort(n));
    let set = |ports: &[u32]| pb::permission::Set {
        rules: ports.iter().map(|n| port(*n)).collect(),
    };
    assert!(can(Rule::DestinationPort(443), &here) && !can(Rule::DestinationPort(444), &here));
    assert!(
        can(Rule::OrRules(set(&[1, 443])), &here) && !can(Rule::AndRules(set(&[1, 443])), &here)
    );
    assert!(can(Rule::AndRules(set(&[443, 443])), &here) && !can(Rule::OrRules(set(&[1])), &here));
    assert!(
        can(Rule::NotRule(Box::new(port(1))), &here)
            && !can(Rule::NotRule(Box::new(port(443))), &here)
    );
    let ports = |start, end| Rule::DestinationPortRange(Int32Range { start, end });
    assert!(can(ports(443, 444), &here) && !can(ports(1, 443), &here));
    assert!(can(Rule::DestinationIp(range("198.51.100.0", 24)), &here));
    assert!(!can(Rule::DestinationIp(range("192.0.2.0", 24)), &here));
    assert!(can(Rule::RequestedServerName(exact("a.test")), &here));
    assert!(!can(Rule::RequestedServerName(exact("")), &here));
    // There is no request, so no rule about its path is met.
    assert!(!can(Rule::UrlPath(url_path("/")), &here));
    let mut unix = connection();
    unix.local = Address::Pipe("/x".into());
    unix.server_name = None;
    assert!(
        !can(Rule::DestinationPort(443), &unix)
            && !can(Rule::DestinationIp(range("0.0.0.0", 0)), &unix)
    );
    assert!(can(Rule::RequestedServerName(exact("")), &unix));
}

#[test]
fn principals_of_connections() {
    let here = connection();
    assert!(is(Identifier::SourceIp(range("192.0.2.1", 32)), &here));
    assert!(is(Identifier::RemoteIp(range("192.0.2.1", 32)), &here));
    assert!(is(Identifier::DirectRemoteIp(range("10.0.0.0", 8)), &here));
    assert!(!is(
        Identifier::DirectRemoteIp(range("192.0.2.1", 32)),
        &here
    ));
    let ids = |all: &[(&str, u32)]| pb::principal::Set {
        ids: all
            .iter()
            .map(|(a, l)| principal(Identifier::RemoteIp(range(a, *l))))
            .collect(),
    };
    let (in_it, out) = (("192.0.2.0", 24), ("10.0.0.0", 8));
    assert!(
        is(Identifier::OrIds(ids(&[in_it, out])), &here)
            && !is(Identifier::AndIds(ids(&[in_it, out])), &here)
    );
    let not = Box::new(principal(Identifier::RemoteIp(range("10.0.0.0", 8))));
    assert!(is(Identifier::NotId(not), &here));
    let state = matcher::FilterStateMatcher {
        key: "k".into(),
        matcher: Some(matcher::filter_state_matcher::Matcher::StringMatch(exact(
            "v",
        ))),
    };
    assert!(!is(Identifier::FilterState(state), &here));
}

#[test]
fn the_names_of_certificates() {
    let named = |name: Option<&str>| {
        Identifier::Authenticated(pb::principal::Authenticated {
            principal_name: name.map(exact),
        })
    };
    let mut here = connection();
    assert!(!is(named(None), &here) && !is(named(Some("")), &here));
    here.tls = Some(Rc::new(TlsInfo::default()));
    assert!(is(named(None), &here) && !is(named(Some("spiffe://a")), &here));
    let facts = CertificateFacts {
        subject: "CN=me".into(),
        uri_sans: vec!["spiffe://a".into(), "spiffe://b".into()],
        dns_sans: vec!["a.test".into()],
        ..Default::default()
    };
    here.tls = Some(Rc::new(TlsInfo {
        peer: Some(PeerCertificate::new(facts, Vec::new(), true)),
        ..Default::default()
    }));
    for name in ["spiffe://a", "spiffe://b", "a.test", "CN=me"] {
        assert!(is(named(Some(name)), &here), "{name}");
    }
    assert!(!is(named(Some("")), &here) && !is(named(Some("spiffe://c")), &here));
}

#[derive(Debug)]
struct Route(Value);

impl RouteView for Route {
    fn name(&self) -> &str {
        ""
    }
    fn virtual_host(&self) -> &str {
        ""
    }
    fn filter_config(&self, _: FilterId) -> Option<&RouteFilterConfig> {
        None
    }
    fn metadata(&self, _: &str) -> Option<&Value> {
        Some(&self.0)
    }
}

#[test]
fn requests() {
    let mut info = StreamInfo::new(Rc::new(connection()), Protocol::Http11);
    info.remote = Address::Ip("203.0.113.9:1".parse().unwrap());
    let object = json!({"k": "v"}).as_object().unwrap().clone();
    info.dynamic_metadata.insert("ns".into(), object);
    let mut head = RequestHead::new(Method::GET, "/a?b");
    head.headers
        .insert("x", http::HeaderValue::from_static("y"));
    let decide = |info: &StreamInfo, rule, identifier| {
        let rules = rules(rbac::Action::Allow, vec![("it", policy(rule, identifier))]);
        let engine = compile(&rules, Layer::Http).unwrap();
        engine.decide(&Subject::request(&head, info)).allowed
    };
    let remote = |a: &str| Identifier::RemoteIp(range(a, 32));
    assert!(decide(
        &info,
        Rule::UrlPath(url_path("/a")),
        remote("203.0.113.9")
    ));
    assert!(!decide(
        &info,
        Rule::UrlPath(url_path("/a?b")),
        Identifier::Any(true)
    ));
    assert!(decide(
        &info,
        Rule::Any(true),
        Identifier::SourceIp(range("192.0.2.1", 32))
    ));
    let header = HeaderMatcherProto {
        name: "X".into(),
        header_match_specifier: Some(HeaderMatchSpecifier::ExactMatch("y".into())),
        ..Default::default()
    };
    assert!(decide(
        &info,
        Rule::Header(header.clone()),
        Identifier::Header(header)
    ));
    let sourced = |source, invert| {
        Rule::SourcedMetadata(pb::SourcedMetadata {
            metadata_matcher: Some(metadata("k", "v", invert)),
            metadata_source: source,
        })
    };
    assert!(decide(
        &info,
        sourced(0, false),
        Identifier::Metadata(metadata("k", "v", false))
    ));
    assert!(!decide(&info, sourced(0, true), Identifier::Any(true)));
    assert!(!decide(&info, sourced(1, false), Identifier::Any(true)));
    assert!(!decide(&info, sourced(1, true), Identifier::Any(true)));
    info.route = Some(std::sync::Arc::new(Route(json!({"k": "v"}))));
    assert!(decide(&info, sourced(1, false), Identifier::Any(true)));
}

#[test]
fn what_cannot_be_evaluated_is_refused_by_name() {
    let any = || policy(Rule::Any(true), Identifier::Any(true));
    let header = || HeaderMatcherProto {
        name: "x".into(),
        ..Default::default()
    };
    let extension = Default::default;
    let cases = [
        (
            policy(Rule::Header(header()), Identifier::Any(true)),
            "permissions[0].header",
        ),
        (
            policy(Rule::Any(true), Identifier::Header(header())),
            "principals[0].header",
        ),
        (
            policy(Rule::Any(false), Identifier::Any(true)),
            "permissions[0].any",
        ),
        (
            policy(Rule::Any(true), Identifier::Any(false)),
            "principals[0].any",
        ),
        (
            policy(Rule::Matcher(extension()), Identifier::Any(true)),
            "permissions[0].matcher",
        ),
        (
            policy(Rule::UriTemplate(extension()), Identifier::Any(true)),
            "permissions[0].uri_template.typed_config",
        ),
        (
            policy(Rule::Any(true), Identifier::Custom(extension())),
            "principals[0].custom.typed_config",
        ),
        (
            policy(Rule::DestinationPort(65536), Identifier::Any(true)),
            "destination_port",
        ),
        (
            policy(
                Rule::DestinationPortRange(Int32Range { start: 5, end: 5 }),
                Identifier::Any(true),
            ),
            "destination_port_range",
        ),
        (
            policy(Rule::OrRules(Default::default()), Identifier::Any(true)),
            "or_rules.rules",
        ),
        (
            policy(
                Rule::NotRule(Box::new(permission(Rule::AndRules(pb::permission::Set {
                    rules: vec![permission(Rule::Any(true)), pb::Permission { rule: None }],
                })))),
                Identifier::Any(true),
            ),
            "policies[it].permissions[0].not_rule.and_rules.rules[1].rule",
        ),
        (
            pb::Policy {
                condition: Some(Default::default()),
                ..any()
            },
            "policies[it].condition",
        ),
        (
            pb::Policy {
                principals: Vec::new(),
                ..any()
            },
            "policies[it].principals",
        ),
    ];
    for (policy, path) in cases {
        let error = refused(policy, Layer::Network);
        assert!(error.contains(path), "{error}");
    }
    let mut rules = rules(rbac::Action::Allow, vec![("it", any())]);
    rules.audit_logging_options = Some(rbac::AuditLoggingOptions {
        logger_configs: vec![Default::default()],
        ..Default::default()
    });
    let error = compile(&rules, Layer::Http).unwrap_err().to_string();
    assert!(
        error.contains("audit_logging_options.logger_configs"),
        "{error}"
    );
}
