//! Filter chains, compiled: the network filters of a chain and the transport socket under them.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::accesslog::v3::AccessLog as AccessLogProto;
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain as FilterChainProto, Listener, filter,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_connection_manager as hcm, http_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::google::protobuf::Any;
use filters::chain::{ChainEntry, FilterChain};
use filters::registry::Compiled;
use filters::stream::{ConnectionInfo, Protocol};
use futures_util::future::LocalBoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use xds_client::any;
use xds_client::error::{At, ConfigError};

use super::context::ChainContext;
use crate::http::conn_manager::ConnectionManager;
use crate::http::conn_manager::byte_counter::ByteCounter;
use crate::http::conn_manager::config::{Codec, HcmConfig, HcmParts};
use crate::http::conn_manager::stats::ConnectionManagerStats;
use crate::http::detect::detect;
use crate::http::h1;
use crate::http::h2::{self, Http2Stats};
use crate::http::service::ConnectionControl;
use crate::network::{self, Admitted, NetworkFilters, NetworkFiltersBuilder};
use crate::router::RouteSlot;
use crate::router::options::RouterOptions;
use crate::server::compiled::{FilterChainCompiler, FilterChainHandler, stat_name};
use crate::tcp_proxy::{self, config::TcpProxyConfig};
use crate::telemetry::http_log::AccessLog;
use crate::telemetry::stats::Scope;
use crate::transport::downstream::DownstreamTransport;
use crate::transport::observed::Observed;
use crate::transport::prefixed::Prefixed;
use crate::transport::{ByteStream, Incoming};

const HCM: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

/// Compiles filter chains against the process's stores.
pub struct ChainCompiler(pub Arc<ChainContext>);

impl FilterChainCompiler for ChainCompiler {
    fn compile(
        &self,
        listener: &Listener,
        chain: &FilterChainProto,
    ) -> Result<Arc<dyn FilterChainHandler>, ConfigError> {
        let scope = format!("listener.{}.", stat_name(listener));
        let scope = self.0.stats.scope(&scope);
        let transport = DownstreamTransport::compile(chain, &self.0.secrets, &scope)?;
        if chain.filters.is_empty() {
            return Ok(Arc::new(NoFilters));
        }
        let (network, terminal) = self.network_filters(&chain.filters, &scope)?;
        Ok(Arc::new(Chain {
            transport,
            network,
            terminal,
        }))
    }

    fn access_logs(&self, listener: &Listener) -> Result<Vec<AccessLog>, ConfigError> {
        self.logs(&listener.access_log)
    }
}

/// Network filters that change no byte: Istio's telemetry and peer metadata.
const HARMLESS: [&str; 2] = [
    "envoy.tcp.metadataexchange.config.MetadataExchange",
    "stats.PluginConfig",
];

/// The type of a network filter, and its configuration.
fn typed(filter: &Filter) -> Result<(String, &Any), ConfigError> {
    match &filter.config_type {
        Some(filter::ConfigType::TypedConfig(config)) => {
            let name = any::inner_type_name(config).at("typed_config")?;
            Ok((name, config))
        }
        Some(filter::ConfigType::ConfigDiscovery(_)) => {
            Err(ConfigError::unsupported("config_discovery"))
        }
        None => Err(ConfigError::new("value is required").at("typed_config")),
    }
}

