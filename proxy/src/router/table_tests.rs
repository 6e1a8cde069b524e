//! Whole tables: the index against a linear search, TLS, and what istiod sends.

use std::path::PathBuf;

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use http::{HeaderName, HeaderValue, Method};
use pb::route_match::PathSpecifier;
use pb::virtual_host::TlsRequirementType;
use prost::Message;

use super::super::conditions::Conditions;
use super::*;
use crate::config::runtime::Runtime;
use crate::http::testing::stream_info as info;
use crate::upstream::slot::ClusterSlot;

fn test_context() -> CompileContext<'static> {
    CompileContext {
        directory: Box::leak(Box::default()),
        cluster: &|name| Arc::new(ClusterSlot::new(name.into())),
        known: None,
        filter_config: &|_, _| Ok(None),
        runtime: Box::leak(Box::new(Runtime::default())),
    }
}

fn route(name: String, rule: pb::RouteMatch) -> pb::Route {
    pb::Route {
        name,
        r#match: Some(rule),
        action: Some(pb::route::Action::DirectResponse(
            pb::DirectResponseAction {
                status: 200,
                ..Default::default()
            },
        )),
        ..Default::default()
    }
}

fn table(hosts: Vec<pb::VirtualHost>) -> RouteTable {
    let config = pb::RouteConfiguration {
        name: "r".into(),
        virtual_hosts: hosts,
        ..Default::default()
    };
    RouteTable::compile(&config, &test_context()).unwrap()
}

fn host(domain: &str, routes: Vec<pb::Route>) -> pb::VirtualHost {
    pb::VirtualHost {
        name: domain.into(),
        domains: vec![domain.into()],
        routes,
        ..Default::default()
    }
}

fn prefix(prefix: &str) -> pb::RouteMatch {
    pb::RouteMatch {
        path_specifier: Some(PathSpecifier::Prefix(prefix.into())),
        ..Default::default()
    }
}

fn get(authority: &str, path: &str) -> RequestHead {
    let mut head = RequestHead::new(Method::GET, path);
    head.authority = authority.into();
    head
}

fn chosen(table: &RouteTable, head: &RequestHead) -> Option<String> {
    let outcome = table.route(head, &info(), 0);
    outcome.view().map(|view| view.name().to_owned())
}

/// The path rule without the index, written from Envoy's documentation.
fn path_fits(rule: &pb::RouteMatch, path: &str) -> bool {
    let fold = |s: &str| match rule.case_sensitive {
        Some(c) if !c.value => s.to_ascii_lowercase(),
        _ => s.to_owned(),
    };
    match rule.path_specifier.as_ref().unwrap() {
        PathSpecifier::Path(p) => fold(path) == fold(p),
        PathSpecifier::Prefix(p) => fold(path).starts_with(&fold(p)),
        PathSpecifier::PathSeparatedPrefix(p) => {
            let rest = fold(path);
            let rest = rest.strip_prefix(&fold(p));
            rest.is_some_and(|r| r.is_empty() || r.starts_with('/'))
        }
        // Conditions match the expression itself.
        PathSpecifier::SafeRegex(_) => true,
        _ => unreachable!(),
    }
}

