//! What must hold of the generic matcher whatever the tree: it finds what a plain reading of the message finds.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use envoy_types::pb::google::protobuf::{Any, StringValue, UInt32Value};
use envoy_types::pb::xds::core::v3::{CidrRange, TypedExtensionConfig};
use envoy_types::pb::xds::r#type::matcher::v3::{
    Matcher, StringMatcher,
    matcher::{
        MatcherList, MatcherTree as Tree, MatcherType, OnMatch,
        matcher_list::{
            FieldMatcher, Predicate,
            predicate::{MatchType, PredicateList, SinglePredicate, single_predicate},
        },
        matcher_tree::{MatchMap, TreeType},
        on_match::OnMatch as Follows,
    },
    string_matcher::MatchPattern,
};
use filters::matcher::tree::Place;
use filters::matcher::{MatchInput, MatcherTree};
use prost::Message;
use xds_client::any::{pack, unpack};
use xds_client::proto::xds::r#type::matcher::v3::{
    IpMatcher, ServerNameMatcher, ip_matcher::IpRangeMatcher, server_name_matcher::DomainMatcher,
};

const NETWORK: &str = "type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.";
const INPUTS: [&str; 4] = [
    "DestinationIPInput",
    "DestinationPortInput",
    "ServerNameInput",
    "ApplicationProtocolInput",
];
/// Keys, prefixes, domains and what is looked up come from here, so that they meet.
const WORDS: [&str; 12] = [
    "", "1", "10.", "10.1.2.3", "10.1.2.4", "8", "80", "a.test", "b.a.test", "test", "'h2'",
    "'h2','x'",
];
const DOMAINS: [&str; 6] = ["*", "*.test", "*.a.test", "a.test", "b.a.test", "*.com"];
const ADDRESSES: [&str; 6] = [
    "10.1.2.3",
    "10.1.2.4",
    "10.200.0.1",
    "::ffff:10.1.2.3",
    "2001:db8::1",
    "2001:db8:ffff::2",
];

/// Decisions out of bytes; when they are used up, always the first choice.
struct Choices<'a>(std::slice::Iter<'a, u8>);

impl Choices<'_> {
    fn below(&mut self, n: usize) -> usize {
        usize::from(*self.0.next().unwrap_or(&0)) % n
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// The message that the bytes are, if they are one, must not do harm; the one that they choose must find the same as
/// the reference, for several connections.
pub fn finds(data: &[u8]) {
    if let Ok(matcher) = Matcher::decode(data) {
        let tree = MatcherTree::compile(&matcher, Place::Request, &|_| Ok(()));
        drop(tree.map(|tree| tree.find(&MatchInput::default()).is_ok()));
    }
    let mut choices = Choices(data.iter());
    let matcher = matcher(&mut choices, 0);
    let tree = MatcherTree::compile(&matcher, Place::FilterChain, &|action| {
        unpack::<StringValue>(action)
    });
    let tree = tree.unwrap_or_else(|error| panic!("{error}: {matcher:?}"));
    for _ in 0..8 {
        let protocols = ["h2", "x"];
        let input = MatchInput {
            destination: match choices.below(7) {
                6 => None,
                at => Some(SocketAddr::new(
                    ADDRESSES[at].parse().unwrap(),
                    choices.of(&[8, 80, 81]),
                )),
            },
            server_name: choices.of(&["", "a.test", "b.a.test", "c.b.a.test", "test", "x.com"]),
            application_protocols: &protocols[..choices.below(3)],
            ..MatchInput::default()
        };
        let found = tree.find(&input).unwrap().map(|name| name.value.clone());
        assert_eq!(found, reference(&matcher, &input), "{input:?} {matcher:?}");
    }
}

fn extension(config: Any) -> TypedExtensionConfig {
    TypedExtensionConfig {
        name: "x".into(),
        typed_config: Some(config),
    }
}

fn input(name: &str) -> TypedExtensionConfig {
    extension(Any {
        type_url: format!("{NETWORK}{name}"),
        value: Vec::new(),
    })
}

fn matcher(choices: &mut Choices<'_>, depth: usize) -> Matcher {
    let matcher_type = match choices.below(if depth < 4 { 6 } else { 1 }) {
        0 => None,
        1 => {
            let matchers = (0..=choices.below(3)).map(|_| FieldMatcher {
                predicate: Some(predicate(choices, 0)),
                on_match: Some(on_match(choices, depth)),
            });
            Some(MatcherType::MatcherList(MatcherList {
                matchers: matchers.collect(),
            }))
        }
        kind => Some(MatcherType::MatcherTree(Tree {
            input: Some(input(choices.of(&INPUTS))),
            tree_type: Some(match kind {
                2 => TreeType::ExactMatchMap(map(choices, depth)),
                3 => TreeType::PrefixMatchMap(map(choices, depth)),
                4 => TreeType::CustomMatch(extension(pack(&ranges(choices, depth)))),
                _ => TreeType::CustomMatch(extension(pack(&domains(choices, depth)))),
            }),
        })),
    };
    let on_no_match = (choices.below(3) == 1).then(|| Box::new(on_match(choices, depth)));
    Matcher {
        on_no_match,
        matcher_type,
    }
}

fn on_match(choices: &mut Choices<'_>, depth: usize) -> OnMatch {
    OnMatch {
        keep_matching: false,
        on_match: Some(match choices.below(3) {
            2 => Follows::Matcher(Box::new(matcher(choices, depth + 1))),
            _ => Follows::Action(extension(pack(&StringValue {
                value: choices.below(256).to_string(),
            }))),
        }),
    }
}

fn map(choices: &mut Choices<'_>, depth: usize) -> MatchMap {
    let map: HashMap<_, _> = (0..=choices.below(5))
        .map(|_| (choices.of(&WORDS).to_owned(), on_match(choices, depth)))
        .collect();
    MatchMap { map }
}

fn ranges(choices: &mut Choices<'_>, depth: usize) -> IpMatcher {
    let range = |choices: &mut Choices<'_>| CidrRange {
        address_prefix: choices.of(&ADDRESSES).to_owned(),
        prefix_len: Some(UInt32Value {
            value: choices.of(&[0, 8, 9, 31, 32, 48, 128, 200]),
        }),
    };
    let matchers = (0..choices.below(5)).map(|_| IpRangeMatcher {
        ranges: (0..=choices.below(3)).map(|_| range(choices)).collect(),
        on_match: Some(on_match(choices, depth)),
        exclusive: choices.below(3) == 2,
    });
    IpMatcher {
        range_matchers: matchers.collect(),
    }
}

