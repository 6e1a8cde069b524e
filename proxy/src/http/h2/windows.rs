//! The receive windows of a connection that carries tunnels.
//!
//! What the streams of a connection have sent and nobody has read counts against the window of the connection, so a few
//! tunnels whose other ends do not read would hold up all the others. Each tunnel therefore brings a window of its own to
//! that of the connection. What a connection may make us hold stays bounded: the more tunnels, the smaller their windows.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

/// The most bytes that the tunnels of one connection may have on the way to readers that do not read.
const MOST: u32 = 64 << 20;

/// The smallest window of a stream, which is HTTP/2's own.
const LEAST: u32 = 65_535;

/// A connection as far as its windows go.
pub(super) trait Resize {
    /// Announces the window of the connection.
    fn connection_window(&mut self, size: u32);

    /// Announces the windows of the streams, those that are open included; false while the last announcement is on its
    /// way.
    fn stream_windows(&mut self, size: u32) -> bool;
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Resize for h2::server::Connection<IO, Bytes> {
    fn connection_window(&mut self, size: u32) {
        self.set_target_window_size(size);
    }

    fn stream_windows(&mut self, size: u32) -> bool {
        self.set_initial_window_size(size).is_ok()
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Resize for h2::client::Connection<IO, Bytes> {
    fn connection_window(&mut self, size: u32) {
        self.set_target_window_size(size);
    }

    fn stream_windows(&mut self, size: u32) -> bool {
        self.set_initial_window_size(size).is_ok()
    }
}

/// The windows of one connection.
pub(super) struct TunnelWindows {
    /// As configured, and as they are without tunnels.
    stream: u32,
    connection: u32,
    tunnels: Cell<u32>,
    /// For how many tunnels the windows are; none have been announced while it is 0.
    sized_for: Cell<u32>,
    announced: Cell<u32>,
}

/// A tunnel on a connection, for as long as it lives.
pub(super) struct Tunnel(Rc<TunnelWindows>);

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.0.tunnels.set(self.0.tunnels.get().saturating_sub(1));
    }
}

impl TunnelWindows {
    /// Of a connection that was made with these windows.
    pub(super) fn new(stream: u32, connection: u32) -> Rc<Self> {
        Rc::new(Self {
            stream,
            connection,
            tunnels: Cell::new(0),
            sized_for: Cell::new(0),
            announced: Cell::new(stream),
        })
    }

    /// One tunnel more. The windows follow with the connection's next step.
    pub(super) fn open(self: &Rc<Self>) -> Tunnel {
        self.tunnels.set(self.tunnels.get().saturating_add(1));
        Tunnel(self.clone())
    }

    /// Announces what the number of tunnels asks for. In powers of two, and down only when far fewer are left, so that
    /// it is done rarely.
    pub(super) fn announce(&self, connection: &mut impl Resize) {
        let (tunnels, sized_for) = (self.tunnels.get(), self.sized_for.get());
        if tunnels <= sized_for && tunnels >= sized_for / 8 {
            return;
        }
        let wanted = tunnels.max(1).next_power_of_two();
        let share = (MOST / wanted).max(LEAST).min(self.stream);
        if share != self.announced.get() {
            if !connection.stream_windows(share) {
                return;
            }
            self.announced.set(share);
        }
        let all = wanted.saturating_mul(share).saturating_add(self.connection);
        connection.connection_window(all.min(MOST).max(self.connection));
        self.sized_for.set(wanted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Peer {
        told: Vec<(&'static str, u32)>,
        busy: bool,
    }

    impl Resize for Peer {
        fn connection_window(&mut self, size: u32) {
            self.told.push(("connection", size));
        }

        fn stream_windows(&mut self, size: u32) -> bool {
            if !self.busy {
                self.told.push(("streams", size));
            }
            !self.busy
        }
    }

    const MIB: u32 = 1 << 20;

    fn after(windows: &Rc<TunnelWindows>, peer: &mut Peer) -> Vec<(&'static str, u32)> {
        windows.announce(peer);
        std::mem::take(&mut peer.told)
    }

    #[test]
    fn tunnels_bring_their_windows_until_there_are_many() {
        let windows = TunnelWindows::new(MIB, 4 * MIB);
        let mut peer = Peer::default();
        assert!(after(&windows, &mut peer).is_empty(), "as configured");
        let mut open = vec![windows.open()];
        assert_eq!(after(&windows, &mut peer), [("connection", 5 * MIB)]);
        open.push(windows.open());
        assert_eq!(after(&windows, &mut peer), [("connection", 6 * MIB)]);
        open.extend((2..100).map(|_| windows.open()));
        peer.busy = true;
        assert!(after(&windows, &mut peer).is_empty());
        peer.busy = false;
        let many = [("streams", MIB / 2), ("connection", MOST)];
        assert_eq!(after(&windows, &mut peer), many);
        open.truncate(40);
        assert!(after(&windows, &mut peer).is_empty(), "not at once");
        open.clear();
        let few = [("streams", MIB), ("connection", 5 * MIB)];
        assert_eq!(after(&windows, &mut peer), few);
        assert!(after(&windows, &mut peer).is_empty());
    }

    #[test]
    fn the_bound_holds_for_any_number_and_any_configuration() {
        let windows = TunnelWindows::new(u32::MAX >> 1, u32::MAX >> 1);
        let mut peer = Peer::default();
        let open: Vec<_> = (0..5000).map(|_| windows.open()).collect();
        let told = after(&windows, &mut peer);
        // What is configured is the least in any case.
        assert_eq!(told, [("streams", LEAST), ("connection", u32::MAX >> 1)]);
        drop(open);
    }
}
