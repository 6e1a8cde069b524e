//! The TCP proxy: a connection's bytes to a cluster and back, whatever they are.
//!
//! Envoy: `envoy.filters.network.tcp_proxy`.

pub mod config;
mod copy;
mod proxy_tlvs;
mod serve;
mod stats;
#[cfg(test)]
mod tests;
mod tunneling;

pub use serve::{never_served, serve};
