//! The stream to a management server: delta or state of the world, aggregated or one type.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>. One task owns everything; it
//! reconnects for ever, and keeps what it knows meanwhile.

mod methods;
mod transport;
mod wire;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::rpc::Status as RpcStatus;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;

use crate::backoff::Backoff;
use crate::json::name_of;
use crate::subscription::{Event, ResourceHandler, Subscription};
pub use methods::{ads_method, method};
use transport::connect;
use wire::{Delta, Sotw, TypeState, Wire};

/// Delta or state of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `DELTA_GRPC`.
    Delta,
    /// `GRPC`.
    StateOfTheWorld,
}

/// Where the management server listens.
#[derive(Debug, Clone)]
pub enum Transport {
    /// `host:port`, in plaintext; resolved anew for each connection.
    Tcp(String),
    /// A Unix domain socket; a relative path counts from the working directory.
    Unix(PathBuf),
    /// Over TLS, which somebody else speaks.
    Secure(Arc<dyn Connector>),
}

/// Makes encrypted connections to the management server.
pub trait Connector: std::fmt::Debug + Send + Sync {
    /// Makes one.
    fn connect(&self) -> Connecting;
}

/// A connection that is being made.
pub type Connecting = Pin<Box<dyn Future<Output = std::io::Result<Box<dyn Io>>> + Send>>;

/// A connection's bytes.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// How to talk to the server.
#[derive(Debug, Clone)]
pub struct Config {
    /// Delta or state of the world.
    pub protocol: Protocol,
    /// The gRPC method; [`method`] and [`ads_method`] name it.
    pub method: &'static str,
    /// `set_node_on_first_message_only`; delta streams always do so.
    pub node_on_first_message_only: bool,
    /// The `:authority`, for Envoy the name of the cluster.
    pub authority: String,
    /// The first back-off interval, 500 ms in Envoy.
    pub backoff_base: Duration,
    /// The longest one, 30 s in Envoy.
    pub backoff_max: Duration,
    /// For a connection to be made.
    pub connect_timeout: Duration,
}

impl Config {
    /// ADS with Envoy's defaults.
    pub fn ads(protocol: Protocol, authority: &str) -> Self {
        Self {
            protocol,
            method: ads_method(protocol),
            node_on_first_message_only: false,
            authority: authority.to_owned(),
            backoff_base: Duration::from_millis(500),
            backoff_max: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
        }
    }
}

enum Command {
    /// No names: wildcard.
    Subscribe(String, Vec<String>, Duration),
    Unsubscribe(String, Vec<String>),
    Pause(String, bool),
}

/// Changes the subscriptions; usable from inside of [`ResourceHandler::apply`]. The client ends when the
/// last handle is dropped.
#[derive(Debug, Clone)]
pub struct Handle(mpsc::UnboundedSender<Command>);

impl Handle {
    /// Subscribes to names, or to everything of the type if there are none. `initial_fetch_timeout` zero
    /// waits for ever; Envoy's default is 15 s.
    pub fn subscribe(&self, type_url: &str, names: Vec<String>, initial_fetch_timeout: Duration) {
        let _ = self.0.send(Command::Subscribe(
            type_url.to_owned(),
            names,
            initial_fetch_timeout,
        ));
    }

    /// Gives names up. They are forgotten; subscribing again fetches them again.
    pub fn unsubscribe(&self, type_url: &str, names: Vec<String>) {
        let _ = self
            .0
            .send(Command::Unsubscribe(type_url.to_owned(), names));
    }

    /// Holds subscription changes of a type back; ACKs still go out.
    pub fn pause(&self, type_url: &str) {
        let _ = self.0.send(Command::Pause(type_url.to_owned(), true));
    }

    /// Sends what [`pause`](Self::pause) held back.
    pub fn resume(&self, type_url: &str) {
        let _ = self.0.send(Command::Pause(type_url.to_owned(), false));
    }
}

/// A handle, and the queue behind it for [`spawn`]. Two steps, so that the handler can hold a handle.
pub fn channel() -> (Handle, Commands) {
    // Unbounded: commands are as many as the names in the configuration.
    let (tx, rx) = mpsc::unbounded_channel();
    (Handle(tx), Commands(rx))
}

/// The receiving half of [`channel`].
#[derive(Debug)]
pub struct Commands(mpsc::UnboundedReceiver<Command>);

