//! Depth, and work that must not multiply.

use envoy_types::pb::google::protobuf::UInt32Value;
use envoy_types::pb::xds::core::v3::{CidrRange, TypedExtensionConfig};
use envoy_types::pb::xds::r#type::matcher::v3::matcher;
use xds_client::proto::xds::r#type::matcher::v3::{IpMatcher, ip_matcher::IpRangeMatcher};

use super::*;

/// Matchers of this many levels, each behind custom matchers with these prefix lengths of 10.1.2.3.
fn nested(levels: usize, lengths: std::ops::Range<u32>, innermost: Matcher) -> Matcher {
    let range = |len| CidrRange {
        address_prefix: "10.1.2.3".into(),
        prefix_len: Some(len),
    };
    let extension = |config| TypedExtensionConfig {
        name: "x".into(),
        typed_config: Some(config),
    };
    let ip: Json = network("DestinationIPInput");
    let ip: TypedExtensionConfig = Pool::load()
        .unwrap()
        .parse_as(&ip, UnknownFields::Reject)
        .unwrap();
    (0..levels).fold(innermost, |inner, _| {
        let ranges = IpMatcher {
            range_matchers: vec![IpRangeMatcher {
                ranges: lengths
                    .clone()
                    .map(|len| range(UInt32Value { value: len }))
                    .collect(),
                on_match: Some(matcher::OnMatch {
                    keep_matching: false,
                    on_match: Some(matcher::on_match::OnMatch::Matcher(Box::new(inner))),
                }),
                exclusive: false,
            }],
        };
        Matcher {
            on_no_match: None,
            matcher_type: Some(matcher::MatcherType::MatcherTree(matcher::MatcherTree {
                input: Some(ip.clone()),
                tree_type: Some(matcher::matcher_tree::TreeType::CustomMatch(extension(
                    any::pack(&ranges),
                ))),
            })),
        }
    })
}

#[test]
fn nesting_is_bounded_also_through_custom_matchers() {
    let found = Pool::load()
        .unwrap()
        .parse_as(&json!({"on_no_match": to("found")}), UnknownFields::Reject);
    let found: Matcher = found.unwrap();
    let compile = |levels| {
        MatcherTree::compile(
            &nested(levels, 8..9, found.clone()),
            Place::FilterChain,
            &|_| Ok("found"),
        )
    };
    assert_eq!(compile(31).unwrap().find(&connection()), Ok(Some(&"found")));
    let error = compile(32).unwrap_err();
    assert_eq!(error.reason(), "nested too deeply");
    let not = |predicate: Json, _| json!({"not_matcher": predicate});
    let predicate = single(&network("DestinationIPInput"), &json!({"prefix": "1"}));
    let predicate = (0..20).fold(predicate, not);
    assert!(find(&list(predicate), &connection()).is_some());
}

#[test]
fn overlapping_branches_do_not_multiply_the_work() {
    let tree = nested(20, 0..33, Matcher::default());
    let tree = MatcherTree::compile(&tree, Place::FilterChain, &|_| Ok(())).unwrap();
    // 33 to the power of 20, if they did.
    assert_eq!(tree.find(&connection()), Ok(None));
}
