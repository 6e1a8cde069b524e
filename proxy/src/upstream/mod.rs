//! Clusters, endpoints, balancing, pools.

mod assignment;
pub mod balance;
pub mod cluster;
pub mod cluster_config;
pub mod connect;
pub mod dns;
pub mod host;
pub mod manager;
pub mod slot;
pub mod stats;
