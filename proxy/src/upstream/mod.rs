//! Clusters, endpoints, balancing, pools.

pub mod balance;
pub mod host;
pub mod slot;
