//! Names to chains, what is refused, and the tree that istiod sends to a waypoint.

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use prost::Message as _;
use xds_client::json::{Pool, UnknownFields};

use super::*;

/// A listener from JSON, with chains of these names.
fn listener(names: &[&str], matcher: &str) -> Listener {
    let chain = |name: &&str| FilterChain {
        name: (*name).to_owned(),
        ..Default::default()
    };
    let json = serde_json::from_str(matcher).unwrap();
    let pool = Pool::load().unwrap();
    Listener {
        filter_chains: names.iter().map(chain).collect(),
        filter_chain_matcher: Some(pool.parse_as(&json, UnknownFields::Reject).unwrap()),
        ..Default::default()
    }
}

fn to(name: &str) -> String {
    let action = serde_json::json!({"action": {"name": "a", "typed_config": {
        "@type": "type.googleapis.com/google.protobuf.StringValue", "value": name}}});
    action.to_string()
}

fn error(listener: &Listener) -> String {
    let error = FilterChainSelector::compile("0.0.0.0:1", listener);
    error.unwrap_err().to_string()
}

fn connection(destination: &str) -> MatchInput<'static> {
    MatchInput {
        destination: Some(destination.parse().unwrap()),
        source: Some("10.0.0.7:5000".parse().unwrap()),
        ..MatchInput::default()
    }
}

#[test]
fn an_unknown_name_is_no_chain_and_no_match_is_the_default_one() {
    let input = connection("10.0.0.1:80");
    let with = |matcher: &str, default: bool| {
        let mut listener = listener(&["a", "b"], matcher);
        listener.default_filter_chain = default.then(FilterChain::default);
        FilterChainSelector::compile("0.0.0.0:1", &listener)
            .unwrap()
            .find(&input)
    };
    let always = |name: &str| format!(r#"{{"on_no_match": {}}}"#, to(name));
    assert_eq!(with(&always("b"), true), Some(1));
    assert_eq!(with(&always("c"), true), None);
    assert_eq!(with("{}", true), Some(2));
    assert_eq!(with("{}", false), None);
}

#[test]
fn chains_need_names_of_their_own() {
    let always = format!(r#"{{"on_no_match": {}}}"#, to("a"));
    assert_eq!(
        error(&listener(&[""], &always)),
        "filter_chain_matcher: error adding listener '0.0.0.0:1': \"name\" field is required when using a listener matcher"
    );
    assert!(error(&listener(&["a", "a"], &always)).ends_with("is duplicated with value 'a'"));
}

#[test]
fn other_actions_are_refused_by_name() {
    let mut listener = listener(&["a"], &format!(r#"{{"on_no_match": {}}}"#, to("a")));
    let json = serde_json::json!({"on_no_match": {"action": {"name": "a", "typed_config": {
        "@type": "type.googleapis.com/envoy.config.core.v3.SubstitutionFormatString",
        "text_format": "%REQ(x)%"}}}});
    let pool = Pool::load().unwrap();
    listener.filter_chain_matcher = Some(pool.parse_as(&json, UnknownFields::Reject).unwrap());
    let error = error(&listener);
    assert!(
        error.starts_with("filter_chain_matcher.on_no_match.action: expected a"),
        "{error}"
    );
    assert!(error.contains("SubstitutionFormatString"), "{error}");
}

/// `main_internal` of a waypoint, as captured.
#[test]
fn what_istiod_sends_a_waypoint_compiles() {
    let bytes = include_bytes!("../../../conformance/fixtures/istio-1.27/waypoint-lds.pb");
    let response = DeltaDiscoveryResponse::decode_length_delimited(&bytes[..]).unwrap();
    let listener: Listener = response
        .resources
        .iter()
        .map(|r| any::unpack(r.resource.as_ref().unwrap()).unwrap())
        .find(|l: &Listener| l.name == "main_internal")
        .unwrap();
    let selector = FilterChainSelector::compile("main_internal", &listener).unwrap();
    let chain = |destination: &str, protocols: &[&str]| {
        let position = selector.find(&MatchInput {
            application_protocols: protocols,
            ..connection(destination)
        })?;
        Some(listener.filter_chains[position].name.as_str())
    };
    let web = |port: &str| format!("inbound-vip|{port}|web.shop.svc.cluster.local");
    assert_eq!(chain("10.96.240.252:80", &[]), Some(&*web("80|http")));
    assert_eq!(
        chain("10.96.240.252:9000", &["http/1.1"]),
        Some(&*web("9000|tcp"))
    );
    assert_eq!(
        chain("[::ffff:10.98.0.1]:443", &[]),
        Some("inbound-vip|443|tcp|static.example.org")
    );
    // A port that the service does not have, an address of nobody's.
    assert_eq!(chain("10.96.240.252:81", &["h2c"]), None);
    assert_eq!(chain("[2001:db8::1]:80", &[]), None);
    // A pod's address, where what was detected decides.
    assert_eq!(chain("10.244.9.2:81", &["h2c"]), Some("direct-http"));
    assert_eq!(chain("10.244.9.2:81", &["h2"]), Some("direct-tcp"));
    assert_eq!(chain("10.244.9.2:81", &[]), Some("direct-tcp"));
}
