mod client;
mod server;

use bytes::Bytes;
use filters::body::{Body, BodyError};
use filters::head::ResponseHead;
use filters::stream::Protocol;
use futures_util::future::LocalBoxFuture;
use http::StatusCode;

use super::Http1Settings;
use crate::http::service::{HttpService, Rejection, Request, Response};

/// Echoes bodies; the path chooses variations.
struct Echo;

impl HttpService for Echo {
    fn call(&self, mut request: Request) -> LocalBoxFuture<'static, Result<Response, BodyError>> {
        Box::pin(async move {
            let path = request.head.path.to_string();
            let mut head = ResponseHead::new(StatusCode::OK);
            let body = match path.as_str() {
                "" => request.body,
                "/unread" => Body::Empty,
                "/hang" => std::future::pending().await,
                "/first" => {
                    request.body.frame().await;
                    std::future::pending().await
                }
                "/up" => {
                    head.status = StatusCode::SWITCHING_PROTOCOLS;
                    request.body
                }
                "/early" => {
                    request.early.send(ResponseHead::new(StatusCode::CONTINUE));
                    Body::from(request.body.collect(1 << 20).await?)
                }
                "/stream" => request.body,
                _ => Body::from(request.body.collect(1 << 20).await?),
            };
            Ok(Response {
                head,
                body,
                close: false,
            })
        })
    }

    fn reject(&self, rejection: &Rejection, _: Protocol) -> Response {
        let status = StatusCode::from_u16(rejection.status).unwrap();
        let body = Bytes::from_static(rejection.details.as_bytes()).into();
        Response {
            head: ResponseHead::new(status),
            body,
            close: true,
        }
    }
}

fn run<F: std::future::Future>(f: F) -> F::Output {
    let rt = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&rt, f)
}

fn settings() -> Http1Settings {
    Http1Settings {
        enable_trailers: true,
        ..Http1Settings::default()
    }
}
