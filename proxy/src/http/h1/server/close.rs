//! How a connection ends: after a refusal, or after its last response.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use filters::stream::Protocol;
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::Conn;
use super::writer::Writer;
use crate::http::h1::Http1Settings;
use crate::http::h1::encode::Persistence;
use crate::http::h1::parse::ParseError;
use crate::http::h1::wire::{self, WriteBuf};
use crate::http::service::{HttpService, Rejection};

/// Most bytes for which a closing connection reads on.
const LINGER_BYTES: usize = 64 * 1024;

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

/// Ends our direction and reads on for a bounded while, so that the client gets to read the response before
/// a reset destroys it (RFC 9112 section 9.6; Envoy's delayed close).
pub(super) async fn linger<IO: AsyncRead + AsyncWrite + Unpin>(
    conn: &RefCell<Conn<IO>>,
    time: Option<Duration>,
) {
    let Some(time) = time else {
        return;
    };
    let mut left = LINGER_BYTES;
    let mut shut = false;
    let drained = poll_fn(|cx| {
        let conn = &mut *conn.borrow_mut();
        if !shut {
            match Pin::new(&mut conn.io).poll_shutdown(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) => shut = true,
            }
        }
        while !conn.eof {
            conn.buf.clear();
            match wire::poll_read(&mut conn.io, &mut conn.buf, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(n)) if n > 0 && n < left => left -= n,
                Poll::Ready(_) => break,
            }
        }
        Poll::Ready(())
    });
    let _ = tokio::time::timeout(time, drained).await;
}
