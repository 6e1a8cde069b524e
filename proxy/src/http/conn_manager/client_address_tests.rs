use super::*;
use crate::http::testing::connection;
use envoy_types::pb::envoy::config::core::v3::CidrRange;
use envoy_types::pb::google::protobuf::{BoolValue, UInt32Value};
use http::Method;

fn ten() -> CidrSet {
    let range = CidrRange {
        address_prefix: "10.0.0.0".into(),
        prefix_len: Some(UInt32Value { value: 8 }),
    };
    CidrSet::compile(&[range]).unwrap()
}

/// The client's address, whether it is inside, and the header afterwards.
fn found(how: How, peer: &str, xff: &[&str]) -> (String, bool, String) {
    let rules = ClientAddress {
        how,
        internal: Some(ten()),
    };
    let mut head = RequestHead::new(Method::GET, "/");
    for value in xff {
        head.headers.append(names::XFF, value.parse().unwrap());
    }
    let client = rules
        .find(&mut head, &connection(peer, "9.9.9.9:80"))
        .unwrap();
    let after = head.headers.get_all(names::XFF).iter();
    let after: Vec<_> = after.map(|v| v.to_str().unwrap()).collect();
    (client.remote.to_string(), client.internal, after.join("|"))
}

#[test]
fn at_the_edge_only_trusted_hops_are_believed() {
    let edge = |trusted_hops| How::Edge {
        trusted_hops,
        append: true,
    };
    for (hops, peer, xff, want) in [
        (0, "10.0.0.1:5", vec![], ("10.0.0.1:5", true, "10.0.0.1")),
        (
            0,
            "10.0.0.1:5",
            vec!["10.0.0.2"],
            ("10.0.0.1:5", false, "10.0.0.2,10.0.0.1"),
        ),
        (
            1,
            "8.8.8.8:5",
            vec!["1.1.1.1"],
            ("1.1.1.1:0", false, "1.1.1.1,8.8.8.8"),
        ),
        (
            2,
            "8.8.8.8:5",
            vec!["1.1.1.1"],
            ("8.8.8.8:5", false, "1.1.1.1,8.8.8.8"),
        ),
        (
            2,
            "8.8.8.8:5",
            vec!["1.1.1.1", "2.2.2.2"],
            ("1.1.1.1:0", false, "1.1.1.1,2.2.2.2,8.8.8.8"),
        ),
        (
            1,
            "8.8.8.8:5",
            vec!["me"],
            ("8.8.8.8:5", false, "me,8.8.8.8"),
        ),
        (0, "8.8.8.8:5", vec![""], ("8.8.8.8:5", false, "8.8.8.8")),
    ] {
        let (remote, internal, after) = found(edge(hops), peer, &xff);
        assert_eq!(
            (remote.as_str(), internal, after.as_str()),
            want,
            "{hops} {xff:?}"
        );
    }
}

#[test]
fn behind_other_proxies_the_header_tells() {
    let hops = |hops| {
        How::Detect(
            [Detection::Hops {
                hops,
                append: false,
            }]
            .into(),
        )
    };
    for (skip, xff, want) in [
        (0, "10.0.0.2", ("10.0.0.2:0", true)),
        (0, "1.1.1.1,10.0.0.2", ("10.0.0.2:0", false)),
        (1, "1.1.1.1,10.0.0.2", ("1.1.1.1:0", false)),
        (0, "1.1.1.1,", ("10.0.0.9:5", false)),
        (0, "2001:db8::1", ("[2001:db8::1]:0", false)),
    ] {
        let (remote, internal, after) = found(hops(skip), "10.0.0.9:5", &[xff]);
        assert_eq!((remote.as_str(), internal), want, "{xff}");
        assert_eq!(after, xff);
    }
    // No header: a peer is not taken for the sender, even if it is inside.
    assert!(!found(hops(0), "10.0.0.9:5", &[]).1);
}

#[test]
fn trusted_proxies_are_passed_over() {
    let trusted = || {
        let proxies = ten();
        How::Detect(
            [Detection::Trusted {
                proxies,
                append: false,
            }]
            .into(),
        )
    };
    for (xff, want) in [
        ("1.1.1.1,2.2.2.2,10.0.0.1", ("2.2.2.2:0", false)),
        ("10.0.0.3,10.0.0.1", ("10.0.0.3:0", false)),
        ("10.0.0.3", ("10.0.0.3:0", true)),
        ("1.1.1.1,who,10.0.0.1", ("10.0.0.9:5", false)),
    ] {
        let (remote, internal, after) = found(trusted(), "10.0.0.9:5", &[xff]);
        assert_eq!((remote.as_str(), internal), want, "{xff}");
        assert_eq!(after, xff);
    }
    // A stranger is believed nothing, and noted.
    let stranger = found(trusted(), "8.8.8.8:5", &["10.0.0.3"]);
    assert_eq!(
        stranger,
        ("8.8.8.8:5".into(), false, "10.0.0.3,8.8.8.8".into())
    );
}

#[test]
fn a_header_can_be_demanded() {
    let name = HeaderName::from_static("x-real-ip");
    let rules = ClientAddress {
        how: How::Detect(
            [Detection::Header {
                name: name.clone(),
                may_be_internal: true,
                reject: Some(StatusCode::UNAUTHORIZED),
            }]
            .into(),
        ),
        internal: Some(ten()),
    };
    let connection = connection("8.8.8.8:5", "9.9.9.9:80");
    let mut head = RequestHead::new(Method::GET, "/");
    assert_eq!(
        rules.find(&mut head, &connection),
        Err(StatusCode::UNAUTHORIZED)
    );
    head.headers
        .insert(name.clone(), HeaderValue::from_static("x"));
    assert_eq!(
        rules.find(&mut head, &connection),
        Err(StatusCode::UNAUTHORIZED)
    );
    head.headers
        .insert(name, HeaderValue::from_static("10.1.1.1"));
    assert!(rules.find(&mut head, &connection).unwrap().internal);
}

#[test]
fn extensions_exclude_the_plain_fields() {
    let mut proto = HttpConnectionManager {
        original_ip_detection_extensions: vec![TypedExtensionConfig::default()],
        use_remote_address: Some(BoolValue { value: true }),
        ..Default::default()
    };
    let path = |proto: &_| match ClientAddress::compile(proto) {
        Ok(_) => panic!("compiled"),
        Err(error) => error.to_string(),
    };
    assert!(path(&proto).starts_with("original_ip_detection_extensions: excludes"));
    proto.use_remote_address = None;
    assert_eq!(
        path(&proto),
        "original_ip_detection_extensions[0].typed_config: is required"
    );
}
