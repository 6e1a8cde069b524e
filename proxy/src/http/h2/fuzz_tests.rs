//! Drives the codec's fuzzing property on mutated connections.

use crate::fuzz_driver::drive;
use crate::http::h1::properties::http2;

/// Frames as the property reads them: type, flags, stream and length, then the payload; 0xf1 is HEADERS in words,
/// with no length but an end.
const CONNECTIONS: &[&[u8]] = &[
    b"\xf1\x05\x01:method=GET\xff:scheme=http\xff:authority=a\xff:path=/\xffx-a=1\xfe",
    b"\xf1\x04\x01:method=POST\xff:scheme=http\xff:authority=a:80\xff:path=/p?q\xffte=trailers\xfe\0\0\x01\x02ab\xf1\x05\x01x-t=1\xfe",
    b"\xf1\x04\x01:method=CONNECT\xff:authority=a:80\xffx-a=1\xffb_c=\xfe\0\0\x01\x01x\x03\0\x01\x04\0\0\0\x08",
    b"\xf1\x04\x01:method=CONNECT\xff:protocol=websocket\xff:scheme=http\xff:authority=a\xff:path=/\xfe\0\x01\x01\x02ab",
    b"\x01\x05\x01\x0b\x82\x86\x84A\x06a.test\x01\x05\x03\x06\x82\x86\x84A\x01a\x06\0\0\x0812345678",
    b"\x04\0\0\x06\0\x04\0\0\0\0\xf1\x05\x01:method=GET\xff:scheme=http\xff:authority=a\xff:path=/\xfe\x08\0\0\x04\0\0\0\x01\x08\0\x01\x04\0\0\0\x01",
    b"\xf1\0\x01:method=PUT\xff:scheme=http\xff:authority=a\xff:path=/\xfe\x09\x04\x01\x05\0\x01a\x01b\0\x01\x01\0\x02\0\x01\x05\0\0\0\0\x01\x07\0\0\x08\0\0\0\0\0\0\0\0",
];

const TOKENS: &[&[u8]] = &[
    b"\xff",
    b"=",
    b"\r\n",
    b"\0",
    b" ",
    b"\xff:path=/x",
    b"\xff:authority=b@c",
    b"\xffhost=b",
    b"\xffconnection=close",
    b"\xfftransfer-encoding=chunked",
    b"\xffcontent-length=1",
    b"\xffcookie=a\xffcookie=b",
    b"\xffupgrade=h2c",
    b"\x01\x05\x03\x04\x82\x86\x84\xbe",
    b"\x03\0\x01\x04\0\0\0\x08",
    b"\x06\0\0\x0812345678",
    b"\x09\x04\x01\0",
    b"\x08\0\x01\x04\x7f\xff\xff\xff",
];

/// Inputs that once failed.
const REGRESSIONS: &[&[u8]] = &[
    // A name with a quote, which HTTP/1 cannot have.
    b"\"\xf1\x05\x01:method=GET\xff:scheme=http\xff:authority=a\xff:path=/\xffcookie\"b=1\xfe",
    // A protocol with a space at its end, which `upgrade` cannot say.
    b"\x01\xf1\x04\x01:method=CONNECT\xff:protocol=webs \xff:scheme=http\xff:authority=_\xff:path=/\xfe\x00\x01\x01\x02ab",
];

#[test]
fn inputs_that_once_failed() {
    REGRESSIONS
        .iter()
        .for_each(|input| http2::connection(input));
}

#[test]
fn server_connections() {
    drive("connection", http2::connection, CONNECTIONS, TOKENS, 1);
}

#[test]
fn whole_requests_are_seen() {
    for (connection, requests) in CONNECTIONS.iter().zip([1, 1, 1, 1, 2, 1, 1]) {
        let input = [b"\x01", *connection].concat();
        assert_eq!(
            http2::requests(&input),
            requests,
            "{}",
            connection.escape_ascii()
        );
    }
}
