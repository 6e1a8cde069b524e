//! What a worker has to send: entries that are gathered, and the stream that they go to.
//!
//! Whatever the service does, a worker holds at most one buffer of entries and a few messages that wait for the stream;
//! what comes beyond is dropped and counted.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_client::AccessLogServiceClient;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
    HttpAccessLogEntries, Identifier, LogEntries, TcpAccessLogEntries,
};
use filters::grpc::GrpcChannel;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::BUFFER_BYTES;
use super::entry::Entry;
use crate::telemetry::stats::Counter;

/// Messages that wait for gRPC's flow control.
const WAITING: usize = 4;

/// Where the entries of a log go.
pub(super) struct Target {
    /// Unique in the process.
    id: u64,
    channel: GrpcChannel,
    identity: (Arc<Node>, String),
    /// How many bytes of entries make a message.
    buffer: usize,
    interval: Duration,
    counters: Counters,
}

/// What is counted.
pub(super) struct Counters {
    pub(super) written: Counter,
    pub(super) dropped: Counter,
    pub(super) flushed: Counter,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// This worker's, by the number of their target.
    static OUTBOXES: RefCell<HashMap<u64, Rc<RefCell<Outbox>>>> = RefCell::default();
}

impl Target {
    pub(super) fn new(
        channel: GrpcChannel,
        identity: (Arc<Node>, String),
        buffer: usize,
        interval: Duration,
        counters: Counters,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            channel,
            identity,
            buffer,
            interval,
            counters,
        })
    }

    /// Begins a stream on this worker, and forgets it when it has ended.
    fn begin(
        self: &Arc<Self>,
        outbox: &Rc<RefCell<Outbox>>,
    ) -> mpsc::Sender<StreamAccessLogsMessage> {
        let (sender, messages) = mpsc::channel(WAITING);
        let mut client = AccessLogServiceClient::new(self.channel.clone());
        let (ended, weak) = (sender.downgrade(), Rc::downgrade(outbox));
        tokio::task::spawn_local(async move {
            let answer = client
                .stream_access_logs(ReceiverStream::new(messages))
                .await;
            if let Err(status) = answer {
                tracing::debug!(%status, "access log stream ended");
            }
            if let (Some(outbox), Some(ended)) = (weak.upgrade(), ended.upgrade()) {
                let stream = &mut outbox.borrow_mut().stream;
                stream.take_if(|stream| stream.same_channel(&ended));
            }
        });
        sender
    }
}

/// One worker's entries for one target.
#[derive(Default)]
struct Outbox {
    entries: Vec<Entry>,
    bytes: usize,
    stream: Option<mpsc::Sender<StreamAccessLogsMessage>>,
}

/// Puts an entry where the next message is made from. Never blocks: it is dropped if there is no room.
pub(super) fn put(target: &Arc<Target>, entry: Entry) {
    let outbox = OUTBOXES.with_borrow_mut(|all| {
        let fresh = || {
            let outbox = Rc::default();
            let about = (target.id, target.interval);
            let flushing = flush_at_times(Arc::downgrade(target), Rc::clone(&outbox), about);
            tokio::task::spawn_local(flushing);
            outbox
        };
        all.entry(target.id).or_insert_with(fresh).clone()
    });
    // Entries that are sent one by one have to wait somewhere, too.
    let most = match target.buffer {
        0 => BUFFER_BYTES as usize,
        bytes => bytes,
    };
    if outbox.borrow().bytes >= most {
        flush(target, &outbox);
        if outbox.borrow().bytes >= most {
            target.counters.dropped.inc();
            return;
        }
    }
    // As in Envoy, of requests only.
    if matches!(entry, Entry::Http(_)) {
        target.counters.written.inc();
    }
    {
        let outbox = &mut *outbox.borrow_mut();
        outbox.bytes += entry.bytes();
        outbox.entries.push(entry);
    }
    if outbox.borrow().bytes >= target.buffer {
        flush(target, &outbox);
    }
}

/// Makes a message of what was gathered, if the stream takes one.
fn flush(target: &Arc<Target>, outbox: &Rc<RefCell<Outbox>>) {
    if outbox.borrow().entries.is_empty() {
        return;
    }
    let known = outbox.borrow().stream.clone().filter(|s| !s.is_closed());
    let first = known.is_none();
    let stream = known.unwrap_or_else(|| target.begin(outbox));
    let outbox = &mut *outbox.borrow_mut();
    if let Ok(place) = stream.try_reserve() {
        let (node, log_name) = &target.identity;
        let identifier = first.then(|| Identifier {
            node: Some(Node::clone(node)),
            log_name: log_name.clone(),
        });
        target.counters.flushed.add(outbox.entries.len() as u64);
        place.send(message(identifier, std::mem::take(&mut outbox.entries)));
        outbox.bytes = 0;
    }
    outbox.stream = Some(stream);
}

