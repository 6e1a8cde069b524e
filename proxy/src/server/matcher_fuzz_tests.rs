//! Drives the properties of the generic matcher with trees that are made up.

#[path = "../../../fuzz/src/matcher_tree.rs"]
mod matcher_tree;

use crate::fuzz_driver::drive;

#[test]
fn trees_find_what_a_plain_reading_finds() {
    // A message for the part of the property that reads one; the choices are of any value.
    let message: &[u8] = b"\x0a\x04\x0a\x02\x0a\x00\x1a\x02\x0a\x00";
    let corpus: [&[u8]; 2] = [message, b""];
    drive("matcher tree", matcher_tree::finds, &corpus, &[message], 0);
    drive(
        "matcher tree",
        matcher_tree::finds,
        &corpus,
        &[message],
        400,
    );
}