/// Starts the client on the current tokio runtime.
pub fn spawn(
    config: Config,
    node: Node,
    transport: Transport,
    commands: Commands,
    handler: Box<dyn ResourceHandler>,
) -> tokio::task::JoinHandle<()> {
    let client = Client {
        config,
        node,
        types: BTreeMap::new(),
        handler,
        timeouts: HashMap::new(),
    };
    tokio::spawn(client.run(transport, commands.0))
}

/// Requests go out in the order in which the types depend on each other.
fn rank(type_url: &str) -> u8 {
    match name_of(type_url) {
        "envoy.config.cluster.v3.Cluster" => 0,
        "envoy.config.endpoint.v3.ClusterLoadAssignment" => 1,
        "envoy.config.listener.v3.Listener" => 2,
        "envoy.config.route.v3.RouteConfiguration" => 3,
        "envoy.extensions.transport_sockets.tls.v3.Secret" => 4,
        _ => 5,
    }
}

struct Client {
    config: Config,
    node: Node,
    types: BTreeMap<(u8, String), TypeState>,
    handler: Box<dyn ResourceHandler>,
    timeouts: HashMap<(String, String), Instant>,
}

impl Client {
    async fn run(mut self, transport: Transport, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut backoff = Backoff::new(self.config.backoff_base, self.config.backoff_max);
        let Some(channel) = connect(&self.config, transport) else {
            let reason = "the address or authority is not valid".to_owned();
            self.handler.on_event(Event::Disconnected(reason));
            return;
        };
        loop {
            let ended = match self.config.protocol {
                Protocol::Delta => {
                    self.stream::<Delta>(&channel, &mut commands, &mut backoff)
                        .await
                }
                Protocol::StateOfTheWorld => {
                    self.stream::<Sotw>(&channel, &mut commands, &mut backoff)
                        .await
                }
            };
            let Some(reason) = ended else { return };
            self.handler.on_event(Event::Disconnected(reason));
            let wait = sleep(backoff.next_wait());
            tokio::pin!(wait);
            loop {
                let deadline = self.next_timeout();
                tokio::select! {
                    () = &mut wait => break,
                    () = sleep_until(deadline) => self.expire(),
                    command = commands.recv() => match command {
                        Some(command) => self.command(command),
                        None => return,
                    },
                }
            }
        }
    }