impl ChainCompiler {
    /// The filter that the chain's connections end in, and those before it. `of_listener` is where the listener's
    /// numbers are.
    fn network_filters(
        &self,
        filters: &[Filter],
        of_listener: &Scope,
    ) -> Result<(NetworkFilters, Terminal), ConfigError> {
        let root = self.0.stats.scope("");
        let mut before = NetworkFiltersBuilder::default();
        let mut terminal = None;
        for (i, filter) in filters.iter().enumerate() {
            let step = format!("filters[{i}]");
            if terminal.is_some() {
                return Err(ConfigError::new("stands after the terminal filter").at(step));
            }
            let (name, config) = typed(filter).at(&step)?;
            let compiled = match name.as_str() {
                HCM => any::unpack(config)
                    .and_then(|proto| self.compile_hcm(&proto, of_listener))
                    .map(|config| Some(Terminal::Http(Arc::new(config)))),
                TCP_PROXY => any::unpack(config)
                    .and_then(|proto| self.compile_tcp_proxy(&proto))
                    .map(|config| Some(Terminal::Tcp(Arc::new(config)))),
                other => match HARMLESS.iter().find(|known| **known == other) {
                    Some(known) => {
                        harmless(known);
                        Ok(None)
                    }
                    None => match before.add(other, config, &root, &*self.0.runtime) {
                        Ok(true) => Ok(None),
                        Ok(false) => Err(ConfigError::new(format!(
                            "network filter {other} is not supported"
                        ))),
                        Err(error) => Err(error),
                    },
                },
            };
            terminal = compiled.at("typed_config").at(&step)?;
        }
        let terminal = terminal.ok_or_else(|| {
            ConfigError::new("needs the HTTP connection manager or the TCP proxy at its end")
                .at("filters")
        })?;
        Ok((before.build(), terminal))
    }

    fn logs(&self, protos: &[AccessLogProto]) -> Result<Vec<AccessLog>, ConfigError> {
        let compile = |(i, log)| {
            let open = |path: &str| self.0.access_logs.open(path);
            AccessLog::compile(log, self.0.logs(&open)).at(format!("access_log[{i}]"))
        };
        protos.iter().enumerate().map(compile).collect()
    }

    fn compile_tcp_proxy(&self, proto: &TcpProxy) -> Result<TcpProxyConfig, ConfigError> {
        let logs = self.logs(&proto.access_log)?;
        let context = &self.0;
        TcpProxyConfig::compile(
            proto,
            &*context.clusters,
            &context.directory,
            logs,
            &context.stats.scope(""),
        )
    }

    fn compile_hcm(
        &self,
        proto: &HttpConnectionManager,
        of_listener: &Scope,
    ) -> Result<HcmConfig, ConfigError> {
        let context = &self.0;
        let access_logs = self.logs(&proto.access_log)?;
        let prefix = format!("http.{}.", proto.stat_prefix);
        let scope = context.stats.scope(&prefix);
        let (chain, router) = self.filters(&proto.http_filters, &scope)?;
        let parts = HcmParts {
            routes: self.routes(proto, &scope)?,
            chain,
            router,
            access_logs,
            stats: ConnectionManagerStats::new(&scope, &of_listener.scope(&prefix)),
            http1_stats: h1::Http1Stats::new(&context.stats.scope("http1.")),
            http2_stats: Http2Stats::new(&context.stats.scope("http2.")).into(),
            reject_fragment: context.reject_fragment,
            node: context.node.clone(),
            runtime: context.runtime.clone(),
        };
        HcmConfig::compile(proto, parts)
    }

    fn routes(
        &self,
        proto: &HttpConnectionManager,
        scope: &Scope,
    ) -> Result<Arc<RouteSlot>, ConfigError> {
        match &proto.route_specifier {
            Some(hcm::RouteSpecifier::Rds(rds)) => {
                Ok(self.0.routes.watched(&rds.route_config_name, scope))
            }
            Some(hcm::RouteSpecifier::RouteConfig(routes)) => {
                let table = self.0.compile_routes(routes, true).at("route_config")?;
                let slot = RouteSlot::new(routes.name.clone());
                slot.set(Some(Arc::new(table)));
                Ok(Arc::new(slot))
            }
            Some(hcm::RouteSpecifier::ScopedRoutes(_)) => {
                Err(ConfigError::unsupported("scoped_routes"))
            }
            None => Err(ConfigError::new("is required").at("route_specifier")),
        }
    }

