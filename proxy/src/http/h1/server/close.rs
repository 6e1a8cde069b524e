//! How a connection ends: after a refusal, or after its last response.

use std::cell::RefCell;
use std::future::poll_fn;
use std::time::Duration;

use filters::stream::Protocol;
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::Conn;
use super::writer::Writer;
use crate::http::h1::Http1Settings;
use crate::http::h1::encode::Persistence;
use crate::http::h1::parse::ParseError;
use crate::http::h1::wire::WriteBuf;
use crate::http::linger::Linger;
use crate::http::service::{HttpService, Rejection};

/// Answers what cannot become a request. The connection is over then: where its next request would begin
/// is anyone's guess.
pub(super) async fn reject<IO, S>(
    conn: &RefCell<Conn<IO>>,
    service: &S,
    settings: &Http1Settings,
    error: ParseError,
) where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: HttpService,
{
    let rejection = Rejection {
        status: error.status,
        details: error.details,
        body: match error.status {
            408 => "request header timeout",
            426 => "Upgrade Required",
            431 => "Request Header Fields Too Large",
            501 => "Not Implemented",
            _ => "Bad Request",
        },
    };
    let response = service.reject(&rejection, Protocol::Http11);
    let mut writer = Writer::new(response, settings, false, false, WriteBuf::default());
    writer.head(Persistence::Close, None);
    let _ = poll_fn(|cx| writer.poll(conn, cx)).await;
    linger(conn, settings.linger).await;
}

/// Waits until the client has had the time to read the last response.
pub(super) async fn linger<IO: AsyncRead + AsyncWrite + Unpin>(
    conn: &RefCell<Conn<IO>>,
    time: Option<Duration>,
) {
    let eof = conn.borrow().eof;
    if let Some(time) = time.filter(|_| !eof) {
        let mut linger = Linger::new(time);
        poll_fn(|cx| linger.poll(&mut conn.borrow_mut().io, cx)).await;
    }
}
