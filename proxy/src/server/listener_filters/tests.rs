//! Listener filters on real sockets.

use envoy_types::pb::envoy::config::listener::v3::{self as pb, Listener};
use envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3::proxy_protocol as pp;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::google::protobuf::{Any, BoolValue};
use prost::{Message, Name};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::telemetry::stats::Stats;

const LINE: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.2 1111 2222\r\n";
/// Version 2 with TLVs 1 (`h2`), 1 (`h3`) and 2 (no UTF-8).
const BINARY: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x1b\xc0\0\x02\x01\xc6\x33\x64\x02\x04\x57\x08\xae\x01\0\x02h2\x01\0\x02h3\x02\0\x02a\xff";

fn filter(proto: &ProxyProtocol) -> pb::ListenerFilter {
    pb::ListenerFilter {
        name: "proxy".into(),
        config_type: Some(pb::listener_filter::ConfigType::TypedConfig(Any {
            type_url: ProxyProtocol::type_url(),
            value: proto.encode_to_vec(),
        })),
        ..Default::default()
    }
}

fn named(which: &str) -> pb::ListenerFilter {
    pb::ListenerFilter {
        name: format!("envoy.filters.listener.{which}"),
        ..Default::default()
    }
}

fn compile(filters: Vec<pb::ListenerFilter>, stats: &Stats) -> Result<ListenerFilters, String> {
    let listener = Listener {
        listener_filters: filters,
        ..Default::default()
    };
    ListenerFilters::compile(&listener, &stats.scope("")).map_err(|e| e.to_string())
}

/// Runs the filters on a connection that says `bytes`, `size` at a time, and ends.
async fn run(
    filters: &ListenerFilters,
    bytes: &'static [u8],
    size: usize,
) -> (Result<(), Refusal>, Found) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    client.set_nodelay(true).unwrap();
    let writing = tokio::spawn(async move {
        for piece in bytes.chunks(size) {
            // A connection that is refused may be gone.
            if client.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let _ = client.shutdown().await;
        client
    });
    let (socket, _) = listener.accept().await.unwrap();
    let mut io = Accepted::Tcp(socket);
    let mut found = Found::new(&io).unwrap();
    let result = filters.run(&mut io, &mut found).await;
    drop(writing.await.unwrap());
    (result, found)
}

#[tokio::test]
async fn a_header_changes_both_addresses_and_leaves_what_follows() {
    let stats = Stats::new();
    let filters = compile(
        vec![
            filter(&ProxyProtocol::default()),
            named("tls_inspector"),
            named("http_inspector"),
        ],
        &stats,
    )
    .unwrap();
    let whole: &'static [u8] = [LINE, b"GET / HTTP/1.1\r\n"].concat().leak();
    for size in [1, 7, whole.len()] {
        let (result, found) = run(&filters, whole, size).await;
        result.unwrap();
        assert_eq!(found.remote.to_string(), "192.0.2.1:1111");
        assert_eq!(found.local.to_string(), "198.51.100.2:2222");
        assert!(found.direct_remote.to_string().starts_with("127.0.0.1:"));
        assert!(b"GET / HTTP/1.1\r\n".starts_with(&found.prefix));
        assert_eq!(
            (found.transport, &*found.protocols[0]),
            ("raw_buffer", "http/1.1")
        );
    }
    let counter = |name: &str| stats.scope("").counter(name).value();
    assert_eq!(counter("proxy_proto.versions.v1.found"), 3);
    assert_eq!(counter("downstream_cx_proxy_proto_error"), 0);
}

