//! A control plane that serves what a test puts into it, on a Unix socket or over TLS; aggregated and type by type.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use d::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::cluster::v3::cluster_discovery_service_server::{
    ClusterDiscoveryService, ClusterDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3 as d;
use envoy_types::pb::envoy::service::listener::v3::listener_discovery_service_server::{
    ListenerDiscoveryService, ListenerDiscoveryServiceServer,
};
use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, watch};
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tokio_stream::wrappers::{UnboundedReceiverStream, UnixListenerStream};
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

/// Resources of one type, by name: version and bytes.
type Resources = BTreeMap<String, (u64, Any)>;

#[derive(Default)]
struct State {
    version: u64,
    types: BTreeMap<String, Resources>,
    /// Every request that came, state of the world and delta.
    requests: Vec<d::DiscoveryRequest>,
    deltas: Vec<d::DeltaDiscoveryRequest>,
    streams: u32,
}

#[derive(Clone)]
struct Service {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

/// The server; its streams break when it is dropped.
pub struct ControlPlane {
    service: Service,
    pub socket: PathBuf,
    runtime: Option<tokio::runtime::Runtime>,
}

/// A resource of its JSON with `@type`.
pub fn resource(json: &str) -> Any {
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    let mut fields = json.as_object().unwrap().clone();
    let url = fields.remove("@type").unwrap();
    let url = url.as_str().unwrap();
    let pool = xds_client::json::Pool::load().unwrap();
    let name = url.rsplit('/').next().unwrap();
    let message = pool
        .parse(name, &fields.into(), Default::default())
        .unwrap();
    Any {
        type_url: url.to_owned(),
        value: message.encode_to_vec(),
    }
}

/// A TLS connection as tonic wants it.
struct TlsIo(TlsStream<tokio::net::TcpStream>);

impl Connected for TlsIo {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for TlsIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl ControlPlane {
    /// Serves the same over TLS too, on a port of its own.
    pub fn also_over_tls(&self, config: rustls::ServerConfig) -> SocketAddr {
        let runtime = self.runtime.as_ref().unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, incoming) = mpsc::unbounded_channel();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let _ = accepted.send(io::Result::Ok(TlsIo(stream)));
                }
            }
        });
        let incoming = UnboundedReceiverStream::new(incoming);
        runtime.spawn(router(&self.service).serve_with_incoming(incoming));
        address
    }

    /// Listens on `socket`, with nothing to serve.
    pub fn start(socket: &Path) -> Self {
        let service = Service {
            state: Arc::default(),
            changed: watch::Sender::new(0),
        };
        Self {
            runtime: Some(serve(socket, &service)),
            service,
            socket: socket.to_owned(),
        }
    }

    /// Breaks every stream and stops listening.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        let _ = std::fs::remove_file(&self.socket);
    }

    /// Listens again, with the same resources.
    pub fn revive(&mut self) {
        self.kill();
        self.runtime = Some(serve(&self.socket, &self.service));
    }

    fn change(&self, f: impl FnOnce(&mut State, u64)) {
        let version = {
            let state = &mut *self.service.state.lock().unwrap();
            state.version += 1;
            let version = state.version;
            f(state, version);
            version
        };
        self.service.changed.send_replace(version);
    }

    /// Puts resources in under their names, and sends them to whoever wants them.
    pub fn set(&self, resources: &[(&str, Any)]) {
        self.change(|state, version| {
            for (name, any) in resources {
                let of_type = state.types.entry(any.type_url.clone()).or_default();
                // What stays as it was keeps its version, as with any control plane.
                match of_type.get(*name) {
                    Some((_, old)) if old == any => {}
                    _ => drop(of_type.insert((*name).to_owned(), (version, any.clone()))),
                }
            }
        });
    }

    pub fn remove(&self, type_url: &str, name: &str) {
        self.change(|state, _| {
            if let Some(of_type) = state.types.get_mut(type_url) {
                of_type.remove(name);
            }
        });
    }

    /// The requests of a type that came so far, state of the world.
    pub fn requests(&self, type_url: &str) -> Vec<d::DiscoveryRequest> {
        let state = self.service.state.lock().unwrap();
        let of_type = state.requests.iter().filter(|r| r.type_url == type_url);
        of_type.cloned().collect()
    }

    /// The delta requests of a type that came so far.
    pub fn deltas(&self, type_url: &str) -> Vec<d::DeltaDiscoveryRequest> {
        let state = self.service.state.lock().unwrap();
        let of_type = state.deltas.iter().filter(|r| r.type_url == type_url);
        of_type.cloned().collect()
    }

    pub fn streams(&self) -> u32 {
        self.service.state.lock().unwrap().streams
    }
}

