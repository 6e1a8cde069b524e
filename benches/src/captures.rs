//! What istiod 1.27 sent to a plain gateway: `conformance/fixtures`.

use std::path::PathBuf;

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use prost::Message;

/// Every resource of a file (`lds`, `cds`, `rds`, `eds`), decoded.
///
/// # Panics
/// If the file is not what it should be.
pub fn resources<M: Message + Default>(kind: &str) -> Vec<M> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../conformance/fixtures/istio-1.27")
        .join(format!("{kind}.pb"));
    let bytes = std::fs::read(path).expect("a fixture");
    let mut rest = bytes.as_slice();
    let mut found = Vec::new();
    while !rest.is_empty() {
        let response = DeltaDiscoveryResponse::decode_length_delimited(&mut rest);
        for resource in response.expect("a discovery response").resources {
            let any = resource.resource.expect("a resource");
            found.push(M::decode(any.value.as_slice()).expect("the resource's type"));
        }
    }
    found
}
