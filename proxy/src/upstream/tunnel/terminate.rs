//! CONNECT ended here (`connect_config`): the bytes of the request's body go to a connection of its own, and what comes
//! back is the response's body.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use filters::body::{Body, BodyError, BodyStream, Frame, ResetReason};
use filters::head::ResponseHead;
use http::StatusCode;

use super::poll_chunk;
use crate::transport::ByteStream;
use crate::transport::options::Purpose;
use crate::upstream::cluster::Cluster;
use crate::upstream::host::Host;
use crate::upstream::request::{Ready, UpstreamError, UpstreamResponse};
use crate::upstream::tcp;

/// Connects to `host`, and answers that the tunnel stands. `ready` is set once there is a connection.
///
/// # Errors
/// Circuit breakers, connection failures.
pub(crate) async fn open(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    purpose: Purpose,
    upload: Body,
    ready: Option<&Ready>,
) -> Result<UpstreamResponse, UpstreamError> {
    let connection = tcp::connect(cluster, host, purpose).await?;
    if let Some(ready) = ready {
        ready.set(connection.facts);
    }
    Ok(UpstreamResponse {
        head: ResponseHead::new(StatusCode::OK),
        body: Body::stream(Tunnel(Some(Ends::new(connection.io, upload)))),
        protocol: None,
        guard: connection.request,
    })
}

/// How long a client may go on after the upstream has ended its half. As long as a TCP proxy lets a connection be quiet.
const HALF_CLOSED: Duration = Duration::from_secs(3600);

/// A tunnel's way back, which drives its way there; none once that has ended.
struct Tunnel<IO: ByteStream + 'static>(Option<Ends<IO>>);

/// Both ends of a tunnel.
struct Ends<IO> {
    io: IO,
    upload: Upload,
}

impl<IO: ByteStream + 'static> Ends<IO> {
    fn new(io: IO, upload: Body) -> Self {
        Self {
            io,
            upload: Upload {
                body: Some(upload),
                pending: Bytes::new(),
            },
        }
    }

    /// The upstream has ended its half; the client goes on until it ends its own.
    fn half_close(mut self) {
        if self.upload.body.is_none() {
            return;
        }
        tokio::task::spawn_local(async move {
            let rest = poll_fn(|cx| self.upload.poll(&mut self.io, cx));
            let _ = tokio::time::timeout(HALF_CLOSED, rest).await;
        });
    }
}

/// The bytes of a request on their way.
struct Upload {
    /// None once its end, or its failure, has been passed on.
    body: Option<Body>,
    pending: Bytes,
}

