//! Stats and access logs. Nothing here may block or lock on the request path.

pub mod access_log;
pub mod http_log;
pub mod stats;
