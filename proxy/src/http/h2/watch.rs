//! A look at the frames that pass between the socket and `h2`: what that library decides alone and tells
//! nobody (refused heads), and the floods that it has no limit for.
//!
//! Only frame headers are read, and the codes of RST_STREAM and GOAWAY; nothing is kept or changed. Where
//! Envoy closes the connection without a word, the write fails here before the library's own words go out.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use filters::flags::ResponseFlags;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::limits::Excess;
use super::scan::{Frame, Kind, Scanner};
use super::settings::FloodLimits;
use super::stats::Http2Stats;
use crate::telemetry::stats::Counter;

/// Why streams end though nobody reset them: details and flags, as logs tell them.
pub(super) type Fault = (&'static str, ResponseFlags);

/// A head or a field that is not legal.
pub(super) const INVALID_FIELD: Fault = (
    "http2.invalid.header.field",
    ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR,
);

/// A message whose parts do not fit together.
pub(super) const BAD_MESSAGING: Fault = (
    "http2.violation.of.messaging.rule",
    ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR,
);

/// A head that is larger than allowed.
pub(super) const TOO_LARGE: Fault = (
    Excess::Bytes.details(),
    ResponseFlags::DOWNSTREAM_REMOTE_RESET,
);

/// A client that opens streams only to have them reset.
pub(super) const PREMATURE_RESETS: Fault = (
    "too_many_premature_resets",
    ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR,
);

/// From this many streams on, a connection most of whose streams were reset before their response is closed
/// (Envoy's `overload.premature_reset_total_stream_count`).
pub(super) const PREMATURE_RESET_STREAMS: u32 = 500;

const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

/// Most bytes of a SETTINGS frame: 32 entries, as to Envoy. There are no more than ten that mean something.
const SETTINGS_LENGTH: usize = 32 * 6;

/// What has been seen on one connection. Shared by its IO and its driver.
pub(super) struct Watch {
    limits: FloodLimits,
    stats: Arc<Http2Stats>,
    /// A malformed message costs its stream only, not the connection.
    keep_connection: bool,
    fault: Cell<Option<Fault>>,
    accepted: Cell<u32>,
    /// Streams that `h2` refused before it handed them over: malformed, too large, and those that were asked for.
    refused: Cell<u32>,
    too_large: Cell<u32>,
    told: Cell<u32>,
    newest_accepted: Cell<u32>,
    newest_opened: Cell<u32>,
    opened: Cell<u32>,
    /// The streams of the newest DATA, and that of the newest trailers: `h2` judges frames a while after they were
    /// seen here.
    with_data: Cell<[u32; 16]>,
    newest_trailers: Cell<u32>,
    /// Whether the newest frame is of a head that opened its stream.
    head_was_last: Cell<bool>,
    empty_in_a_row: Cell<u32>,
    priorities: Cell<u32>,
    window_updates: Cell<u32>,
    data_sent: Cell<u32>,
    /// The stream of the newest reset from the peer: others of the same reset nothing.
    newest_reset: Cell<u32>,
    /// Resets in both directions.
    resets: Cell<u32>,
    /// The peer asks for more than anybody needs.
    excess: Cell<bool>,
}

impl Watch {
    pub(super) fn new(limits: FloodLimits, keep_connection: bool, stats: Arc<Http2Stats>) -> Self {
        Self {
            limits,
            stats,
            keep_connection,
            fault: Cell::default(),
            accepted: Cell::default(),
            refused: Cell::default(),
            too_large: Cell::default(),
            told: Cell::default(),
            newest_accepted: Cell::default(),
            newest_opened: Cell::default(),
            opened: Cell::default(),
            with_data: Cell::default(),
            newest_trailers: Cell::default(),
            head_was_last: Cell::default(),
            empty_in_a_row: Cell::default(),
            priorities: Cell::default(),
            window_updates: Cell::default(),
            data_sent: Cell::default(),
            newest_reset: Cell::default(),
            resets: Cell::default(),
            excess: Cell::default(),
        }
    }

    /// What ended the connection, if it was one of us.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.fault.get()
    }

    /// Ends the connection: its next read or write fails. The first reason stays.
    pub(super) fn fail(&self, fault: Fault) {
        if self.fault.get().is_none() {
            self.fault.set(Some(fault));
        }
    }

    /// Whether a malformed message costs its stream only.
    pub(super) fn keeps_connection(&self) -> bool {
        self.keep_connection
    }

    /// Notes a stream that `h2` handed over.
    pub(super) fn accepted(&self, stream: u32) {
        self.newest_accepted.set(stream);
        bump(&self.accepted);
    }

    /// How many streams were refused since this was last asked, and why.
    pub(super) fn take_refused(&self) -> [(u32, Fault); 2] {
        let all = [(&self.refused, INVALID_FIELD), (&self.too_large, TOO_LARGE)];
        all.map(|(count, fault)| {
            let refused = count.replace(0);
            self.told.set(self.told.get() + refused);
            (refused, fault)
        })
    }

    /// Whether the connection is to end with ENHANCE_YOUR_CALM, unless that was asked before.
    pub(super) fn take_excess(&self) -> bool {
        self.excess.replace(false)
    }

    /// How many streams the peer opened that were neither handed over nor refused.
    pub(super) fn unseen(&self) -> u32 {
        let seen = self.accepted.get() + self.told.get();
        self.opened.get().saturating_sub(seen)
    }

    fn broken(&self) -> Option<io::Error> {
        let (details, _) = self.fault.get()?;
        Some(io::Error::new(io::ErrorKind::InvalidData, details))
    }

    /// A frame from the peer.
    fn received(&self, frame: Frame) {
        let is_data = frame.kind == Kind::Data;
        if is_data {
            self.note_data(frame.stream);
        }
        self.head_was_last.set(false);
        match frame.kind {
            Kind::Headers | Kind::Continuation | Kind::Data => {
                if frame.kind == Kind::Headers && frame.stream % 2 == 1 {
                    if frame.stream > self.newest_opened.get() {
                        self.newest_opened.set(frame.stream);
                        bump(&self.opened);
                    } else {
                        self.newest_trailers.set(frame.stream);
                        self.stats.trailers.inc();
                    }
                }
                let in_head = !is_data && frame.stream == self.newest_opened.get();
                self.head_was_last.set(in_head && frame.stream != 0);
                // END_STREAM has no meaning on CONTINUATION, and no bit there.
                if !frame.is_empty() || frame.ends_stream() {
                    self.empty_in_a_row.set(0);
                } else if bump(&self.empty_in_a_row) > self.limits.empty_frames {
                    let counter = &self.stats.inbound_empty_frames_flood;
                    self.flood("http2.inbound_empty_frames_flood", counter);
                }
            }
            Kind::Priority => {
                let limit = self.limits.priority_frames;
                let limit = limit.saturating_mul(self.opened.get().saturating_add(1));
                if bump(&self.priorities) > limit {
                    let counter = &self.stats.inbound_priority_frames_flood;
                    self.flood("codec_error:Too_many_PRIORITY_frames", counter);
                }
            }
            Kind::WindowUpdate => {
                let per_data = self
                    .limits
                    .window_updates
                    .saturating_mul(self.data_sent.get());
                let limit = per_data.saturating_add(self.opened.get());
                if bump(&self.window_updates) > limit.saturating_mul(2).saturating_add(5) {
                    let counter = &self.stats.inbound_window_update_frames_flood;
                    self.flood("codec_error:Too_many_WINDOW_UPDATE_frames", counter);
                }
            }
            Kind::Reset => {
                if self.newest_reset.replace(frame.stream) != frame.stream {
                    bump(&self.resets);
                    self.stats.rx_reset.inc();
                }
            }
            Kind::Settings if frame.length > SETTINGS_LENGTH => self.excess.set(true),
            Kind::Settings | Kind::GoAway | Kind::Other => {}
        }
    }

    fn note_data(&self, stream: u32) {
        let mut streams = self.with_data.get();
        if streams.first() != Some(&stream) {
            streams.rotate_right(1);
            if let Some(newest) = streams.first_mut() {
                *newest = stream;
            }
            self.with_data.set(streams);
        }
    }

    /// Whether what is wrong with a stream is its body, and not its head or its trailers.
    fn is_of_body(&self, stream: u32) -> bool {
        self.with_data.get().contains(&stream) && self.newest_trailers.get() != stream
    }

    fn flood(&self, details: &'static str, counter: &Counter) {
        if self.fault.get().is_none() {
            counter.inc();
        }
        self.fail((details, ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR));
    }

    /// `h2` found a message malformed.
    fn judged(&self, stream: u32, keep_connection: bool) {
        self.stats.rx_messaging_error.inc();
        let known = stream <= self.newest_accepted.get();
        if !known {
            bump(&self.refused);
        }
        if !keep_connection {
            self.fail(if known { BAD_MESSAGING } else { INVALID_FIELD });
        }
    }

    fn judged_too_large(&self) {
        self.stats.header_list_size_too_large.inc();
        bump(&self.too_large);
    }

    /// A frame that `h2` wants to send.
    fn sending(&self, frame: Frame) {
        let unknown = frame.stream > self.newest_accepted.get();
        match frame.kind {
            Kind::Data => {
                bump(&self.data_sent);
            }
            // The library's own 431.
            Kind::Headers if unknown => self.judged_too_large(),
            Kind::Reset => {
                bump(&self.resets);
                self.stats.tx_reset.inc();
                if frame.code == REFUSED_STREAM && unknown {
                    self.stats.stream_refused_errors.inc();
                }
                // Our own resets never have this code: this is the library's judgement. To Envoy too, a body of
                // another length than declared costs its stream only.
                if frame.code == PROTOCOL_ERROR && !self.is_of_body(frame.stream) {
                    self.judged(frame.stream, self.keep_connection);
                }
            }
            Kind::GoAway if frame.code == ENHANCE_YOUR_CALM => {
                if self.resets.get() >= PREMATURE_RESET_STREAMS {
                    self.fail(PREMATURE_RESETS);
                } else if self.head_was_last.get() {
                    self.judged_too_large();
                }
            }
            Kind::GoAway if frame.code == PROTOCOL_ERROR && self.head_was_last.get() => {
                self.judged(self.newest_opened.get(), false);
            }
            _ => {}
        }
    }
}

