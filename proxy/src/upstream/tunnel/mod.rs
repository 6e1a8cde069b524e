//! Tunnels: bytes in the body of an HTTP exchange. A CONNECT that [ends here](terminate) goes on as a connection, and a
//! connection [goes on](originate) in a CONNECT.

pub(crate) mod originate;
pub(crate) mod terminate;

use std::io;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncRead;

use crate::transport::buffer::Buffer;

/// The most bytes that are read at a time. Nothing is read before the reader has taken what came before.
const CHUNK: usize = 16 * 1024;

/// Reads what has come; empty at the end.
fn poll_chunk(io: &mut (impl AsyncRead + Unpin), cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
    // Quiet tunnels hold no buffer, and busy ones no more than they have to say.
    let mut buffer = Buffer::default();
    let polled = buffer.poll_fill(io, cx, CHUNK);
    polled.map_ok(|_| Bytes::copy_from_slice(buffer.filled()))
}
