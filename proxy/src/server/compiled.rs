//! A listener's configuration, compiled: what is bound, looked at, matched and served.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use envoy_types::pb::envoy::config::listener::v3::{self as pb, Listener};
use envoy_types::pb::google::protobuf::BoolValue;
use filters::metadata::ConfiguredMetadata;
use filters::stream::{Address, ConnectionInfo};
use futures_util::future::LocalBoxFuture;
use prost::Message;
use std::rc::Rc;
use xds_client::duration;
use xds_client::error::{At, ConfigError};

use super::filter_chain_matcher::FilterChainSelector;
use super::listener_filters::ListenerFilters;
use super::socket::{BindAddress, SocketOptions};
use super::socket_option::SocketOptionList;
use crate::http::service::ConnectionControl;
use crate::telemetry::http_log::AccessLog;
use crate::telemetry::stats::Scope;
use crate::transport::Incoming;

/// Serves the connections of one filter chain: transport socket, network filters.
pub trait FilterChainHandler: Send + Sync {
    /// Serves one connection to its end, on the worker that accepted it. `prefix` is what listener filters
    /// have read already; it comes before whatever `io` yields. Dropping the future closes the connection.
    fn serve(
        &self,
        io: Incoming,
        prefix: Bytes,
        info: Rc<ConnectionInfo>,
        control: ConnectionControl,
    ) -> LocalBoxFuture<'static, ()>;
}

/// Makes handlers from filter chains.
pub trait FilterChainCompiler: Send + Sync {
    /// Compiles one chain of `listener`, its transport socket included.
    ///
    /// # Errors
    /// What is wrong with the chain, by its path inside the chain.
    fn compile(
        &self,
        listener: &Listener,
        chain: &pb::FilterChain,
    ) -> Result<Arc<dyn FilterChainHandler>, ConfigError>;

    /// Compiles the logs of `listener` itself.
    ///
    /// # Errors
    /// What is wrong with a log, by its path inside the listener.
    fn access_logs(&self, listener: &Listener) -> Result<Vec<AccessLog>, ConfigError>;
}

/// A compiled chain.
pub struct CompiledChain {
    /// Its name; may be empty.
    pub name: ByteString,
    /// Its metadata.
    pub metadata: ConfiguredMetadata,
    /// What serves it. The same `Arc` across updates means the chain did not change.
    pub handler: Arc<dyn FilterChainHandler>,
    /// Its configuration, to tell whether an update changes it.
    source: pb::FilterChain,
}

/// A listener, compiled. Immutable.
pub struct CompiledListener {
    /// Its name.
    pub name: ByteString,
    /// Whether connections come from inside the process (`internal_listener`) and not from sockets.
    pub internal: bool,
    /// Every address; the first is the main one. Empty for an internal listener.
    pub addresses: Vec<BindAddress>,
    /// Whether it listens on them. If not, its connections are those that other listeners hand over.
    pub bind_to_port: bool,
    /// Hand connections over to the listener that owns their original destination.
    pub hand_over: bool,
    /// Socket options.
    pub socket: SocketOptions,
    /// The chains, in order; the default chain is the last when there is one.
    pub chains: Vec<CompiledChain>,
    /// Where their handlers are.
    handlers: HashSet<usize>,
    /// Chooses among them.
    pub selector: FilterChainSelector,
    /// Listener filters.
    pub filters: ListenerFilters,
    /// How long listener filters may take; `None` is for ever.
    pub filters_timeout: Option<Duration>,
    /// Go on with what is known when they take longer, instead of closing.
    pub continue_on_timeout: bool,
    /// Connections to take per readiness event before others get a turn.
    pub accepts_per_event: usize,
    /// Not counted against the process's connection limit.
    pub ignore_global_limit: bool,
    /// Its metadata.
    pub metadata: ConfiguredMetadata,
    /// `INBOUND` traffic, for `drain_listeners?inboundonly`.
    pub inbound: bool,
    /// `stat_prefix`, or the main address with `:` as `_`.
    pub stat_name: String,
    /// Told of connections that no chain takes.
    pub access_logs: Arc<[AccessLog]>,
    /// The configuration it came from.
    pub source: Arc<Listener>,
    /// Its version, as the control plane calls it.
    pub version: String,
}

