//! The server side of an HTTP/2 connection.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use filters::stream::Protocol;
use h2::Reason;
use h2::server::{Builder, Connection};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::server_stream;
use super::settings::Http2Settings;
use super::watch::{PREMATURE_RESET_STREAMS, PREMATURE_RESETS, Watch, Watched};
use super::windows::TunnelWindows;
use crate::http::linger::Linger;
use crate::http::service::{ConnectionControl, HttpService};

/// How long a client may take for its preface and first SETTINGS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client without streams may take to hear that its connection ends.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(10);

/// What the streams of one connection share.
pub(super) struct Shared<S> {
    pub service: Rc<S>,
    pub control: ConnectionControl,
    pub settings: Http2Settings,
    pub watch: Rc<Watch>,
    ended: Cell<u32>,
    premature: Cell<u32>,
}

impl<S> Shared<S> {
    /// Counts a stream that has ended or begun to answer. Closes the connection of a client that opens
    /// streams only to reset them.
    pub(super) fn ended(&self, premature: bool) {
        let ended = self.ended.get().saturating_add(1);
        self.ended.set(ended);
        if !premature {
            return;
        }
        let resets = self.premature.get().saturating_add(1);
        self.premature.set(resets);
        // Once half of the first streams were bad, good ones cannot make up for them any more.
        if resets.saturating_mul(2) >= ended.max(PREMATURE_RESET_STREAMS) {
            self.watch.fail(PREMATURE_RESETS);
            self.control.abort();
        }
    }
}

/// Serves one connection until it ends.
pub async fn serve<IO, S>(
    io: IO,
    settings: &Http2Settings,
    idle_timeout: Option<Duration>,
    service: Rc<S>,
    control: ConnectionControl,
) where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    S: HttpService + 'static,
{
    let keep = settings.keep_connection_on_bad_message;
    let watch = Rc::new(Watch::new(settings.floods, keep, settings.stats.clone()));
    let io = Rc::new(RefCell::new(io));
    let watched = Watched::new(io.clone(), watch.clone());
    let handshake = builder(settings).handshake::<_, Bytes>(watched);
    let Ok(Ok(connection)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await else {
        return linger(&io, settings.linger).await;
    };
    let shared = Rc::new(Shared {
        service,
        control,
        settings: settings.clone(),
        watch,
        ended: Cell::new(0),
        premature: Cell::new(0),
    });
    accept_streams(Box::new(connection), &shared, idle_timeout).await;
    report_refused(&shared);
    if let Some(fault @ (details, flags)) = shared.watch.fault() {
        if fault == PREMATURE_RESETS {
            shared.service.too_many_premature_resets();
        }
        for _ in 0..shared.watch.unseen().min(settings.max_concurrent_streams) {
            shared.service.refuse(details, flags, Protocol::Http2);
        }
    }
    linger(&io, settings.linger).await;
}

/// Reads on for `time`, so that the client gets to read the GOAWAY and what was before it, or an end that is none
/// of a broken connection.
async fn linger<IO: AsyncRead + AsyncWrite + Unpin>(io: &RefCell<IO>, time: Option<Duration>) {
    if let Some(time) = time {
        let mut linger = Linger::new(time);
        poll_fn(|cx| linger.poll(&mut *io.borrow_mut(), cx)).await;
    }
}

fn builder(settings: &Http2Settings) -> Builder {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(settings.max_concurrent_streams)
        .initial_window_size(settings.initial_stream_window)
        .initial_connection_window_size(settings.initial_connection_window)
        .max_header_list_size(settings.limits.of_library())
        .max_pending_accept_reset_streams(PREMATURE_RESET_STREAMS as usize);
    if let Some(size) = settings.header_table_size {
        builder.header_table_size(size);
    }
    if settings.allow_connect {
        builder.enable_connect_protocol();
    }
    builder
}

/// Counts and logs the streams that `h2` refused alone.
fn report_refused<S: HttpService>(shared: &Shared<S>) {
    for (count, (details, flags)) in shared.watch.take_refused() {
        for _ in 0..count {
            shared.service.refuse(details, flags, Protocol::Http2);
        }
    }
}

async fn accept_streams<IO, S>(
    mut connection: Box<Connection<IO, Bytes>>,
    shared: &Rc<Shared<S>>,
    idle_timeout: Option<Duration>,
) where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    S: HttpService + 'static,
{
    let control = &shared.control;
    if let (Some(keepalive), Some(pings)) = (shared.settings.keepalive, connection.ping_pong()) {
        let (control, shared) = (control.clone(), shared.clone());
        tokio::task::spawn_local(async move {
            if keepalive.until_lost(pings).await {
                shared.settings.stats.keepalive_timeout.inc();
                control.abort();
            }
        });
    }
    let settings = &shared.settings;
    let windows = TunnelWindows::new(
        settings.initial_stream_window,
        settings.initial_connection_window,
    );
    let (mut goaway, mut last) = (false, None);
    let mut idle = idle_timeout.map(|after| (after, Box::pin(tokio::time::sleep(after))));
    loop {
        let accepted = poll_fn(|cx| {
            control.register(cx.waker());
            if control.is_aborted() {
                return Poll::Ready(Some(None));
            }
            if control.is_draining() && !goaway {
                // `h2` sends GOAWAY twice: with 2^31-1, and after a ping's answer with the last id.
                goaway = true;
                shared.settings.stats.goaway_sent.inc();
                connection.graceful_shutdown();
            }
            windows.announce(&mut *connection);
            let mut polled = connection.poll_accept(cx);
            report_refused(shared);
            if shared.watch.take_excess() {
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                polled = connection.poll_accept(cx);
            }
            if let Poll::Ready(accepted) = polled {
                return Poll::Ready(Some(accepted));
            }
            if let Some((after, timer)) = idle.as_mut() {
                if control.active() > 0 {
                    timer.as_mut().reset(Instant::now() + *after);
                }
                if timer.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
            }
            // A client that reads nothing does not keep its connection by that.
            if goaway {
                let timer =
                    last.get_or_insert_with(|| Box::pin(tokio::time::sleep(LAST_WORDS_TIMEOUT)));
                if control.active() > 0 {
                    timer.as_mut().reset(Instant::now() + LAST_WORDS_TIMEOUT);
                }
                if timer.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Some(None));
                }
            }
            Poll::Pending
        })
        .await;
        match accepted {
            Some(Some(Ok((request, respond)))) => {
                shared.watch.accepted(respond.stream_id().as_u32());
                let upgrade = request.extensions().get::<h2::ext::Protocol>().is_some();
                let tunnel = request.method() == http::Method::CONNECT && !upgrade;
                let tunnel = tunnel.then(|| windows.open());
                let serving = server_stream::serve(request, respond, shared.clone(), tunnel);
                // Boxed, because the runtime moves a task's future five times from its start to its end.
                tokio::task::spawn_local(Box::pin(serving));
            }
            Some(None | Some(Err(_))) => return,
            None => {
                idle = None;
                control.drain();
            }
        }
    }
}
