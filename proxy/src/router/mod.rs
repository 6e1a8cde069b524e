//! Route tables and the upstream side of a request.

pub mod action;
mod attempt;
mod charge;
mod compiled_route;
mod conditions;
pub mod context;
pub(crate) mod forward;
mod forwarding;
mod hash;
mod mirror;
pub mod options;
mod path_index;
pub mod redirect;
mod replay;
mod response_body;
pub mod retry_policy;
mod retry_state;
pub mod rewrite;
#[cfg(test)]
mod rewrite_fuzz_tests;
pub mod route;
pub mod slot;
pub mod table;
pub(crate) mod timeout;
mod upgrade;
mod virtual_host;

pub use slot::RouteSlot;
pub use table::{RouteOutcome, RouteTable};
