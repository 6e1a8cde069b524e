//! HTTP: the codecs, the validator in front of them, and the connection manager behind them.
//!
//! Codecs turn bytes into heads and bodies and back ([`service`] is the seam); they decide nothing about
//! policy. No routing and no upstream here.

#[cfg(test)]
mod abnf;
pub mod conn_manager;
pub(crate) mod detect;
pub mod h1;
pub mod h2;
mod linger;
pub(crate) mod local_address;
pub mod service;
#[cfg(test)]
pub(crate) mod testing;
pub mod validate;
