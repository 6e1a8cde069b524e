//! Route tables and the upstream side of a request.

mod conditions;
mod path_index;
mod slot;
mod table;
mod virtual_host;

pub use slot::RouteSlot;
pub use table::{RouteOutcome, RouteTable};
