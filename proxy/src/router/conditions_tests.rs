//! Each condition of `RouteMatch`.

use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use filters::stream::FilterObject;
use http::{HeaderName, HeaderValue};
use pb::route_match::{
    ConnectMatcher, GrpcRouteMatchOptions, PathSpecifier, TlsContextMatchOptions,
};

use super::super::path_index::PathIndex;

use super::*;
use crate::config::runtime::Runtime;
use crate::http::testing::stream_info as info;

fn get(path: &str) -> RequestHead {
    RequestHead::new(Method::GET, path)
}

fn rule(path: PathSpecifier) -> pb::RouteMatch {
    pb::RouteMatch {
        path_specifier: Some(path),
        ..Default::default()
    }
}

fn any() -> pb::RouteMatch {
    rule(PathSpecifier::Prefix("/".into()))
}

fn regex(pattern: &str) -> PathSpecifier {
    PathSpecifier::SafeRegex(matcher::RegexMatcher {
        regex: pattern.into(),
        ..Default::default()
    })
}

fn compile(config: &pb::RouteMatch) -> Result<Conditions, ConfigError> {
    Conditions::compile(config, &Runtime::default())
}

fn takes_with(config: &pb::RouteMatch, head: &RequestHead, info: &StreamInfo, random: u64) -> bool {
    let rule = compile(config).unwrap();
    let index = PathIndex::build([rule.key()]);
    let path = head.path_only();
    index.candidates(path).count() == 1 && rule.matches(head, path, info, random)
}

fn takes(config: &pb::RouteMatch, head: &RequestHead) -> bool {
    takes_with(config, head, &info(), 0)
}

#[test]
fn paths() {
    use PathSpecifier as P;
    for (specifier, yes, no) in [
        (
            P::Prefix("/a".into()),
            &["/a", "/ab", "/a?x"][..],
            &["/", "/A", "/?/a"][..],
        ),
        (
            P::Path("/a".into()),
            &["/a", "/a?x=y", "/a#f"],
            &["/a/", "/ab", "/A"],
        ),
        (
            P::PathSeparatedPrefix("/a".into()),
            &["/a", "/a/", "/a/b", "/a?x"],
            &["/ab", "/", "/A"],
        ),
        (
            regex("/a/[0-9]+"),
            &["/a/1", "/a/12?x"],
            &["/a/1/", "/a/", "/x/a/1", "/A/1"],
        ),
        (regex("/a|/b"), &["/a", "/b"], &["/ab", "/c"]),
        (regex("(?i)/a"), &["/a", "/A"], &["/b"]),
        (regex(r"/a\.b?"), &["/a.", "/a.b"], &["/axb", "/a"]),
        (regex("/ab*c{0}"), &["/a", "/abb"], &["/abc"]),
        (regex(r"^/a\d$"), &["/a1"], &["/a", "/ad"]),
    ] {
        let config = rule(specifier);
        for path in yes {
            assert!(takes(&config, &get(path)), "{config:?} {path}");
        }
        for path in no {
            assert!(!takes(&config, &get(path)), "{config:?} {path}");
        }
    }
}

#[test]
fn case_is_ignored_except_by_regular_expressions() {
    use PathSpecifier as P;
    for (specifier, path, expected) in [
        (P::Prefix("/aB".into()), "/AbC", true),
        (P::Path("/aB".into()), "/Ab", true),
        (P::PathSeparatedPrefix("/aB".into()), "/AB/c", true),
        (P::PathSeparatedPrefix("/aB".into()), "/ABc", false),
        (regex("/a"), "/A", false),
    ] {
        let mut config = rule(specifier);
        config.case_sensitive = Some(BoolValue { value: false });
        assert_eq!(takes(&config, &get(path)), expected, "{config:?}");
    }
}

#[test]
fn connect_takes_tunnels_only() {
    let connect = rule(PathSpecifier::ConnectMatcher(ConnectMatcher {}));
    let plain = RequestHead::new(Method::CONNECT, "");
    assert!(takes(&connect, &plain));
    assert!(!takes(&any(), &plain));
    assert!(!takes(&rule(PathSpecifier::Prefix(String::new())), &plain));
    assert!(!takes(&connect, &get("/")));

    let mut websocket = RequestHead::new(Method::CONNECT, "/chat");
    websocket.upgrade = Some("websocket".into());
    assert!(takes(&any(), &websocket) && !takes(&connect, &websocket));
    websocket.upgrade = Some("connect-udp".into());
    assert!(takes(&connect, &websocket));
}

