//! What istiod 1.27 sent to a plain gateway decodes and prints.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::path::PathBuf;

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use prost::Message;
use xds_client::bootstrap::{LoadOptions, load};
use xds_client::json::{Pool, PrintOptions};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../conformance/fixtures/istio-1.27")
        .join(name)
}

/// Fails where an `Any` was left closed, except in one of a type that no descriptor is for.
fn all_open(json: &serde_json::Value, pool: &Pool) {
    match json {
        serde_json::Value::Object(o) => {
            if let (Some(url), Some(serde_json::Value::String(_))) =
                (o.get("@type"), o.get("value"))
            {
                let name = url.as_str().unwrap().rsplit('/').next().unwrap();
                assert!(pool.contains(name), "unknown type {name}");
            }
            o.values().for_each(|v| all_open(v, pool));
        }
        serde_json::Value::Array(a) => a.iter().for_each(|v| all_open(v, pool)),
        _ => {}
    }
}

#[test]
fn every_resource_prints() {
    let pool = Pool::load().unwrap();
    for kind in ["lds", "cds", "rds", "eds", "sds"] {
        let bytes = std::fs::read(fixture(&format!("{kind}.pb"))).unwrap();
        let (mut rest, mut count) = (bytes.as_slice(), 0);
        while !rest.is_empty() {
            let response = DeltaDiscoveryResponse::decode_length_delimited(&mut rest).unwrap();
            for resource in response.resources {
                let any = resource.resource.unwrap();
                let json = pool.print_any(&any.type_url, &any.value, PrintOptions::default());
                all_open(&json, &pool);
                assert!(!json.to_string().contains("PRIVATE KEY"));
                count += 1;
            }
        }
        assert!(count > 0, "{kind} is empty");
    }
}

#[test]
fn the_bootstrap_loads() {
    let path = fixture("bootstrap-gateway.json");
    let bootstrap = load(LoadOptions {
        path: Some(&path),
        ..LoadOptions::default()
    })
    .unwrap();
    assert!(bootstrap.node.unwrap().id.starts_with("router~"));
    assert_eq!(bootstrap.static_resources.unwrap().clusters.len(), 4);
}
