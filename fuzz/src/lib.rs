//! The properties that the targets check.

pub mod properties;
pub mod proxy_protocol;
