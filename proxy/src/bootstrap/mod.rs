//! The command line and the bootstrap, turned into settings.

pub mod checks;
pub mod command_line;
pub mod logging;
mod node;
pub mod settings;

/// The bootstrap that serves when none is given.
pub const DEFAULT_BOOTSTRAP: &str = include_str!("default.yaml");