    /// The filters before the router, and the router's options.
    fn filters(
        &self,
        filters: &[HttpFilter],
        scope: &Scope,
    ) -> Result<(FilterChain, RouterOptions), ConfigError> {
        let mut entries = Vec::new();
        let mut router = None;
        for (i, filter) in filters.iter().enumerate() {
            let step = format!("http_filters[{i}]");
            if router.is_some() {
                return Err(ConfigError::new("stands after the router").at(step));
            }
            let Some(http_filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
                return Err(ConfigError::unsupported("config_discovery").at(step));
            };
            let context = self.0.factory_context(&filter.name, scope);
            match self.0.registry.compile(config, &context) {
                Ok(Compiled::Filter(compiled)) => entries.push(ChainEntry {
                    id: context.id,
                    name: filter.name.as_str().into(),
                    filter: compiled,
                    disabled_by_default: filter.disabled,
                }),
                Ok(Compiled::Router) => {
                    let options = RouterOptions::compile(config);
                    router = Some(options.at("typed_config").at(step)?);
                }
                Ok(Compiled::Harmless(name)) => harmless(name),
                Err(error) if filter.is_optional => {
                    tracing::warn!(filter = %filter.name, %error, "optional filter left out");
                }
                Err(error) => return Err(error.at("typed_config").at(step)),
            }
        }
        match router {
            Some(router) => Ok((FilterChain::new(entries), router)),
            None => Err(ConfigError::new("the last filter must be the router").at("http_filters")),
        }
    }
}

/// Says once per type that a filter is accepted and does nothing.
fn harmless(name: &'static str) {
    use std::sync::{Mutex, PoisonError};
    static SAID: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if !said.contains(&name) {
        said.push(name);
        tracing::info!("filter {name} is accepted and has no effect yet");
    }
}

/// A chain without filters: its connections are closed.
struct NoFilters;

impl FilterChainHandler for NoFilters {
    fn serve(
        &self,
        _: Incoming,
        _: Bytes,
        _: Rc<ConnectionInfo>,
        _: ConnectionControl,
    ) -> LocalBoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// What serves a chain's connections once their transport is set up.
#[derive(Clone)]
enum Terminal {
    Http(Arc<HcmConfig>),
    Tcp(Arc<TcpProxyConfig>),
}

/// A compiled chain.
struct Chain {
    transport: DownstreamTransport,
    network: NetworkFilters,
    terminal: Terminal,
}

impl FilterChainHandler for Chain {
    fn serve(
        &self,
        io: Incoming,
        prefix: Bytes,
        info: Rc<ConnectionInfo>,
        control: ConnectionControl,
    ) -> LocalBoxFuture<'static, ()> {
        match io {
            Incoming::Socket(io) => self.serve_on(io, prefix, info, control),
            Incoming::Internal(io) => {
                // As behind a gate: of the type that is compiled already.
                let io: Box<dyn ByteStream> = Box::new(io);
                self.serve_on(io, prefix, info, control)
            }
        }
    }
}

impl Chain {
    fn serve_on<IO: ByteStream + 'static>(
        &self,
        io: IO,
        prefix: Bytes,
        info: Rc<ConnectionInfo>,
        control: ConnectionControl,
    ) -> LocalBoxFuture<'static, ()> {
        let admitted = match self.network.admit() {
            Ok(admitted) => admitted,
            Err(refused) => {
                let terminal = self.terminal.clone();
                let info = network::with_notes(info);
                refused.note(&info);
                return Box::pin(async move {
                    refused.wait(io).await;
                    terminal.never_served(info);
                });
            }
        };
        let info = self.network.begin(info);
        let served = Served {
            terminal: self.terminal.clone(),
            network: self.network.read().then(|| self.network.clone()),
            control,
            _admitted: admitted,
        };
        match self.transport.clone() {
            DownstreamTransport::Raw => Box::pin(served.serve(io, prefix, info)),
            DownstreamTransport::Tls(tls) => Box::pin(async move {
                // Boxed, to be gone with the handshake.
                match Box::pin(tls.accept(prefix, io, info)).await {
                    Ok((io, info)) => served.serve(io, Bytes::new(), info).await,
                    Err(info) => served.terminal.never_served(info),
                }
            }),
        }
    }
}

/// What serving one connection takes.
struct Served {
    terminal: Terminal,
    /// The filters that look at bytes, if there are any.
    network: Option<NetworkFilters>,
    control: ConnectionControl,
    /// Held to the connection's end.
    _admitted: Admitted,
}