#[tokio::test]
async fn rules_choose_tlvs_for_metadata_and_for_upstreams() {
    let rule = |kind, namespace: &str, base64| pp::Rule {
        tlv_type: kind,
        on_tlv_present: Some(pp::KeyValuePair {
            metadata_namespace: namespace.into(),
            key: format!("k{kind}"),
            value_string_encoding: if base64 { 2 } else { 0 },
        }),
    };
    let mut proto = ProxyProtocol {
        rules: vec![
            rule(2, "own", true),
            rule(1, "", false),
            rule(2, "own", false),
        ],
        ..Default::default()
    };
    let stats = Stats::new();
    let filters = compile(vec![filter(&proto)], &stats).unwrap();
    let (result, found) = run(&filters, BINARY, 5).await;
    result.unwrap();
    assert_eq!(
        found.metadata["envoy.filters.listener.proxy_protocol"]["k1"],
        "h2"
    );
    assert_eq!(found.metadata["own"]["k2"], "a!");
    assert_eq!(found.tlvs.as_deref(), Some(&[][..]));
    proto.tlv_location = pp::TlvLocation::FilterState as i32;
    let filters = compile(vec![filter(&proto)], &stats).unwrap();
    let (result, found) = run(&filters, BINARY, 5).await;
    result.unwrap();
    assert!(found.metadata.is_empty());
    let state = found.filter_state.unwrap();
    let told = state.get("envoy.network.proxy_protocol.tlv").unwrap();
    // Of two of a type the last counts here.
    assert_eq!(told.text().unwrap(), r#"{"k1":"h3","k2":"a!"}"#);
    proto.tlv_location = 0;
    proto.rules = vec![rule(2, "own", true)];
    proto.pass_through_tlvs = Some(Default::default());
    let filters = compile(vec![filter(&proto)], &stats).unwrap();
    let (_, found) = run(&filters, BINARY, 500).await;
    assert_eq!(found.metadata["own"]["k2"], "Yf8=");
    assert_eq!(found.tlvs.unwrap().len(), 3);
    proto.pass_through_tlvs.as_mut().unwrap().match_type = 1;
    proto.pass_through_tlvs.as_mut().unwrap().tlv_type = vec![2];
    let filters = compile(vec![filter(&proto)], &stats).unwrap();
    let (_, found) = run(&filters, BINARY, 500).await;
    assert_eq!(*found.tlvs.unwrap(), [(2, Bytes::from_static(b"a\xff"))]);
}

#[tokio::test]
async fn what_is_no_header_or_of_no_wanted_version_is_refused_and_counted() {
    let stats = Stats::new();
    let one = compile(
        vec![filter(&ProxyProtocol {
            disallowed_versions: vec![1],
            stat_prefix: "one".into(),
            ..Default::default()
        })],
        &stats,
    )
    .unwrap();
    for bytes in [BINARY, b"GET / HTTP/1.1\r\n", b"PROXY x\r\n"] {
        let (result, _) = run(&one, bytes, 500).await;
        assert!(matches!(result, Err(Refusal::Filter)), "{bytes:?}");
    }
    let optional = compile(
        vec![filter(&ProxyProtocol {
            disallowed_versions: vec![1],
            allow_requests_without_proxy_protocol: true,
            ..Default::default()
        })],
        &stats,
    )
    .unwrap();
    let (result, found) = run(&optional, BINARY, 500).await;
    result.unwrap();
    assert_eq!(found.prefix, BINARY);
    let (result, _) = run(&optional, b"PROX", 1).await;
    let Err(Refusal::Io(error)) = result else {
        panic!("half a signature is waited on")
    };
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    let counter = |name: &str| stats.scope("").counter(name).value();
    for (name, value) in [
        ("proxy_proto.one.versions.v2.found", 1),
        ("proxy_proto.one.versions.v2.disallowed", 1),
        ("proxy_proto.one.not_found_disallowed", 1),
        ("proxy_proto.one.versions.v1.error", 1),
        ("proxy_proto.not_found_allowed", 1),
        ("downstream_cx_proxy_proto_error", 2),
    ] {
        assert_eq!(counter(name), value, "{name}");
    }
}

#[tokio::test]
async fn filters_run_in_order_and_only_where_they_are_on() {
    let stats = Stats::new();
    let mut off = filter(&ProxyProtocol::default());
    let not = pb::ListenerFilterChainMatchPredicate {
        rule: Some(pb::listener_filter_chain_match_predicate::Rule::AnyMatch(
            false,
        )),
    };
    off.filter_disabled = Some(pb::ListenerFilterChainMatchPredicate {
        rule: Some(pb::listener_filter_chain_match_predicate::Rule::NotMatch(
            Box::new(not),
        )),
    });
    let filters = compile(vec![off, named("http_inspector")], &stats).unwrap();
    let (result, found) = run(&filters, LINE, 500).await;
    result.unwrap();
    assert_eq!(found.prefix, LINE);
    // The line is no request, and is still there to be taken.
    let filters = compile(
        vec![named("http_inspector"), filter(&Default::default())],
        &stats,
    );
    let (result, found) = run(&filters.unwrap(), LINE, 500).await;
    result.unwrap();
    assert!(found.protocols.is_empty() && found.prefix.is_empty());
}

#[test]
fn what_cannot_be_honoured_is_named() {
    let stats = Stats::new();
    let refused = |proto: ProxyProtocol| compile(vec![filter(&proto)], &stats).unwrap_err();
    let error = refused(ProxyProtocol {
        disallowed_versions: vec![0, 1],
        ..Default::default()
    });
    assert!(
        error.contains("listener_filters[0].typed_config.disallowed_versions"),
        "{error}"
    );
    let error = refused(ProxyProtocol {
        tlv_location: 7,
        ..Default::default()
    });
    assert!(error.contains("tlv_location"), "{error}");
    let error = refused(ProxyProtocol {
        rules: vec![pp::Rule {
            tlv_type: 256,
            on_tlv_present: Some(pp::KeyValuePair::default()),
        }],
        ..Default::default()
    });
    assert!(error.contains("rules[0].tlv_type"), "{error}");
}

fn inspector(proto: &TlsInspector) -> pb::ListenerFilter {
    pb::ListenerFilter {
        name: "tls".into(),
        config_type: Some(pb::listener_filter::ConfigType::TypedConfig(Any {
            type_url: TlsInspector::type_url(),
            value: proto.encode_to_vec(),
        })),
        ..Default::default()
    }
}

#[tokio::test]
async fn the_tls_inspector_does_what_it_is_told() {
    const HELLO: &[u8] = b"\x16\x03\x01\0\x2f\x01\0\0\x2b\x03\x03rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr\0\0\x04\x13\x01\x0a\x0a\x01\0";
    let stats = Stats::new();
    let plain = compile(vec![inspector(&TlsInspector::default())], &stats).unwrap();
    let (ran, found) = run(&plain, HELLO, 20).await;
    assert!(ran.is_ok() && found.transport == "tls" && found.ja4.is_none());
    assert_eq!(run(&plain, b"GET /", 5).await.1.transport, "raw_buffer");
    let told = TlsInspector {
        enable_ja4_fingerprinting: Some(BoolValue { value: true }),
        close_connection_on_client_hello_parsing_errors: true,
        ..Default::default()
    };
    let told = compile(vec![inspector(&told)], &stats).unwrap();
    let ja4 = run(&told, HELLO, 20).await.1.ja4.unwrap();
    assert!(ja4.starts_with("t12i010000_"), "{ja4}");
    let refused = run(&told, b"GET /", 5).await.0;
    assert!(matches!(refused, Err(Refusal::Filter)));
    let ja3 = TlsInspector {
        enable_ja3_fingerprinting: Some(BoolValue { value: true }),
        ..Default::default()
    };
    let error = compile(vec![inspector(&ja3)], &stats).unwrap_err();
    assert!(error.contains("enable_ja3_fingerprinting"), "{error}");
}
