//! The command line and the bootstrap, turned into settings.