/// All entries of a log are of one kind.
fn message(identifier: Option<Identifier>, entries: Vec<Entry>) -> StreamAccessLogsMessage {
    let (mut http, mut tcp) = (Vec::new(), Vec::new());
    for entry in entries {
        match entry {
            Entry::Http(entry) => http.push(*entry),
            Entry::Tcp(entry) => tcp.push(*entry),
        }
    }
    StreamAccessLogsMessage {
        identifier,
        log_entries: Some(match tcp.is_empty() {
            true => LogEntries::HttpLogs(HttpAccessLogEntries { log_entry: http }),
            false => LogEntries::TcpLogs(TcpAccessLogEntries { log_entry: tcp }),
        }),
    }
}

/// Sends what was gathered again and again, until the log is gone.
async fn flush_at_times(
    target: Weak<Target>,
    outbox: Rc<RefCell<Outbox>>,
    (id, interval): (u64, Duration),
) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(target) = target.upgrade() else {
            // With its last reference the stream ends, after what waits for it.
            OUTBOXES.with_borrow_mut(|all| all.remove(&id));
            return;
        };
        flush(&target, &outbox);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use envoy_types::pb::envoy::data::accesslog::v3::HttpAccessLogEntry;
    use filters::grpc::{Calling, GrpcTransport};
    use tokio::task::LocalSet;

    use super::*;
    use crate::telemetry::stats::Stats;

    /// A service that takes a call and never reads from it.
    struct Stalled;

    impl GrpcTransport for Stalled {
        fn call(&self, request: http::Request<tonic::body::Body>) -> Calling {
            CALLS.set(CALLS.get() + 1);
            Box::pin(async move {
                let _held = request;
                std::future::pending().await
            })
        }
    }

    /// A service that ends every call at once.
    struct Gone;

    impl GrpcTransport for Gone {
        fn call(&self, _: http::Request<tonic::body::Body>) -> Calling {
            CALLS.set(CALLS.get() + 1);
            Box::pin(async { Err(tonic::Status::unavailable("gone")) })
        }
    }

    thread_local! {
        static CALLS: Cell<u32> = const { Cell::new(0) };
    }

    fn target(transport: impl GrpcTransport + 'static, buffer: usize) -> Arc<Target> {
        let stats = Stats::new().scope("");
        let counters = Counters {
            written: stats.counter("written"),
            dropped: stats.counter("dropped"),
            flushed: stats.counter("flushed"),
        };
        let identity = (Arc::default(), "log".to_owned());
        let channel = GrpcChannel::new(transport);
        Target::new(
            channel,
            identity,
            buffer,
            Duration::from_millis(1),
            counters,
        )
    }

    fn entry() -> Entry {
        let mut entry = HttpAccessLogEntry::default();
        entry.request.get_or_insert_default().path = "/".repeat(100);
        Entry::Http(Box::new(entry))
    }

    fn held(target: &Target) -> usize {
        OUTBOXES.with_borrow(|all| all.get(&target.id).map_or(0, |o| o.borrow().entries.len()))
    }

    #[tokio::test]
    async fn a_service_that_does_not_read_costs_a_few_messages_and_no_time() {
        let work = async {
            for buffer in [0, 1000] {
                let target = target(Stalled, buffer);
                for _ in 0..1000 {
                    put(&target, entry());
                }
                // Without a turn for the stream: whoever logs waits for nothing.
                let counters = &target.counters;
                let (written, dropped) = (counters.written.value(), counters.dropped.value());
                let most = if buffer == 0 {
                    BUFFER_BYTES as usize
                } else {
                    buffer
                };
                assert!(held(&target) <= most / 100 + 1);
                assert_eq!(written + dropped, 1000);
                assert_eq!(written, counters.flushed.value() + held(&target) as u64);
                assert!(dropped > 800, "{dropped}");
            }
        };
        LocalSet::new().run_until(work).await;
    }

    #[tokio::test]
    async fn a_stream_that_ended_is_begun_again() {
        let work = async {
            let target = target(Gone, 0);
            for calls in 1..4 {
                put(&target, entry());
                while CALLS.get() < calls {
                    tokio::task::yield_now().await;
                }
                let forgotten = || {
                    let outbox = OUTBOXES.with_borrow(|all| all.get(&target.id).cloned());
                    outbox.is_none_or(|o| o.borrow().stream.is_none())
                };
                while !forgotten() {
                    tokio::task::yield_now().await;
                }
            }
        };
        LocalSet::new().run_until(work).await;
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_log_that_is_gone() {
        let work = async {
            let target = target(Stalled, 1000);
            put(&target, entry());
            let id = target.id;
            drop(target);
            while OUTBOXES.with_borrow(|all| all.contains_key(&id)) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        LocalSet::new().run_until(work).await;
    }
}