#[test]
fn chooses_as_a_linear_search_does() {
    let rng = &mut fastrand::Rng::with_seed(11);
    let word = |rng: &mut fastrand::Rng| -> String {
        let letters = (0..rng.usize(1..5)).map(|_| *rng.choice(&['/', 'a', 'B', 'b']).unwrap());
        format!("/{}", letters.collect::<String>())
    };
    for _ in 0..150 {
        let rules: Vec<pb::RouteMatch> = (0..rng.usize(..30))
            .map(|_| pb::RouteMatch {
                path_specifier: Some(match rng.u8(..4) {
                    0 => PathSpecifier::Path(word(rng)),
                    1 => PathSpecifier::Prefix(word(rng)),
                    2 => PathSpecifier::PathSeparatedPrefix(word(rng) + "a"),
                    _ => PathSpecifier::SafeRegex(
                        envoy_types::pb::envoy::r#type::matcher::v3::RegexMatcher {
                            regex: word(rng) + rng.choice(&["", "?", "*", ".*", "|/a"]).unwrap(),
                            ..Default::default()
                        },
                    ),
                }),
                case_sensitive: rng
                    .bool()
                    .then(|| envoy_types::pb::google::protobuf::BoolValue { value: rng.bool() }),
                headers: match rng.u8(..3) {
                    0 => vec![pb::HeaderMatcher {
                        name: "x-a".into(),
                        ..Default::default()
                    }],
                    _ => vec![],
                },
                ..Default::default()
            })
            .collect();
        let compiled: Vec<_> = rules
            .iter()
            .map(|rule| Conditions::compile(rule, test_context().runtime).unwrap())
            .collect();
        let routes = rules.iter().enumerate();
        let table = table(vec![host(
            "*",
            routes
                .map(|(i, r)| route(i.to_string(), r.clone()))
                .collect(),
        )]);
        for _ in 0..60 {
            let mut head = get("x", &(word(rng) + rng.choice(&["", "/b", "?/a"]).unwrap()));
            if rng.bool() {
                let name = HeaderName::from_static("x-a");
                head.headers.insert(name, HeaderValue::from_static("1"));
            }
            let path = head.path_only();
            let naive = rules.iter().zip(&compiled).position(|(rule, conditions)| {
                path_fits(rule, path) && conditions.matches(&head, path, &info(), 0)
            });
            assert_eq!(
                chosen(&table, &head),
                naive.map(|i| i.to_string()),
                "{} in {rules:?}",
                head.path
            );
        }
    }
}

#[test]
fn host_names() {
    let one = |name: &str| vec![route(name.into(), prefix("/"))];
    let mut config = pb::RouteConfiguration {
        name: "r".into(),
        virtual_hosts: vec![
            host("a.com", one("a")),
            host("*.a.com", one("suffix")),
            host("empty", vec![]),
        ],
        ..Default::default()
    };
    let compiled = |c: &pb::RouteConfiguration| RouteTable::compile(c, &test_context()).unwrap();
    let table = compiled(&config);
    assert_eq!((table.virtual_hosts(), table.routes()), (3, 2));
    let name = |t: &RouteTable, authority| chosen(t, &get(authority, "/x"));
    assert_eq!(name(&table, "A.com").as_deref(), Some("a"));
    assert_eq!(name(&table, "b.a.com").as_deref(), Some("suffix"));
    for none in ["a.com:80", "b.com", "empty", ""] {
        assert_eq!(name(&table, none), None, "{none}");
    }
    config.ignore_port_in_host_matching = true;
    assert_eq!(name(&compiled(&config), "a.com:80").as_deref(), Some("a"));

    config.vhost_header = "x-host".into();
    let mut head = get("b.com", "/");
    let header = HeaderName::from_static("x-host");
    head.headers
        .insert(header, HeaderValue::from_static("a.com"));
    assert_eq!(chosen(&compiled(&config), &head).as_deref(), Some("a"));
}

#[test]
fn path_parameters_can_be_ignored() {
    let rule = pb::RouteMatch {
        path_specifier: Some(PathSpecifier::Path("/a".into())),
        ..Default::default()
    };
    let mut config = pb::RouteConfiguration {
        virtual_hosts: vec![host("*", vec![route("a".into(), rule)])],
        ..Default::default()
    };
    for (ignore, expected) in [(false, None), (true, Some("a"))] {
        config.ignore_path_parameters_in_path_matching = ignore;
        let table = RouteTable::compile(&config, &test_context()).unwrap();
        assert_eq!(chosen(&table, &get("x", "/a;b?c")).as_deref(), expected);
    }
    for (path, bare) in [
        ("/a/b", "/a/b"),
        ("/a;x/b", "/a/b"),
        ("/a;/;b;c", "/a/"),
        (";", ""),
    ] {
        assert_eq!(without_parameters(path), bare);
    }
}

#[test]
fn without_the_header_that_names_it_there_is_no_virtual_host() {
    let config = pb::RouteConfiguration {
        virtual_hosts: vec![host("*", vec![route("a".into(), prefix("/"))])],
        vhost_header: "x-host".into(),
        ..Default::default()
    };
    let table = RouteTable::compile(&config, &test_context()).unwrap();
    let mut head = get("x", "/");
    assert_eq!(chosen(&table, &head), None);
    let name = HeaderName::from_static("x-host");
    head.headers.insert(name, HeaderValue::from_static("any"));
    assert_eq!(chosen(&table, &head).as_deref(), Some("a"));
}

