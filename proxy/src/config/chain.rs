//! Filter chains, compiled: the network filters of a chain and the transport socket under them.

use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain as FilterChainProto, Listener, filter,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_connection_manager as hcm, http_filter,
};
use filters::chain::{ChainEntry, FilterChain};
use filters::registry::Compiled;
use filters::stream::ConnectionInfo;
use futures_util::future::LocalBoxFuture;
use pingora_core::protocols::Stream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use xds_client::any;
use xds_client::error::{At, ConfigError};

use super::context::ChainContext;
use crate::http::conn_manager::ConnectionManager;
use crate::http::conn_manager::config::{Codec, HcmConfig, HcmParts};
use crate::http::conn_manager::stats::ConnectionManagerStats;
use crate::http::service::ConnectionControl;
use crate::http::{h1, h2};
use crate::router::RouteSlot;
use crate::server::compiled::{FilterChainCompiler, FilterChainHandler, stat_name};
use crate::telemetry::http_log::AccessLog;
use crate::transport::downstream::DownstreamTransport;
use crate::transport::prefixed::Prefixed;

const HCM: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
/// RFC 9113, 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

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
        let [filter] = chain.filters.as_slice() else {
            if chain.filters.is_empty() {
                return Ok(Arc::new(NoFilters));
            }
            return Err(ConfigError::new(format!(
                "only one network filter is supported, the HTTP connection manager; there are {}",
                chain.filters.len()
            ))
            .at("filters"));
        };
        let step = "filters[0].typed_config";
        let proto = connection_manager(filter).at(step)?;
        let config = self.compile_hcm(&proto).at(step)?;
        Ok(Arc::new(HttpChain {
            config: Arc::new(config),
            transport,
        }))
    }
}

fn connection_manager(filter: &Filter) -> Result<HttpConnectionManager, ConfigError> {
    let Some(filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
        return Err(ConfigError::unsupported("config_discovery"));
    };
    let url = any::inner_type_url(config)?;
    if url.rsplit('/').next() != Some(HCM) {
        return Err(ConfigError::new(format!(
            "network filter {url} is not supported"
        )));
    }
    any::unpack(config)
}

impl ChainCompiler {
    fn compile_hcm(&self, proto: &HttpConnectionManager) -> Result<HcmConfig, ConfigError> {
        let context = &self.0;
        let mut access_logs = Vec::new();
        for (i, log) in proto.access_log.iter().enumerate() {
            let compiled = AccessLog::compile(log, |path| context.access_logs.open(path));
            access_logs.push(compiled.at(format!("access_log[{i}]"))?);
        }
        let scope = context.stats.scope(&format!("http.{}.", proto.stat_prefix));
        let parts = HcmParts {
            routes: self.routes(proto)?,
            chain: self.filters(&proto.http_filters)?,
            access_logs,
            stats: ConnectionManagerStats::new(&scope),
            reject_fragment: context.reject_fragment,
            node: context.node.clone(),
        };
        HcmConfig::compile(proto, parts)
    }