fn domains(choices: &mut Choices<'_>, depth: usize) -> ServerNameMatcher {
    // Each domain may occur once.
    let mut left = DOMAINS.to_vec();
    let mut domain_matchers = Vec::new();
    for _ in 0..choices.below(4) {
        let at = choices.below(left.len());
        let rest = left.split_off(at);
        domain_matchers.push(DomainMatcher {
            domains: rest.into_iter().map(str::to_owned).collect(),
            on_match: Some(on_match(choices, depth)),
        });
        if left.is_empty() {
            break;
        }
    }
    ServerNameMatcher { domain_matchers }
}

fn predicate(choices: &mut Choices<'_>, depth: usize) -> Predicate {
    let list = |choices: &mut Choices<'_>| PredicateList {
        predicate: (0..2 + choices.below(2))
            .map(|_| predicate(choices, depth + 1))
            .collect(),
    };
    let match_type = match choices.below(if depth < 3 { 4 } else { 1 }) {
        0 => {
            let word = choices.of(&WORDS).to_owned();
            let pattern = match choices.below(2) {
                1 if !word.is_empty() => MatchPattern::Prefix(word),
                _ => MatchPattern::Exact(word),
            };
            MatchType::SinglePredicate(SinglePredicate {
                input: Some(input(choices.of(&INPUTS))),
                matcher: Some(single_predicate::Matcher::ValueMatch(StringMatcher {
                    ignore_case: false,
                    match_pattern: Some(pattern),
                })),
            })
        }
        1 => MatchType::AndMatcher(list(choices)),
        2 => MatchType::OrMatcher(list(choices)),
        _ => MatchType::NotMatcher(Box::new(predicate(choices, depth + 1))),
    };
    Predicate {
        match_type: Some(match_type),
    }
}

/// What an input says, as text.
fn text(of: &TypedExtensionConfig, known: &MatchInput<'_>) -> Option<String> {
    let url = &of.typed_config.as_ref().unwrap().type_url;
    match url.strip_prefix(NETWORK).unwrap() {
        "DestinationIPInput" => known.destination.map(|a| a.ip().to_canonical().to_string()),
        "DestinationPortInput" => known.destination.map(|a| a.port().to_string()),
        "ServerNameInput" => Some(known.server_name.to_owned()).filter(|name| !name.is_empty()),
        _ if known.application_protocols.is_empty() => None,
        _ => Some(format!("'{}'", known.application_protocols.join("','"))),
    }
}

fn reference(matcher: &Matcher, known: &MatchInput<'_>) -> Option<String> {
    let branches: Vec<&OnMatch> = match &matcher.matcher_type {
        None => Vec::new(),
        Some(MatcherType::MatcherList(list)) => {
            let holds = |m: &&FieldMatcher| holds(m.predicate.as_ref().unwrap(), known);
            list.matchers
                .iter()
                .filter(holds)
                .map(|m| m.on_match.as_ref().unwrap())
                .collect()
        }
        Some(MatcherType::MatcherTree(tree)) => {
            let text = text(tree.input.as_ref().unwrap(), known);
            return text
                .and_then(|text| in_tree(tree, &text, known))
                .or_else(|| no_match(matcher, known));
        }
    };
    branches
        .into_iter()
        .find_map(|b| follow(b, known))
        .or_else(|| no_match(matcher, known))
}

