//! Facts about one stream and its connection, as filters, matchers, formatters and logs read them.

use std::any::Any;
use std::borrow::Cow;
use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use bytestring::ByteString;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::envoy_internal_address::AddressNameSpecifier;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;

use crate::body::BodyError;
use crate::filter::LocalReply;
pub use crate::filter_state::{FilterObject, FilterState, SharedObjects, Sharing};
use crate::flags::ResponseFlags;
use crate::head::RequestHead;
use crate::http::alpn::AlpnOverride;
use crate::metadata::ConfiguredMetadata;
use crate::moments::{Moment, Moments};
use crate::tls::TlsInfo;

/// The HTTP version of a message exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
    /// HTTP/2
    Http2,
}

impl Protocol {
    /// As Envoy prints it: `HTTP/1.1`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// An address of a connection's end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// IP and port.
    Ip(SocketAddr),
    /// A Unix domain socket's path (empty for an unnamed peer).
    Pipe(Arc<str>),
    /// Envoy's internal address: a listener's name and an endpoint id.
    Internal(Arc<str>, Arc<str>),
}

/// Whether an address is this machine itself, as Envoy has it: one address of each family, not all of 127/8.
pub fn is_loopback(ip: IpAddr) -> bool {
    ip == IpAddr::V4(Ipv4Addr::LOCALHOST) || ip == IpAddr::V6(Ipv6Addr::LOCALHOST)
}

impl Address {
    /// As Envoy's messages have it.
    pub fn to_proto(&self) -> core::Address {
        use core::address::Address as Kind;
        let address = match self {
            Self::Ip(address) => Kind::SocketAddress(core::SocketAddress {
                address: address.ip().to_string(),
                port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
                ..core::SocketAddress::default()
            }),
            Self::Pipe(path) => Kind::Pipe(core::Pipe {
                path: path.to_string(),
                mode: 0,
            }),
            Self::Internal(name, id) => Kind::EnvoyInternalAddress(core::EnvoyInternalAddress {
                endpoint_id: id.to_string(),
                address_name_specifier: Some(AddressNameSpecifier::ServerListenerName(
                    name.to_string(),
                )),
            }),
        };
        core::Address {
            address: Some(address),
        }
    }

    /// The IP and port, if this is an IP address.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(addr) => Some(*addr),
            _ => None,
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            Self::Pipe(path) => f.write_str(path),
            Self::Internal(name, id) => write!(f, "envoy://{name}/{id}"),
        }
    }
}

/// What is known about a downstream connection once its filter chain has been chosen.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// Unique in the process.
    pub id: u64,
    /// The peer as the listener filters see it (after PROXY protocol).
    pub remote: Address,
    /// The peer of the socket itself.
    pub direct_remote: Address,
    /// Where the connection came in (after original_dst).
    pub local: Address,
    /// Whether a listener filter has found out `local`, which a socket's own address is not good for.
    pub local_restored: bool,
    /// Our end of the socket itself.
    pub direct_local: Address,
    /// SNI as a listener filter has read it, lower case.
    pub server_name: Option<ByteString>,
    /// Negotiated or detected application protocol.
    pub alpn: Option<ByteString>,
    /// JA4, the fingerprint of its ClientHello, if a listener filter was told to make it.
    pub ja4: Option<ByteString>,
    /// Whether the transport is encrypted (decides `x-forwarded-proto` and `:scheme`).
    pub secure: bool,
    /// What TLS found out, if this end of the connection speaks it.
    pub tls: Option<Rc<TlsInfo>>,
    /// The listener's name.
    pub listener: ByteString,
    /// The filter chain's name.
    pub filter_chain: ByteString,
    /// The listener's metadata.
    pub listener_metadata: ConfiguredMetadata,
    /// The filter chain's metadata.
    pub filter_chain_metadata: ConfiguredMetadata,
    /// The TLVs of a PROXY header that may be passed on to upstreams, type and value; `None` without a header.
    pub proxy_tlvs: Option<Rc<[(u8, Bytes)]>>,
    /// Filter state of the connection, if there is any.
    pub filter_state: Option<Rc<FilterState>>,
    /// What listener and network filters note about the connection, if there are any that do.
    pub notes: Option<Rc<RefCell<ConnectionNotes>>>,
}

