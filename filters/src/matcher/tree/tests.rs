//! What each branch and input does, and what is refused.

mod conditions;
mod nesting;

use envoy_types::pb::google::protobuf::StringValue;
use envoy_types::pb::xds::r#type::matcher::v3::Matcher;
use http::{HeaderValue, Method};
use serde_json::{Value as Json, json};
use xds_client::any;
use xds_client::json::{Pool, UnknownFields};

use super::*;
use crate::head::RequestHead;
use crate::stream::{DynamicMetadata, FilterObject, FilterState};
use crate::tls::{CertificateFacts, PeerCertificate, TlsInfo};
use xds_client::error::ConfigError;

const NETWORK: &str = "envoy.extensions.matching.common_inputs.network.v3.";

fn extension(name: &str, mut config: Json) -> Json {
    config["@type"] = format!("type.googleapis.com/{name}").into();
    json!({"name": "x", "typed_config": config})
}

fn network(name: &str) -> Json {
    extension(&format!("{NETWORK}{name}"), json!({}))
}

fn to(name: &str) -> Json {
    json!({"action": extension("google.protobuf.StringValue", json!({"value": name}))})
}

fn compile(matcher: &Json, place: Place) -> Result<MatcherTree<String>, ConfigError> {
    let proto: Matcher = Pool::load()?.parse_as(matcher, UnknownFields::Reject)?;
    MatcherTree::compile(&proto, place, &|action| {
        Ok(any::unpack::<StringValue>(action)?.value)
    })
}

fn find(matcher: &Json, input: &MatchInput<'_>) -> Option<String> {
    let tree = compile(matcher, Place::FilterChain).unwrap();
    tree.find(input).unwrap().cloned()
}

fn error(matcher: &Json, place: Place) -> String {
    compile(matcher, place).unwrap_err().to_string()
}

fn connection() -> MatchInput<'static> {
    MatchInput {
        destination: Some("10.1.2.3:80".parse().unwrap()),
        source: Some("192.0.2.7:5000".parse().unwrap()),
        direct_source: Some("198.51.100.1:1".parse().unwrap()),
        server_name: "a.b.test",
        transport_protocol: "tls",
        application_protocols: &["h2", "http/1.1"],
        ..MatchInput::default()
    }
}

fn exact(input: &Json, keys: &[(&str, Json)]) -> Json {
    let map: Json = keys
        .iter()
        .map(|(k, v)| ((*k).to_owned(), v.clone()))
        .collect::<serde_json::Map<_, _>>()
        .into();
    json!({"matcher_tree": {"input": input, "exact_match_map": {"map": map}}})
}

fn custom(input: &str, name: &str, config: Json) -> Json {
    let custom = extension(&format!("xds.type.matcher.v3.{name}"), config);
    json!({"matcher_tree": {"input": network(input), "custom_match": custom}})
}

fn list(predicate: Json) -> Json {
    json!({"matcher_list": {"matchers": [{"predicate": predicate, "on_match": to("yes")}]}})
}

fn single(input: &Json, matcher: &Json) -> Json {
    json!({"single_predicate": {"input": input, "value_match": matcher}})
}

#[test]
fn what_inputs_say() {
    for (input, says) in [
        ("DestinationIPInput", "10.1.2.3"),
        ("DestinationPortInput", "80"),
        ("SourceIPInput", "192.0.2.7"),
        ("SourcePortInput", "5000"),
        ("DirectSourceIPInput", "198.51.100.1"),
        ("ServerNameInput", "a.b.test"),
        ("TransportProtocolInput", "tls"),
        ("ApplicationProtocolInput", "'h2','http/1.1'"),
    ] {
        let matcher = exact(&network(input), &[(says, to("yes"))]);
        assert_eq!(
            find(&matcher, &connection()).as_deref(),
            Some("yes"),
            "{input}"
        );
        // Nothing is known of a Unix socket: not even that it is empty.
        let matcher = exact(&network(input), &[("", to("no"))]);
        assert_eq!(find(&matcher, &MatchInput::default()), None, "{input}");
    }
    let matcher = exact(&network("SourceTypeInput"), &[("local", to("yes"))]);
    assert_eq!(find(&matcher, &connection()), None);
    let mut local = connection();
    local.source = Some("[::ffff:10.1.2.3]:1".parse().unwrap());
    assert!(find(&matcher, &local).is_some());
    assert!(find(&matcher, &MatchInput::default()).is_some());
}

