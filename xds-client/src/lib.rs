//! The xDS transport: bootstrap and `Any` decoding, delta and state-of-the-world ADS, filesystem
//! subscriptions. No proxy in it.

pub mod ads;
pub mod any;
pub mod backoff;
pub mod bootstrap;
pub mod constraints;
pub mod data_source;
pub mod duration;
pub mod error;
pub mod filesystem;
pub mod json;
pub mod subscription;

/// Messages that `envoy-types` lacks, compiled from this crate's own `proto/`. The fields carry the
/// names and numbers of their upstream definitions (cncf/xds, istio/proxy).
#[allow(missing_docs, clippy::all)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/protos.rs"));
}
