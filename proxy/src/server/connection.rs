//! One accepted connection: listener filters, chain match, and its place in the listener's books.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use filters::flags::ResponseFlags;
use filters::matcher::MatchInput;
use filters::stream::{ConnectionInfo, ConnectionNotes, StreamInfo};
use futures_util::future::LocalBoxFuture;

use super::accepted::Accepted;
use super::compiled::{CompiledChain, CompiledListener, FilterChainHandler};
use super::listener::WorkerListener;
use super::listener_filters::{Found, Refusal};
use crate::http::service::ConnectionControl;
use crate::telemetry::http_log::AccessLog;
use crate::telemetry::stats::Gauge;

/// Holds a gauge up by one, also over an abort.
struct Now<'a>(&'a Gauge);

impl<'a> Now<'a> {
    fn new(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Now<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Takes a connection out of the books when its task ends, however it ends: return, abort or panic.
pub(super) struct ConnectionGuard {
    listener: Rc<WorkerListener>,
    id: u64,
    counted_globally: bool,
    control: ConnectionControl,
    /// When it found its chain; before that it is a socket, no connection.
    matched: Cell<Option<Instant>>,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.control.count_panic();
        let stats = &self.listener.shared.stats;
        self.listener.shared.active.dec();
        if let Some(since) = self.matched.get() {
            stats.downstream_cx_active.dec();
            stats.downstream_cx_destroy.inc();
            let length = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
            stats.downstream_cx_length_ms.record(length);
            self.listener.stats.downstream_cx_active.dec();
        }
        if self.counted_globally {
            self.listener.context.global.release();
        }
        self.listener.forget(self.id);
    }
}

/// The line that a connection leaves in the logs of its listener when it ends, however it ends.
struct Line {
    logs: Arc<[AccessLog]>,
    info: StreamInfo,
    control: ConnectionControl,
}

impl Line {
    fn new(
        logs: &Arc<[AccessLog]>,
        connection: &Rc<ConnectionInfo>,
        control: &ConnectionControl,
    ) -> Option<Self> {
        (!logs.is_empty()).then(|| Self {
            logs: logs.clone(),
            info: StreamInfo::for_connection(connection.clone()),
            control: control.clone(),
        })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.info.protocol = self.control.protocol();
        (self.info.bytes_received, self.info.bytes_sent) = self.control.bytes();
        self.info.take_notes();
        for log in self.logs.iter() {
            log.record(&self.info, None, None, None);
        }
    }
}

/// A connection that its chain serves. Nothing of the configuration is held here: an old one must not live as long as
/// its last idle connection.
struct Served {
    _guard: ConnectionGuard,
    _line: Option<Box<Line>>,
    serving: LocalBoxFuture<'static, ()>,
}

impl ConnectionGuard {
    /// A connection that has been counted in.
    pub(super) fn new(
        listener: Rc<WorkerListener>,
        id: u64,
        counted_globally: bool,
        control: ConnectionControl,
    ) -> Self {
        Self {
            listener,
            id,
            counted_globally,
            control,
            matched: Cell::new(None),
        }
    }

    /// The connection has found its chain.
    fn matched(&self, handler: &Arc<dyn FilterChainHandler>) {
        self.matched.set(Some(Instant::now()));
        let (all, own) = (&self.listener.shared.stats, &self.listener.stats);
        all.downstream_cx_active.inc();
        all.downstream_cx_total.inc();
        own.downstream_cx_active.inc();
        own.downstream_cx_total.inc();
        self.listener.note_handler(self.id, handler);
    }

    /// What is known of the connection when its chain is chosen, or when it is refused.
    fn info(
        &self,
        config: &CompiledListener,
        found: Found,
        chain: Option<&CompiledChain>,
    ) -> Rc<ConnectionInfo> {
        Rc::new(ConnectionInfo {
            id: self.id,
            remote: found.remote,
            direct_remote: found.direct_remote,
            local: found.local,
            local_restored: found.restored,
            direct_local: found.direct_local,
            server_name: (!found.server_name.is_empty()).then(|| found.server_name.as_str().into()),
            // What a client offers chooses the chain; only the transport socket knows what was agreed on.
            alpn: None,
            ja4: found.ja4.map(Into::into),
            secure: false,
            tls: None,
            listener: config.name.clone(),
            filter_chain: chain.map(|chain| chain.name.clone()).unwrap_or_default(),
            listener_metadata: config.metadata.clone(),
            filter_chain_metadata: chain
                .map(|chain| chain.metadata.clone())
                .unwrap_or_default(),
            proxy_tlvs: found.tlvs,
            filter_state: found.filter_state,
            notes: (!found.metadata.is_empty() || !config.access_logs.is_empty())
                .then(|| ConnectionNotes::with(found.metadata)),
        })
    }