impl CompiledListener {
    /// Compiles `source`. Chains that are equal in `previous`, and whose listener is otherwise unchanged,
    /// keep their handlers. `stats` is the scope of all stats.
    ///
    /// # Errors
    /// The first thing wrong, by its path.
    pub fn compile(
        source: &Arc<Listener>,
        version: &str,
        previous: Option<&Self>,
        compiler: &dyn FilterChainCompiler,
        stats: &Scope,
    ) -> Result<Self, ConfigError> {
        let internal = is_internal(source);
        let (addresses, main) = if internal {
            refuse_socket_options(source)?;
            (Vec::new(), internal_address(&source.name))
        } else {
            let all = addresses(source)?;
            let main = all.first().map(ToString::to_string);
            (all, main.unwrap_or_default())
        };
        let mut compiled = Self {
            name: source.name.as_str().into(),
            internal,
            addresses,
            bind_to_port: source.bind_to_port.as_ref().is_none_or(|v| v.value),
            hand_over: source.use_original_dst.as_ref().is_some_and(|v| v.value),
            socket: socket_options(source)?,
            chains: Vec::new(),
            handlers: HashSet::new(),
            selector: FilterChainSelector::compile(&main, source)?,
            filters: ListenerFilters::default(),
            filters_timeout: filters_timeout(source)?,
            continue_on_timeout: source.continue_on_listener_filters_timeout,
            accepts_per_event: match &source.max_connections_to_accept_per_socket_event {
                None => usize::MAX,
                Some(v) if v.value == 0 => {
                    return Err(ConfigError::new("value must be greater than 0")
                        .at("max_connections_to_accept_per_socket_event"));
                }
                Some(v) => usize::try_from(v.value).unwrap_or(usize::MAX),
            },
            ignore_global_limit: source.ignore_global_conn_limit,
            metadata: ConfiguredMetadata::compile(source.metadata.as_ref()),
            inbound: source.traffic_direction == 1,
            stat_name: String::new(),
            access_logs: compiler.access_logs(source)?.into(),
            source: source.clone(),
            version: version.to_owned(),
        };
        compiled.stat_name = stat_name(source);
        compiled.filters = ListenerFilters::compile(source, stats)?;
        if source.filter_chains.is_empty() && source.default_filter_chain.is_none() {
            return Err(ConfigError::new(format!(
                "error adding listener '{main}': no filter chains specified"
            )));
        }
        let same = previous.filter(|p| without_chains(&p.source) == without_chains(source));
        // By what tells chains apart: among thousands, each is found at once.
        let mut old: HashMap<_, Vec<&CompiledChain>> = HashMap::new();
        for chain in same.iter().flat_map(|p| &p.chains) {
            old.entry(told_apart(&chain.source))
                .or_default()
                .push(chain);
        }
        let named = source
            .filter_chains
            .iter()
            .enumerate()
            .map(|(i, c)| (format!("filter_chains[{i}]"), c));
        let default = source
            .default_filter_chain
            .iter()
            .map(|c| ("default_filter_chain".to_owned(), c));
        for (path, chain) in named.chain(default) {
            let alike = old.get(&told_apart(chain)).into_iter().flatten();
            let kept = alike
                .copied()
                .find(|old| old.source == *chain)
                .map(|old| old.handler.clone());
            let handler = match kept {
                Some(handler) => handler,
                None => compile_chain(source, chain, compiler).at(path)?,
            };
            compiled.handlers.insert(address_of(&handler));
            compiled.chains.push(CompiledChain {
                name: chain.name.as_str().into(),
                metadata: ConfiguredMetadata::compile(chain.metadata.as_ref()),
                handler,
                source: chain.clone(),
            });
        }
        Ok(compiled)
    }

    /// Whether a connection of this handler may go on under this configuration.
    pub fn has_handler(&self, handler: &Arc<dyn FilterChainHandler>) -> bool {
        self.handlers.contains(&address_of(handler))
    }

    /// Whether the sockets of `other` serve this configuration too.
    pub fn same_sockets(&self, other: &Self) -> bool {
        self.internal == other.internal
            && self.addresses == other.addresses
            && self.bind_to_port == other.bind_to_port
            && self.socket == other.socket
    }
}

fn is_internal(listener: &Listener) -> bool {
    use pb::listener::ListenerSpecifier::InternalListener;
    matches!(listener.listener_specifier, Some(InternalListener(_)))
}

/// The address of the internal listener called `name`.
pub fn internal_address(name: &str) -> String {
    Address::Internal(name.into(), "".into()).to_string()
}

