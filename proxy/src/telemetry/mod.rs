//! Stats and access logs. Nothing here may block or lock on the request path.

pub mod access_log;
pub mod grpc_log;
pub mod http_log;
pub(crate) mod log_filter;
pub(crate) mod log_format;
pub mod stats;
