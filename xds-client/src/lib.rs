//! The xDS transport: bootstrap and `Any` decoding, delta and state-of-the-world ADS, filesystem
//! subscriptions. No proxy in it.

pub mod error;
