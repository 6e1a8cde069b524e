//! The streaming gzip transform of a body (RFC 1952): the body half of the compressor filter.

use std::io::Write;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::HeaderMap;

use crate::body::{Body, BodyError, BodyStream, Frame, ResetReason};

/// A body that compresses another. Each frame is flushed, as in Envoy, so what is held is never more
/// than one frame's output; it pulls from the source only when it is pulled.
pub struct GzipBody {
    source: Body,
    encoder: Option<GzEncoder<Vec<u8>>>,
    trailers: Option<HeaderMap>,
}

impl GzipBody {
    /// Compresses `source` at a level from 0 to 9.
    pub fn new(source: Body, level: Compression) -> Self {
        Self {
            source,
            encoder: Some(GzEncoder::new(Vec::new(), level)),
            trailers: None,
        }
    }

    fn finish(&mut self) -> Option<Result<Frame, BodyError>> {
        let encoder = self.encoder.take()?;
        let end = encoder
            .finish()
            .map_err(|_| BodyError::new(ResetReason::LocalReset));
        Some(end.map(|bytes| Frame::Data(bytes.into())))
    }
}

impl BodyStream for GzipBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        loop {
            let Some(encoder) = &mut self.encoder else {
                return Poll::Ready(self.trailers.take().map(|t| Ok(Frame::Trailers(t))));
            };
            match ready!(self.source.poll_frame(cx)) {
                Some(Ok(Frame::Data(data))) => {
                    if data.is_empty() {
                        continue;
                    }
                    if encoder
                        .write_all(&data)
                        .and_then(|()| encoder.flush())
                        .is_err()
                    {
                        let error = BodyError::new(ResetReason::LocalReset);
                        return Poll::Ready(Some(Err(error)));
                    }
                    let out = std::mem::take(encoder.get_mut());
                    return Poll::Ready(Some(Ok(Frame::Data(Bytes::from(out)))));
                }
                Some(Ok(Frame::Trailers(trailers))) => {
                    self.trailers = Some(trailers);
                    return Poll::Ready(self.finish());
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(self.finish()),
            }
        }
    }

    fn is_end(&self) -> bool {
        self.encoder.is_none() && self.trailers.is_none()
    }

    fn poll_progress(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        self.source.poll_progress(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Read;
    use std::rc::Rc;

    use super::*;

    /// Random frames, then trailers or an error; counts how many were pulled.
    struct Source(Vec<Frame>, Option<BodyError>, Rc<Cell<usize>>);
    impl BodyStream for Source {
        fn poll_frame(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
            self.2.set(self.2.get() + 1);
            if self.0.is_empty() {
                return Poll::Ready(self.1.take().map(Err));
            }
            Poll::Ready(Some(Ok(self.0.remove(0))))
        }
    }

    fn frames(data: &[u8]) -> Vec<Frame> {
        let mut rest = data;
        let mut frames = Vec::new();
        while !rest.is_empty() {
            let (a, b) = rest.split_at(fastrand::usize(0..=rest.len()));
            frames.push(Frame::Data(Bytes::copy_from_slice(a)));
            rest = b;
        }
        frames
    }

    #[tokio::test]
    async fn round_trip_under_random_chunking_and_back_pressure() {
        let data: Vec<u8> = (0..5000u32).map(|i| (i % 251) as u8).collect();
        for _ in 0..30 {
            let mut input = frames(&data);
            let full = input.iter().filter(|f| **f != Frame::Data(Bytes::new()));
            let full = full.count();
            input.push(Frame::Trailers(HeaderMap::new()));
            let pulled = Rc::new(Cell::new(0));
            let source = Body::stream(Source(input, None, pulled.clone()));
            let mut body = Body::stream(GzipBody::new(source, Compression::default()));
            assert_eq!(pulled.get(), 0, "pulls only when pulled");
            let all = body.collect(1 << 20).await.unwrap();
            assert!(all.trailers.is_some());
            assert!(pulled.get() > full);
            let mut plain = Vec::new();
            let mut decoder = flate2::read::GzDecoder::new(&all.data[..]);
            decoder.read_to_end(&mut plain).unwrap();
            assert_eq!(plain, data);
        }
    }

    #[tokio::test]
    async fn a_reset_passes_through_at_every_point() {
        for keep in 0..5 {
            let error = BodyError::new(ResetReason::RemoteReset);
            let input = vec![Frame::Data(Bytes::from_static(b"abc")); keep];
            let source = Source(input, Some(error.clone()), Rc::default());
            let gzip = GzipBody::new(Body::stream(source), Compression::default());
            assert_eq!(Body::stream(gzip).collect(9999).await, Err(error));
        }
    }
}
