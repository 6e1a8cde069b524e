//! Workers, listeners, drain, admin.

pub mod admin;
