//! xDS resources, validated and compiled, and the stores that publish them.

pub mod chain;
pub mod context;
pub mod fields;
mod management;
pub mod resources;
pub mod routes;
pub mod runtime;
pub mod sources;
#[cfg(test)]
pub(crate) mod testing;
pub mod update_stats;
