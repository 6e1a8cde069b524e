//! Clusters, endpoints, balancing, pools.

pub mod slot;
