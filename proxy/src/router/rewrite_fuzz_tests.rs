//! Drives the property of regular expressions that rewrite paths.

#[path = "../../../fuzz/src/regex_rewrite.rs"]
mod regex_rewrite;

use crate::fuzz_driver::drive;

/// Expression, substitution and path, with 0xff between them.
const REWRITES: &[&[u8]] = &[
    b"^/a/([^/]+)(/.*)?$\xff/\\1\\2?x\xff/a/b/c?q=/a/b#f",
    b"/\xff//\xff/a/b/c",
    b"a*\xff-\\0\\\\\xff/baaac",
    b"(?i)\\bX(\\d)?|\\w\xff[\\1]\xff/x1 y\xc3\xa9?x",
    b"\\p{Greek}.\xff\xff/\xce\xb1b",
];

const TOKENS: &[&[u8]] = &[
    b"\xff",
    b"(",
    b")",
    b"|",
    b"*",
    b"+?",
    b"{2,3}",
    b"[^a]",
    b"\\0",
    b"\\1",
    b"\\9",
    b"\\b",
    b"$",
    b"^",
    b"?",
    b"#",
    b"/a",
    b"\xc3\xa9",
    b"(?s-u:.)",
];

#[test]
fn matches_become_what_was_substituted_and_queries_stay() {
    drive(
        "regex rewrite",
        regex_rewrite::rewritten,
        REWRITES,
        TOKENS,
        0,
    );
}