    /// Closes a connection that its listener filters do not let through.
    fn refuse(&self, config: &CompiledListener, io: Accepted, found: Found) {
        let unread = !found.prefix.is_empty();
        let info = self.info(config, found, None);
        drop(Line::new(&config.access_logs, &info, &self.control));
        io.abandon(unread);
    }

    /// Takes the connection to its end, or to the listener that owns its original destination. `found`: what the
    /// listener knows that handed it over.
    pub(super) fn run(self, io: Accepted, found: Option<Found>) -> impl Future<Output = ()> {
        // Boxed, to be gone when the chain is found: what it takes until then is not held by connections that idle.
        let finding = Box::pin(self.find_chain(io, found));
        async {
            if let Some(Served {
                _guard,
                _line,
                serving,
            }) = finding.await
            {
                serving.await;
            }
        }
    }

    /// Runs the listener's filters and hands the connection to its chain; `None` if it has none, or has ended.
    async fn find_chain(mut self, mut io: Accepted, found: Option<Found>) -> Option<Served> {
        let listener = self.listener.clone();
        let config = listener.config();
        // A connection that was handed over once stays.
        let movable = config.hand_over && !config.internal && found.is_none();
        let Ok(mut found) = found.map_or_else(|| Found::new(&io), Ok) else {
            return None; // reset already
        };
        if let Accepted::Tcp(stream) = &io {
            // Envoy's transports do the same; a failure only costs latency.
            let _ = stream.set_nodelay(true);
        }
        let stats = &listener.shared.stats;
        let looked = {
            let _now = Now::new(&stats.downstream_pre_cx_active);
            let looking = config.filters.run(&mut io, &mut found);
            match config.filters_timeout {
                Some(timeout) => tokio::time::timeout(timeout, looking).await.ok(),
                None => Some(looking.await),
            }
        };
        match looked {
            Some(Ok(())) => {}
            Some(Err(refusal)) => {
                match refusal {
                    Refusal::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                        stats.downstream_listener_filter_remote_close.inc();
                    }
                    Refusal::Io(_) => stats.downstream_listener_filter_error.inc(),
                    Refusal::Filter => {}
                }
                self.refuse(&config, io, found);
                return None;
            }
            None => {
                stats.downstream_pre_cx_timeout.inc();
                if !config.continue_on_timeout {
                    self.refuse(&config, io, found);
                    return None;
                }
            }
        }
        if movable
            && found.restored
            && let Some(owner) = listener.owner_of(&found)
        {
            let counted = std::mem::take(&mut self.counted_globally);
            owner.take_over(io, found, counted);
            return None;
        }
        // The configuration may have changed while the client was silent.
        let config = listener.config();
        let protocols: Vec<&str> = found.protocols.iter().map(String::as_str).collect();
        let position = config.selector.find(&MatchInput {
            destination: found.local.ip(),
            source: found.remote.ip(),
            direct_source: found.direct_remote.ip(),
            server_name: &found.server_name,
            transport_protocol: found.transport,
            application_protocols: &protocols,
            filter_state: found.filter_state.as_deref(),
            ..MatchInput::default()
        });
        let chain = position.and_then(|position| config.chains.get(position));
        let prefix = std::mem::take(&mut found.prefix).freeze();
        let info = self.info(&config, found, chain);
        let mut line = Line::new(&config.access_logs, &info, &self.control);
        let Some(chain) = chain else {
            stats.no_filter_chain_match.inc();
            if let Some(Line { info, .. }) = &mut line {
                info.flags.insert(ResponseFlags::NO_ROUTE_FOUND);
                info.details = Some("filter_chain_not_found".into());
            }
            io.abandon(!prefix.is_empty());
            return None;
        };
        self.matched(&chain.handler);
        let serving = chain
            .handler
            .serve(io.into_incoming(), prefix, info, self.control.clone());
        Some(Served {
            _guard: self,
            _line: line.map(Box::new),
            serving,
        })
    }
}
