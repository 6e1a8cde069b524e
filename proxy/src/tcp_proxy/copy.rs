//! Bytes both ways between two connections.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use crate::transport::ByteStream;
use crate::transport::observed::{Observed, Observer};

/// The most bytes that wait in each direction. A side that does not read stops the other: nothing more is read
/// from it until there is room.
const BUFFER: usize = 16 * 1024;

/// What moved, and when.
pub(super) struct Traffic {
    /// Bytes from the client.
    pub(super) received: Cell<u64>,
    /// Bytes to the client.
    pub(super) sent: Cell<u64>,
    last: Cell<Instant>,
    client_reset: Cell<bool>,
    /// Whether the upstream has reset its connection.
    pub(super) upstream_reset: Cell<bool>,
}

impl Traffic {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self {
            received: Cell::new(0),
            sent: Cell::new(0),
            last: Cell::new(Instant::now()),
            client_reset: Cell::new(false),
            upstream_reset: Cell::new(false),
        })
    }

    fn moved(&self, counter: &Cell<u64>, outcome: &io::Result<usize>) {
        if let Ok(n @ 1..) = outcome {
            counter.set(counter.get() + *n as u64);
            self.last.set(Instant::now());
        }
    }

    /// Notes in `reset` that a connection broke so.
    fn broke(reset: &Cell<bool>, outcome: &io::Result<usize>) {
        if matches!(outcome, Err(error) if error.kind() == io::ErrorKind::ConnectionReset) {
            reset.set(true);
        }
    }

    /// Ends when nothing has moved for `limit`; never without one.
    pub(super) async fn quiet(&self, limit: Option<Duration>) {
        let Some(limit) = limit else {
            return std::future::pending().await;
        };
        // One timer for the connection, set again only when it rings.
        loop {
            let end = self.last.get() + limit;
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// Watches the client's connection.
struct Watch(Rc<Traffic>);

impl Observer for Watch {
    fn received(&self, outcome: &io::Result<usize>) {
        self.0.moved(&self.0.received, outcome);
        Traffic::broke(&self.0.client_reset, outcome);
    }

    fn sent(&self, outcome: &io::Result<usize>) {
        self.0.moved(&self.0.sent, outcome);
        Traffic::broke(&self.0.client_reset, outcome);
    }
}

/// Watches the upstream connection for its reset.
struct WatchReset(Rc<Traffic>);

impl Observer for WatchReset {
    fn received(&self, outcome: &io::Result<usize>) {
        Traffic::broke(&self.0.upstream_reset, outcome);
    }

    fn sent(&self, outcome: &io::Result<usize>) {
        self.received(outcome);
    }
}

/// The client's connection, counted.
pub(super) fn client<IO: ByteStream>(io: IO, traffic: &Rc<Traffic>) -> impl ByteStream {
    Observed::new(io, Watch(traffic.clone()))
}

/// Copies between the [`client`] and its upstream until both ends are done or one breaks. An end of one direction is passed on, and the other direction
/// goes on (half-close). A reset is passed on as a reset.
pub(super) async fn both_ways(
    mut client: impl ByteStream,
    upstream: impl ByteStream,
    traffic: &Rc<Traffic>,
) -> io::Result<()> {
    let mut upstream = Observed::new(upstream, WatchReset(traffic.clone()));
    let copied =
        tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER).await;
    if traffic.upstream_reset.get() {
        client.abort();
    }
    if traffic.client_reset.get() {
        upstream.abort();
    }
    copied.map(|_| ())
}
