//! Fairway.
fn main(){}
