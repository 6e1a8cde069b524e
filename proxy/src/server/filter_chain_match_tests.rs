//! The order of the criteria, and what is refused.

use super::*;
use envoy_types::pb::envoy::config::core::v3::CidrRange;
use envoy_types::pb::google::protobuf::UInt32Value;

fn range(text: &str) -> CidrRange {
    let (address, length) = text.split_once('/').unwrap();
    CidrRange {
        address_prefix: address.into(),
        prefix_len: Some(UInt32Value {
            value: length.parse().unwrap(),
        }),
    }
}

fn input<'a>() -> MatchInput<'a> {
    MatchInput {
        destination: Some("10.0.0.1:443".parse().unwrap()),
        source: Some("192.0.2.7:5000".parse().unwrap()),
        direct_source: Some("192.0.2.7:5000".parse().unwrap()),
        ..MatchInput::default()
    }
}

fn build(matches: &[FilterChainMatch]) -> Result<FilterChainIndex, ConfigError> {
    let names = ["a", "b", "c", "d", "e", "f"];
    FilterChainIndex::compile(
        "0.0.0.0:443",
        names.iter().copied().zip(matches.iter().map(Some)),
    )
}

fn names(list: &[&str]) -> FilterChainMatch {
    FilterChainMatch {
        server_names: list.iter().map(|s| (*s).to_owned()).collect(),
        ..Default::default()
    }
}

#[test]
fn server_names_go_exact_then_longest_wildcard_then_any() {
    let index = build(&[
        names(&["www.Example.com"]),
        names(&["*.example.com"]),
        names(&["*.b.example.com"]),
        names(&[]),
    ])
    .unwrap();
    for (name, chain) in [
        ("www.example.com", 0),
        ("x.example.com", 1),
        ("a.b.example.com", 2),
        ("b.example.com", 1),
        ("example.com", 3),
        ("", 3),
    ] {
        let found = index.find(&MatchInput {
            server_name: name,
            ..input()
        });
        assert_eq!(found, Some(chain), "{name}");
    }
}

#[test]
fn a_winning_criterion_is_never_taken_back() {
    let mut exact = names(&["www.example.com"]);
    exact.transport_protocol = "tls".into();
    let index = build(&[exact, names(&[])]).unwrap();
    let raw = MatchInput {
        server_name: "www.example.com",
        transport_protocol: "raw_buffer",
        ..input()
    };
    assert_eq!(index.find(&raw), None);

    let port = FilterChainMatch {
        destination_port: Some(UInt32Value { value: 443 }),
        prefix_ranges: vec![range("10.9.0.0/16")],
        ..Default::default()
    };
    let index = build(&[port, names(&[])]).unwrap();
    assert_eq!(index.find(&input()), None);
    let other = MatchInput {
        destination: Some("10.0.0.1:80".parse().unwrap()),
        ..input()
    };
    assert_eq!(index.find(&other), Some(1));
}

#[test]
fn the_longest_prefix_wins_for_every_kind_of_address() {
    let of = |set: fn(&mut FilterChainMatch, Vec<CidrRange>)| {
        ["10.0.0.0/8", "10.0.0.1/32", "0.0.0.0/0", "192.0.2.0/24"].map(|r| {
            let mut m = FilterChainMatch::default();
            set(&mut m, vec![range(r)]);
            m
        })
    };
    let index = build(&of(|m, r| m.prefix_ranges = r)).unwrap();
    assert_eq!(index.find(&input()), Some(1));
    let index = build(&of(|m, r| m.source_prefix_ranges = r)).unwrap();
    assert_eq!(index.find(&input()), Some(3));
    let index = build(&of(|m, r| m.direct_source_prefix_ranges = r)).unwrap();
    assert_eq!(index.find(&input()), Some(3));
    let v6 = MatchInput {
        direct_source: Some("[2001:db8::1]:1".parse().unwrap()),
        ..input()
    };
    assert_eq!(index.find(&v6), None, "a v4 catch-all holds no v6 address");
    let mapped = MatchInput {
        direct_source: Some("[::ffff:192.0.2.1]:1".parse().unwrap()),
        ..input()
    };
    assert_eq!(index.find(&mapped), Some(3));
}

#[test]
fn application_protocols_follow_the_clients_order() {
    let of = |p: &[&str]| FilterChainMatch {
        application_protocols: p.iter().map(|s| (*s).to_owned()).collect(),
        ..Default::default()
    };
    let index = build(&[of(&["h2"]), of(&["http/1.1", "http/1.0"]), of(&[])]).unwrap();
    let find = |p: &[&str]| {
        index.find(&MatchInput {
            application_protocols: p,
            ..input()
        })
    };
    assert_eq!(find(&["http/1.1", "h2"]), Some(1));
    assert_eq!(find(&["foo", "h2"]), Some(0));
    assert_eq!(find(&["foo"]), Some(2));
}

#[test]
fn source_type_and_ports() {
    let of = |source_type: i32, source_ports: &[u32]| FilterChainMatch {
        source_type,
        source_ports: source_ports.to_vec(),
        ..Default::default()
    };
    let index = build(&[of(1, &[]), of(2, &[5000]), of(0, &[])]).unwrap();
    let from = |s: &str| {
        index.find(&MatchInput {
            source: Some(s.parse().unwrap()),
            ..input()
        })
    };
    assert_eq!(from("127.0.0.1:9"), Some(0));
    assert_eq!(from("10.0.0.1:9"), Some(0));
    assert_eq!(from("192.0.2.7:5000"), Some(1));
    assert_eq!(
        from("192.0.2.7:5001"),
        None,
        "external was chosen before the port"
    );
}

#[test]
fn the_same_rules_twice_and_half_wildcards_are_refused() {
    let error = build(&[names(&["x", "y"]), names(&["y"])]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "filter_chains[1].filter_chain_match: error adding listener '0.0.0.0:443': filter chain 'b' \
         has the same matching rules defined as 'a'"
    );
    assert!(build(&[names(&["y", "y"])]).is_ok());
    for bad in ["*", "w*.example.com", "*.a*.com"] {
        let text = build(&[names(&[bad])]).unwrap_err().to_string();
        assert!(text.contains("partial wildcards"), "{bad}: {text}");
    }
}
