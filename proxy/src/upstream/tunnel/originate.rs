//! A connection that goes on in a CONNECT, or a POST, to its upstream (Envoy: "Tunneling TCP over HTTP"; istio: HBONE).
//! Over HTTP/2 many of them share an upstream connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use filters::body::{Body, BodyError, BodyStream, Frame, ResetReason};
use filters::head::{RequestHead, ResponseHead};
use filters::stream::Protocol;
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{CHUNK, poll_chunk};
use crate::http::service::EarlyResponses;
use crate::internal::stream::InternalStream;
use crate::transport::ByteStream;
use crate::transport::options::Purpose;
use crate::upstream::circuit_breaker::Priority;
use crate::upstream::cluster::Cluster;
use crate::upstream::connect::ConnectionFacts;
use crate::upstream::host::Host;
use crate::upstream::request::{self, Ready, RequestGuard, SendOptions, UpstreamError};

/// A tunnel that stands.
pub(crate) struct Originated {
    /// Its bytes.
    pub(crate) io: TunnelIo,
    /// What logs tell of the connection under it.
    pub(crate) facts: ConnectionFacts,
}

/// Why there is no tunnel.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The upstream was not reached, or has not answered.
    Failed(UpstreamError),
    /// It has answered that it does not want to.
    Answered(StatusCode),
}

/// Asks `host` for a tunnel.
///
/// # Errors
/// There is none.
pub(crate) async fn open(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    head: &RequestHead,
    purpose: Purpose,
) -> Result<Originated, Refused> {
    let early = EarlyResponses::default();
    early.close();
    let ready = Ready::default();
    let options = SendOptions {
        // Where the cluster speaks what the downstream does: there is no HTTP downstream, and Envoy takes HTTP/1 then.
        downstream: Protocol::Http11,
        priority: Priority::Default,
        early,
        purpose,
        ready: Some(&ready),
    };
    let (upload, source) = InternalStream::pair(CHUNK);
    let body = Body::stream(Source {
        io: source,
        ended: false,
    });
    let sent = request::send(cluster, host, head, body, options).await;
    let response = sent.map_err(Refused::Failed)?;
    let agreed = agrees(&response.head, response.protocol) && !response.body.is_end();
    let download = match response.body {
        Body::Stream(source) if agreed => source,
        // Not a body that is at hand either: it is no tunnel.
        _ => return Err(Refused::Answered(response.head.status)),
    };
    Ok(Originated {
        facts: ready.take().unwrap_or_default(),
        io: TunnelIo {
            upload,
            download,
            pending: Bytes::new(),
            ended: false,
            whole: response.protocol != Some(Protocol::Http2),
            guard: response.guard,
        },
    })
}

/// Over HTTP/1 any success opens a tunnel, over HTTP/2 a 200, as in Envoy.
fn agrees(head: &ResponseHead, protocol: Option<Protocol>) -> bool {
    match protocol {
        Some(Protocol::Http2) => head.status == StatusCode::OK,
        _ => head.status.is_success(),
    }
}

/// A request's body: what was written to the tunnel.
struct Source {
    io: InternalStream,
    ended: bool,
}

impl BodyStream for Source {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let read = ready!(poll_chunk(&mut self.io, cx));
        Poll::Ready(match read {
            Ok(data) if data.is_empty() => {
                self.ended = true;
                None
            }
            Ok(data) => Some(Ok(Frame::Data(data))),
            Err(_) => Some(Err(BodyError::new(ResetReason::LocalReset))),
        })
    }

    fn is_end(&self) -> bool {
        self.ended
    }
}

/// How the end of a tunnel over HTTP/1 is told.
const END: ResetReason = ResetReason::ConnectionTermination;

/// A tunnel as a connection. Dropping it resets what has not come to its end.
pub(crate) struct TunnelIo {
    /// Where the request's body takes its bytes from.
    upload: InternalStream,
    /// The response's body, which sends the request's while it is polled. It is kept after its end: then the other
    /// direction goes on.
    download: Box<dyn BodyStream>,
    pending: Bytes,
    ended: bool,
    /// Over HTTP/1, where an end of one direction is told as that of the connection.
    whole: bool,
    guard: RequestGuard,
}

impl TunnelIo {
    /// Sends on what was written.
    fn progress(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.download.poll_progress(cx) {
            Poll::Ready(error) => Err(self.broke(&error)),
            Poll::Pending => Ok(()),
        }
    }

    fn broke(&mut self, error: &BodyError) -> io::Error {
        self.guard.ended(Some(error.reason));
        io::Error::new(io::ErrorKind::ConnectionReset, error.to_string())
    }
}

impl ByteStream for TunnelIo {
    fn abort(&mut self) {
        self.upload.abort();
    }
}

impl AsyncRead for TunnelIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.pending.is_empty() && !self.ended {
            match ready!(self.download.poll_frame(cx)) {
                Some(Ok(Frame::Data(data))) => self.pending = data,
                // A tunnel's trailers say nothing to a connection.
                Some(Ok(Frame::Trailers(_))) | None => {
                    self.ended = true;
                    self.guard.ended(None);
                }
                Some(Err(error)) if self.whole && error.reason == END => {
                    self.ended = true;
                    self.guard.ended(None);
                }
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Err(self.broke(&error)));
                }
            }
        }
        let n = self.pending.len().min(buf.remaining());
        if let Some(part) = self.pending.get(..n) {
            buf.put_slice(part);
        }
        self.pending.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.upload).poll_write(cx, buf);
        self.progress(cx)?;
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.progress(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.upload).poll_shutdown(cx))?;
        self.progress(cx)?;
        // Whoever has shut down may drop the tunnel, and what has not left by then would be lost.
        self.upload.poll_unread(cx).map(Ok)
    }
}
