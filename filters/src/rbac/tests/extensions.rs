//! The matcher form, and rules by extension.

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use envoy_types::pb::envoy::extensions::rbac::principals::mtls_authenticated::v3::Config as Mtls;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    SubjectAltNameMatcher, subject_alt_name_matcher::SanType,
};
use xds_client::any::pack;
use xds_client::json::{Pool, UnknownFields};

use super::*;

fn action(name: &str, action: &str) -> Value {
    json!({"action": {"name": "a", "typed_config": {
        "@type": "type.googleapis.com/envoy.config.rbac.v3.Action", "name": name, "action": action}}})
}

fn by_source(branches: &Value, otherwise: Option<Value>) -> Result<Engine, ConfigError> {
    let input = json!({"name": "i", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.SourceIPInput"}});
    let mut matcher =
        json!({"matcher_tree": {"input": input, "exact_match_map": {"map": branches}}});
    if let Some(otherwise) = otherwise {
        matcher["on_no_match"] = otherwise;
    }
    let matcher = Pool::load()?.parse_as(&matcher, UnknownFields::Reject)?;
    // The matcher counts, whatever the rules are.
    let rules = pb::Rbac {
        action: 77,
        ..Default::default()
    };
    Engine::compile(Some(&rules), Some(&matcher), Layer::Network, "").map(Option::unwrap)
}

#[test]
fn matchers_allow_deny_and_log() {
    let connection = connection();
    let subject = Subject::connection(&connection, None);
    for (kind, otherwise, allowed, log_hint) in [
        ("ALLOW", None, true, None),
        ("DENY", None, false, None),
        ("LOG", None, true, Some(true)),
        ("ALLOW", Some(action("else", "LOG")), true, Some(false)),
    ] {
        let engine = by_source(&json!({"192.0.2.1": action("it", kind)}), otherwise).unwrap();
        let decision = engine.decide(&subject);
        let wanted = Decision {
            allowed,
            policy: Some("it"),
            log_hint,
        };
        assert_eq!(decision, wanted, "{kind}");
    }
    let engine = by_source(&json!({"192.0.2.2": action("it", "ALLOW")}), None).unwrap();
    let nothing = Decision {
        allowed: false,
        policy: None,
        log_hint: None,
    };
    assert_eq!(engine.decide(&subject), nothing);
}

#[test]
fn what_is_not_known_is_denied() {
    let uri = json!({"name": "i", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.matching.common_inputs.ssl.v3.UriSanInput"}});
    let predicate = json!({"single_predicate": {"input": uri, "value_match": {"exact": "x"}}});
    let matcher = json!({
        "matcher_list": {"matchers": [{"predicate": predicate, "on_match": action("x", "DENY")}]},
        "on_no_match": action("others", "ALLOW")});
    let matcher = Pool::load()
        .unwrap()
        .parse_as(&matcher, UnknownFields::Reject);
    let engine = Engine::compile(None, Some(&matcher.unwrap()), Layer::Network, "");
    let engine = engine.unwrap().unwrap();
    let mut connection = connection();
    assert!(
        !engine
            .decide(&Subject::connection(&connection, None))
            .allowed
    );
    connection.tls = Some(Rc::new(TlsInfo::default()));
    assert!(
        engine
            .decide(&Subject::connection(&connection, None))
            .allowed
    );
}

#[test]
fn actions_are_checked() {
    let error = |action: Value| {
        by_source(&json!({"k": action}), None)
            .unwrap_err()
            .to_string()
    };
    let path = "matcher.matcher_tree.exact_match_map.map[\"k\"].action";
    assert_eq!(
        error(action("", "ALLOW")),
        format!("{path}.name: must not be empty")
    );
    let other = json!({"action": {"name": "a", "typed_config": {
        "@type": "type.googleapis.com/google.protobuf.StringValue", "value": "x"}}});
    assert!(error(other).starts_with(&format!("{path}: expected a envoy.config.rbac.v3.Action")));
}

fn extension<M: prost::Message + prost::Name>(config: &M) -> TypedExtensionConfig {
    TypedExtensionConfig {
        name: "x".into(),
        typed_config: Some(pack(config)),
    }
}

#[test]
fn uri_templates() {
    let template = |template: &str| {
        Rule::UriTemplate(extension(&UriTemplateMatchConfig {
            path_template: template.into(),
        }))
    };
    let allowed = |rule: Rule, path: &str| {
        let rules = rules(
            rbac::Action::Allow,
            vec![("it", policy(rule, Identifier::Any(true)))],
        );
        let engine = compile(&rules, Layer::Http).unwrap();
        let info = StreamInfo::new(Rc::new(connection()), Protocol::Http11);
        let head = RequestHead::new(Method::GET, path.to_owned());
        engine.decide(&Subject::request(&head, &info)).allowed
    };
    assert!(allowed(template("/a/*/c"), "/a/b/c?d"));
    assert!(!allowed(template("/a/*/c"), "/a/b/d"));
    // A connection has no path.
    assert!(!can(template("/**"), &connection()));
}

#[test]
fn verified_certificates() {
    let peer = |validated: bool| {
        let facts = CertificateFacts {
            uri_sans: vec!["spiffe://td/a".into()],
            ..Default::default()
        };
        let mut connection = connection();
        connection.tls = Some(Rc::new(TlsInfo {
            peer: Some(PeerCertificate::new(facts, Vec::new(), validated)),
            ..Default::default()
        }));
        connection
    };
    let named = |uri: &str| {
        Identifier::Custom(extension(&Mtls {
            san_matcher: Some(SubjectAltNameMatcher {
                san_type: SanType::Uri.into(),
                matcher: Some(exact(uri)),
                ..Default::default()
            }),
            any_validated_client_certificate: false,
        }))
    };
    let any = Identifier::Custom(extension(&Mtls {
        san_matcher: None,
        any_validated_client_certificate: true,
    }));
    assert!(is(any.clone(), &peer(true)) && !is(any.clone(), &peer(false)));
    assert!(!is(any, &connection()));
    assert!(is(named("spiffe://td/a"), &peer(true)));
    assert!(!is(named("spiffe://td/b"), &peer(true)));
    assert!(!is(named("spiffe://td/a"), &peer(false)));
}
