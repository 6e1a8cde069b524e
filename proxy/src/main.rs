//! Fairway.
fn main() {}