fn bump(count: &Cell<u32>) -> u32 {
    let next = count.get().saturating_add(1);
    count.set(next);
    next
}

/// An IO whose frames are watched.
pub(super) struct Watched<IO> {
    /// Shared with who ends the connection when `h2` has let go of it.
    io: Rc<RefCell<IO>>,
    watch: Rc<Watch>,
    inbound: Scanner,
    outbound: Scanner,
    /// Bytes that were shown to `outbound` and not yet taken by the socket.
    shown: usize,
}

impl<IO> Watched<IO> {
    /// Watches the server's side of a connection: the peer's preface comes first.
    pub(super) fn new(io: Rc<RefCell<IO>>, watch: Rc<Watch>) -> Self {
        Self {
            io,
            watch,
            inbound: Scanner::behind_preface(),
            outbound: Scanner::default(),
            shown: 0,
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(error) = this.watch.broken() {
            return Poll::Ready(Err(error));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut *this.io.borrow_mut()).poll_read(cx, buf))?;
        let new = buf.filled().get(before..).unwrap_or_default();
        let watch = &this.watch;
        this.inbound.scan(new, |frame| watch.received(frame));
        match watch.broken() {
            Some(error) => Poll::Ready(Err(error)),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let watch = &this.watch;
        // What a short write left over comes again, at the front.
        let mut known = this.shown;
        for buf in bufs {
            let new = buf.get(known..).unwrap_or_default();
            known = known.saturating_sub(buf.len());
            this.shown += new.len();
            this.outbound.scan(new, |frame| watch.sending(frame));
        }
        if let Some(error) = watch.broken() {
            return Poll::Ready(Err(error));
        }
        let written = ready!(Pin::new(&mut *this.io.borrow_mut()).poll_write_vectored(cx, bufs))?;
        this.shown = this.shown.saturating_sub(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io.borrow_mut()).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