#[test]
fn filter_state_certificates_and_the_environment() {
    let mut state = FilterState::default();
    state.set("k".into(), FilterObject::Text("v".into()));
    let facts = CertificateFacts {
        uri_sans: vec!["spiffe://a".into(), "spiffe://b".into()],
        dns_sans: vec!["c.test".into()],
        subject: "CN=d".into(),
        ..Default::default()
    };
    let tls = TlsInfo {
        peer: Some(PeerCertificate::new(facts, Vec::new(), true)),
        ..Default::default()
    };
    let input = MatchInput {
        filter_state: Some(&state),
        tls: Some(&tls),
        ..MatchInput::default()
    };
    let ssl = |name: &str| {
        let name = format!("envoy.extensions.matching.common_inputs.ssl.v3.{name}");
        extension(&name, json!({}))
    };
    let variable = |name: &str| {
        let kind = "envoy.extensions.matching.common_inputs.environment_variable.v3.Config";
        extension(kind, json!({"name": name}))
    };
    let state = |key: &str| extension(&format!("{NETWORK}FilterStateInput"), json!({"key": key}));
    for (from, says) in [
        (state("k"), "v"),
        (ssl("UriSanInput"), "spiffe://a,spiffe://b"),
        (ssl("DnsSanInput"), "c.test"),
        (ssl("SubjectInput"), "CN=d"),
        (variable("CARGO_PKG_NAME"), "filters"),
    ] {
        let matcher = exact(&from, &[(says, to("yes"))]);
        assert_eq!(find(&matcher, &input).as_deref(), Some("yes"), "{from}");
    }
    for from in [state("other"), variable("NOT_SET_ANYWHERE")] {
        assert_eq!(find(&exact(&from, &[("", to("no"))]), &input), None);
    }
}

#[test]
fn headers_and_metadata_of_requests() {
    let mut head = RequestHead::new(Method::GET, "/a");
    for value in ["1", "2"] {
        head.headers.append("x-n", HeaderValue::from_static(value));
    }
    let Json::Object(object) = json!({"a": {"b": ["c", 1]}}) else {
        unreachable!()
    };
    let metadata = DynamicMetadata::from([("ns".to_owned(), object)]);
    let input = MatchInput {
        head: Some(&head),
        metadata: Some(&metadata),
        ..MatchInput::default()
    };
    let find = |matcher: &Json| {
        let tree = compile(matcher, Place::Request).unwrap();
        tree.find(&input).unwrap().cloned()
    };
    let header = |name: &str| {
        let kind = "envoy.type.matcher.v3.HttpRequestHeaderMatchInput";
        extension(kind, json!({"header_name": name}))
    };
    assert!(find(&exact(&header("X-N"), &[("1,2", to("yes"))])).is_some());
    assert!(find(&exact(&header(":path"), &[("/a", to("yes"))])).is_some());
    assert!(find(&exact(&header("x-m"), &[("", to("no"))])).is_none());

    let at = |path: &[&str]| {
        let path: Vec<_> = path.iter().map(|key| json!({"key": key})).collect();
        let kind = format!("{NETWORK}DynamicMetadataInput");
        extension(&kind, json!({"filter": "ns", "path": path}))
    };
    let says = |value: Json, invert: bool, path: &[&str]| {
        let kind = "envoy.extensions.matching.input_matchers.metadata.v3.Metadata";
        let test = extension(kind, json!({"value": value, "invert": invert}));
        let predicate = json!({"single_predicate": {"input": at(path), "custom_match": test}});
        find(&list(predicate)).is_some()
    };
    let has_c = json!({"list_match": {"one_of": {"string_match": {"exact": "c"}}}});
    assert!(says(has_c.clone(), false, &["a", "b"]));
    assert!(!says(has_c.clone(), true, &["a", "b"]));
    assert!(!says(has_c.clone(), false, &["a"]) && says(has_c, true, &["a"]));
    // Metadata is no text.
    let text = single(&at(&["a"]), &json!({"prefix": "c"}));
    assert!(find(&list(text)).is_none());
}