/// What is said of sockets means nothing to a listener that has none, and Envoy refuses it.
fn refuse_socket_options(l: &Listener) -> Result<(), ConfigError> {
    let balance = l.connection_balance_config.as_ref();
    let on = |v: &Option<BoolValue>| v.as_ref().is_some_and(|v| v.value);
    let refused = [
        (l.address.is_some(), "address"),
        (!l.additional_addresses.is_empty(), "additional_addresses"),
        (
            balance.is_some_and(|b| b.balance_type.is_some()),
            "connection_balance_config",
        ),
        (l.enable_mptcp, "enable_mptcp"),
        (l.enable_reuse_port.is_some(), "enable_reuse_port"),
        (on(&l.freebind), "freebind"),
        (l.tcp_backlog_size.is_some(), "tcp_backlog_size"),
        (
            l.tcp_fast_open_queue_length.is_some(),
            "tcp_fast_open_queue_length",
        ),
        (on(&l.transparent), "transparent"),
        (!l.socket_options.is_empty(), "socket_options"),
        (l.tcp_keepalive.is_some(), "tcp_keepalive"),
    ];
    match refused.iter().find(|(set, _)| *set) {
        Some((_, field)) => Err(ConfigError::new("an internal listener has no socket").at(*field)),
        None => Ok(()),
    }
}

/// The name of a listener in its stats: `stat_prefix`, or the main address with `_` for `:`, or of an internal
/// listener its name. Empty if it has no valid address.
pub fn stat_name(listener: &Listener) -> String {
    if !listener.stat_prefix.is_empty() {
        return listener.stat_prefix.clone();
    }
    if is_internal(listener) {
        return format!("envoy_internal_{}", listener.name);
    }
    let address = listener.address.as_ref().map(BindAddress::parse);
    match address {
        Some(Ok(address)) => address.to_string().replace(':', "_"),
        _ => String::new(),
    }
}

/// Where a handler is. As long as a chain or a connection holds it, no other is there.
fn address_of(handler: &Arc<dyn FilterChainHandler>) -> usize {
    Arc::as_ptr(handler).cast::<()>().addr()
}

/// What few chains of a listener have in common: name and match.
fn told_apart(chain: &pb::FilterChain) -> (&str, Vec<u8>) {
    let matched = chain.filter_chain_match.as_ref();
    let matched = matched.map(Message::encode_to_vec).unwrap_or_default();
    (&chain.name, matched)
}

fn without_chains(listener: &Listener) -> Listener {
    Listener {
        filter_chains: Vec::new(),
        default_filter_chain: None,
        filter_chain_matcher: None,
        ..listener.clone()
    }
}

fn compile_chain(
    listener: &Listener,
    chain: &pb::FilterChain,
    compiler: &dyn FilterChainCompiler,
) -> Result<Arc<dyn FilterChainHandler>, ConfigError> {
    // Deprecated in the API, but it changes what is read first.
    #[allow(deprecated)]
    if chain.use_proxy_proto.as_ref().is_some_and(|v| v.value) {
        return Err(ConfigError::unsupported("use_proxy_proto"));
    }
    compiler.compile(listener, chain)
}

fn socket_options(l: &Listener) -> Result<SocketOptions, ConfigError> {
    let on = |v: &Option<BoolValue>| v.as_ref().is_some_and(|v| v.value);
    let backlog = match &l.tcp_backlog_size {
        // Envoy's default on Linux is what net.core.somaxconn holds; the kernel caps to that.
        None => i32::MAX,
        Some(v) => i32::try_from(v.value)
            .map_err(|_| ConfigError::new("out of range").at("tcp_backlog_size"))?,
    };
    Ok(SocketOptions {
        reuse_port: l.enable_reuse_port.as_ref().is_none_or(|v| v.value),
        backlog,
        freebind: on(&l.freebind),
        transparent: on(&l.transparent),
        more: SocketOptionList::compile(&l.socket_options, l.tcp_keepalive.as_ref())?,
    })
}

fn filters_timeout(l: &Listener) -> Result<Option<Duration>, ConfigError> {
    let timeout = l.listener_filters_timeout.as_ref();
    let timeout = duration::of_field(timeout, "listener_filters_timeout")?;
    let timeout = timeout.unwrap_or(Duration::from_secs(15));
    Ok((!timeout.is_zero()).then_some(timeout))
}

fn addresses(l: &Listener) -> Result<Vec<BindAddress>, ConfigError> {
    let main = l
        .address
        .as_ref()
        .ok_or_else(|| ConfigError::new("value is required").at("address"))?;
    let mut all = vec![BindAddress::parse(main).at("address")?];
    for (i, additional) in l.additional_addresses.iter().enumerate() {
        let path = format!("additional_addresses[{i}]");
        let address = additional.address.clone().unwrap_or_default();
        all.push(BindAddress::parse(&address).at("address").at(path)?);
    }
    Ok(all)
}
