//! Clusters, endpoints, balancing, pools.
//!
//! The control side ([`manager`]) compiles and publishes clusters; workers choose hosts and keep their own
//! pools ([`pool`]), so that no request touches another worker's connections.

mod assignment;
pub mod balance;
pub mod circuit_breaker;
pub mod cluster;
pub mod cluster_config;
pub mod code_stats;
pub mod connect;
pub mod dns;
pub mod grpc;
pub mod hash_table;
pub mod host;
pub mod http_options;
pub mod lb_policy;
pub mod manager;
mod membership;
pub mod original_dst;
mod pool;
pub mod request;
pub mod slot;
pub mod stats;
pub(crate) mod tcp;
pub(crate) mod tunnel;