impl Upload {
    /// Goes on until everything has been sent, including the end. What cannot be written shows when the other
    /// direction is read.
    ///
    /// # Errors
    /// The client has given the request up.
    fn poll<IO: ByteStream>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), BodyError>> {
        while let Some(body) = &mut self.body {
            if !self.pending.is_empty() {
                match ready!(Pin::new(&mut *io).poll_write(cx, &self.pending)) {
                    Ok(n) if n > 0 => self.pending.advance(n),
                    Ok(_) | Err(_) => {
                        self.pending = Bytes::new();
                        self.body = None;
                    }
                }
                continue;
            }
            match body.poll_frame(cx) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => self.pending = data,
                Poll::Ready(Some(Ok(Frame::Trailers(_))) | None) => {
                    let _ = ready!(Pin::new(&mut *io).poll_shutdown(cx));
                    self.body = None;
                }
                Poll::Ready(Some(Err(error))) => {
                    self.body = None;
                    return Poll::Ready(Err(error));
                }
                Poll::Pending => {
                    // TLS may hold back what was written; a failure shows when it is read.
                    let _ = ready!(Pin::new(&mut *io).poll_flush(cx));
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: ByteStream + 'static> BodyStream for Tunnel<IO> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let Some(ends) = &mut self.0 else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(Err(error)) = ends.upload.poll(&mut ends.io, cx) {
            self.0 = None;
            return Poll::Ready(Some(Err(error)));
        }
        let read = ready!(poll_chunk(&mut ends.io, cx));
        Poll::Ready(match read {
            Ok(data) if data.is_empty() => {
                if let Some(ends) = self.0.take() {
                    ends.half_close();
                }
                None
            }
            Ok(data) => Some(Ok(Frame::Data(data))),
            Err(_) => {
                self.0 = None;
                Some(Err(BodyError::new(ResetReason::ConnectionTermination)))
            }
        })
    }

    fn is_end(&self) -> bool {
        self.0.is_none()
    }

    fn poll_progress(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let Some(ends) = &mut self.0 else {
            return Poll::Pending;
        };
        match ends.upload.poll(&mut ends.io, cx) {
            Poll::Ready(Err(error)) => Poll::Ready(error),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::internal::stream::InternalStream;

    fn tunnel(upload: Body) -> (Tunnel<InternalStream>, InternalStream) {
        let (io, peer) = InternalStream::pair(64);
        (Tunnel(Some(Ends::new(io, upload))), peer)
    }

    async fn next(tunnel: &mut Tunnel<InternalStream>) -> Option<Result<Bytes, BodyError>> {
        let frame = poll_fn(|cx| tunnel.poll_frame(cx)).await?;
        Some(frame.map(|frame| match frame {
            Frame::Data(data) => data,
            Frame::Trailers(_) => unreachable!("a connection has none"),
        }))
    }

    #[tokio::test]
    async fn both_ways_end_alone_and_are_passed_on_whole() {
        let upload = Bytes::from(vec![b'u'; 1000]);
        let (mut tunnel, mut peer) = tunnel(Body::Full(upload));
        let serving = async {
            let mut got = Vec::new();
            peer.read_to_end(&mut got).await.unwrap();
            // The client has ended its half, and its bytes are here; ours goes on.
            peer.write_all(b"answer").await.unwrap();
            peer.shutdown().await.unwrap();
            drop(peer);
            got.len()
        };
        let reading = async {
            let mut all = Vec::new();
            while let Some(data) = next(&mut tunnel).await {
                all.extend_from_slice(&data.unwrap());
            }
            all
        };
        assert_eq!(tokio::join!(serving, reading), (1000, b"answer".to_vec()));
        assert!(tunnel.is_end());
    }

    #[tokio::test]
    async fn a_client_goes_on_after_the_upstreams_end() {
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let (mut client, source) = InternalStream::pair(64);
                let upload = Body::stream(Chunks(source));
                let (mut tunnel, mut peer) = tunnel(upload);
                peer.shutdown().await.unwrap();
                assert_eq!(next(&mut tunnel).await, None);
                drop(tunnel);
                client.write_all(b"still here").await.unwrap();
                client.shutdown().await.unwrap();
                let mut got = String::new();
                peer.read_to_string(&mut got).await.unwrap();
                assert_eq!(got, "still here");
            })
            .await;
    }

    struct Chunks(InternalStream);

    impl BodyStream for Chunks {
        fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
            let data = ready!(poll_chunk(&mut self.0, cx)).unwrap();
            Poll::Ready((!data.is_empty()).then_some(Ok(Frame::Data(data))))
        }
    }

    struct Failing;

    impl BodyStream for Failing {
        fn poll_frame(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
            Poll::Ready(Some(Err(BodyError::new(ResetReason::RemoteReset))))
        }
    }

    #[tokio::test]
    async fn a_client_that_resets_ends_the_tunnel() {
        let (mut tunnel, _peer) = tunnel(Body::stream(Failing));
        let error = next(&mut tunnel).await.unwrap().unwrap_err();
        assert_eq!(error.reason, ResetReason::RemoteReset);
    }

    #[tokio::test]
    async fn an_upstream_that_reads_no_more_does_not_end_its_own_bytes() {
        let (mut tunnel, mut peer) = tunnel(Body::Full(Bytes::from(vec![0; 1000])));
        peer.write_all(b"said before").await.unwrap();
        peer.shutdown().await.unwrap();
        drop(peer);
        assert_eq!(
            next(&mut tunnel).await,
            Some(Ok(Bytes::from("said before")))
        );
        assert_eq!(next(&mut tunnel).await, None);
    }
}
