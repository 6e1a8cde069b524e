//! Workers, listeners, drain, admin.
