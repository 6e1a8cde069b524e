//! Fairway: an Envoy-compatible L7 proxy. The binary is `fairway`; this library is its parts.

// Control planes still send deprecated fields of Envoy's API, and Envoy obeys them.
#![allow(deprecated)]

// The fuzzing properties, which our tests share, call this library by its name.
#[cfg(test)]
extern crate self as fairway;

pub mod bootstrap;
pub mod config;
#[cfg(test)]
mod fuzz_driver;
pub mod http;
pub mod internal;
pub mod network;
pub mod router;
pub mod server;
pub mod tcp_proxy;
pub mod telemetry;
pub mod transport;
pub mod upstream;