impl Served {
    async fn serve<IO: ByteStream + 'static>(
        self,
        io: IO,
        prefix: Bytes,
        info: Rc<ConnectionInfo>,
    ) {
        let Some(network) = self.network else {
            return self.terminal.serve(io, prefix, info, self.control).await;
        };
        let info = network::with_notes(info);
        let half_close = matches!(self.terminal, Terminal::Tcp(_));
        let gate = network.gate(io, prefix, info.clone(), half_close);
        // Of one type whatever is gated: the code below is large, and these chains are few.
        let io: Box<dyn ByteStream> = Box::new(gate);
        Box::pin(self.terminal.serve(io, Bytes::new(), info, self.control)).await;
    }
}

impl Terminal {
    /// The end of a connection that was refused, or whose transport failed. Of these only the TCP proxy tells: requests have logs of their
    /// own, and none has come.
    fn never_served(self, info: Rc<ConnectionInfo>) {
        if let Self::Tcp(config) = self {
            tcp_proxy::never_served(config, info);
        }
    }

    async fn serve<IO: ByteStream + 'static>(
        self,
        io: IO,
        prefix: Bytes,
        info: Rc<ConnectionInfo>,
        control: ConnectionControl,
    ) {
        match self {
            // Boxed but for the most frequent case, as HTTP/2 is for HTTP/1's sake: a future is as large as its largest
            // branch.
            Self::Http(config) => match config.max_connection_duration {
                None => serve_http(config, io, prefix, info, control).await,
                Some(most) => {
                    Box::pin(serve_within(most, config, io, prefix, info, control)).await;
                }
            },
            Self::Tcp(config) => {
                Box::pin(tcp_proxy::serve(config, io, prefix, info)).await;
            }
        }
    }
}

/// Serves within `max_connection_duration`.
async fn serve_within<IO: AsyncRead + AsyncWrite + Unpin + 'static>(
    most: Duration,
    config: Arc<HcmConfig>,
    io: IO,
    prefix: Bytes,
    info: Rc<ConnectionInfo>,
    control: ConnectionControl,
) {
    let counted = config.clone();
    let serving = serve_http(config, io, prefix, info, control.clone());
    tokio::pin!(serving);
    if tokio::time::timeout(most, &mut serving).await.is_err() {
        counted.count_max_duration();
        control.close_idle();
        serving.await;
    }
}

async fn serve_http<IO: AsyncRead + AsyncWrite + Unpin + 'static>(
    config: Arc<HcmConfig>,
    mut io: IO,
    mut prefix: Bytes,
    info: Rc<ConnectionInfo>,
    control: ConnectionControl,
) {
    let http2 = match config.codec {
        Codec::Http1 => false,
        // Not before the preface has come does Envoy say anything.
        Codec::Http2 => match detect(&mut io, prefix, config.idle_timeout, &control).await {
            Some((true, read)) => {
                prefix = read;
                true
            }
            Some((false, _)) | None => return,
        },
        Codec::Auto if info.alpn.as_deref() == Some("h2") => true,
        Codec::Auto if matches!(info.alpn.as_deref(), Some("http/1.1" | "http/1.0")) => false,
        Codec::Auto => match detect(&mut io, prefix, config.idle_timeout, &control).await {
            Some((http2, read)) => {
                prefix = read;
                http2
            }
            None => return,
        },
    };
    let service = Rc::new(ConnectionManager::start(
        config.clone(),
        info,
        control.clone(),
        http2,
    ));
    control.set_protocol(if http2 {
        Protocol::Http2
    } else {
        Protocol::Http11
    });
    if http2 {
        let counter = ByteCounter::new(0, config.clone(), control.clone());
        let io = Observed::new(Prefixed::new(prefix, io), counter);
        // Boxed: an idle HTTP/1 connection's future must not be as large as HTTP/2's.
        let serving = h2::server::serve(io, &config.http2, config.idle_timeout, service, control);
        Box::pin(serving).await;
    } else {
        let settings = Rc::new(config.http1.clone());
        let counter = ByteCounter::new(prefix.len(), config.clone(), control.clone());
        let io = Observed::new(io, counter);
        h1::server::serve(io, prefix, settings, service, control).await;
    }
}

#[cfg(test)]
#[path = "panic_tests.rs"]
mod panic_tests;

#[cfg(test)]
#[path = "waypoint_tests.rs"]
mod waypoint_tests;
