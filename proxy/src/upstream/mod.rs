//! Clusters, endpoints, balancing, pools.