/// Dynamic metadata: namespace to object.
pub type DynamicMetadata = BTreeMap<String, serde_json::Map<String, serde_json::Value>>;

/// What listener and network filters note about a connection while it lives. HTTP streams have facts of their own.
#[derive(Debug, Default)]
pub struct ConnectionNotes {
    /// Dynamic metadata of the connection.
    pub dynamic_metadata: DynamicMetadata,
    /// `%CONNECTION_TERMINATION_DETAILS%`: why it was closed from this side.
    pub termination_details: Option<Cow<'static, str>>,
    /// `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`: why its transport failed.
    pub transport_failure: Option<ByteString>,
    /// What TLS found out, also from a handshake that failed.
    pub tls: Option<Rc<TlsInfo>>,
    /// Response flags of the whole connection.
    pub flags: ResponseFlags,
    /// Bytes that were received and that a filter did not let through.
    pub refused_bytes: u64,
    /// Bytes from the client and to it, of a proxy of bytes.
    pub proxied_bytes: (u64, u64),
    /// Where a proxy of bytes took the connection.
    pub upstream: Option<UpstreamInfo>,
}

impl ConnectionInfo {
    /// Notes something, if anybody reads it.
    pub fn note(&self, note: impl FnOnce(&mut ConnectionNotes)) {
        if let Some(notes) = &self.notes {
            note(&mut notes.borrow_mut());
        }
    }
}

impl ConnectionNotes {
    /// Notes that begin with this metadata.
    pub fn with(dynamic_metadata: DynamicMetadata) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            dynamic_metadata,
            ..Self::default()
        }))
    }
}

/// A filter's name in the compiled configuration: interned, so that the request path compares numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FilterId(pub u32);

/// A filter's typed per-route configuration.
#[derive(Debug, Clone)]
pub enum RouteFilterConfig {
    /// The filter is off (`FilterConfig.disabled`).
    Disabled,
    /// The filter's own per-route object, of the type that its factory compiled.
    Config(Arc<dyn Any + Send + Sync>),
}

/// The chosen route as filters, formatters and logs see it. The router's route type implements it.
pub trait RouteView: std::fmt::Debug + Send + Sync {
    /// The route's name.
    fn name(&self) -> &str;
    /// The virtual host's name.
    fn virtual_host(&self) -> &str;
    /// The most specific per-route configuration of a filter (weighted cluster, route, virtual host,
    /// route configuration).
    fn filter_config(&self, filter: FilterId) -> Option<&RouteFilterConfig>;
    /// The route's metadata under a filter's name.
    fn metadata(&self, namespace: &str) -> Option<&serde_json::Value>;
    /// The virtual host's metadata under a filter's name.
    fn virtual_host_metadata(&self, _namespace: &str) -> Option<&serde_json::Value> {
        None
    }
}

/// At which moment a line is written into an access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AccessLogType {
    /// At the end of a connection, by its listener; or it is no line of a log.
    #[default]
    NotSet,
    /// The TCP proxy has its upstream connection.
    TcpUpstreamConnected,
    /// From time to time, by the TCP proxy.
    TcpPeriodic,
    /// The end of a connection of the TCP proxy.
    TcpConnectionEnd,
    /// The end of a request.
    DownstreamEnd,
    /// The beginning of a connection of the TCP proxy.
    TcpConnectionStart,
}

impl AccessLogType {
    /// Envoy's name and number (`envoy.data.accesslog.v3.AccessLogType`).
    pub fn name_and_number(self) -> (&'static str, i32) {
        match self {
            Self::NotSet => ("NotSet", 0),
            Self::TcpUpstreamConnected => ("TcpUpstreamConnected", 1),
            Self::TcpPeriodic => ("TcpPeriodic", 2),
            Self::TcpConnectionEnd => ("TcpConnectionEnd", 3),
            Self::DownstreamEnd => ("DownstreamEnd", 6),
            Self::TcpConnectionStart => ("TcpConnectionStart", 14),
        }
    }
}

impl AccessLogType {
    /// Whether nothing comes after it.
    pub fn is_end(self) -> bool {
        matches!(
            self,
            Self::TcpConnectionEnd | Self::DownstreamEnd | Self::NotSet
        )
    }
}

