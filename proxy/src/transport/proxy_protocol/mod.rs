//! The PROXY protocol: who a connection really comes from, told by the proxy before us.
//!
//! HAProxy's `proxy-protocol.txt`, versions 1 (a line of text) and 2 (binary, with TLVs).

#[cfg(test)]
mod fuzz_tests;
pub mod parse;

/// What a header of version 2 begins with.
pub const SIGNATURE_V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// What a header of version 1 begins with.
pub const SIGNATURE_V1: &[u8; 6] = b"PROXY ";
/// The fixed part of a header of version 2: signature, command, family, length.
pub const HEAD_V2: usize = 16;
