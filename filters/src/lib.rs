//! The filter traits, every filter, and the matchers and formatters they share.
//!
//! This crate knows messages, bodies and stream facts; it knows nothing of sockets, codecs, clusters
//! or workers. The `fairway` crate drives it.

pub mod body;
pub mod cel;
pub mod chain;
pub mod filter;
pub mod filter_state;
pub mod flags;
pub mod formatter;
pub mod grpc;
pub mod head;
pub mod header_mutation;
pub mod http;
pub mod local_reply;
pub mod matcher;
pub mod metadata;
pub mod moments;
pub mod rbac;
pub mod registry;
pub mod runtime;
pub mod set_filter_state;
pub mod stream;
pub mod tls;