    /// One stream, until it ends (`Some` reason) or all handles are gone (`None`).
    async fn stream<W: Wire>(
        &mut self,
        channel: &Channel,
        commands: &mut mpsc::UnboundedReceiver<Command>,
        backoff: &mut Backoff,
    ) -> Option<String> {
        for state in self.types.values_mut() {
            state.sent = None;
            state.nonce.clear();
        }
        // Unbounded: one request for each response or command, and a full queue must not keep us from
        // reading while the server waits for us to read.
        let (out, requests) = mpsc::unbounded_channel();
        let mut node_sent = false;
        while let Ok(command) = commands.try_recv() {
            self.command(command);
        }
        self.flush::<W>(&out, &mut node_sent);
        let mut grpc = tonic::client::Grpc::new(channel.clone())
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        let path = http::uri::PathAndQuery::from_static(self.config.method);
        // The server may answer with headers only when it has read the first request: they are queued
        // before, and commands are taken while this waits.
        let open = async move {
            grpc.ready().await.map_err(|e| e.to_string())?;
            let codec = tonic_prost::ProstCodec::<W::Request, W::Response>::default();
            let body = UnboundedReceiverStream::new(requests);
            let response = grpc.streaming(tonic::Request::new(body), path, codec).await;
            response
                .map(tonic::Response::into_inner)
                .map_err(|e| e.to_string())
        };
        tokio::pin!(open);
        let mut inbound: Option<tonic::Streaming<W::Response>> = None;
        loop {
            let deadline = self.next_timeout();
            let opening = inbound.is_none();
            let message = async {
                match &mut inbound {
                    Some(stream) => stream.message().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                opened = &mut open, if opening => match opened {
                    Ok(stream) => {
                        inbound = Some(stream);
                        self.handler.on_event(Event::Connected);
                    }
                    Err(reason) => return Some(reason),
                },
                message = message => match message {
                    Ok(Some(response)) => {
                        backoff.reset();
                        self.response::<W>(response, &out, &mut node_sent);
                    }
                    Ok(None) => return Some("the server closed the stream".to_owned()),
                    Err(status) => return Some(status.to_string()),
                },
                command = commands.recv() => self.command(command?),
                () = sleep_until(deadline) => self.expire(),
            }
            // All that is queued becomes one request a type.
            while let Ok(command) = commands.try_recv() {
                self.command(command);
            }
            self.flush::<W>(&out, &mut node_sent);
        }
    }

    fn send<W: Wire>(
        &self,
        mut request: W::Request,
        out: &mpsc::UnboundedSender<W::Request>,
        node_sent: &mut bool,
    ) {
        let always =
            self.config.protocol != Protocol::Delta && !self.config.node_on_first_message_only;
        if !*node_sent || always {
            W::set_node(&mut request, self.node.clone());
            *node_sent = true;
        }
        // Fails only when the stream is gone, which its reader reports.
        let _ = out.send(request);
    }

    fn flush<W: Wire>(&mut self, out: &mpsc::UnboundedSender<W::Request>, node_sent: &mut bool) {
        let requests: Vec<_> = self
            .types
            .values_mut()
            .filter(|t| !t.paused)
            .filter_map(W::request)
            .collect();
        for request in requests {
            self.send::<W>(request, out, node_sent);
        }
    }

    fn response<W: Wire>(
        &mut self,
        response: W::Response,
        out: &mpsc::UnboundedSender<W::Request>,
        node_sent: &mut bool,
    ) {
        let (type_url, nonce) = W::head(&response);
        let (type_url, nonce) = (type_url.to_owned(), nonce.to_owned());
        let Some(state) = self.types.get_mut(&(rank(&type_url), type_url.clone())) else {
            tracing::warn!(type_url, "ignoring a response without subscribers");
            self.handler.on_event(Event::UnknownType(type_url));
            return;
        };
        state.nonce.clone_from(&nonce);
        let answered = W::answered(&response);
        let outcome = W::accept(&mut state.subscription, response, self.handler.as_mut());
        let error = outcome.err().map(|message| RpcStatus {
            code: 3, // INVALID_ARGUMENT; Envoy sends INTERNAL for some, senders only log it
            message,
            details: Vec::new(),
        });
        let known = &state.subscription.known;
        self.timeouts.retain(|(t, name), _| {
            *t != type_url || (name != "*" && !known.contains_key(name) && !answered.contains(name))
        });
        let answer = W::answer(state, nonce, error);
        self.send::<W>(answer, out, node_sent);
    }

    fn command(&mut self, command: Command) {
        let (Command::Subscribe(type_url, ..)
        | Command::Unsubscribe(type_url, ..)
        | Command::Pause(type_url, ..)) = &command;
        let type_url = type_url.clone();
        let state = self
            .types
            .entry((rank(&type_url), type_url.clone()))
            .or_insert_with(|| TypeState {
                subscription: Subscription::new(&type_url),
                sent: None,
                nonce: String::new(),
                paused: false,
            });
        match command {
            Command::Subscribe(_, mut names, timeout) => {
                let deadline = Instant::now().checked_add(timeout);
                if names.is_empty() {
                    state.subscription.wildcard = true;
                    names.push("*".to_owned());
                } else {
                    names.retain(|n| state.subscription.names.insert(n.clone()));
                }
                if let Some(deadline) = deadline.filter(|_| !timeout.is_zero()) {
                    let waits = names.into_iter().map(|n| ((type_url.clone(), n), deadline));
                    self.timeouts.extend(waits);
                }
            }
            Command::Unsubscribe(_, names) => {
                for name in names {
                    state.subscription.names.remove(&name);
                    state.subscription.known.remove(&name);
                    self.timeouts.remove(&(type_url.clone(), name));
                }
            }
            Command::Pause(_, paused) => state.paused = paused,
        }
    }

    fn next_timeout(&self) -> Instant {
        let far = Duration::from_secs(3600);
        self.timeouts
            .values()
            .min()
            .copied()
            .unwrap_or_else(|| Instant::now() + far)
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let mut expired = Vec::new();
        self.timeouts.retain(|key, deadline| {
            if *deadline <= now {
                expired.push(key.clone());
            }
            *deadline > now
        });
        for (type_url, name) in expired {
            self.handler
                .on_event(Event::FetchTimeout { type_url, name });
        }
    }
}
