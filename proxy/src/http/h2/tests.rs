//! A whole server connection, with clients that are written byte by byte.

use std::rc::Rc;
use std::time::Duration;

use filters::body::{Body, BodyError};
use filters::head::ResponseHead;
use filters::stream::Protocol;
use futures_util::future::LocalBoxFuture;
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::{JoinHandle, LocalSet};

use super::settings::Http2Settings;
use crate::http::service::{ConnectionControl, HttpService, Rejection, Request, Response};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Answers 200 to everything.
struct Fine;

impl HttpService for Fine {
    fn call(&self, _: Request) -> LocalBoxFuture<'static, Result<Response, BodyError>> {
        Box::pin(async {
            Ok(Response {
                head: ResponseHead::new(StatusCode::OK),
                body: Body::Empty,
                close: false,
            })
        })
    }

    fn reject(&self, rejection: &Rejection, _: Protocol) -> Response {
        panic!("{rejection:?}")
    }
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags, 0, 0, 0, stream]);
    out.extend(payload);
    out
}

/// Serves a client that has `room` for what it is told.
fn serve(
    room: usize,
    settings: Http2Settings,
    control: &ConnectionControl,
) -> (DuplexStream, JoinHandle<()>) {
    let (client, server) = tokio::io::duplex(room);
    let control = control.clone();
    let serving = tokio::task::spawn_local(async move {
        super::server::serve(server, &settings, None, Rc::new(Fine), control).await;
    });
    (client, serving)
}

#[tokio::test(start_paused = true)]
async fn a_connection_ends_for_the_client_before_it_is_let_go_of() {
    let settings = || Http2Settings {
        linger: Some(Duration::from_secs(600)),
        ..Http2Settings::default()
    };
    // A name in upper case: a head that ends the connection without a word.
    let head = frame(1, 5, 1, b"\x82\x86\x84\x41\x01a\0\x01X\x011");
    let told = async {
        for said in [
            [PREFACE, &head].concat(),
            b"PRI * HTTP/2.0\r\n\r\nno\r\n\r\n".to_vec(),
        ] {
            let (mut client, serving) = serve(4096, settings(), &ConnectionControl::default());
            client.write_all(&said).await.unwrap();
            let mut told = Vec::new();
            client.read_to_end(&mut told).await.unwrap();
            assert!(
                !serving.is_finished(),
                "a reset would destroy what was told"
            );
            client.write_all(b"late").await.unwrap();
            drop(client);
            serving.await.unwrap();
        }
    };
    LocalSet::new().run_until(told).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_does_not_outlive_its_connections_end() {
    let told = async {
        let control = ConnectionControl::default();
        // Room for our SETTINGS, and not for all that says that the connection ends.
        let (mut client, serving) = serve(64, Http2Settings::default(), &control);
        client.write_all(PREFACE).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(!serving.is_finished());
        control.drain();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(serving.is_finished());
    };
    LocalSet::new().run_until(told).await;
}

#[tokio::test(start_paused = true)]
async fn a_settings_frame_of_too_many_entries_ends_the_connection() {
    let told = async {
        for (entries, end) in [(32, false), (33, true)] {
            let (mut client, serving) = serve(
                4096,
                Http2Settings::default(),
                &ConnectionControl::default(),
            );
            let settings = frame(4, 0, 0, &b"\0\x04\0\0\xff\xff".repeat(entries));
            client
                .write_all(&[PREFACE, &settings].concat())
                .await
                .unwrap();
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(serving.is_finished(), end);
            drop(client);
            serving.await.unwrap();
        }
    };
    LocalSet::new().run_until(told).await;
}
