//! Network filters over pipes.

use std::collections::HashMap;
use std::sync::Mutex;

use envoy_types::pb::envoy::config::rbac::v3::{
    self as policies, permission::Rule, principal::Identifier,
};
use envoy_types::pb::envoy::extensions::filters::network::connection_limit::v3::ConnectionLimit;
use envoy_types::pb::envoy::extensions::filters::network::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac;
use envoy_types::pb::envoy::r#type::v3::TokenBucket;
use envoy_types::pb::google::protobuf as wkt;
use envoy_types::pb::xds::r#type::matcher::v3::Matcher;
use futures_util::FutureExt;
use prost::{Message, Name};
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::oneshot;

use super::*;
use crate::config::runtime::Runtime;
use crate::http::testing::connection;
use crate::telemetry::stats::Stats;
use crate::upstream::grpc::ClusterGrpc;

fn rules(action: policies::rbac::Action) -> policies::Rbac {
    let everybody = policies::Policy {
        permissions: vec![policies::Permission {
            rule: Some(Rule::Any(true)),
        }],
        principals: vec![policies::Principal {
            identifier: Some(Identifier::Any(true)),
        }],
        ..Default::default()
    };
    policies::Rbac {
        action: action as i32,
        policies: HashMap::from([("p q".to_owned(), everybody)]),
        ..Default::default()
    }
}

fn rbac(action: policies::rbac::Action) -> Rbac {
    Rbac {
        rules: Some(rules(action)),
        stat_prefix: "a".into(),
        ..Default::default()
    }
}

fn added(
    builder: &mut NetworkFiltersBuilder,
    name: &str,
    config: &AnyProto,
    stats: &Stats,
) -> Result<bool, ConfigError> {
    let grpc = ClusterGrpc::new(Arc::new(|_: &str| panic!("no cluster is asked for")));
    builder.add(name, config, &stats.scope(""), &Runtime::default(), &grpc)
}

fn add<M: Message + Name>(
    builder: &mut NetworkFiltersBuilder,
    proto: &M,
    stats: &Stats,
) -> Result<bool, String> {
    let config = AnyProto {
        type_url: M::type_url(),
        value: proto.encode_to_vec(),
    };
    let added = added(builder, &M::full_name(), &config, stats);
    added.map_err(|e| e.to_string())
}

fn filters<M: Message + Name>(protos: &[M], stats: &Stats) -> NetworkFilters {
    let mut builder = NetworkFiltersBuilder::default();
    for proto in protos {
        assert!(add(&mut builder, proto, stats).unwrap());
    }
    builder.build()
}

/// The client's end, the gate at the other, and the connection.
fn gated(
    filters: &NetworkFilters,
    ends_pass: bool,
) -> (DuplexStream, Gate<DuplexStream>, Rc<ConnectionInfo>) {
    let (near, far) = duplex(1024);
    let info = with_notes(Rc::new(connection("192.0.2.1:1", "192.0.2.2:2")));
    let gate = filters.gate(far, Bytes::new(), info.clone(), ends_pass);
    (near, gate, info)
}

fn counter(stats: &Stats, name: &str) -> u64 {
    stats.scope("").counter(name).value()
}

