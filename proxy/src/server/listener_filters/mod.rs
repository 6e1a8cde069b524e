//! Listener filters: what is found out about a socket before it has a filter chain. They run in the order of the
//! configuration, on bytes that stay where they are unless a filter says otherwise (the PROXY protocol's header).

mod inspectors;
mod original_dst;
mod predicate;
mod proxy_protocol;
#[cfg(test)]
mod tests;

use std::io;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use envoy_types::pb::envoy::config::listener::v3::{Listener, ListenerFilter, listener_filter};
use envoy_types::pb::google::protobuf::Any;
use filters::stream::{Address, DynamicMetadata, FilterState};
use xds_client::any;
use xds_client::error::{At, ConfigError};

use self::inspectors::{HttpInspectorStats, TlsInspector};
use self::predicate::Predicate;
use self::proxy_protocol::ProxyProtocolFilter;
use super::accepted::Accepted;
use crate::telemetry::stats::Scope;

/// What is known about a socket.
pub(super) struct Found {
    /// What was read and is not used up.
    pub(super) prefix: BytesMut,
    /// The peer; another one than that of the socket if a PROXY header says so.
    pub(super) remote: Address,
    /// The peer of the socket.
    pub(super) direct_remote: Address,
    /// Where the peer meant to go.
    pub(super) local: Address,
    /// Our end of the socket.
    pub(super) direct_local: Address,
    /// Whether `local` was found out, from a redirect or a PROXY header.
    pub(super) restored: bool,
    /// SNI, lower case; empty without one.
    pub(super) server_name: String,
    /// `tls`, `raw_buffer`, or empty when nobody looked.
    pub(super) transport: &'static str,
    /// What the client offers (ALPN), or what its first bytes are.
    pub(super) protocols: Vec<String>,
    /// The fingerprint of the ClientHello, if it is asked for.
    pub(super) ja4: Option<String>,
    /// What filters noted.
    pub(super) metadata: DynamicMetadata,
    /// Filter state that came with a connection from inside the process.
    pub(super) filter_state: Option<Rc<FilterState>>,
    /// The TLVs of a PROXY header that may be passed on.
    pub(super) tlvs: Option<Rc<[(u8, Bytes)]>>,
}

/// Why a socket is not taken.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It cannot be read, or its peer closed it.
    Io(io::Error),
    /// A filter refused it, and has counted that.
    Filter,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The listener filters of a listener, compiled.
#[derive(Debug, Default)]
pub struct ListenerFilters(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    filter: Kind,
    disabled_on: Option<Predicate>,
}

#[derive(Debug)]
enum Kind {
    OriginalDst,
    ProxyProtocol(Box<ProxyProtocolFilter>),
    TlsInspector(TlsInspector),
    HttpInspector(HttpInspectorStats),
}

impl ListenerFilters {
    /// Compiles the filters of `listener`. `root` is the scope of all stats.
    ///
    /// # Errors
    /// What is wrong or not supported, by its path inside the listener.
    pub fn compile(listener: &Listener, root: &Scope) -> Result<Self, ConfigError> {
        let mut entries = Vec::new();
        for (i, filter) in listener.listener_filters.iter().enumerate() {
            entries.push(Entry::compile(filter, root).at(format!("listener_filters[{i}]"))?);
        }
        // After all others, as in Envoy.
        if listener.use_original_dst.as_ref().is_some_and(|v| v.value) {
            entries.push(Entry {
                filter: Kind::OriginalDst,
                disabled_on: None,
            });
        }
        Ok(Self(entries))
    }

    /// Runs them on `io`.
    pub(super) async fn run(&self, io: &mut Accepted, found: &mut Found) -> Result<(), Refusal> {
        for entry in &self.0 {
            let port = found.local.ip().map(|address| address.port());
            if entry.disabled_on.as_ref().is_some_and(|p| p.matches(port)) {
                continue;
            }
            match &entry.filter {
                Kind::OriginalDst => original_dst::run(io, found),
                Kind::ProxyProtocol(filter) => filter.run(io, found).await?,
                Kind::TlsInspector(filter) => filter.run(io, found).await?,
                Kind::HttpInspector(stats) => inspectors::http(stats, io, found).await?,
            }
        }
        Ok(())
    }
}

impl Found {
    /// What the socket itself says.
    pub(super) fn new(io: &Accepted) -> io::Result<Self> {
        let (remote, local) = io.addresses()?;
        let handover = match io {
            Accepted::Internal(connection) => Some(&connection.handover),
            Accepted::Tcp(_) | Accepted::Unix(..) => None,
        };
        let metadata = handover.and_then(|h| h.metadata.as_deref());
        let objects = handover.and_then(|h| h.objects.as_ref());
        Ok(Self {
            prefix: BytesMut::new(),
            direct_remote: remote.clone(),
            remote,
            direct_local: local.clone(),
            local,
            restored: false,
            server_name: String::new(),
            transport: "",
            protocols: Vec::new(),
            ja4: None,
            metadata: metadata.cloned().unwrap_or_default(),
            filter_state: objects.map(|objects| Rc::new(FilterState::received(objects))),
            tlvs: None,
        })
    }

    /// The peer meant to go to `address`.
    fn restore(&mut self, address: Address) {
        self.local = address;
        self.restored = true;
    }

    /// What another listener is told of the socket: what its connection carries, not what filters noted about it.
    pub(super) fn handed_over(self) -> Self {
        Self {
            metadata: DynamicMetadata::new(),
            tlvs: None,
            ..self
        }
    }
}

impl Entry {
    fn compile(filter: &ListenerFilter, root: &Scope) -> Result<Self, ConfigError> {
        let config = match &filter.config_type {
            Some(listener_filter::ConfigType::TypedConfig(any)) => Some(any),
            Some(listener_filter::ConfigType::ConfigDiscovery(_)) => {
                return Err(ConfigError::unsupported("config_discovery"));
            }
            None => None,
        };
        let disabled_on = filter.filter_disabled.as_ref();
        Ok(Self {
            filter: Kind::compile(&filter.name, config, root)?,
            disabled_on: disabled_on
                .map(Predicate::compile)
                .transpose()
                .at("filter_disabled")?,
        })
    }
}

impl Kind {
    fn compile(name: &str, config: Option<&Any>, root: &Scope) -> Result<Self, ConfigError> {
        // By type; by name only where there is no configuration, as old configurations write it.
        let kind = match config {
            Some(config) => any::inner_type_name(config).at("typed_config")?,
            None => name.to_owned(),
        };
        Ok(match kind.as_str() {
            "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
            | "envoy.filters.listener.tls_inspector" => {
                let proto = config.map(any::unpack).transpose().at("typed_config")?;
                let filter = TlsInspector::compile(&proto.unwrap_or_default(), root);
                Self::TlsInspector(filter.at("typed_config")?)
            }
            "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector"
            | "envoy.filters.listener.http_inspector" => {
                Self::HttpInspector(HttpInspectorStats::new(&root.scope("http_inspector.")))
            }
            "envoy.extensions.filters.listener.original_dst.v3.OriginalDst"
            | "envoy.filters.listener.original_dst" => Self::OriginalDst,
            "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"
            | "envoy.filters.listener.proxy_protocol" => {
                let proto = config.map(any::unpack).transpose().at("typed_config")?;
                let filter = ProxyProtocolFilter::compile(&proto.unwrap_or_default(), root);
                Self::ProxyProtocol(Box::new(filter.at("typed_config")?))
            }
            other => {
                return Err(ConfigError::new(format!(
                    "Didn't find a registered implementation for '{name}' with type URL: '{other}'"
                )));
            }
        })
    }
}
