//! Waiting for the head of the next request, under the idle and the header timeout, until drained.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use tokio::io::AsyncRead;
use tokio::time::{Instant, Sleep};

use super::connection::Conn;
use crate::http::h1::Http1Settings;
use crate::http::h1::parse::{self, HeadScanner, ParseError};
use crate::http::h1::wire;
use crate::http::service::ConnectionControl;

/// What came instead of nothing.
pub(super) enum Next {
    /// A complete head.
    Head(Bytes),
    /// The connection is over.
    Closed,
    /// The client went away in the middle of a head.
    Cut,
    /// Something that cannot become a request.
    Bad(ParseError),
}

/// Reads until there is a head. `timer` serves the connection for its whole life.
pub(super) async fn next_head<IO: AsyncRead + Unpin>(
    conn: &RefCell<Conn<IO>>,
    settings: &Http1Settings,
    control: &ConnectionControl,
    timer: &mut Option<Pin<Box<Sleep>>>,
) -> Next {
    let mut scanner = HeadScanner::default();
    let mut fresh = true;
    // The clock is read only when a timer is configured.
    let mut since: Option<Instant> = None;
    poll_fn(|cx| {
        let conn = &mut *conn.borrow_mut();
        loop {
            if fresh && parse::skip_empty_lines(&mut conn.buf) {
                scanner = HeadScanner::default();
            }
            if !conn.buf.is_empty() {
                match scanner.scan(&conn.buf, settings.max_head_bytes) {
                    Ok(Some(end)) => {
                        return Poll::Ready(Next::Head(conn.buf.split_to(end).freeze()));
                    }
                    Ok(None) => {}
                    Err(error) => return Poll::Ready(Next::Bad(error)),
                }
                if fresh && conn.buf.as_ref() != b"\r" {
                    fresh = false;
                    since = None;
                }
            }
            if fresh && control.closes_idle() {
                return Poll::Ready(Next::Closed);
            }
            let ended = if fresh { Next::Closed } else { Next::Cut };
            if conn.eof {
                return Poll::Ready(ended);
            }
            match wire::poll_read(&mut conn.io, &mut conn.buf, cx) {
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => return Poll::Ready(ended),
                Poll::Pending => break,
            }
        }
        control.register(cx.waker());
        let limit = match fresh {
            true => settings.idle_timeout,
            false => settings.request_headers_timeout,
        };
        let Some(limit) = limit else {
            return Poll::Pending;
        };
        let due = *since.get_or_insert_with(Instant::now) + limit;
        // One timer for the connection's life. It is moved only when it is too late for what is due, or
        // when it fires too early: an idle timer that is not moved per request costs nothing per request.
        let sleep = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if sleep.deadline() > due || sleep.is_elapsed() {
            sleep.as_mut().reset(due);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= due {
                return Poll::Ready(match fresh {
                    true => Next::Closed,
                    false => Next::Bad(ParseError {
                        status: 408,
                        details: "request_header_timeout",
                    }),
                });
            }
            sleep.as_mut().reset(due);
        }
        Poll::Pending
    })
    .await
}