#[tokio::test(start_paused = true)]
async fn a_refused_client_is_not_heard_and_fails_when_it_is_time() {
    let stats = Stats::new();
    let mut deny = rbac(policies::rbac::Action::Deny);
    deny.delay_deny = Some(wkt::Duration {
        seconds: 5,
        nanos: 0,
    });
    let filters = filters(&[deny], &stats);
    let (mut client, mut gate, info) = gated(&filters, true);
    // As in Envoy, a server may speak first: nobody is judged before the client has said something.
    gate.write_all(b"hello").await.unwrap();
    client.write_all(b"secret").await.unwrap();
    let began = tokio::time::Instant::now();
    let (mut reader, mut writer) = tokio::io::split(gate);
    let writing = async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        writer.write_all(b"more").await.unwrap();
        tokio::time::sleep(Duration::from_secs(9)).await;
        writer.write_all(b"too late").await.unwrap_err();
    };
    let reading = async move {
        let error = reader.read(&mut [0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        // It stays refused.
        reader.read(&mut [0; 64]).await.unwrap_err();
        reader
    };
    tokio::join!(writing, reading);
    let mut seen = [0; 64];
    assert_eq!(client.read(&mut seen).await.unwrap(), 9);
    assert_eq!(client.read(&mut seen).await.unwrap(), 0);
    let notes = info.notes.as_ref().unwrap().borrow();
    assert_eq!(
        notes.termination_details.as_deref(),
        Some("rbac_access_denied_matched_policy[p_q]")
    );
    assert_eq!(notes.refused_bytes, 6);
    assert_eq!(
        (
            counter(&stats, "a.rbac.denied"),
            counter(&stats, "a.rbac.allowed")
        ),
        (1, 0)
    );
}

#[tokio::test]
async fn judged_once_or_with_every_piece() {
    for (continuous, times) in [(0, 1), (1, 3)] {
        let stats = Stats::new();
        let mut allow = rbac(policies::rbac::Action::Allow);
        allow.enforcement_type = continuous;
        allow.shadow_rules = Some(rules(policies::rbac::Action::Deny));
        allow.shadow_rules_stat_prefix = "x".into();
        let filters = filters(&[allow], &stats);
        let (mut client, mut gate, info) = gated(&filters, true);
        for _ in 0..2 {
            client.write_all(b"abc").await.unwrap();
            assert_eq!(gate.read(&mut [0; 64]).await.unwrap(), 3);
        }
        drop(client);
        assert_eq!(gate.read(&mut [0; 64]).await.unwrap(), 0);
        assert_eq!(counter(&stats, "a.rbac.allowed"), times);
        assert_eq!(counter(&stats, "a.rbac.x.shadow_denied"), times);
        let notes = info.notes.as_ref().unwrap().borrow();
        let object = &notes.dynamic_metadata["envoy.filters.network.rbac"];
        assert_eq!(object["xshadow_effective_policy_id"], "p q");
        assert_eq!(object["xshadow_engine_result"], "denied");
    }
}

/// Asks elsewhere; how it ends is sent later.
struct Asks(Mutex<Option<oneshot::Receiver<bool>>>);

impl NetworkFilter for Asks {
    fn on_data(&self, _: &ConnectionInfo) -> OnData {
        let answer = self.0.lock().unwrap().take().unwrap();
        OnData::Ask(Box::pin(async move { answer.await.unwrap_or(false) }))
    }

    fn reads(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn bytes_wait_for_an_answer_and_for_the_filters_behind() {
    for (answer, denied_behind, passes) in [
        (Some(true), false, true),
        (Some(false), false, false),
        // The question is dropped: nobody has agreed.
        (None, false, false),
        (Some(true), true, false),
    ] {
        let stats = Stats::new();
        let (send, receive) = oneshot::channel();
        let asks: Arc<dyn NetworkFilter> = Arc::new(Asks(Mutex::new(Some(receive))));
        let action = match denied_behind {
            true => policies::rbac::Action::Deny,
            false => policies::rbac::Action::Allow,
        };
        let behind = filters(&[rbac(action)], &stats).0;
        let all = NetworkFilters([asks].into_iter().chain(behind.iter().cloned()).collect());
        let (mut client, mut gate, info) = gated(&all, true);
        client.write_all(b"abcdef").await.unwrap();
        assert!(gate.read(&mut [0; 64]).now_or_never().is_none());
        assert_eq!(counter(&stats, "a.rbac.allowed"), 0, "it is not its turn");
        match answer {
            Some(answer) => send.send(answer).unwrap(),
            None => drop(send),
        }
        let mut small = [0; 4];
        if passes {
            assert_eq!(gate.read(&mut small).await.unwrap(), 4);
            assert_eq!(gate.read(&mut small).await.unwrap(), 2);
            client.write_all(b"more").await.unwrap();
            assert_eq!(gate.read(&mut small).await.unwrap(), 4);
        } else {
            assert!(gate.read(&mut small).await.is_err());
            let notes = info.notes.as_ref().unwrap().borrow();
            assert_eq!(notes.refused_bytes, 6);
        }
    }
}

#[tokio::test]
async fn an_end_is_judged_only_where_the_connection_goes_on() {
    for (ends_pass, times) in [(true, 1), (false, 0)] {
        let stats = Stats::new();
        let filters = filters(&[rbac(policies::rbac::Action::Deny)], &stats);
        let (client, mut gate, _) = gated(&filters, ends_pass);
        drop(client);
        assert_eq!(gate.read(&mut [0; 64]).await.is_err(), ends_pass);
        assert_eq!(counter(&stats, "a.rbac.denied"), times);
    }
}

#[tokio::test(start_paused = true)]
async fn connections_over_the_limit_are_refused_and_count_until_they_are_gone() {
    let stats = Stats::new();
    let limit = |prefix: &str, max| ConnectionLimit {
        stat_prefix: prefix.into(),
        max_connections: Some(wkt::UInt64Value { value: max }),
        delay: Some(wkt::Duration {
            seconds: 1,
            nanos: 0,
        }),
        ..Default::default()
    };
    let filters = filters(&[limit("wide", 9), limit("tight", 1)], &stats);
    let active = |prefix: &str| {
        let name = format!("connection_limit.{prefix}.active_connections");
        stats.scope("").gauge(&name).value()
    };
    let first = filters.admit().ok().unwrap();
    let refused = filters.admit().err().unwrap();
    assert_eq!((active("wide"), active("tight")), (2, 2));
    assert_eq!(
        counter(&stats, "connection_limit.tight.limited_connections"),
        1
    );
    drop(first);
    // The one that is refused still counts.
    assert!(filters.admit().is_err());
    let (_client, far) = duplex(64);
    let began = tokio::time::Instant::now();
    refused.wait(far).await;
    assert_eq!(began.elapsed(), Duration::from_secs(1));
    let again = filters.admit().ok().unwrap();
    assert_eq!((active("wide"), active("tight")), (1, 1));
    drop(again);
    assert_eq!((active("wide"), active("tight")), (0, 0));
}

#[test]
fn what_cannot_be_honoured_is_named() {
    let stats = Stats::new();
    let mut builder = NetworkFiltersBuilder::default();
    let mut refused = |change: &dyn Fn(&mut Rbac)| {
        let mut proto = rbac(policies::rbac::Action::Allow);
        change(&mut proto);
        add(&mut builder, &proto, &stats).unwrap_err()
    };
    let nowhere = Matcher {
        on_no_match: Some(Box::default()),
        matcher_type: None,
    };
    let own = Some(nowhere);
    assert!(refused(&|p| p.matcher = own.clone()).contains("matcher.on_no_match"));
    let error = refused(&|p| p.shadow_matcher = own.clone());
    assert!(error.contains("shadow_matcher.on_no_match"));
    assert!(refused(&|p| p.stat_prefix.clear()).contains("stat_prefix"));
    assert!(refused(&|p| p.enforcement_type = 7).contains("enforcement_type"));
    let negative = Some(wkt::Duration {
        seconds: -1,
        nanos: 0,
    });
    assert!(refused(&|p| p.delay_deny = negative).contains("delay_deny"));
    assert!(refused(&|p| p.rules.as_mut().unwrap().action = 9).contains("rules.action"));
    let none = ConnectionLimit {
        stat_prefix: "x".into(),
        ..Default::default()
    };
    assert!(
        add(&mut builder, &none, &stats)
            .unwrap_err()
            .contains("max_connections")
    );
    let unknown = AnyProto::default();
    assert_eq!(
        added(&mut builder, "other.Filter", &unknown, &stats).ok(),
        Some(false)
    );
}

#[test]
fn buckets_are_shared_by_key_and_numbers_only() {
    let stats = Stats::new();
    let proto = |prefix: &str, key: &str, max_tokens| LocalRateLimit {
        stat_prefix: prefix.into(),
        token_bucket: Some(TokenBucket {
            max_tokens,
            tokens_per_fill: None,
            fill_interval: Some(wkt::Duration {
                seconds: 3600,
                nanos: 0,
            }),
        }),
        share_key: key.into(),
        ..Default::default()
    };
    let [a, b, other, alone] = [
        proto("a", "shared", 2),
        proto("b", "shared", 2),
        proto("other", "shared", 1),
        proto("alone", "", 2),
    ]
    .map(|proto| filters(&[proto], &stats));
    assert!(a.admit().is_ok() && b.admit().is_ok());
    assert!(a.admit().is_err() && b.admit().is_err() && b.admit().is_err());
    assert!(other.admit().is_ok() && alone.admit().is_ok());
    let counted = |name: &str| {
        let name = format!("local_rate_limit.{name}.rate_limited");
        stats.scope("").counter(&name).value()
    };
    assert_eq!((counted("a"), counted("b"), counted("other")), (1, 2, 0));
    // Nobody has it any more, so it is full again.
    drop((a, b));
    assert!(filters(&[proto("a", "shared", 2)], &stats).admit().is_ok());
}
