//! What must hold of the HTTP/2 codec whatever frames it is given.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use fairway::http::h1::{Http1Settings, UnderscoreAction, encode, parse};
use fairway::http::h2::{FieldLimits, Http2Settings, server};
use fairway::http::service::{ConnectionControl, HttpService, Rejection, Request, Response};
use fairway::http::validate;
use filters::body::{Body, BodyError};
use filters::head::{RequestHead, ResponseHead};
use filters::stream::Protocol;
use futures_util::future::LocalBoxFuture;
use http::{Method, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Script, block_on, head_of};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A byte that is no frame type: HEADERS in words, so that they are still whole when they were mutated.
const FIELDS: u8 = 0xf1;

/// Frames are (type, flags, stream, length) of a byte each, then the payload; [`FIELDS`] have no length, but
/// `name=value` with 0xff between them and 0xfe at the end.
fn frames(mut data: &[u8]) -> BytesMut {
    let mut out = BytesMut::from(PREFACE);
    while let [kind, flags, stream, rest @ ..] = data {
        let payload;
        let kind = if *kind == FIELDS {
            let end = rest.iter().position(|b| *b == 0xfe).unwrap_or(rest.len());
            data = rest.get(end + 1..).unwrap_or_default();
            payload = fields(&rest[..end]);
            1
        } else {
            let Some((length, rest)) = rest.split_first() else {
                return out;
            };
            let (bytes, rest) = rest.split_at(rest.len().min(usize::from(*length)));
            data = rest;
            payload = BytesMut::from(bytes);
            kind % 12
        };
        out.put_uint(payload.len() as u64, 3);
        out.put_slice(&[kind, *flags, 0, 0, 0, *stream]);
        out.put_slice(&payload);
    }
    out
}

/// HPACK literals without indexing (RFC 7541, 6.2.2).
fn fields(text: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    for field in text.split(|b| *b == 0xff).filter(|f| !f.is_empty()) {
        // The colon of a pseudo-header is in the name.
        let at = field.iter().position(|b| *b == b'=').unwrap_or(field.len());
        let (name, value) = field.split_at(at);
        out.put_u8(0);
        for part in [name, value.get(1..).unwrap_or_default()] {
            // A length in a prefix of seven bits and what is beyond it in one more byte: at most 255 are left.
            match part.len() {
                short @ ..127 => out.put_u8(short as u8),
                long @ ..255 => out.put_slice(&[127, (long - 127) as u8]),
                _ => return out,
            }
            out.put_slice(part);
        }
    }
    out
}

/// A client that gives the streams their turns before it ends.
struct Patient(Script, u8);

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.0.input.is_empty() && self.1 > 0 {
            self.1 -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Keeps each head, reads the body and answers. It checks nothing: a panic of a stream stays with its task.
#[derive(Default)]
struct Recorder(RefCell<Vec<RequestHead>>);

impl HttpService for Recorder {
    fn call(&self, request: Request) -> LocalBoxFuture<'static, Result<Response, BodyError>> {
        let Request { head, mut body, .. } = request;
        let tunnel = head.is_tunnel();
        self.0.borrow_mut().push(head);
        Box::pin(async move {
            if !tunnel {
                body.collect(1 << 20).await?;
            }
            Ok(Response {
                head: ResponseHead::new(StatusCode::OK),
                body: Body::Empty,
                close: false,
            })
        })
    }

    fn reject(&self, rejection: &Rejection, _: Protocol) -> Response {
        panic!("{rejection:?}: HTTP/2 refuses without an answer")
    }
}

