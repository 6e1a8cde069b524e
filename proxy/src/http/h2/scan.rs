//! Frame headers out of a stream of bytes (RFC 9113, section 4.1), however it is cut.

/// The preface of a client (RFC 9113, section 3.4).
const PREFACE_LENGTH: usize = 24;

/// The frame types that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Data,
    Headers,
    Priority,
    Reset,
    Settings,
    GoAway,
    WindowUpdate,
    Continuation,
    Other,
}

/// One frame, without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    pub kind: Kind,
    pub flags: u8,
    pub stream: u32,
    /// Of the payload, in bytes.
    pub length: usize,
    /// The error code of RST_STREAM and GOAWAY, the length of padding; 0 for others.
    pub code: u32,
}

impl Frame {
    /// Whether the frame ends its stream.
    pub(super) fn ends_stream(self) -> bool {
        matches!(self.kind, Kind::Data | Kind::Headers) && self.flags & 1 != 0
    }

    fn is_padded(self) -> bool {
        matches!(self.kind, Kind::Data | Kind::Headers) && self.flags & 8 != 0
    }

    /// Whether the payload is padding and nothing else.
    pub(super) fn is_empty(self) -> bool {
        match self.is_padded() {
            true => self.length == self.code as usize + 1,
            false => self.length == 0,
        }
    }

    /// Where in the payload `code` begins and how many bytes it has.
    fn code_at(self) -> Option<(usize, usize)> {
        match self.kind {
            Kind::Reset => Some((0, 4)),
            Kind::GoAway => Some((4, 4)),
            _ if self.is_padded() => Some((0, 1)),
            _ => None,
        }
    }
}

/// Cuts a stream of bytes into frames.
#[derive(Default)]
pub(super) struct Scanner {
    /// The header as far as it has come, then the frame's code.
    head: [u8; 9],
    have: usize,
    /// A frame whose code is still to come, and how many bytes of its payload have passed.
    coded: Option<(Frame, usize)>,
    /// Bytes of no interest before the next header.
    skip: usize,
}

impl Scanner {
    /// A scanner for what a client sends.
    pub(super) fn behind_preface() -> Self {
        Self {
            skip: PREFACE_LENGTH,
            ..Self::default()
        }
    }

    /// Tells `seen` of every frame, as soon as its header, and its code if it has one, have come.
    pub(super) fn scan(&mut self, mut data: &[u8], mut seen: impl FnMut(Frame)) {
        loop {
            let passed = data.len().min(self.skip);
            self.skip -= passed;
            data = data.get(passed..).unwrap_or_default();
            let Some((byte, rest)) = data.split_first() else {
                return;
            };
            if let Some((frame, at)) = &mut self.coded {
                data = rest;
                let (start, size) = frame.code_at().unwrap_or_default();
                if *at >= start {
                    frame.code = frame.code << 8 | u32::from(*byte);
                }
                *at += 1;
                if *at == start + size || *at == frame.length {
                    self.skip = frame.length - *at;
                    seen(*frame);
                    self.coded = None;
                }
                continue;
            }
            let free = self.head.get_mut(self.have..).unwrap_or_default();
            let taken = free.len().min(data.len());
            if let (Some(to), Some(from)) = (free.get_mut(..taken), data.get(..taken)) {
                to.copy_from_slice(from);
            }
            data = data.get(taken..).unwrap_or_default();
            self.have += taken;
            if self.have < self.head.len() {
                return;
            }
            self.have = 0;
            let frame = parse(self.head);
            if frame.code_at().is_some() && frame.length > 0 {
                self.coded = Some((frame, 0));
            } else {
                self.skip = frame.length;
                seen(frame);
            }
        }
    }
}

fn parse(head: [u8; 9]) -> Frame {
    let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = head;
    Frame {
        kind: match kind {
            0 => Kind::Data,
            1 => Kind::Headers,
            2 => Kind::Priority,
            3 => Kind::Reset,
            4 => Kind::Settings,
            7 => Kind::GoAway,
            8 => Kind::WindowUpdate,
            9 => Kind::Continuation,
            _ => Kind::Other,
        },
        flags,
        stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
        length: usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2),
        code: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        out.extend([kind, flags]);
        out.extend(stream.to_be_bytes());
        out.extend(payload);
        out
    }

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(4, 0, 0, &[0; 12]));
        bytes.extend(frame(1, 5, 1, b"head"));
        bytes.extend(frame(3, 0, 1, &[0, 0, 0, 8]));
        bytes.extend(frame(7, 0, 0, b"\0\0\0\x05\0\0\0\x0bdebug"));
        bytes.extend(frame(3, 0, 3, &[]));
        bytes.extend(frame(0, 1, 0x8000_0005, b""));
        bytes.extend(frame(0, 8, 5, b"\x02x\0\0"));
        bytes.extend(frame(0, 9, 5, b"\x02\0\0"));
        for size in 1..bytes.len() {
            let (mut seen, mut empty) = (Vec::new(), Vec::new());
            let mut scanner = Scanner::behind_preface();
            for part in bytes.chunks(size) {
                scanner.scan(part, |f| {
                    seen.push((f.kind, f.stream, f.length, f.code));
                    empty.push(f.is_empty());
                });
            }
            let expected = [
                (Kind::Settings, 0, 12, 0),
                (Kind::Headers, 1, 4, 0),
                (Kind::Reset, 1, 4, 8),
                (Kind::GoAway, 0, 13, 11),
                (Kind::Reset, 3, 0, 0),
                (Kind::Data, 5, 0, 0),
                (Kind::Data, 5, 4, 2),
                (Kind::Data, 5, 3, 2),
            ];
            assert_eq!(seen, expected, "in parts of {size}");
            assert_eq!(empty, [false, false, false, false, true, true, false, true]);
        }
    }
}
