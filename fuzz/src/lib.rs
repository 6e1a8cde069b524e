//! The properties that the targets check.

pub mod properties;
