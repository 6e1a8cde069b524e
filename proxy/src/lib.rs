//! Fairway: an Envoy-compatible L7 proxy. The binary is `fairway`; this library is its parts.

pub mod bootstrap;
pub mod config;
pub mod http;
pub mod router;
pub mod server;
pub mod telemetry;
pub mod transport;
pub mod upstream;
