//! The server side: one future per connection, one boxed future per request in it.

mod close;
mod connection;
mod exchange;
mod head;
mod writer;

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;

use bytes::Bytes;
use filters::flags::ResponseFlags;
use filters::stream::Protocol;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;

use self::close::reject;
use self::connection::Conn;
use self::head::{Next, next_head};
use super::{Http1Settings, parse};
use crate::http::service::{ConnectionControl, HttpService};

/// Serves one connection to its end. `prefix` holds bytes that were read already.
///
/// Returns when the connection is over, whoever ended it; errors of the connection end it silently, errors
/// of the protocol go to [`HttpService::reject`].
pub async fn serve<IO, S>(
    io: IO,
    prefix: Bytes,
    settings: Rc<Http1Settings>,
    service: Rc<S>,
    control: ConnectionControl,
) where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    S: HttpService,
{
    let conn = Conn::new(io, &prefix, settings.enable_trailers);
    let conn = Rc::new(RefCell::new(conn));
    drop(prefix);
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    loop {
        let block = match next_head(&conn, &settings, &control, &mut timer).await {
            Next::Head(block) => block,
            Next::Closed => break,
            Next::Cut => {
                let flags = ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION;
                service.refuse("downstream_remote_disconnect", flags, Protocol::Http11);
                break;
            }
            Next::Bad(error) => {
                Box::pin(reject(&conn, &*service, &settings, error)).await;
                break;
            }
        };
        // Boxed, so that an idle connection's future stays small.
        let exchange = parse::request(&block, &settings).map(|parsed| {
            Box::pin(exchange::serve(
                &conn, parsed, &settings, &*service, &control,
            ))
        });
        drop(block);
        match exchange {
            Ok(exchange) => {
                if !exchange.await {
                    break;
                }
            }
            Err(error) => {
                Box::pin(reject(&conn, &*service, &settings, error)).await;
                break;
            }
        }
    }
    let _ = poll_fn(|cx| Pin::new(&mut conn.borrow_mut().io).poll_shutdown(cx)).await;
}
