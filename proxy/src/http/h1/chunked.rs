//! The chunked coding (RFC 9112 section 7.1), decoded strictly and within bounds.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::http::validate;

/// Most bytes of one chunk-size line, extensions included.
const MAX_LINE: usize = 1024;
/// Most bytes of chunk extensions in one body; more is an attack, not a use.
const MAX_EXTENSIONS: usize = 16 * 1024;
/// Most bytes of a trailer section.
const MAX_TRAILERS: usize = 60 * 1024;
/// Most trailer fields.
const MAX_TRAILER_FIELDS: usize = 100;

/// The bytes are not the chunked coding, or exceed a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkedError;

/// What one step of decoding yields.
#[derive(Debug, PartialEq)]
pub enum Decoded {
    /// More bytes are needed.
    More,
    /// Some data, a slice of the input.
    Data(Bytes),
    /// The end, with the trailer fields (maybe none).
    End(HeaderMap),
}

#[derive(Debug, Clone, Copy)]
enum State {
    Size,
    Data(u64),
    DataEnd,
    Trailers,
    Done,
}

/// Decodes one chunked body out of a read buffer.
#[derive(Debug)]
pub struct ChunkedDecoder {
    state: State,
    /// Bytes of the current line or trailer section known to hold no end.
    scanned: usize,
    /// Where the current trailer line began.
    line: usize,
    extensions: usize,
}

impl Default for ChunkedDecoder {
    fn default() -> Self {
        Self {
            state: State::Size,
            scanned: 0,
            line: 0,
            extensions: 0,
        }
    }
}