/// No head gets past the validator that could mean two things, and none means another to an HTTP/1 upstream.
fn inspect(head: &RequestHead) {
    assert!(validate::is_token(head.method.as_str().as_bytes()));
    assert!(!head.authority.is_empty() && validate::is_authority(head.authority.as_bytes()));
    assert!(head.method == Method::CONNECT || validate::is_target(head.path.as_bytes()));
    for (name, value) in &head.headers {
        assert!(validate::is_token(name.as_str().as_bytes()), "{name}");
        assert!(!validate::is_hop_by_hop(name) && *name != "host", "{name}");
        let bytes = value.as_bytes();
        assert!(!bytes.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)));
    }
    let complete = head.path.starts_with('/') || head.method == Method::CONNECT;
    if !complete || !encode::is_sendable(head) {
        return;
    }
    let settings = Http1Settings {
        allow_custom_methods: true,
        ..Http1Settings::default()
    };
    let mut out = BytesMut::new();
    encode::request(&mut out, head, parse::Framing::None, &settings);
    let block = head_of(&out, &settings).unwrap_or_else(|| panic!("{out:?}"));
    assert_eq!(block.len(), out.len(), "one message");
    let Ok(again) = parse::request(&block, &settings) else {
        // HTTP/1 wants a port there.
        return assert_eq!(head.method, Method::CONNECT, "{out:?}");
    };
    assert_eq!(again.head.method, head.method);
    assert_eq!(again.head.authority, head.authority);
    assert_eq!(again.head.upgrade, head.upgrade);
    if head.method != Method::CONNECT {
        assert_eq!(again.head.path, head.path);
    }
    // A declared length is the encoder's to write; outer white space is no part of a value.
    let mut fields = head.headers.iter().filter(|(n, _)| *n != "content-length");
    let mut written = again.head.headers.iter();
    let written = written.by_ref().filter(|(n, _)| *n != "content-length");
    for (name, value) in written {
        let Some((wanted, bytes)) = fields.next() else {
            panic!("{name}: {value:?} came up")
        };
        assert_eq!(
            (name, value.as_bytes()),
            (wanted, bytes.as_bytes().trim_ascii())
        );
    }
    assert!(fields.next().is_none());
}

/// A whole server connection: it ends when its client does, what it answers is in proportion, and no request is
/// seen that was not asked for, however the bytes are cut.
pub fn connection(data: &[u8]) {
    requests(data);
}

/// The same; how many requests were seen when the bytes came in pieces.
pub fn requests(data: &[u8]) -> usize {
    let Some((flags, data)) = data.split_first() else {
        return 0;
    };
    let on = |bit: u8| flags & (1 << bit) != 0;
    let settings = Http2Settings {
        allow_connect: on(0),
        keep_connection_on_bad_message: on(1),
        underscores: match (on(2), on(3)) {
            (true, _) => UnderscoreAction::Reject,
            (_, true) => UnderscoreAction::Drop,
            _ => UnderscoreAction::Allow,
        },
        max_concurrent_streams: if on(4) { 1 } else { 100 },
        limits: FieldLimits {
            bytes: if on(5) { 100 } else { 60 << 10 },
            count: 100,
        },
        ..Http2Settings::default()
    };
    let input = frames(data).freeze();
    let heads = heads(&input);
    let mut requests = 0;
    for step in [usize::MAX, 1, 61] {
        let output = Rc::<RefCell<Vec<u8>>>::default();
        let recorder = Rc::new(Recorder::default());
        let script = Script {
            input: input.clone(),
            step,
            output: output.clone(),
        };
        let io = Patient(script, 32);
        let control = ConnectionControl::default();
        let serving = server::serve(io, &settings, None, recorder.clone(), control);
        let limit = Duration::from_secs(5);
        let served = block_on(async { tokio::time::timeout(limit, serving).await });
        assert!(served.is_ok(), "still there");
        let seen = recorder.0.borrow();
        assert!(seen.len() <= heads);
        seen.iter().for_each(inspect);
        requests = seen.len();
        let most = 1000 + 100 * input.len();
        assert!(output.borrow().len() <= most, "{}", output.borrow().len());
    }
    requests
}

/// How many HEADERS frames there are.
fn heads(input: &Bytes) -> usize {
    let mut rest = input.get(24..).unwrap_or_default();
    let mut heads = 0;
    while let [a, b, c, kind, _, _, _, _, _, payload @ ..] = rest {
        heads += usize::from(*kind == 1);
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        rest = payload.get(length..).unwrap_or_default();
    }
    heads
}
