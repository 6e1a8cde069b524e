//! Drives the codec's fuzzing properties on mutated messages.

use super::properties;
use crate::fuzz_driver::{Property, drive};

/// Requests, whole and nearly so; what mutation makes of them is what attackers make of them.
pub(super) const REQUESTS: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    b"POST /a?b=c HTTP/1.1\r\nHost: a:80\r\nContent-Length: 5\r\n\r\nhelloGET /next HTTP/1.1\r\nhost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nx-t: 1\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET http://b:80/x HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
    b"CONNECT b:443 HTTP/1.1\r\nhost: b:443\r\n\r\nbytes",
    b"GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade, close\r\nupgrade: websocket\r\n\r\nbytes",
    b"\r\nOPTIONS * HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\nx_y: z\r\n\r\n",
];

pub(super) const RESPONSES: &[&[u8]] = &[
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-t: 1\r\n\r\n",
    b"HTTP/1.1 103 Early\r\nlink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nbytes",
    b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n\r\nuntil close",
    b"HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n",
];

const CHUNKS: &[&[u8]] = &[
    b"5 ;a=b\r\nhello\r\nA\r\n0123456789\r\n0\r\nx-a: 1\r\nhost: no\r\n\r\n",
    b"ffffffffffffffff\r\nx",
    b"0\r\n\r\n",
];

/// What is put in: the bytes that the grammar turns on.
pub(super) const TOKENS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"0",
    b"-1",
    b"+1",
    b"\x80",
    b"\r\n ",
    b"\r\n\r\n",
    b"HTTP/1.1",
    b"content-length: 1\r\n",
    b"transfer-encoding: chunked\r\n",
    b"host: b\r\n",
    b"#",
    b"@",
    b"//",
    b"connection: upgrade\r\nupgrade: h2c\r\n",
    b"18446744073709551616",
];

/// Inputs that once failed.
const REGRESSIONS: &[(Property, &[u8])] = &[
    // A line end behind empty lines that came byte by byte was not seen.
    (
        properties::connection,
        b"\x19GET / HTTP/1.1\r\nhost: a\r\n\r\n\r\n\r\n\n",
    ),
];

#[test]
fn inputs_that_once_failed() {
    for (property, input) in REGRESSIONS {
        property(input);
    }
}

#[test]
fn request_heads() {
    drive("request", properties::request, REQUESTS, TOKENS, 1);
}

#[test]
fn response_heads() {
    drive("response", properties::response, RESPONSES, TOKENS, 2);
}

#[test]
fn chunked_bodies() {
    drive("chunked", properties::chunked, CHUNKS, TOKENS, 0);
}

#[test]
fn server_connections() {
    drive("connection", properties::connection, REQUESTS, TOKENS, 1);
}

#[test]
fn client_exchanges() {
    drive("exchange", properties::exchange, RESPONSES, TOKENS, 2);
}