    fn routes(&self, proto: &HttpConnectionManager) -> Result<Arc<RouteSlot>, ConfigError> {
        match &proto.route_specifier {
            Some(hcm::RouteSpecifier::Rds(rds)) => Ok(self.0.routes.slot(&rds.route_config_name)),
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

    fn filters(&self, filters: &[HttpFilter]) -> Result<FilterChain, ConfigError> {
        let mut entries = Vec::new();
        let mut router = false;
        for (i, filter) in filters.iter().enumerate() {
            let step = format!("http_filters[{i}]");
            if router {
                return Err(ConfigError::new("stands after the router").at(step));
            }
            let Some(http_filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
                return Err(ConfigError::unsupported("config_discovery").at(step));
            };
            let context = self.0.factory_context(&filter.name);
            match self.0.registry.compile(config, &context) {
                Ok(Compiled::Filter(compiled)) => entries.push(ChainEntry {
                    id: context.id,
                    name: filter.name.as_str().into(),
                    filter: compiled,
                    disabled_by_default: filter.disabled,
                }),
                Ok(Compiled::Router) => router = true,
                Ok(Compiled::Harmless(name)) => harmless(name),
                Err(error) if filter.is_optional => {
                    tracing::warn!(filter = %filter.name, %error, "optional filter left out");
                }
                Err(error) => return Err(error.at("typed_config").at(step)),
            }
        }
        if router {
            Ok(FilterChain::new(entries))
        } else {
            Err(ConfigError::new("the last filter must be the router").at("http_filters"))
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
        _: Stream,
        _: Bytes,
        _: Rc<ConnectionInfo>,
        _: ConnectionControl,
    ) -> LocalBoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// A chain that ends in the HTTP connection manager.
struct HttpChain {
    config: Arc<HcmConfig>,
    transport: DownstreamTransport,
}

impl FilterChainHandler for HttpChain {
    fn serve(
        &self,
        io: Stream,
        prefix: Bytes,
        info: Rc<ConnectionInfo>,
        control: ConnectionControl,
    ) -> LocalBoxFuture<'static, ()> {
        let (config, transport) = (self.config.clone(), self.transport.clone());
        Box::pin(async move {
            match transport {
                DownstreamTransport::Raw => serve_limited(config, io, prefix, info, control).await,
                DownstreamTransport::Tls(tls) => {
                    if let Some((io, info)) = tls.accept(Prefixed::new(prefix, io), info).await {
                        serve_limited(config, io, Bytes::new(), info, control).await;
                    }
                }
            }
        })
    }
}

/// Serves within `max_connection_duration`.
async fn serve_limited<IO: AsyncRead + AsyncWrite + Unpin + 'static>(
    config: Arc<HcmConfig>,
    io: IO,
    prefix: Bytes,
    info: Rc<ConnectionInfo>,
    control: ConnectionControl,
) {
    let Some(most) = config.max_connection_duration else {
        return serve_http(config, io, prefix, info, control).await;
    };
    let counted = config.clone();
    let serving = serve_http(config, io, prefix, info, control.clone());
    tokio::pin!(serving);
    if tokio::time::timeout(most, &mut serving).await.is_err() {
        counted.count_max_duration();
        control.drain();
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
        Codec::Http2 => true,
        Codec::Auto if info.alpn.as_deref() == Some("h2") => true,
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
    if http2 {
        let io = Prefixed::new(prefix, io);
        h2::server::serve(io, &config.http2, config.idle_timeout, service, control).await;
    } else {
        let settings = Rc::new(config.http1.clone());
        h1::server::serve(io, prefix, settings, service, control).await;
    }
}

/// Reads until it is clear whether the connection begins with HTTP/2's preface. `None` if it ends before.
async fn detect(
    io: &mut (impl AsyncRead + Unpin),
    prefix: Bytes,
    idle: Option<std::time::Duration>,
    control: &ConnectionControl,
) -> Option<(bool, Bytes)> {
    let reading = async {
        let mut read = BytesMut::from(prefix);
        loop {
            let known = read.len().min(PREFACE.len());
            if read.get(..known) != PREFACE.get(..known) {
                return Some((false, read.freeze()));
            }
            if known == PREFACE.len() {
                return Some((true, read.freeze()));
            }
            // Small: most first reads hold a whole request, and this buffer becomes the codec's.
            read.reserve(1024);
            if io.read_buf(&mut read).await.ok()? == 0 {
                return None;
            }
        }
    };
    let drained = std::future::poll_fn(|cx| {
        control.register(cx.waker());
        if control.is_draining() {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    });
    let limit = idle.unwrap_or(std::time::Duration::from_secs(365 * 86400));
    tokio::select! {
        biased;
        read = tokio::time::timeout(limit, reading) => read.ok().flatten(),
        () = drained => None,
    }
}