impl ChunkedDecoder {
    /// Takes what it can from the front of `buf`. Call again after `Data`; add bytes after `More`.
    ///
    /// # Errors
    /// On a malformed size, a bare LF, a missing CRLF, a malformed trailer, or a limit exceeded.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Decoded, ChunkedError> {
        loop {
            match self.state {
                State::Size => {
                    let Some(at) = self.find_lf(buf)? else {
                        return Ok(Decoded::More);
                    };
                    let size = self.size(buf.get(..at - 1).ok_or(ChunkedError)?)?;
                    buf.advance(at + 1);
                    self.state = match size {
                        0 => State::Trailers,
                        size => State::Data(size),
                    };
                }
                State::Data(left) => {
                    if buf.is_empty() {
                        return Ok(Decoded::More);
                    }
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
                    let left = left - take as u64;
                    self.state = match left {
                        0 => State::DataEnd,
                        left => State::Data(left),
                    };
                    return Ok(Decoded::Data(buf.split_to(take).freeze()));
                }
                State::DataEnd => match (buf.first(), buf.get(1)) {
                    (Some(b'\r'), Some(b'\n')) => {
                        buf.advance(2);
                        self.state = State::Size;
                    }
                    (None, _) | (Some(b'\r'), None) => return Ok(Decoded::More),
                    _ => return Err(ChunkedError),
                },
                State::Trailers => return self.trailers(buf),
                State::Done => return Ok(Decoded::End(HeaderMap::new())),
            }
        }
    }

    /// The index of the LF that ends the size line; its CR is checked.
    fn find_lf(&mut self, buf: &BytesMut) -> Result<Option<usize>, ChunkedError> {
        let rest = buf.get(self.scanned..).unwrap_or_default();
        match memchr::memchr(b'\n', rest) {
            None if buf.len() > MAX_LINE => Err(ChunkedError),
            None => {
                self.scanned = buf.len();
                Ok(None)
            }
            Some(at) => {
                let at = at + self.scanned;
                self.scanned = 0;
                // A bare LF is not a line end here (RFC 9112 section 2.2 lets us refuse it).
                if at > MAX_LINE || at == 0 || buf.get(at - 1) != Some(&b'\r') {
                    return Err(ChunkedError);
                }
                Ok(Some(at))
            }
        }
    }

    fn size(&mut self, line: &[u8]) -> Result<u64, ChunkedError> {
        let digits = memchr::memchr(b';', line).unwrap_or(line.len());
        let (size, extension) = line.split_at(digits);
        // White space behind the size: old servers pad it, Envoy reads it, and we write our own sizes.
        let size = match size.iter().rposition(|b| !matches!(b, b' ' | b'\t')) {
            Some(last) => size.get(..=last).unwrap_or_default(),
            None => &[],
        };
        self.extensions += extension.len();
        let clean = extension
            .iter()
            .all(|b| matches!(b, b'\t' | 0x20..=0x7e | 0x80..));
        if size.is_empty() || size.len() > 16 || !clean || self.extensions > MAX_EXTENSIONS {
            return Err(ChunkedError);
        }
        size.iter().try_fold(0u64, |sum, b| {
            let digit = char::from(*b).to_digit(16).ok_or(ChunkedError)?;
            sum.checked_mul(16)
                .and_then(|sum| sum.checked_add(u64::from(digit)))
                .ok_or(ChunkedError)
        })
    }

    fn trailers(&mut self, buf: &mut BytesMut) -> Result<Decoded, ChunkedError> {
        let end = loop {
            let rest = buf.get(self.scanned..).unwrap_or_default();
            let Some(at) = memchr::memchr(b'\n', rest).map(|at| at + self.scanned) else {
                self.scanned = buf.len();
                if buf.len() > MAX_TRAILERS {
                    return Err(ChunkedError);
                }
                return Ok(Decoded::More);
            };
            if at == 0 || buf.get(at - 1) != Some(&b'\r') || at > MAX_TRAILERS {
                return Err(ChunkedError);
            }
            let empty = at - 1 == self.line;
            self.scanned = at + 1;
            self.line = at + 1;
            if empty {
                break at + 1;
            }
        };
        self.state = State::Done;
        let block = buf.split_to(end).freeze();
        let mut map = HeaderMap::new();
        if block.len() > 2 {
            let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
            let parsed = httparse::parse_headers(&block, &mut fields).map_err(|_| ChunkedError)?;
            let httparse::Status::Complete((used, fields)) = parsed else {
                return Err(ChunkedError);
            };
            if used != block.len() {
                return Err(ChunkedError);
            }
            for field in fields {
                let name =
                    HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| ChunkedError)?;
                if validate::is_forbidden_in_trailers(&name) {
                    continue;
                }
                let value = HeaderValue::from_maybe_shared(block.slice_ref(field.value))
                    .map_err(|_| ChunkedError)?;
                map.append(name, value);
            }
        }
        Ok(Decoded::End(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(input: &[u8], step: usize) -> Result<(Vec<u8>, Option<HeaderMap>), ChunkedError> {
        let mut decoder = ChunkedDecoder::default();
        let mut buf = BytesMut::new();
        let mut data = Vec::new();
        for piece in input.chunks(step) {
            buf.extend_from_slice(piece);
            loop {
                match decoder.decode(&mut buf)? {
                    Decoded::More => break,
                    Decoded::Data(d) => data.extend_from_slice(&d),
                    Decoded::End(map) => return Ok((data, Some(map))),
                }
            }
        }
        Ok((data, None))
    }

    #[test]
    fn every_split_gives_the_same() {
        let input = b"5 ;a=b\r\nhello\r\nA \t\r\n0123456789\r\n0\r\nx-a: 1\r\nhost: no\r\n\r\n";
        for step in 1..=input.len() {
            let (data, trailers) = all(input, step).unwrap();
            assert_eq!(data, b"hello0123456789");
            let trailers = trailers.unwrap();
            assert_eq!(trailers.len(), 1, "framing and routing fields are dropped");
            assert_eq!(trailers["x-a"], "1");
        }
    }

    #[test]
    fn malformed_is_refused_whatever_the_split() {
        for bad in [
            &b"5\nhello\r\n"[..],
            b" \r\n",
            b" 5\r\nhello\r\n",
            b"+5\r\nhello\r\n",
            b"0x5\r\nhello\r\n",
            b"\r\n",
            b"g\r\n",
            b"11111111111111111\r\n",
            b"5\r\nhelloX\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5;\x00\r\nhello\r\n",
            b"0\r\nbad name: 1\r\n\r\n",
            b"0\r\na : 1\r\n\r\n",
            b"0\r\na: 1\n\r\n",
            b"0\r\n folded\r\n\r\n",
        ] {
            for step in 1..=bad.len() {
                assert!(
                    all(bad, step).is_err(),
                    "{:?}/{step}",
                    bad.escape_ascii().to_string()
                );
            }
        }
    }

    #[test]
    fn extensions_are_bounded() {
        let mut body = Vec::new();
        for _ in 0..40 {
            body.extend_from_slice(b"1;");
            body.extend_from_slice(&[b'e'; 500]);
            body.extend_from_slice(b"\r\nx\r\n");
        }
        assert!(all(&body, 4096).is_err());
        assert!(all(&[b'1'; 2000], 2000).is_err());
    }
}
