//! What must hold of the HTTP codecs whatever bytes they are given: here HTTP/1, HTTP/2 below. The libFuzzer targets
//! call these, and so do the codecs' own tests with mutated messages.

#[path = "http2.rs"]
pub mod http2;

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use fairway::http::h1::chunked::{ChunkedDecoder, Decoded};
use fairway::http::h1::client::{ClientConnection, ExchangeOptions};
use fairway::http::h1::parse::{self, Framing, HeadScanner};
use fairway::http::h1::{HeaderCase, Http1Settings, encode, server};
use fairway::http::service::{ConnectionControl, HttpService, Rejection, Request, Response};
use fairway::http::validate;
use filters::body::{Body, BodyError};
use filters::head::{RequestHead, ResponseHead};
use filters::stream::Protocol;
use futures_util::future::LocalBoxFuture;
use http::{Method, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The settings that a byte chooses: every leniency on its own bit.
fn settings(flags: u8) -> Http1Settings {
    let on = |bit: u8| flags & (1 << bit) != 0;
    Http1Settings {
        accept_http_10: on(0),
        enable_trailers: on(1),
        allow_chunked_length: on(2),
        allow_absolute_url: on(3),
        allow_custom_methods: on(4),
        header_case: match on(5) {
            true => HeaderCase::Preserve {
                proper_others: on(6),
                keep_reason: on(7),
            },
            false => HeaderCase::Lower,
        },
        absolute_requests: on(6),
        ..Http1Settings::default()
    }
}

fn head_of(data: &[u8], settings: &Http1Settings) -> Option<Bytes> {
    let end = HeadScanner::default()
        .scan(data, settings.max_head_bytes)
        .ok()??;
    data.get(..end).map(Bytes::copy_from_slice)
}

/// Request heads: what is accepted holds what the validator promises, and means the same once it was written
/// and read again.
pub fn request(data: &[u8]) {
    let Some((flags, data)) = data.split_first() else {
        return;
    };
    let settings = settings(*flags);
    let Some(Ok(parsed)) = head_of(data, &settings).map(|head| parse::request(&head, &settings))
    else {
        return;
    };
    let head = &parsed.head;
    assert!(validate::is_authority(head.authority.as_bytes()));
    assert!(head.path.is_empty() || validate::is_target(head.path.as_bytes()));
    for name in [
        "host",
        "connection",
        "transfer-encoding",
        "upgrade",
        "keep-alive",
    ] {
        assert!(!head.headers.contains_key(name), "{name}");
    }
    // Targets without a path, and requests without an authority, are the connection manager's to refuse.
    let complete = head.path.starts_with('/') || head.method == Method::CONNECT;
    if !complete || head.authority.is_empty() || !encode::is_sendable(head) {
        return;
    }
    let mut out = BytesMut::new();
    encode::request(&mut out, head, parsed.framing, &settings);
    let lenient = Http1Settings {
        allow_absolute_url: true,
        max_head_bytes: usize::MAX,
        max_headers: usize::from(u16::MAX) >> 4,
        ..settings
    };
    let again = head_of(&out, &lenient).map(|head| parse::request(&head, &lenient));
    let Some(Ok(again)) = again else {
        panic!("{:?} became {again:?}", data.escape_ascii().to_string());
    };
    assert_eq!(again.framing, parsed.framing);
    assert_eq!(again.head.method, head.method);
    assert_eq!(again.head.authority, head.authority);
    assert_eq!(again.head.upgrade, head.upgrade);
    assert_eq!(again.head.path, head.path);
}

/// Response heads: hop-by-hop fields never come through, and the framing is one that ends.
pub fn response(data: &[u8]) {
    let [flags, request, data @ ..] = data else {
        return;
    };
    let settings = settings(*flags);
    let (head_request, connect) = (request & 1 != 0, request & 2 != 0);
    let Some(head) = head_of(data, &settings) else {
        return;
    };
    let Ok(parsed) = parse::response(&head, &settings, head_request, connect) else {
        return;
    };
    for name in ["connection", "transfer-encoding", "upgrade", "keep-alive"] {
        assert!(!parsed.head.headers.contains_key(name), "{name}");
    }
    if parsed.head.status.is_informational() && parsed.head.status != 101 {
        assert_eq!(parsed.framing, Framing::None);
    }
    assert!(parsed.framing != Framing::Close || !parsed.keep_alive);
}

/// The chunked coding: the same data and the same end whether bytes come at once or one by one.
pub fn chunked(data: &[u8]) {
    fn decode(input: &[u8], step: usize) -> (Vec<u8>, Option<bool>) {
        let mut decoder = ChunkedDecoder::default();
        let (mut buf, mut data) = (BytesMut::new(), Vec::new());
        for piece in input.chunks(step) {
            buf.extend_from_slice(piece);
            loop {
                match decoder.decode(&mut buf) {
                    Ok(Decoded::More) => break,
                    Ok(Decoded::Data(part)) => data.extend_from_slice(&part),
                    Ok(Decoded::End(_)) => return (data, Some(true)),
                    Err(_) => return (data, Some(false)),
                }
            }
        }
        (data, None)
    }
    assert_eq!(decode(data, 1), decode(data, data.len().max(1)));
}

/// A peer that has said everything before it is listened to, in pieces of `step`, and then ends its direction.
struct Script {
    input: Bytes,
    step: usize,
    output: Rc<std::cell::RefCell<Vec<u8>>>,
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let take = self.step.min(self.input.len()).min(buf.remaining());
        buf.put_slice(&self.input.split_to(take));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.output.borrow_mut().extend_from_slice(data);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Reads each body whole; remembers what it was asked.
struct Recorder(std::cell::RefCell<Vec<String>>);

impl HttpService for Recorder {
    fn call(&self, request: Request) -> LocalBoxFuture<'static, Result<Response, BodyError>> {
        let Request { head, mut body, .. } = request;
        self.0
            .borrow_mut()
            .push(format!("{} {}{}", head.method, head.authority, head.path));
        Box::pin(async move {
            if !head.is_tunnel() {
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
        self.0
            .borrow_mut()
            .push(format!("rejected: {}", rejection.details));
        let status = StatusCode::from_u16(rejection.status).unwrap_or(StatusCode::BAD_REQUEST);
        Response {
            head: ResponseHead::new(status),
            body: Body::Empty,
            close: true,
        }
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => panic!("no runtime: {error}"),
    };
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

/// A whole server connection: it ends, and sees the same requests however the bytes are cut.
pub fn connection(data: &[u8]) {
    let Some((flags, data)) = data.split_first() else {
        return;
    };
    let settings = Rc::new(settings(*flags));
    let serve = |step| {
        let output = Rc::default();
        let input = Bytes::copy_from_slice(data);
        let recorder = Rc::new(Recorder(std::cell::RefCell::default()));
        let io = Script {
            input,
            step,
            output: Rc::clone(&output),
        };
        let control = ConnectionControl::default();
        block_on(server::serve(
            io,
            Bytes::new(),
            settings.clone(),
            recorder.clone(),
            control,
        ));
        let seen = recorder.0.borrow().clone();
        let answers = output
            .borrow()
            .windows(9)
            .filter(|w| *w == b"HTTP/1.1 " || *w == b"HTTP/1.0 ")
            .count();
        (seen, answers)
    };
    let (whole, answers) = serve(usize::MAX);
    assert!(answers <= whole.len());
    for step in [1, 3, 61] {
        assert_eq!(serve(step).0, whole, "step {step}");
    }
}

/// A whole response, head and body: the same however the bytes are cut.
pub fn exchange(data: &[u8]) {
    let [flags, request, data @ ..] = data else {
        return;
    };
    let settings = Rc::new(settings(*flags));
    let fetch = |step| {
        let input = Bytes::copy_from_slice(data);
        let io = Script {
            input,
            step,
            output: Rc::default(),
        };
        let mut head = RequestHead::new(
            if request & 1 == 0 {
                Method::GET
            } else {
                Method::HEAD
            },
            "/",
        );
        head.authority = "h".into();
        head.upgrade = (request & 2 != 0).then(|| "websocket".into());
        block_on(async {
            let connection = ClientConnection::new(io, settings.clone());
            let mut answer = match connection
                .exchange(&head, Body::Empty, ExchangeOptions::default())
                .await
            {
                Ok(answer) => answer,
                Err(error) => return Err(error.reason),
            };
            let status = answer.head.status.as_u16();
            let body = answer
                .body
                .collect(1 << 20)
                .await
                .map_err(|error| error.reason);
            Ok((status, body.map(|body| (body.data, body.trailers))))
        })
    };
    let whole = fetch(usize::MAX);
    for step in [1, 3, 61] {
        assert_eq!(fetch(step), whole, "step {step}");
    }
}