#[test]
fn predicates() {
    let ip = network("DestinationIPInput");
    let (yes, no) = (
        single(&ip, &json!({"suffix": ".3"})),
        single(
            &ip,
            &json!({"safe_regex": {"google_re2": {}, "regex": "10"}}),
        ),
    );
    let holds = |predicate: Json| find(&list(predicate), &connection()).is_some();
    assert!(holds(yes.clone()) && !holds(no.clone()));
    assert!(holds(json!({"or_matcher": {"predicate": [no, yes]}})));
    assert!(!holds(json!({"and_matcher": {"predicate": [no, yes]}})));
    assert!(holds(json!({"not_matcher": no})) && !holds(json!({"not_matcher": yes})));
    let within = |prefix: &str| {
        let range = json!({"address_prefix": prefix, "prefix_len": 8});
        let kind = "envoy.extensions.matching.input_matchers.ip.v3.Ip";
        let test = extension(kind, json!({"cidr_ranges": [range], "stat_prefix": "s"}));
        json!({"single_predicate": {"input": ip, "custom_match": test}})
    };
    assert!(holds(within("10.0.0.0")) && !holds(within("11.0.0.0")));
}

#[test]
fn a_branch_that_leads_nowhere_is_not_taken() {
    let nowhere = json!({"matcher": exact(&network("DestinationPortInput"), &[("81", to("no"))])});
    let nothing = json!({"matcher": {}});
    let ip = network("DestinationIPInput");
    for dead in [nowhere, nothing] {
        let mut matcher = exact(&ip, &[("10.1.2.3", dead.clone())]);
        assert_eq!(find(&matcher, &connection()), None);
        matcher["on_no_match"] = to("else");
        assert_eq!(find(&matcher, &connection()).as_deref(), Some("else"));

        let map = json!({"10.1.": dead, "10.": to("shorter"), "": to("any")});
        let tree = json!({"matcher_tree": {"input": ip, "prefix_match_map": {"map": map}}});
        assert_eq!(find(&tree, &connection()).as_deref(), Some("shorter"));

        let predicate = single(&ip, &json!({"prefix": "10."}));
        let tree = json!({"matcher_list": {"matchers": [
            {"predicate": predicate, "on_match": dead},
            {"predicate": predicate, "on_match": to("next")}]}});
        assert_eq!(find(&tree, &connection()).as_deref(), Some("next"));
    }
}

