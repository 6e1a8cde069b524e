//! The properties that the targets check.

pub mod client_hello;
pub mod matcher_tree;
pub mod properties;
pub mod proxy_protocol;
pub mod regex_rewrite;
pub mod secrets;
