//! Clusters, endpoints, balancing, pools.

pub mod balance;
pub mod cluster;
pub mod connect;
pub mod host;
pub mod manager;
pub mod slot;
