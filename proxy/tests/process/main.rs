//! The real binary, from outside: signals, command line, control planes that come, change and go.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod churn;
mod client;
mod command_line;
mod control_plane;
mod fairway;
mod lifecycle;
mod reading;
mod secrets;
mod tls;
mod tunnels;
mod upstream;
mod xds;
