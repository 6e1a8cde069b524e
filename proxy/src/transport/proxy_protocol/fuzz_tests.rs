//! Drives the fuzzing properties of the header parser on mutated headers (`fuzz/README.md`).

#[path = "../../../../fuzz/src/proxy_protocol.rs"]
mod properties;

use crate::fuzz_driver::drive;

/// Headers of both versions, whole and nearly so.
const HEADERS: &[&[u8]] = &[
    b"PROXY TCP4 192.0.2.1 198.51.100.2 1111 2222\r\nGET / HTTP/1.1\r\n",
    b"PROXY TCP6 2001:db8::1 ::ffff:1.2.3.4 0 65535\r\n",
    b"PROXY UNKNOWN ffff::1 x\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x02\x04\x57\x08\xaeGET /",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x14\xc0\0\x02\x01\xc6\x33\x64\x02\x04\x57\x08\xae\x01\0\x02h2\x04\0\0",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x02\0\x01\0\x02",
    b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\x03abcGET /",
];

/// What is put in: the bytes that the grammar turns on.
const TOKENS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b" ",
    b"\0",
    b"0",
    b"65536",
    b"UNKNOWN",
    b"TCP6",
    b"255.255.255.255",
    b"::",
    b"\x21\x11",
    b"\x20",
    b"\xff\xff",
    b"\x01\0\0",
    b"PROXY ",
    b"\r\n\r\n\0\r\nQUIT\n",
];

#[test]
fn headers() {
    drive("header", properties::header, HEADERS, TOKENS, 0);
}
