//! The upstream: does what the path of the request says.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

use crate::plan::{pattern, pieces, sum};

/// The ports of both versions.
pub struct Backends {
    pub http1: u16,
    pub http2: u16,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Body = StreamBody<std::pin::Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Failure>> + Send>>>;

/// Serves until the runtime ends.
pub async fn start() -> Backends {
    let http1 = listen(false).await;
    let http2 = listen(true).await;
    Backends { http1, http2 }
}

async fn listen(http2: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = stream.set_nodelay(true);
            let io = TokioIo::new(stream);
            tokio::spawn(async move {
                // Ends with an error whenever a plan says so.
                if http2 {
                    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(io, service_fn(answer))
                        .await;
                } else {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .half_close(true)
                        .serve_connection(io, service_fn(answer))
                        .await;
                }
            });
        }
    });
    port
}

async fn answer(request: hyper::Request<Incoming>) -> Result<hyper::Response<Body>, Failure> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let &[fault, seed, length, at, pauses] = parts.as_slice() else {
        return Err(path.into());
    };
    let (seed, at) = (seed.parse()?, at.parse()?);
    let body = pattern(seed, length.parse()?);
    match fault {
        "refuses" => return Err("refused".into()),
        "stalls" => std::future::pending().await,
        _ => {}
    }
    let mut incoming = request.into_body();
    let mut response = hyper::Response::builder().header("content-type", "text/plain");
    if fault == "early" {
        tokio::spawn(async move { while let Some(Ok(_)) = incoming.frame().await {} });
    } else {
        let got = incoming.collect().await?.to_bytes();
        response = response.header("x-got", sum(&got));
    }
    let cut = (fault == "closes").then_some(at);
    let stream = StreamBody::new(Box::pin(sending(seed, &body, cut, pauses == "true")) as _);
    Ok(response.body(stream)?)
}

/// The body in pieces, with an error after `cut` bytes.
fn sending(
    seed: u64,
    body: &[u8],
    cut: Option<usize>,
    pauses: bool,
) -> impl Stream<Item = Result<Frame<Bytes>, Failure>> + use<> {
    let mut random = fastrand::Rng::with_seed(!seed);
    let whole = &body[..cut.unwrap_or(body.len())];
    let mut frames: Vec<Result<Frame<Bytes>, Failure>> = pieces(whole, &mut random)
        .into_iter()
        .map(|piece| Ok(Frame::data(piece.into())))
        .collect();
    if cut.is_some() {
        frames.push(Err("cut".into()));
    }
    stream::unfold(frames.into_iter(), move |mut frames| {
        let pause = pauses && fastrand::u8(..4) == 0;
        async move {
            if pause {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            frames.next().map(|frame| (frame, frames))
        }
    })
}