/// How a connection was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CloseType {
    /// In order, or not at all yet.
    #[default]
    Normal,
    /// The peer reset it.
    RemoteReset,
}

impl CloseType {
    /// Envoy's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::RemoteReset => "RemoteReset",
        }
    }
}

/// A new UUID.
pub(crate) fn unique_id() -> String {
    uuid::Uuid::new_v4().hyphenated().to_string()
}

/// A host that a request had a connection to, before another one was chosen.
#[derive(Debug, Clone)]
pub struct Attempted {
    /// Where it is.
    pub host: Address,
    /// Its name; may be empty.
    pub host_name: ByteString,
    /// The connection's number.
    pub connection: u64,
}

/// What the router noted about the upstream.
#[derive(Debug, Clone, Default)]
pub struct UpstreamInfo {
    /// The chosen host.
    pub host: Option<Address>,
    /// Its name; may be empty.
    pub host_name: ByteString,
    /// Its metadata.
    pub host_metadata: ConfiguredMetadata,
    /// The hosts that there were connections to before.
    pub earlier: Vec<Attempted>,
    /// The number of the connection to the host, once there is one.
    pub connection: Option<u64>,
    /// What it took to get it, or to learn that there is none.
    pub pool_ready: Option<Duration>,
    /// How it was closed.
    pub close: CloseType,
    /// The local end of the upstream connection.
    pub local: Option<Address>,
    /// What TLS found out of the upstream connection.
    pub tls: Option<Rc<TlsInfo>>,
    /// The cluster's name.
    pub cluster: Option<ByteString>,
    /// The name under which it is observed, if it is another one (`alt_stat_name`).
    pub cluster_stat_name: Option<ByteString>,
    /// The cluster's metadata.
    pub cluster_metadata: ConfiguredMetadata,
    /// The upstream protocol.
    pub protocol: Option<Protocol>,
    /// Attempts so far; 1 for the first.
    pub attempts: u32,
    /// Why the transport failed.
    pub transport_failure: Option<ByteString>,
}

/// Facts about one stream.
#[derive(Debug)]
pub struct StreamInfo {
    /// Its connection.
    pub connection: Rc<ConnectionInfo>,
    /// Its protocol; `None` if it is not HTTP.
    pub protocol: Option<Protocol>,
    /// When its first byte was read.
    pub start: Instant,
    /// The same on the wall clock.
    pub start_time: SystemTime,
    /// The client's address as far as it can be trusted (XFF), which `remote` matchers use.
    pub remote: Address,
    /// When what happened, as far as anybody wants to know.
    pub moments: Moments,
    /// Of a connection, once it was asked for.
    stream_id: OnceCell<String>,
    /// How the connection was closed.
    pub close: CloseType,
    /// The moment of the line that is written now.
    pub log_type: AccessLogType,
    /// Response flags.
    pub flags: ResponseFlags,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Option<Cow<'static, str>>,
    /// The response's status, once known.
    pub response_code: Option<u16>,
    /// Request body bytes so far.
    pub bytes_received: u64,
    /// Response body bytes so far.
    pub bytes_sent: u64,
    /// The chosen route.
    pub route: Option<Arc<dyn RouteView>>,
    /// The upstream.
    pub upstream: UpstreamInfo,
    /// The protocols that upstream TLS is to offer in place of its own.
    pub upstream_alpn: Option<Arc<AlpnOverride>>,
    /// Filter state.
    pub filter_state: FilterState,
    /// Dynamic metadata: namespace to object.
    pub dynamic_metadata: DynamicMetadata,
    /// A filter changed what the route was chosen by and wants it chosen again before the next filter
    /// runs (Envoy's `clearRouteCache`).
    pub route_stale: bool,
    /// When the whole request had been received, once it has.
    pub request_end: Option<Instant>,
    /// When a byte last moved, for idle timeouts.
    pub last_activity: Instant,
    /// Why the request's body ended early, if it did: there is nobody left to answer.
    pub request_error: Option<BodyError>,
    /// What to answer if a request body fails before the response begins: a filter's body sets it just
    /// before it ends with an error, and the connection manager takes it. Without it, a failed body is a
    /// reset.
    pub body_reply: Option<Box<LocalReply>>,
}

