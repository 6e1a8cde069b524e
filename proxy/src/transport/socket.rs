//! A connected socket.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::ByteStream;

/// A connection to another process.
#[derive(Debug)]
pub enum Socket {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix domain socket.
    Unix(UnixStream),
}

/// Closes `stream` with a reset when it is dropped. What has not been sent is lost.
pub fn reset_on_close(stream: &TcpStream) {
    // A failure only makes the end a polite one.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

impl ByteStream for Socket {
    fn abort(&mut self) {
        // There is no reset between processes of one machine.
        if let Self::Tcp(stream) = self {
            reset_on_close(stream);
        }
    }
}

macro_rules! each {
    ($self:ident, $io:ident => $done:expr) => {
        match $self.get_mut() {
            Self::Tcp($io) => $done,
            Self::Unix($io) => $done,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The kernel has it already.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn end_of(abort: bool) -> io::Result<usize> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut server = Socket::Tcp(listener.accept().await.unwrap().0);
        if abort {
            server.abort();
        }
        drop(server);
        client.read(&mut [0]).await
    }

    #[tokio::test]
    async fn a_close_is_an_end_unless_it_is_to_be_a_reset() {
        assert_eq!(end_of(false).await.unwrap(), 0);
        let error = end_of(true).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
