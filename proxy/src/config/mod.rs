//! xDS resources, validated and compiled, and the stores that publish them.

pub mod chain;
pub mod context;
pub mod fields;
pub mod resources;
pub mod route_clusters;
pub mod routes;
pub mod sources;
pub mod update_stats;
