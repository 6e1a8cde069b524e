//! A listener's configuration, compiled: what is bound, looked at, matched and served.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use envoy_types::pb::envoy::config::listener::v3::{self as pb, Listener, ListenerFilter};
use filters::stream::ConnectionInfo;
use futures_util::future::LocalBoxFuture;
use pingora_core::protocols::Stream;
use std::rc::Rc;
use xds_client::error::{At, ConfigError};

use super::filter_chain_match::FilterChainIndex;
use super::socket::{BindAddress, SocketOptions};
use crate::http::service::ConnectionControl;
use crate::telemetry::http_log::AccessLog;

/// Serves the connections of one filter chain: transport socket, network filters.
pub trait FilterChainHandler: Send + Sync {
    /// Serves one connection to its end, on the worker that accepted it. `prefix` is what listener filters
    /// have read already; it comes before whatever `io` yields. Dropping the future closes the connection.
    fn serve(
        &self,
        io: Stream,
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
    /// What serves it. The same `Arc` across updates means the chain did not change.
    pub handler: Arc<dyn FilterChainHandler>,
    /// Its configuration, to tell whether an update changes it.
    source: pb::FilterChain,
}

/// A listener filter that looks at bytes, or nothing.
#[derive(Debug, Clone, Default)]
pub struct FilterSwitch {
    enabled: bool,
    disabled_on: Option<pb::ListenerFilterChainMatchPredicate>,
}

impl FilterSwitch {
    /// Whether the listener has the filter.
    pub fn is_present(&self) -> bool {
        self.enabled
    }

    /// Whether the filter runs for a connection to `port`.
    pub fn runs(&self, port: u16) -> bool {
        self.enabled && !self.disabled_on.as_ref().is_some_and(|p| matches(p, port))
    }
}

/// The listener filters that exist here. Their order does not matter: TLS is looked for first, and HTTP only
/// in what is not TLS.
#[derive(Debug, Clone, Default)]
pub struct ListenerFilters {
    /// `envoy.filters.listener.tls_inspector`
    pub tls_inspector: FilterSwitch,
    /// `envoy.filters.listener.http_inspector`
    pub http_inspector: FilterSwitch,
    /// `envoy.filters.listener.original_dst`, or `use_original_dst`
    pub original_dst: FilterSwitch,
}

/// A listener, compiled. Immutable.
pub struct CompiledListener {
    /// Its name.
    pub name: ByteString,
    /// Every address; the first is the main one. Empty for an internal listener, which has no socket.
    pub addresses: Vec<BindAddress>,
    /// Socket options.
    pub socket: SocketOptions,
    /// The chains, in order; the default chain is the last when there is one.
    pub chains: Vec<CompiledChain>,
    /// Chooses among them.
    pub index: FilterChainIndex,
    /// Position of the default chain.
    pub default_chain: Option<usize>,
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
    /// keep their handlers.
    ///
    /// # Errors
    /// The first thing wrong, by its path.
    pub fn compile(
        source: &Arc<Listener>,
        version: &str,
        previous: Option<&Self>,
        compiler: &dyn FilterChainCompiler,
    ) -> Result<Self, ConfigError> {
        if source.bind_to_port.as_ref().is_some_and(|v| !v.value) {
            return Err(ConfigError::unsupported("bind_to_port"));
        }
        let internal = matches!(
            source.listener_specifier,
            Some(pb::listener::ListenerSpecifier::InternalListener(_))
        );
        let mut compiled = Self {
            name: source.name.as_str().into(),
            addresses: Vec::new(),
            socket: socket_options(source)?,
            chains: Vec::new(),
            index: FilterChainIndex::default(),
            default_chain: None,
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
            inbound: source.traffic_direction == 1,
            stat_name: String::new(),
            access_logs: compiler.access_logs(source)?.into(),
            source: source.clone(),
            version: version.to_owned(),
        };
        if internal {
            compiled.stat_name = source.name.clone();
            return Ok(compiled);
        }
        compiled.addresses = addresses(source)?;
        let main = compiled
            .addresses
            .first()
            .map(ToString::to_string)
            .unwrap_or_default();
        compiled.stat_name = stat_name(source);
        compiled.filters = listener_filters(source)?;
        if source.filter_chains.is_empty() && source.default_filter_chain.is_none() {
            return Err(ConfigError::new(format!(
                "error adding listener '{main}': no filter chains specified"
            )));
        }
        compiled.index = FilterChainIndex::compile(
            &main,
            source
                .filter_chains
                .iter()
                .map(|c| (c.name.as_str(), c.filter_chain_match.as_ref())),
        )?;
        let same = previous.filter(|p| without_chains(&p.source) == without_chains(source));
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
            let kept = same.and_then(|p| {
                let old = p.chains.iter().find(|old| old.source == *chain)?;
                Some(old.handler.clone())
            });
            let handler = match kept {
                Some(handler) => handler,
                None => compile_chain(source, chain, compiler).at(path)?,
            };
            compiled.chains.push(CompiledChain {
                name: chain.name.as_str().into(),
                handler,
                source: chain.clone(),
            });
        }
        if source.default_filter_chain.is_some() {
            compiled.default_chain = compiled.chains.len().checked_sub(1);
        }
        Ok(compiled)
    }