impl StreamInfo {
    /// The facts of a stream that begins now.
    pub fn new(connection: Rc<ConnectionInfo>, protocol: Protocol) -> Self {
        Self {
            protocol: Some(protocol),
            ..Self::for_connection(connection)
        }
    }

    /// Facts about a whole connection that is not HTTP. At its end [`take_notes`](Self::take_notes) adds what filters noted.
    pub fn for_connection(connection: Rc<ConnectionInfo>) -> Self {
        let start = Instant::now();
        Self {
            remote: connection.remote.clone(),
            filter_state: FilterState::on(connection.filter_state.clone()),
            connection,
            protocol: None,
            start,
            start_time: SystemTime::now(),
            moments: Moments::default(),
            stream_id: OnceCell::new(),
            close: CloseType::Normal,
            log_type: AccessLogType::NotSet,
            flags: ResponseFlags::default(),
            details: None,
            response_code: None,
            bytes_received: 0,
            bytes_sent: 0,
            route: None,
            upstream: UpstreamInfo::default(),
            upstream_alpn: None,
            dynamic_metadata: BTreeMap::new(),
            route_stale: false,
            request_end: None,
            last_activity: start,
            request_error: None,
            body_reply: None,
        }
    }

    /// Adds what is noted about the connection to these facts.
    pub fn take_notes(&mut self) {
        let Some(notes) = self.connection.notes.clone() else {
            return;
        };
        let notes = notes.borrow();
        self.dynamic_metadata = notes.dynamic_metadata.clone();
        self.bytes_received += notes.refused_bytes + notes.proxied_bytes.0;
        self.bytes_sent += notes.proxied_bytes.1;
        self.flags.insert(notes.flags);
        if let Some(upstream) = &notes.upstream {
            self.upstream.clone_from(upstream);
        }
        if let Some(tls) = notes.tls.as_ref().filter(|_| self.connection.tls.is_none()) {
            Rc::make_mut(&mut self.connection).tls = Some(tls.clone());
        }
    }

    /// `%STREAM_ID%`: a request's id, or one that a connection is given when it is first asked for.
    pub fn id<'a>(&'a self, request: Option<&'a RequestHead>) -> Option<&'a [u8]> {
        match self.protocol {
            Some(_) => Some(request?.headers.get("x-request-id")?.as_bytes()),
            None => Some(self.stream_id.get_or_init(unique_id).as_bytes()),
        }
    }

    /// Another attempt goes to this host.
    pub fn begin_attempt(
        &mut self,
        host: &Address,
        name: &ByteString,
        metadata: ConfiguredMetadata,
    ) {
        let upstream = &mut self.upstream;
        if let Some((host, connection)) = upstream.host.take().zip(upstream.connection.take()) {
            upstream.earlier.push(Attempted {
                host,
                host_name: upstream.host_name.clone(),
                connection,
            });
        }
        upstream.host = Some(host.clone());
        upstream.host_name.clone_from(name);
        upstream.host_metadata = metadata;
        upstream.transport_failure = None;
        upstream.local = None;
        upstream.tls = None;
        upstream.pool_ready = None;
        self.moments.forget_attempt();
    }

    /// The response's last byte has come from the upstream; `body`: after a body.
    pub fn received_upstream(&mut self, body: bool) {
        if body {
            self.moments.mark_first(Moment::UpstreamBodyBegin);
        }
        self.moments.mark(Moment::UpstreamReceiveEnd);
    }

    /// The request's last byte has gone to the upstream, or goes as soon as there is one.
    pub fn sent_upstream(&mut self) {
        let begun = self.moments.get(Moment::UpstreamSendBegin);
        let end = begun
            .zip(self.request_end)
            .map(|(begun, end)| begun.max(end));
        self.moments.set(Moment::UpstreamSendEnd, end);
    }

    /// Whether the whole request has been received.
    pub fn request_complete(&self) -> bool {
        self.request_end.is_some()
    }

    /// Notes that a byte moved.
    pub fn touch(&mut self) {
        self.last_activity = Instant::now();
    }
}
