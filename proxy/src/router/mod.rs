//! Route tables and the upstream side of a request.

pub mod action;
mod conditions;
pub mod context;
mod path_index;
pub mod redirect;
pub mod retry_policy;
pub mod rewrite;
pub mod route;
mod slot;
mod table;
mod virtual_host;

pub use slot::RouteSlot;
pub use table::{RouteOutcome, RouteTable};