fn holds(predicate: &Predicate, known: &MatchInput<'_>) -> bool {
    match predicate.match_type.as_ref().unwrap() {
        MatchType::AndMatcher(list) => list.predicate.iter().all(|p| holds(p, known)),
        MatchType::OrMatcher(list) => list.predicate.iter().any(|p| holds(p, known)),
        MatchType::NotMatcher(predicate) => !holds(predicate, known),
        MatchType::SinglePredicate(single) => {
            let Some(single_predicate::Matcher::ValueMatch(matcher)) = &single.matcher else {
                panic!("not made here");
            };
            let text = text(single.input.as_ref().unwrap(), known);
            text.is_some_and(|text| match matcher.match_pattern.as_ref().unwrap() {
                MatchPattern::Exact(word) => text == *word,
                MatchPattern::Prefix(word) => text.starts_with(word),
                other => panic!("{other:?} is not made here"),
            })
        }
    }
}

fn no_match(matcher: &Matcher, known: &MatchInput<'_>) -> Option<String> {
    follow(matcher.on_no_match.as_deref()?, known)
}

fn follow(on_match: &OnMatch, known: &MatchInput<'_>) -> Option<String> {
    match on_match.on_match.as_ref().unwrap() {
        Follows::Matcher(matcher) => reference(matcher, known),
        Follows::Action(action) => Some(
            unpack::<StringValue>(action.typed_config.as_ref().unwrap())
                .unwrap()
                .value,
        ),
    }
}

fn in_tree(tree: &Tree, text: &str, known: &MatchInput<'_>) -> Option<String> {
    match tree.tree_type.as_ref().unwrap() {
        TreeType::ExactMatchMap(map) => follow(map.map.get(text)?, known),
        TreeType::PrefixMatchMap(map) => {
            let prefixes = (0..=text.len()).rev().filter_map(|len| text.get(..len));
            prefixes
                .filter_map(|prefix| map.map.get(prefix))
                .find_map(|m| follow(m, known))
        }
        TreeType::CustomMatch(custom) => {
            let config = custom.typed_config.as_ref().unwrap();
            match unpack::<IpMatcher>(config) {
                Ok(ranges) => in_ranges(&ranges, text.parse().ok()?, known),
                Err(_) => in_domains(&unpack(config).unwrap(), text, known),
            }
        }
    }
}

fn in_ranges(ranges: &IpMatcher, ip: IpAddr, known: &MatchInput<'_>) -> Option<String> {
    let mut hits: Vec<(usize, &IpRangeMatcher)> = Vec::new();
    for matcher in &ranges.range_matchers {
        for range in &matcher.ranges {
            let len = range.prefix_len.as_ref().unwrap().value as usize;
            // Digit by digit.
            let (a, b) = match (ip, range.address_prefix.parse().unwrap()) {
                (IpAddr::V4(a), IpAddr::V4(b)) => (
                    format!("{:032b}", a.to_bits()),
                    format!("{:032b}", b.to_bits()),
                ),
                (IpAddr::V6(a), IpAddr::V6(b)) => (
                    format!("{:0128b}", a.to_bits()),
                    format!("{:0128b}", b.to_bits()),
                ),
                _ => continue,
            };
            let len = len.min(a.len());
            if a[..len] == b[..len] {
                hits.push((len, matcher));
            }
        }
    }
    // A stable sort: of equals the first that was declared.
    hits.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
    let count = |(at, (_, m)): &(usize, (usize, &IpRangeMatcher))| *at == 0 || !m.exclusive;
    hits.into_iter()
        .enumerate()
        .filter(count)
        .find_map(|(_, (_, m))| follow(m.on_match.as_ref().unwrap(), known))
}

fn in_domains(domains: &ServerNameMatcher, name: &str, known: &MatchInput<'_>) -> Option<String> {
    let mut hits: Vec<(usize, &DomainMatcher)> = Vec::new();
    for matcher in &domains.domain_matchers {
        for domain in &matcher.domains {
            match domain.strip_prefix('*') {
                Some(suffix) if name.ends_with(suffix) && !name.is_empty() => {
                    hits.push((suffix.len(), matcher))
                }
                None if domain == name => hits.push((usize::MAX, matcher)),
                _ => {}
            }
        }
    }
    hits.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
    hits.into_iter()
        .find_map(|(_, m)| follow(m.on_match.as_ref().unwrap(), known))
}
