//! The properties that the targets check.

pub mod client_hello;
pub mod properties;
pub mod proxy_protocol;
pub mod secrets;
