#![allow(deprecated)]

use std::collections::HashSet;

use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as eds;

use super::*;
use crate::transport::upstream::UpstreamTransport;
use crate::upstream::balance::LbContext;
use crate::upstream::host::Host;

fn cluster(name: &str, kind: DiscoveryType) -> pb::Cluster {
    pb::Cluster {
        name: name.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind as i32)),
        eds_cluster_config: (kind == DiscoveryType::Eds).then(|| EdsClusterConfig {
            eds_config: Some(ConfigSource::default()),
            service_name: String::new(),
        }),
        ..Default::default()
    }
}

fn assignment(name: &str, hosts: &[(&str, u32)]) -> ClusterLoadAssignment {
    let endpoint = |(host, port): &(&str, u32)| eds::LbEndpoint {
        host_identifier: Some(eds::lb_endpoint::HostIdentifier::Endpoint(eds::Endpoint {
            address: Some(core::Address {
                address: Some(core::address::Address::SocketAddress(core::SocketAddress {
                    address: (*host).into(),
                    port_specifier: Some(core::socket_address::PortSpecifier::PortValue(*port)),
                    ..Default::default()
                })),
            }),
            ..Default::default()
        })),
        ..Default::default()
    };
    ClusterLoadAssignment {
        cluster_name: name.into(),
        endpoints: vec![eds::LocalityLbEndpoints {
            lb_endpoints: hosts.iter().map(endpoint).collect(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

const ANY: LbContext<'static> = LbContext {
    hash: None,
    excluded: &[],
    omit_canary: false,
    tries: 1,
    random: 1,
    destination: None,
};

#[test]
fn eds_clusters_warm_with_their_endpoints_and_keep_hosts_over_updates() {
    let mut manager = ClusterManager::new();
    let slot = manager.slot("a");
    let proto = cluster("a", DiscoveryType::Eds);
    manager.apply_cluster(&proto, "1").unwrap();
    assert!(slot.get().is_none());
    assert_eq!(&*manager.eds_names_wanted()[0].0, "a");

    let first = assignment("a", &[("10.0.0.1", 80), ("10.0.0.2", 80)]);
    manager.apply_endpoints(&first).unwrap();
    let cluster = slot.get().unwrap();
    let before: Vec<_> = cluster.hosts().hosts().cloned().collect();
    assert_eq!(before.len(), 2);

    let second = assignment("a", &[("10.0.0.2", 80), ("10.0.0.3", 80)]);
    manager.apply_endpoints(&second).unwrap();
    assert!(Arc::ptr_eq(&cluster, &slot.get().unwrap()));
    let after: Vec<_> = cluster.hosts().hosts().cloned().collect();
    assert!(Arc::ptr_eq(&before[1], &after[0]));
    assert!(before[0].is_removed() && !after[0].is_removed());
}

#[test]
fn a_changed_cluster_keeps_hosts_and_breakers_unless_connections_would_differ() {
    let mut manager = ClusterManager::new();
    let mut proto = cluster("a", DiscoveryType::Static);
    proto.load_assignment = Some(assignment("a", &[("10.0.0.1", 80)]));
    manager.apply_cluster(&proto, "1").unwrap();
    let first = manager.slot("a").get().unwrap();
    let host = first.choose_host(&ANY).unwrap();
    assert_eq!(
        manager.apply_cluster(&proto, "2").unwrap(),
        ClusterChange::Unchanged
    );
    proto.alt_stat_name = "other".into();
    manager.apply_cluster(&proto, "3").unwrap();
    let second = manager.slot("a").get().unwrap();
    assert!(Arc::ptr_eq(&host, &second.choose_host(&ANY).unwrap()));
    assert!(Arc::ptr_eq(&first.breakers, &second.breakers));
    proto.http2_protocol_options = Some(core::Http2ProtocolOptions::default());
    manager.apply_cluster(&proto, "4").unwrap();
    assert!(host.is_removed());
    assert!(manager.remove_cluster("a"));
    assert!(manager.slot("a").get().is_none());
}

#[test]
fn missing_endpoints_and_empty_clusters_choose_no_host() {
    let mut manager = ClusterManager::new();
    let black_hole = cluster("BlackHoleCluster", DiscoveryType::Static);
    manager.apply_cluster(&black_hole, "").unwrap();
    let slot = manager.slot("BlackHoleCluster").get().unwrap();
    assert!(slot.choose_host(&ANY).is_none());
    let proto = cluster("late", DiscoveryType::Eds);
    manager.apply_cluster(&proto, "").unwrap();
    manager.endpoints_missing("late");
    assert!(
        manager
            .slot("late")
            .get()
            .unwrap()
            .choose_host(&ANY)
            .is_none()
    );
}

#[test]
fn dns_clusters_wait_for_their_names() {
    let mut manager = ClusterManager::new();
    let mut proto = cluster("dns", DiscoveryType::StrictDns);
    proto.load_assignment = Some(assignment("dns", &[("example.test", 80)]));
    manager.apply_cluster(&proto, "").unwrap();
    assert!(manager.slot("dns").get().is_none());
    assert_eq!(&*manager.dns_names_wanted()[0].0, "example.test");
    let answers = vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
    manager.apply_resolved("example.test", DnsLookupFamily::Auto, answers);
    assert_eq!(manager.slot("dns").get().unwrap().hosts().total(), 2);
}

#[test]
fn refusals_name_the_field_and_leave_the_last_good_version() {
    let mut manager = ClusterManager::new();
    let mut proto = cluster("a", DiscoveryType::Static);
    proto.load_assignment = Some(assignment("a", &[("10.0.0.1", 80)]));
    manager.apply_cluster(&proto, "1").unwrap();
    proto.health_checks = vec![core::HealthCheck::default()];
    let error = manager.apply_cluster(&proto, "2").unwrap_err();
    assert_eq!(error.path(), "health_checks");
    assert_eq!(manager.snapshot()[0].version, "1");
    let bad = assignment("a", &[("10.0.0.1", 70_000)]);
    proto.health_checks.clear();
    proto.load_assignment = Some(bad);
    let error = manager.apply_cluster(&proto, "3").unwrap_err();
    assert_eq!(
        error.path(),
        "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value"
    );
}

#[test]
fn other_transports_are_accepted_but_never_plaintext() {
    let mut proto = cluster("a", DiscoveryType::Static);
    proto.transport_socket = Some(core::TransportSocket {
        name: "quic".into(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(envoy_types::pb::google::protobuf::Any {
            type_url: "type.googleapis.com/envoy.extensions.transport_sockets.quic.v3.QuicUpstreamTransport".into(),
            value: Vec::new(),
        })),
    });
    let config = ClusterConfig::compile(&proto, &Default::default()).unwrap();
    assert!(matches!(
        config.transport_for(None, None),
        UpstreamTransport::Unavailable(_)
    ));
}

#[test]
fn an_address_counts_once_in_eds_and_twice_in_a_static_cluster() {
    let mut manager = ClusterManager::new();
    let twice = [("10.0.0.1", 80), ("10.0.0.1", 80)];
    let proto = cluster("eds", DiscoveryType::Eds);
    manager.apply_cluster(&proto, "").unwrap();
    manager.apply_endpoints(&assignment("eds", &twice)).unwrap();
    assert_eq!(manager.slot("eds").get().unwrap().hosts().total(), 1);
    let mut proto = cluster("static", DiscoveryType::Static);
    proto.load_assignment = Some(assignment("static", &twice));
    manager.apply_cluster(&proto, "").unwrap();
    let before = manager.slot("static").get().unwrap().hosts();
    proto.alt_stat_name = "other".into();
    manager.apply_cluster(&proto, "").unwrap();
    let after = manager.slot("static").get().unwrap().hosts();
    assert_eq!(after.total(), 2);
    let same = |(a, b): (&Arc<Host>, &Arc<Host>)| Arc::ptr_eq(a, b) && !a.is_removed();
    assert!(before.hosts().zip(after.hosts()).all(same));
}

#[test]
fn failed_look_ups_keep_the_last_answer() {
    let mut manager = ClusterManager::new();
    let mut proto = cluster("dns", DiscoveryType::StrictDns);
    proto.load_assignment = Some(assignment("dns", &[("example.test", 80)]));
    manager.apply_cluster(&proto, "").unwrap();
    manager.resolve_failed("example.test", DnsLookupFamily::Auto);
    assert_eq!(manager.slot("dns").get().unwrap().hosts().total(), 0);
    let answer = vec!["10.0.0.1".parse().unwrap()];
    manager.apply_resolved("example.test", DnsLookupFamily::Auto, answer);
    manager.resolve_failed("example.test", DnsLookupFamily::Auto);
    assert_eq!(manager.slot("dns").get().unwrap().hosts().total(), 1);
}

/// All resources of a capture; `FAIRWAY_CAPTURES` names a directory with further ones.
fn captures() -> Vec<std::path::PathBuf> {
    let fixture = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../conformance/fixtures/istio-1.27"
    );
    let mut open = vec![std::path::PathBuf::from(fixture)];
    open.extend(std::env::var_os("FAIRWAY_CAPTURES").map(Into::into));
    let mut found = Vec::new();
    while let Some(dir) = open.pop() {
        if dir.join("cds.pb").exists() {
            found.push(dir.clone());
        }
        let entries = std::fs::read_dir(&dir).unwrap();
        open.extend(entries.map(|e| e.unwrap().path()).filter(|p| p.is_dir()));
    }
    found
}

fn resources<M: prost::Message + Default>(file: &std::path::Path) -> Vec<M> {
    use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
    use prost::Message;
    let bytes = std::fs::read(file).unwrap_or_default();
    let (mut rest, mut all) = (bytes.as_slice(), Vec::new());
    while !rest.is_empty() {
        let response = DeltaDiscoveryResponse::decode_length_delimited(&mut rest).unwrap();
        for resource in response.resources {
            all.push(M::decode(resource.resource.unwrap().value.as_slice()).unwrap());
        }
    }
    all
}

#[test]
fn what_istio_sends_is_accepted_whole() {
    let mut refused = Vec::new();
    for dir in captures() {
        let mut manager = ClusterManager::new();
        let secrets = std::sync::Arc::new(SecretStore::default());
        manager.set_secrets(secrets.clone());
        let clusters: Vec<pb::Cluster> = resources(&dir.join("cds.pb"));
        let mut names = HashSet::new();
        for proto in &clusters {
            if let Err(e) = manager.apply_cluster(proto, "1") {
                refused.push(format!("{}: {}: {e}", dir.display(), proto.name));
                continue;
            }
            names.insert(proto.name.clone());
        }
        let mut expected = HashMap::new();
        for proto in resources::<ClusterLoadAssignment>(&dir.join("eds.pb")) {
            if let Err(e) = manager.apply_endpoints(&proto) {
                refused.push(format!("{}: {}: {e}", dir.display(), proto.cluster_name));
                continue;
            }
            let endpoints = proto.endpoints.iter().flat_map(|l| &l.lb_endpoints);
            expected.insert(proto.cluster_name.clone(), endpoints.count());
        }
        // Nobody sends the secrets here.
        secrets
            .wanted()
            .iter()
            .for_each(|name| secrets.give_up(name));
        manager.secrets_answered();
        let snapshot = manager.snapshot();
        assert_eq!(snapshot.len(), names.len());
        assert!(!names.is_empty());
        for one in snapshot {
            if let Discovery::Eds { name, .. } = &one.cluster.config.discovery
                && let Some(count) = expected.get(&**name)
            {
                assert!(one.warm, "{name}");
                assert_eq!(one.cluster.hosts().total(), *count, "{name}");
            }
        }
    }
    assert!(refused.is_empty(), "{refused:#?}");
}

#[test]
fn a_cluster_waits_for_its_secrets_and_the_one_before_it_serves() {
    use crate::transport::tls::testing::Authority;
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
    let secrets = std::sync::Arc::new(SecretStore::default());
    let mut manager = ClusterManager::new();
    manager.set_secrets(secrets.clone());
    let plain = pb::Cluster {
        name: "a".into(),
        ..Default::default()
    };
    manager.apply_cluster(&plain, "1").unwrap();
    let slot = manager.slot("a");
    let context = tls::UpstreamTlsContext {
        common_tls_context: Some(tls::CommonTlsContext {
            validation_context_type: Some(
                tls::common_tls_context::ValidationContextType::ValidationContextSdsSecretConfig(
                    tls::SdsSecretConfig {
                        name: "ca".into(),
                        sds_config: Some(Default::default()),
                    },
                ),
            ),
            ..Default::default()
        }),
        ..Default::default()
    };
    let secure = pb::Cluster {
        transport_socket: Some(core::TransportSocket {
            name: "tls".into(),
            config_type: Some(core::transport_socket::ConfigType::TypedConfig(
                xds_client::any::pack(&context),
            )),
        }),
        ..plain
    };
    manager.apply_cluster(&secure, "2").unwrap();
    manager.secrets_answered();
    let serving = |slot: &ClusterSlot<Cluster>| slot.get().unwrap().config.transport.clone();
    assert_eq!(serving(&slot), UpstreamTransport::Raw);
    let trusted = Authority::new("ca").trusted();
    let content = tls::secret::Type::ValidationContext(trusted);
    secrets.load("ca", &content).unwrap();
    manager.secrets_answered();
    assert!(matches!(serving(&slot), UpstreamTransport::Tls(_)));
}
