//! How a connection ends so that its peer gets to read what it was told last.

use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Most bytes for which a closing connection reads on.
const BYTES: usize = 64 * 1024;

/// Ends our direction and reads on for a bounded while: the close of a socket with unread bytes is a reset, which
/// destroys what the peer has not read yet (RFC 9112 section 9.6; Envoy's delayed close).
pub(super) struct Linger {
    timer: Pin<Box<Sleep>>,
    left: usize,
    shut: bool,
}

impl Linger {
    /// Reads on for `time` at most, from now.
    pub(super) fn new(time: Duration) -> Self {
        Self {
            timer: Box::pin(tokio::time::sleep(time)),
            left: BYTES,
            shut: false,
        }
    }

    /// Ready when the connection may be closed.
    pub(super) fn poll<IO: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if self.timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !self.shut {
            match Pin::new(&mut *io).poll_shutdown(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) => self.shut = true,
            }
        }
        loop {
            let mut scratch = [const { MaybeUninit::uninit() }; 4096];
            let mut scratch = ReadBuf::uninit(&mut scratch);
            match Pin::new(&mut *io).poll_read(cx, &mut scratch) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !scratch.filled().is_empty() => {
                    self.left = self.left.saturating_sub(scratch.filled().len());
                }
                Poll::Ready(_) => return Poll::Ready(()),
            }
            if self.left == 0 {
                return Poll::Ready(());
            }
        }
    }
}
