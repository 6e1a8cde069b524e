//! Which version of HTTP a connection speaks.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::service::ConnectionControl;

/// RFC 9113, 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads until it is clear whether the connection begins with HTTP/2's preface. `None` if it ends before. A drain
/// alone does not end it: the first request may be on its way.
pub(crate) async fn detect(
    io: &mut (impl AsyncRead + Unpin),
    prefix: Bytes,
    idle: Option<Duration>,
    control: &ConnectionControl,
) -> Option<(bool, Bytes)> {
    let reading = async {
        let mut read = BytesMut::from(prefix);
        loop {
            let known = read.len().min(PREFACE.len());
            if read.get(..known) != PREFACE.get(..known) {
                return Some((false, read.freeze()));
            }
            if known == PREFACE.len() {
                return Some((true, read.freeze()));
            }
            // Small: most first reads hold a whole request, and this buffer becomes the codec's.
            read.reserve(1024);
            if io.read_buf(&mut read).await.ok()? == 0 {
                return None;
            }
        }
    };
    let closed = poll_fn(|cx| {
        control.register(cx.waker());
        if control.closes_idle() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    });
    let limit = idle.unwrap_or(Duration::from_secs(365 * 86400));
    tokio::select! {
        biased;
        read = tokio::time::timeout(limit, reading) => read.ok().flatten(),
        () = closed => None,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn a_connection_that_has_not_spoken_yet_outlives_the_beginning_of_a_drain() {
        let idle = Some(Duration::from_secs(60));
        for close in [false, true] {
            let (mut client, mut server) = tokio::io::duplex(64);
            let control = ConnectionControl::default();
            let mut detecting = Box::pin(detect(&mut server, Bytes::new(), idle, &control));
            assert!((&mut detecting).now_or_never().is_none());
            control.drain();
            assert!((&mut detecting).now_or_never().is_none());
            if close {
                control.close_idle();
                assert_eq!(detecting.await, None);
            } else {
                client.write_all(b"GET ").await.unwrap();
                assert_eq!(detecting.await, Some((false, "GET ".into())));
            }
        }
    }
}
