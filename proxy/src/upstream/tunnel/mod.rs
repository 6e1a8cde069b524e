//! Tunnels: bytes in the body of an HTTP exchange. A CONNECT that [ends here](terminate) goes on as a connection, and a
//! connection [goes on](originate) in a CONNECT.

pub(crate) mod originate;
pub(crate) mod terminate;

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};

/// The most bytes that are read at a time. Nothing is read before the reader has taken what came before.
const CHUNK: usize = 16 * 1024;

thread_local! {
    /// Where a worker reads before it knows how much there is: quiet tunnels hold no buffer, and busy ones no more than
    /// they have to say.
    static SCRATCH: Cell<Box<[u8]>> = Cell::default();
}

/// Reads what has come; empty at the end.
fn poll_chunk(io: &mut (impl AsyncRead + Unpin), cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
    // Taken out meanwhile: a connection that is read may be a tunnel itself.
    let mut scratch = SCRATCH.take();
    if scratch.is_empty() {
        scratch = vec![0; CHUNK].into();
    }
    let mut buf = ReadBuf::new(&mut scratch);
    let polled = Pin::new(io).poll_read(cx, &mut buf);
    let read = polled.map_ok(|()| Bytes::copy_from_slice(buf.filled()));
    SCRATCH.set(scratch);
    read
}
