//! The process: workers, listeners and their updates, drain, signals.
//!
//! A connection is accepted here, looked at by the listener filters, matched to a filter chain and handed to
//! that chain's handler. What a chain does with it (TLS, network filters, HTTP) is not decided here.

mod accepted;
mod acceptor;
pub mod admin;
pub mod admin_backend;
pub mod compiled;
mod connection;
mod connection_drain;
pub mod drain;
pub mod echo;
pub mod filter_chain_match;
pub mod filter_chain_matcher;
mod hand_over;
pub mod ja4;
pub mod lifecycle;
pub mod listener;
pub mod listener_filters;
pub mod listener_manager;
pub mod listener_stats;
#[cfg(test)]
mod matcher_fuzz_tests;
pub mod process;
mod server_info;
pub mod server_stats;
pub mod sniff;
#[cfg(test)]
mod sniff_fuzz_tests;
pub mod socket;
mod socket_option;
pub mod worker;
