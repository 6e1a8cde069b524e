//! Filter chains. Replaced by the real compiler.

use std::sync::Arc;

use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener};
use xds_client::error::ConfigError;

use super::context::ChainContext;
use crate::server::compiled::{FilterChainCompiler, FilterChainHandler};

/// Compiles filter chains over a context.
pub struct ChainCompiler(pub Arc<ChainContext>);

impl FilterChainCompiler for ChainCompiler {
    fn compile(
        &self,
        _: &Listener,
        _: &FilterChain,
    ) -> Result<Arc<dyn FilterChainHandler>, ConfigError> {
        Err(ConfigError::unsupported("filters"))
    }
}