/// Ranges, whether they are exclusive, and what follows.
type Branch<'a> = (&'a [(&'a str, u32)], bool, Json);

fn ranges(list: &[Branch<'_>]) -> Json {
    let range = |(prefix, len): &(&str, u32)| json!({"address_prefix": prefix, "prefix_len": len});
    let matcher = |(all, exclusive, on_match): &Branch<'_>| {
        let all: Vec<_> = all.iter().map(range).collect();
        json!({"ranges": all, "exclusive": exclusive, "on_match": on_match})
    };
    let all: Vec<_> = list.iter().map(matcher).collect();
    custom(
        "DestinationIPInput",
        "IPMatcher",
        json!({"range_matchers": all}),
    )
}

#[test]
fn the_longest_range_then_the_first() {
    let matcher = ranges(&[
        (&[("10.0.0.0", 8), ("2001:db8::", 32)], false, to("eight")),
        (&[("10.1.0.0", 16)], false, to("sixteen")),
        (&[("10.1.9.9", 16)], false, to("second")),
        (&[("0.0.0.0", 0)], false, to("any")),
    ]);
    for (ip, chain) in [
        ("10.1.2.3", Some("sixteen")),
        ("10.2.2.3", Some("eight")),
        ("11.2.2.3", Some("any")),
        ("::ffff:10.1.0.1", Some("sixteen")),
        ("2001:db8::1", Some("eight")),
        ("2001:db9::1", None),
    ] {
        let mut input = connection();
        input.destination = Some((ip.parse::<std::net::IpAddr>().unwrap(), 80).into());
        assert_eq!(find(&matcher, &input).as_deref(), chain, "{ip}");
    }
    assert_eq!(find(&matcher, &MatchInput::default()), None);
}

#[test]
fn exclusive_ranges_count_only_as_the_longest() {
    let nowhere = json!({"matcher": {}});
    let matcher = |exclusive: bool| {
        ranges(&[
            (&[("10.1.0.0", 16)], false, nowhere.clone()),
            (&[("10.0.0.0", 8)], exclusive, to("eight")),
            (&[("0.0.0.0", 0)], false, to("any")),
        ])
    };
    let of = |matcher: &Json| find(matcher, &connection());
    assert_eq!(of(&matcher(false)).as_deref(), Some("eight"));
    assert_eq!(of(&matcher(true)).as_deref(), Some("any"));
}

#[test]
fn no_ranges_are_none() {
    let mut matcher = ranges(&[]);
    assert_eq!(find(&matcher, &connection()), None);
    matcher["on_no_match"] = to("else");
    assert_eq!(find(&matcher, &connection()).as_deref(), Some("else"));
}

#[test]
fn domains_exact_then_by_suffix_then_any() {
    let domains = |list: &[(&[&str], Json)]| {
        let matcher =
            |(names, on_match): &(&[&str], Json)| json!({"domains": names, "on_match": on_match});
        let all: Vec<_> = list.iter().map(matcher).collect();
        custom(
            "ServerNameInput",
            "ServerNameMatcher",
            json!({"domain_matchers": all}),
        )
    };
    let matcher = domains(&[
        (&["*.test", "c.b.test"], to("wide")),
        (&["*.b.test"], to("narrow")),
        (&["*"], to("any")),
        (&["*.dead.test"], json!({"matcher": {}})),
    ]);
    for (name, found) in [
        ("a.b.test", Some("narrow")),
        ("c.b.test", Some("wide")),
        ("b.test", Some("wide")),
        ("test", Some("any")),
        ("x.dead.test", Some("wide")),
        ("", None),
    ] {
        let mut input = connection();
        input.server_name = name;
        assert_eq!(find(&matcher, &input).as_deref(), found, "{name}");
    }
    let refused = |names: &[&str]| error(&domains(&[(names, to("x"))]), Place::FilterChain);
    for names in [
        &["a", "a"][..],
        &["a.*.b"],
        &["*a"],
        &["*."],
        &[""],
        &["*.*"],
    ] {
        let error = refused(names);
        assert!(
            error.contains("domain_matchers[0].domains["),
            "{names:?}: {error}"
        );
    }
}

#[test]
fn what_a_place_does_not_know_is_refused_by_name() {
    let header = extension(
        "envoy.type.matcher.v3.HttpRequestHeaderMatchInput",
        json!({"header_name": "x"}),
    );
    let application = network("ApplicationProtocolInput");
    for (input, place) in [
        (&header, Place::FilterChain),
        (&header, Place::Connection),
        (&application, Place::Request),
        (&network("NetworkNamespaceInput"), Place::FilterChain),
    ] {
        let error = error(&exact(input, &[("x", to("y"))]), place);
        let name = input["typed_config"]["@type"].as_str().unwrap();
        let name = name.strip_prefix("type.googleapis.com/").unwrap();
        assert_eq!(
            error,
            format!("matcher_tree.input: {name} is not supported here")
        );
    }
    let kept = json!({"on_no_match": {"keep_matching": true, "action": to("x")["action"]}});
    assert_eq!(
        error(&kept, Place::FilterChain),
        "on_no_match.keep_matching: not supported"
    );
}

#[test]
fn errors_name_the_field() {
    let ip = network("DestinationIPInput");
    let hashing =
        "envoy.extensions.matching.input_matchers.consistent_hashing.v3.ConsistentHashing";
    let hashing = json!({"single_predicate": {"input": ip, "custom_match": extension(hashing, json!({"modulo": 2}))}});
    for (matcher, wanted) in [
        (
            json!({"matcher_list": {}}),
            "matcher_list.matchers: must not be empty",
        ),
        (
            list(json!({})),
            "matcher_list.matchers[0].predicate.match_type: value is required",
        ),
        (
            json!({"on_no_match": {}}),
            "on_no_match: a matcher or an action is required",
        ),
        (
            json!({"matcher_tree": {"input": ip}}),
            "matcher_tree.tree_type: value is required",
        ),
        (
            exact(&ip, &[]),
            "matcher_tree.exact_match_map.map: must not be empty",
        ),
        (
            exact(&ip, &[("k", json!({"action": ip}))]),
            "matcher_tree.exact_match_map.map[\"k\"].action: expected a google.protobuf.StringValue, found envoy.extensions.matching.common_inputs.network.v3.DestinationIPInput",
        ),
        (
            ranges(&[(&[], false, to("x"))]),
            "matcher_tree.custom_match.typed_config.range_matchers[0].ranges: must not be empty",
        ),
        (
            ranges(&[(&[("x", 1)], false, to("x"))]),
            "matcher_tree.custom_match.typed_config.range_matchers[0].ranges[0].address_prefix: malformed IP address: x",
        ),
        (
            list(hashing),
            "matcher_list.matchers[0].predicate.single_predicate.custom_match.typed_config: matcher envoy.extensions.matching.input_matchers.consistent_hashing.v3.ConsistentHashing is not supported",
        ),
    ] {
        assert_eq!(error(&matcher, Place::FilterChain), wanted);
    }
}

#[test]
fn what_cannot_be_known_ends_the_search() {
    let uri = extension(
        "envoy.extensions.matching.common_inputs.ssl.v3.UriSanInput",
        json!({}),
    );
    let (unknown, yes) = (
        single(&uri, &json!({"exact": "x"})),
        single(&network("DestinationIPInput"), &json!({"prefix": "1"})),
    );
    let no = json!({"not_matcher": yes});
    let verdict = |predicate: Json, input: &MatchInput<'_>| {
        let mut matcher = list(predicate);
        matcher["on_no_match"] = to("else");
        let tree = compile(&matcher, Place::FilterChain).unwrap();
        tree.find(input).map(|found| found.cloned().unwrap())
    };
    let all = |kind: &str, list: &[&Json]| json!({kind: {"predicate": list}});
    let (and, or) = ("and_matcher", "or_matcher");
    for (predicate, wanted) in [
        (unknown.clone(), Err(Unknown)),
        (json!({"not_matcher": unknown}), Err(Unknown)),
        (all(and, &[&no, &unknown]), Ok("else")),
        (all(and, &[&unknown, &no]), Err(Unknown)),
        (all(or, &[&unknown, &no]), Err(Unknown)),
        (all(or, &[&unknown, &yes]), Ok("yes")),
    ] {
        let wanted = wanted.map(str::to_owned);
        assert_eq!(
            verdict(predicate.clone(), &connection()),
            wanted,
            "{predicate}"
        );
    }
    // Over TLS without a certificate it is known that there is no name.
    let tls = TlsInfo::default();
    let mut input = connection();
    input.tls = Some(&tls);
    assert_eq!(verdict(unknown, &input), Ok("else".to_owned()));
}
