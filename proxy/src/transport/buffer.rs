//! Bytes on their way in or out, in memory that a connection has only while there are some.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

/// What a buffer has room for at least: a TLS record of the greatest length, and a little of the next.
const ROOM: usize = 20 * 1024;
/// Larger ones are not kept.
const KEEP_ROOM: usize = 80 * 1024;
/// How many a worker keeps: one for each direction that is at work at a time.
const KEEP: usize = 2;

thread_local! {
    /// Memory for whoever needs some next: a worker reads or writes for one connection at a time, so that two pieces
    /// serve all of its connections.
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes with room for more behind them; without bytes it has no memory.
#[derive(Default)]
pub(crate) struct Buffer {
    /// Initialized as a whole: what is not filled has been, by somebody else.
    memory: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    /// How much memory it has.
    #[cfg(test)]
    pub(crate) fn memory(&self) -> usize {
        self.memory.capacity()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(crate) fn filled(&mut self) -> &mut [u8] {
        self.memory
            .get_mut(self.start..self.end)
            .unwrap_or_default()
    }

    /// Room for at least `wanted` bytes; [`grow`](Self::grow) tells how much of it was filled. [`release`](Self::release)
    /// when nothing was.
    pub(crate) fn room(&mut self, wanted: usize) -> &mut [u8] {
        if self.memory.is_empty() {
            self.memory = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        }
        if self.memory.len() < self.end + wanted && self.start > 0 {
            self.memory.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.memory.len() < self.end + wanted {
            self.memory.resize((self.end + wanted).max(ROOM), 0);
        }
        self.memory.get_mut(self.end..).unwrap_or_default()
    }

    /// Reads at most `wanted` bytes; none at the end. While there is nothing to read, there is no memory for it.
    pub(crate) fn poll_fill<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
        wanted: usize,
    ) -> Poll<io::Result<usize>> {
        let room = self.room(wanted).get_mut(..wanted).unwrap_or_default();
        let mut room = ReadBuf::new(room);
        let polled = Pin::new(io).poll_read(cx, &mut room);
        let n = room.filled().len();
        self.grow(n);
        self.release();
        polled.map_ok(|()| n)
    }

    /// So many bytes of [`room`](Self::room) are filled.
    pub(crate) fn grow(&mut self, n: usize) {
        self.end = (self.end + n).min(self.memory.len());
    }

    /// So many bytes are done with.
    pub(crate) fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
        self.release();
    }

    /// Gives the memory back if there are no bytes in it.
    pub(crate) fn release(&mut self) {
        if !self.is_empty() {
            return;
        }
        (self.start, self.end) = (0, 0);
        let memory = std::mem::take(&mut self.memory);
        if (1..=KEEP_ROOM).contains(&memory.len()) {
            // A thread that ends keeps nothing.
            let _ = SPARE.try_with(|spare| {
                let mut spare = spare.borrow_mut();
                if spare.len() < KEEP {
                    spare.push(memory);
                }
            });
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.end = self.start;
        self.release();
    }
}

impl From<&[u8]> for Buffer {
    fn from(bytes: &[u8]) -> Self {
        let mut buffer = Self::default();
        let room = buffer.room(bytes.len());
        if let Some(room) = room.get_mut(..bytes.len()) {
            room.copy_from_slice(bytes);
        }
        buffer.grow(bytes.len());
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_from_one_to_the_next() {
        let mut first = Buffer::from(&b"hello"[..]);
        let at = first.filled().as_ptr();
        first.consume(2);
        assert_eq!(first.filled(), b"llo");
        let mut second = Buffer::from(&b"other"[..]);
        assert_ne!(second.filled().as_ptr(), at);
        first.consume(9);
        assert!(first.is_empty() && first.memory.is_empty());
        let mut third = Buffer::from(&b"more"[..]);
        assert_eq!(third.filled().as_ptr(), at);
        assert_eq!(second.filled(), b"other");
    }

    #[test]
    fn bytes_move_to_the_front_before_memory_grows() {
        let mut buffer = Buffer::from(&[7; ROOM][..]);
        buffer.consume(ROOM - 3);
        assert!(buffer.room(100).len() >= 100);
        assert_eq!(
            (buffer.memory.len(), buffer.filled()),
            (ROOM, &mut [7; 3][..])
        );
        assert!(buffer.room(ROOM).len() >= ROOM);
        assert_eq!(buffer.len(), 3);
    }

    #[test]
    fn what_is_too_large_is_not_kept() {
        SPARE.with_borrow_mut(Vec::clear);
        drop(Buffer::from(&vec![0; KEEP_ROOM + 1][..]));
        assert!(SPARE.with_borrow(Vec::is_empty));
        let all: Vec<_> = (0..KEEP + 2).map(|_| Buffer::from(&b"x"[..])).collect();
        drop(all);
        assert_eq!(SPARE.with_borrow(Vec::len), KEEP);
    }
}