fn serve(socket: &Path, service: &Service) -> tokio::runtime::Runtime {
    let _ = std::fs::remove_file(socket);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let listener = runtime.block_on(async { tokio::net::UnixListener::bind(socket).unwrap() });
    let incoming = UnixListenerStream::new(listener);
    runtime.spawn(router(service).serve_with_incoming(incoming));
    runtime
}

fn router(service: &Service) -> tonic::transport::server::Router {
    tonic::transport::Server::builder()
        .add_service(AggregatedDiscoveryServiceServer::new(service.clone()))
        .add_service(ClusterDiscoveryServiceServer::new(service.clone()))
        .add_service(ListenerDiscoveryServiceServer::new(service.clone()))
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.kill();
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What one stream was sent of a type.
#[derive(Default)]
struct Sent {
    wildcard: bool,
    names: BTreeSet<String>,
    known: BTreeMap<String, u64>,
    answered: bool,
}

impl Service {
    fn resources(&self, type_url: &str, sent: &Sent) -> Resources {
        let state = self.state.lock().unwrap();
        let mut all = state.types.get(type_url).cloned().unwrap_or_default();
        all.retain(|name, _| sent.wildcard || sent.names.contains(name));
        all
    }

    /// What of a type has changed since the stream was told: resources, and names that went.
    fn news(&self, type_url: &str, sent: &mut Sent) -> Option<(Resources, Vec<String>)> {
        let mut all = self.resources(type_url, sent);
        let versions: BTreeMap<String, u64> = all.iter().map(|(n, r)| (n.clone(), r.0)).collect();
        // A wildcard is answered though there is nothing; a name is not before there is something.
        let owed = sent.wildcard && !sent.answered;
        if versions == sent.known && !owed {
            return None;
        }
        sent.answered = true;
        let old = std::mem::replace(&mut sent.known, versions);
        let gone = old.keys().filter(|n| !all.contains_key(*n));
        let gone = gone.cloned().collect();
        all.retain(|name, r| old.get(name) != Some(&r.0));
        Some((all, gone))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = Answers<d::DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<d::DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<d::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (answers, stream) = mpsc::unbounded_channel();
        let (this, mut requests) = (self.clone(), request.into_inner());
        this.state.lock().unwrap().streams += 1;
        let mut changed = self.changed.subscribe();
        tokio::spawn(async move {
            let mut types: BTreeMap<String, Sent> = BTreeMap::new();
            loop {
                tokio::select! {
                    request = requests.message() => {
                        let Ok(Some(request)) = request else { return };
                        let sent = types.entry(request.type_url.clone()).or_default();
                        sent.wildcard = request.resource_names.is_empty();
                        sent.names = request.resource_names.iter().cloned().collect();
                        this.state.lock().unwrap().requests.push(request);
                    }
                    _ = changed.changed() => {}
                }
                for (type_url, sent) in &mut types {
                    if this.news(type_url, sent).is_none() {
                        continue;
                    }
                    let version = this.state.lock().unwrap().version.to_string();
                    let all = this.resources(type_url, sent);
                    let _ = answers.send(Ok(d::DiscoveryResponse {
                        version_info: version.clone(),
                        nonce: version,
                        type_url: type_url.clone(),
                        resources: all.into_values().map(|(_, any)| any).collect(),
                        ..Default::default()
                    }));
                }
            }
        });
        let stream = UnboundedReceiverStream::new(stream);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<d::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (answers, stream) = mpsc::unbounded_channel();
        let (this, mut requests) = (self.clone(), request.into_inner());
        this.state.lock().unwrap().streams += 1;
        let mut changed = self.changed.subscribe();
        tokio::spawn(async move {
            let mut types: BTreeMap<String, Sent> = BTreeMap::new();
            loop {
                tokio::select! {
                    request = requests.message() => {
                        let Ok(Some(request)) = request else { return };
                        let first = !types.contains_key(&request.type_url);
                        let sent = types.entry(request.type_url.clone()).or_default();
                        if first && request.resource_names_subscribe.is_empty() {
                            sent.wildcard = true;
                        }
                        sent.names.extend(request.resource_names_subscribe.iter().cloned());
                        let gone = &request.resource_names_unsubscribe;
                        sent.names.retain(|n| !gone.contains(n));
                        sent.known.retain(|n, _| !gone.contains(n));
                        for (name, version) in &request.initial_resource_versions {
                            sent.known.insert(name.clone(), version.parse().unwrap());
                        }
                        this.state.lock().unwrap().deltas.push(request);
                    }
                    _ = changed.changed() => {}
                }
                for (type_url, sent) in &mut types {
                    let Some((fresh, gone)) = this.news(type_url, sent) else {
                        continue;
                    };
                    let version = this.state.lock().unwrap().version.to_string();
                    let _ = answers.send(Ok(d::DeltaDiscoveryResponse {
                        system_version_info: version.clone(),
                        nonce: version,
                        type_url: type_url.clone(),
                        resources: fresh
                            .into_iter()
                            .map(|(name, (version, any))| d::Resource {
                                name,
                                version: version.to_string(),
                                resource: Some(any),
                                ..Default::default()
                            })
                            .collect(),
                        removed_resources: gone,
                        ..Default::default()
                    }));
                }
            }
        });
        let stream = UnboundedReceiverStream::new(stream);
        Ok(Response::new(Box::pin(stream)))
    }
}

#[tonic::async_trait]
impl ClusterDiscoveryService for Service {
    type StreamClustersStream = Answers<d::DiscoveryResponse>;
    type DeltaClustersStream = Answers<d::DeltaDiscoveryResponse>;

    async fn stream_clusters(
        &self,
        request: Request<Streaming<d::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamClustersStream>, Status> {
        self.stream_aggregated_resources(request).await
    }

    async fn delta_clusters(
        &self,
        request: Request<Streaming<d::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaClustersStream>, Status> {
        self.delta_aggregated_resources(request).await
    }

    async fn fetch_clusters(
        &self,
        _: Request<d::DiscoveryRequest>,
    ) -> Result<Response<d::DiscoveryResponse>, Status> {
        Err(Status::unimplemented("REST"))
    }
}

#[tonic::async_trait]
impl ListenerDiscoveryService for Service {
    type StreamListenersStream = Answers<d::DiscoveryResponse>;
    type DeltaListenersStream = Answers<d::DeltaDiscoveryResponse>;

    async fn stream_listeners(
        &self,
        request: Request<Streaming<d::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamListenersStream>, Status> {
        self.stream_aggregated_resources(request).await
    }

    async fn delta_listeners(
        &self,
        request: Request<Streaming<d::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaListenersStream>, Status> {
        self.delta_aggregated_resources(request).await
    }

    async fn fetch_listeners(
        &self,
        _: Request<d::DiscoveryRequest>,
    ) -> Result<Response<d::DiscoveryResponse>, Status> {
        Err(Status::unimplemented("REST"))
    }
}