#[test]
fn headers_and_queries() {
    let mut config = any();
    config.headers = vec![pb::HeaderMatcher {
        name: "X-A".into(),
        ..Default::default()
    }];
    let mut head = get("/");
    assert!(!takes(&config, &head));
    head.headers.insert(
        HeaderName::from_static("x-a"),
        HeaderValue::from_static("1"),
    );
    assert!(takes(&config, &head));

    config.query_parameters = ["a", "b"]
        .map(|name| pb::QueryParameterMatcher {
            name: name.into(),
            ..Default::default()
        })
        .into();
    assert!(!takes(&config, &head));
    head.path = "/?a=1".into();
    assert!(!takes(&config, &head));
    head.path = "/?b&a=1".into();
    assert!(takes(&config, &head));
}

#[test]
fn fractions_follow_the_random_number() {
    let mut config = any();
    config.runtime_fraction = Some(RuntimeFractionalPercent {
        default_value: Some(FractionalPercent {
            numerator: 30,
            denominator: DenominatorType::TenThousand.into(),
        }),
        runtime_key: "ignored".into(),
    });
    for (random, expected) in [
        (0, true),
        (29, true),
        (30, false),
        (10_029, true),
        (9_999, false),
    ] {
        assert_eq!(takes_with(&config, &get("/"), &info(), random), expected);
    }
    config.runtime_fraction = Some(RuntimeFractionalPercent::default());
    assert!(compile(&config).is_err());
}

#[test]
fn grpc() {
    let mut config = any();
    config.grpc = Some(GrpcRouteMatchOptions {});
    let mut head = get("/");
    assert!(!takes(&config, &head));
    let grpc = HeaderValue::from_static("application/grpc+proto");
    head.headers.insert(http::header::CONTENT_TYPE, grpc);
    assert!(takes(&config, &head));
}

#[test]
fn metadata_and_filter_state() {
    use matcher::string_matcher::MatchPattern;
    let text = matcher::StringMatcher {
        match_pattern: Some(MatchPattern::Exact("v".into())),
        ignore_case: false,
    };
    let mut config = any();
    config.filter_state = vec![matcher::FilterStateMatcher {
        key: "k".into(),
        matcher: Some(matcher::filter_state_matcher::Matcher::StringMatch(
            text.clone(),
        )),
    }];
    let mut stream = info();
    assert!(!takes_with(&config, &get("/"), &stream, 0));
    stream
        .filter_state
        .set("k".into(), FilterObject::Text("v".into()));
    assert!(takes_with(&config, &get("/"), &stream, 0));

    config.dynamic_metadata = vec![matcher::MetadataMatcher {
        filter: "f".into(),
        path: vec![matcher::metadata_matcher::PathSegment {
            segment: Some(matcher::metadata_matcher::path_segment::Segment::Key(
                "m".into(),
            )),
        }],
        value: Some(matcher::ValueMatcher {
            match_pattern: Some(matcher::value_matcher::MatchPattern::StringMatch(text)),
        }),
        invert: false,
    }];
    assert!(!takes_with(&config, &get("/"), &stream, 0));
    let object = [("m".to_owned(), "v".into())].into_iter().collect();
    stream.dynamic_metadata.insert("f".into(), object);
    assert!(takes_with(&config, &get("/"), &stream, 0));
}

#[test]
fn refuses_what_it_cannot_do() {
    let refused = |config: &pb::RouteMatch| compile(config).unwrap_err().to_string();
    assert!(refused(&pb::RouteMatch::default()).contains("path_specifier"));
    let mut config = any();
    config.cookies = vec![pb::CookieMatcher::default()];
    assert_eq!(refused(&config), "cookies[0].name: must not be empty");
    let policy = PathSpecifier::PathMatchPolicy(Default::default());
    assert!(refused(&rule(policy)).starts_with("path_match_policy.typed_config"));
    for prefix in ["", "/", "/a/", "/a?"] {
        let config = rule(PathSpecifier::PathSeparatedPrefix(prefix.into()));
        assert!(compile(&config).is_err(), "{prefix}");
    }
    assert!(refused(&rule(regex("("))).starts_with("safe_regex.regex: "));
}

#[test]
fn certificates_that_were_not_shown() {
    for (presented, validated, plain) in [
        (None, None, true),
        (Some(true), None, false),
        (Some(false), None, true),
        (None, Some(true), false),
        (Some(false), Some(false), true),
        (Some(false), Some(true), false),
    ] {
        let value = |value: Option<bool>| value.map(|value| BoolValue { value });
        let mut config = any();
        config.tls_context = Some(TlsContextMatchOptions {
            presented: value(presented),
            validated: value(validated),
        });
        assert_eq!(
            takes(&config, &get("/")),
            plain,
            "{presented:?} {validated:?}"
        );
    }
}