#[test]
fn a_header_can_choose_among_weighted_clusters() {
    use pb::weighted_cluster::{ClusterWeight, RandomValueSpecifier};
    let cluster = |name: &str, weight| ClusterWeight {
        name: name.into(),
        weight: Some(envoy_types::pb::google::protobuf::UInt32Value { value: weight }),
        ..Default::default()
    };
    let clusters = pb::WeightedCluster {
        clusters: vec![cluster("a", 30), cluster("b", 0), cluster("c", 70)],
        random_value_specifier: Some(RandomValueSpecifier::HeaderName("x-n".into())),
        ..Default::default()
    };
    let mut proto = route("r".into(), prefix("/"));
    proto.action = Some(pb::route::Action::Route(pb::RouteAction {
        cluster_specifier: Some(pb::route_action::ClusterSpecifier::WeightedClusters(
            clusters,
        )),
        ..Default::default()
    }));
    let table = table(vec![host("*", vec![proto])]);
    let mut head = get("x", "/");
    for (number, random, want) in [
        (Some("29"), 99, "a"),
        (Some("30"), 0, "c"),
        (Some("129"), 99, "a"),
        (Some("many"), 50, "c"),
        (None, 0, "a"),
    ] {
        let name = HeaderName::from_static("x-n");
        head.headers.remove(&name);
        if let Some(number) = number {
            head.headers.insert(name, HeaderValue::from_static(number));
        }
        let RouteOutcome::Matched(route) = table.route(&head, &info(), random) else {
            panic!("no route");
        };
        let crate::router::action::Action::Cluster(slot) = route.action() else {
            panic!("no cluster");
        };
        assert_eq!(&**slot.name(), want, "{number:?}");
    }
}

#[test]
fn tls_requirements() {
    let outcome = |requirement: TlsRequirementType, scheme: &'static str, internal: bool| {
        let mut config = host("*", vec![route("a".into(), prefix("/"))]);
        config.require_tls = requirement.into();
        let mut head = get("x", "/");
        head.scheme = scheme.into();
        if internal {
            let name = HeaderName::from_static("x-envoy-internal");
            head.headers.insert(name, HeaderValue::from_static("true"));
        }
        table(vec![config]).route(&head, &info(), 0)
    };
    use TlsRequirementType as T;
    for (requirement, scheme, internal, redirects) in [
        (T::None, "http", false, false),
        (T::All, "http", true, true),
        (T::All, "https", false, false),
        (T::ExternalOnly, "http", false, true),
        (T::ExternalOnly, "http", true, false),
        (T::ExternalOnly, "https", false, false),
    ] {
        let outcome = outcome(requirement, scheme, internal);
        let redirected = matches!(outcome, RouteOutcome::HttpsRedirect(_));
        assert_eq!(redirected, redirects, "{requirement:?} {scheme}");
        assert_eq!(outcome.view().is_none(), redirects);
    }
}

#[test]
fn errors_name_the_field() {
    let error = |config| {
        let e = RouteTable::compile(&config, &test_context());
        e.unwrap_err().to_string()
    };
    let with = |hosts| pb::RouteConfiguration {
        virtual_hosts: hosts,
        ..Default::default()
    };
    let bad = route("a".into(), pb::RouteMatch::default());
    assert_eq!(
        error(with(vec![host("*", vec![bad])])),
        "virtual_hosts[0].routes[0].match: path_specifier is required"
    );
    let mut config = with(vec![]);
    config.vhds = Some(pb::Vhds::default());
    assert_eq!(error(config), "vhds: not supported");
    let mut generic = host("*", vec![]);
    generic.matcher = Some(Default::default());
    assert_eq!(
        error(with(vec![generic])),
        "virtual_hosts[0].matcher: not supported"
    );
}

#[test]
fn what_istiod_sends_compiles() {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../conformance/fixtures/istio-1.27/rds.pb");
    let bytes = std::fs::read(path).unwrap();
    let (mut rest, mut count) = (bytes.as_slice(), 0);
    while !rest.is_empty() {
        let response = DeltaDiscoveryResponse::decode_length_delimited(&mut rest).unwrap();
        for resource in response.resources {
            let any = resource.resource.unwrap();
            let config = pb::RouteConfiguration::decode(any.value.as_slice()).unwrap();
            let table = RouteTable::compile(&config, &test_context()).unwrap();
            assert_eq!(table.virtual_hosts(), config.virtual_hosts.len());
            count += 1;
        }
    }
    assert!(count > 0);
}
