//! Metadata of what is configured: routes, virtual hosts, clusters, endpoints, listeners and filter chains.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Metadata;
use serde_json::Value;

use crate::matcher::metadata::struct_to_json;

/// A pointer to them, not two words: connections at rest have metadata, too.
type Entries = Arc<Box<[(Box<str>, Value)]>>;

/// Metadata by the name of the filter that it is for. Cheap to clone, and nothing if there is none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ConfiguredMetadata(Option<Entries>);

impl ConfiguredMetadata {
    /// From the message; typed metadata is not kept.
    pub fn compile(proto: Option<&Metadata>) -> Self {
        let all = proto.map(|m| &m.filter_metadata).filter(|m| !m.is_empty());
        let entry =
            |(name, object): (&String, _)| (name.as_str().into(), struct_to_json(object).into());
        Self(all.map(|all| Arc::new(all.iter().map(entry).collect())))
    }

    /// The value under a filter's name. There are few enough to look through.
    pub fn get(&self, namespace: &str) -> Option<&Value> {
        let mut entries = self.0.iter().flat_map(|entries| entries.iter());
        entries
            .find(|(name, _)| **name == *namespace)
            .map(|(_, value)| value)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}