    /// Whether a connection of this handler may go on under this configuration.
    pub fn has_handler(&self, handler: &Arc<dyn FilterChainHandler>) -> bool {
        self.chains.iter().any(|c| Arc::ptr_eq(&c.handler, handler))
    }

    /// Whether the sockets of `other` serve this configuration too.
    pub fn same_sockets(&self, other: &Self) -> bool {
        self.addresses == other.addresses && self.socket == other.socket
    }
}

/// The name of a listener in its stats: `stat_prefix`, or the main address with `_` for `:`. Empty if it has no
/// valid address.
pub fn stat_name(listener: &Listener) -> String {
    if !listener.stat_prefix.is_empty() {
        return listener.stat_prefix.clone();
    }
    let address = listener.address.as_ref().map(BindAddress::parse);
    match address {
        Some(Ok(address)) => address.to_string().replace(':', "_"),
        _ => String::new(),
    }
}

fn without_chains(listener: &Listener) -> Listener {
    Listener {
        filter_chains: Vec::new(),
        default_filter_chain: None,
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
    let on = |v: &Option<envoy_types::pb::google::protobuf::BoolValue>| {
        v.as_ref().is_some_and(|v| v.value)
    };
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
        keepalive: l.tcp_keepalive.is_some(),
    })
}

fn filters_timeout(l: &Listener) -> Result<Option<Duration>, ConfigError> {
    let Some(d) = &l.listener_filters_timeout else {
        return Ok(Some(Duration::from_secs(15)));
    };
    let bad = |_| ConfigError::new("negative duration").at("listener_filters_timeout");
    let seconds = u64::try_from(d.seconds).map_err(bad)?;
    let nanos = u32::try_from(d.nanos).map_err(bad)?;
    let timeout = Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanos.into()));
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

fn listener_filters(l: &Listener) -> Result<ListenerFilters, ConfigError> {
    let mut filters = ListenerFilters::default();
    filters.original_dst.enabled = l.use_original_dst.as_ref().is_some_and(|v| v.value);
    for (i, filter) in l.listener_filters.iter().enumerate() {
        add_filter(&mut filters, filter).at(format!("listener_filters[{i}]"))?;
    }
    Ok(filters)
}

fn add_filter(filters: &mut ListenerFilters, f: &ListenerFilter) -> Result<(), ConfigError> {
    let type_url = match &f.config_type {
        Some(pb::listener_filter::ConfigType::TypedConfig(any)) => any.type_url.as_str(),
        Some(pb::listener_filter::ConfigType::ConfigDiscovery(_)) => {
            return Err(ConfigError::unsupported("config_discovery"));
        }
        None => "",
    };
    // By type; by name only where there is no configuration, as old configurations write it.
    let kind = match type_url.rsplit_once('/') {
        Some((_, kind)) => kind,
        None => f.name.as_str(),
    };
    let switch = match kind {
        "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
        | "envoy.filters.listener.tls_inspector" => &mut filters.tls_inspector,
        "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector"
        | "envoy.filters.listener.http_inspector" => &mut filters.http_inspector,
        "envoy.extensions.filters.listener.original_dst.v3.OriginalDst"
        | "envoy.filters.listener.original_dst" => &mut filters.original_dst,
        other => {
            return Err(ConfigError::new(format!(
                "Didn't find a registered implementation for '{}' with type URL: '{other}'",
                f.name
            )));
        }
    };
    if let Some(predicate) = &f.filter_disabled {
        check_depth(predicate, 8).at("filter_disabled")?;
    }
    switch.enabled = true;
    switch.disabled_on.clone_from(&f.filter_disabled);
    Ok(())
}

/// Bounds the recursion of [`matches`].
fn check_depth(p: &pb::ListenerFilterChainMatchPredicate, left: usize) -> Result<(), ConfigError> {
    use pb::listener_filter_chain_match_predicate::Rule;
    let left = left
        .checked_sub(1)
        .ok_or_else(|| ConfigError::new("nested too deeply"))?;
    match &p.rule {
        Some(Rule::OrMatch(set) | Rule::AndMatch(set)) => {
            set.rules.iter().try_for_each(|r| check_depth(r, left))
        }
        Some(Rule::NotMatch(rule)) => check_depth(rule, left),
        Some(Rule::AnyMatch(_) | Rule::DestinationPortRange(_)) => Ok(()),
        None => Err(ConfigError::new("value is required").at("rule")),
    }
}

fn matches(p: &pb::ListenerFilterChainMatchPredicate, port: u16) -> bool {
    use pb::listener_filter_chain_match_predicate::Rule;
    match &p.rule {
        Some(Rule::OrMatch(set)) => set.rules.iter().any(|r| matches(r, port)),
        Some(Rule::AndMatch(set)) => set.rules.iter().all(|r| matches(r, port)),
        Some(Rule::NotMatch(rule)) => !matches(rule, port),
        Some(Rule::AnyMatch(any)) => *any,
        Some(Rule::DestinationPortRange(range)) => {
            (range.start..range.end).contains(&i32::from(port))
        }
        None => false,
    }
}
