//! What istiod 1.27 sends to a waypoint, plain and with policy, compiles with nothing left out.

use std::path::{Path, PathBuf};

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use filters::registry::Registry;
use prost::Message;

use super::*;
use crate::config::{fields, testing};
use crate::server::drain::{DrainManager, DrainStrategy};
use crate::server::listener::ListenerContext;
use crate::server::listener_manager::ListenerManager;
use crate::telemetry::stats::Stats;
use crate::transport::upstream::UpstreamTransport;
use crate::upstream::cluster_config::{ClusterConfig, Discovery};

/// The resources of a capture.
fn resources(file: &Path) -> Vec<Any> {
    let bytes = std::fs::read(file).unwrap();
    let (mut rest, mut all) = (bytes.as_slice(), Vec::new());
    while !rest.is_empty() {
        let response = DeltaDiscoveryResponse::decode_length_delimited(&mut rest).unwrap();
        all.extend(response.resources.into_iter().filter_map(|r| r.resource));
    }
    assert!(!all.is_empty(), "{} is empty", file.display());
    all
}

/// The captures of a kind, of every scenario.
fn captures(kind: &str) -> Vec<PathBuf> {
    let home = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../conformance/fixtures/istio-1.27"
    );
    let scenarios = std::fs::read_dir(Path::new(home).join("waypoint")).unwrap();
    let scenarios = scenarios.map(|entry| entry.unwrap().path().join(format!("{kind}.pb")));
    let all = scenarios.chain([Path::new(home).join(format!("waypoint-{kind}.pb"))]);
    all.filter(|path| path.exists()).collect()
}

#[test]
fn every_listener_compiles() {
    let stats = Stats::new();
    let mut shared = ListenerContext::new(u64::MAX, &stats);
    shared.internal_buffer = Some(64 << 10);
    let manager = ListenerManager::new(
        1,
        Arc::new(shared),
        Arc::new(DrainManager::new(
            std::time::Duration::ZERO,
            DrainStrategy::Immediate,
        )),
        Arc::new(ChainCompiler(testing::context(Registry::default(), stats))),
        Arc::new(|_: &str| None),
    );
    let files = captures("lds");
    assert!(files.len() >= 5);
    for file in files {
        let mut names = Vec::new();
        for any in resources(&file) {
            fields::check(&any).unwrap();
            let listener: Listener = any::unpack(&any).unwrap();
            let compiled = manager.validate(&listener);
            compiled.unwrap_or_else(|e| panic!("{}: {}: {e}", file.display(), listener.name));
            names.push(listener.name);
        }
        names.sort();
        let all = ["connect_originate", "connect_terminate", "main_internal"];
        assert_eq!(names, all, "{}", file.display());
    }
}

#[test]
fn every_cluster_compiles_and_can_be_spoken_to() {
    let files = captures("cds");
    assert!(files.len() >= 3);
    for file in files {
        let mut originates = false;
        for any in resources(&file) {
            fields::check(&any).unwrap();
            let cluster: Cluster = any::unpack(&any).unwrap();
            let config = ClusterConfig::compile(&cluster, &Default::default());
            let config = config.unwrap_or_else(|e| panic!("{}: {e}", cluster.name));
            let matched = config
                .transport_matches
                .iter()
                .map(|(_, transport)| transport);
            for transport in matched.chain([&config.transport]) {
                let (_, inner) = transport.layers();
                let spoken = !matches!(inner, UpstreamTransport::Unavailable(_));
                assert!(spoken, "{}: {transport:?}", cluster.name);
            }
            if cluster.name.starts_with("inbound-vip|") || cluster.name == "main_internal" {
                assert!(config.transport.internal().is_some(), "{}", cluster.name);
            }
            originates |= matches!(config.discovery, Discovery::OriginalDst(_));
        }
        assert!(originates, "{}", file.display());
    }
}
