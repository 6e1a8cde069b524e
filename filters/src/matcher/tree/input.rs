//! What matchers look at.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};

use envoy_types::pb::envoy::extensions::matching::common_inputs::environment_variable::v3::Config as EnvironmentVariable;
use envoy_types::pb::envoy::extensions::matching::common_inputs::network::v3::{
    self as network, dynamic_metadata_input::path_segment::Segment,
};
use envoy_types::pb::envoy::r#type::matcher::v3::HttpRequestHeaderMatchInput;
use envoy_types::pb::google::protobuf::Any;
use smallvec::SmallVec;
use xds_client::any;
use xds_client::error::{At, ConfigError};

use super::Unknown;
use crate::cel::Attributes;
use crate::head::RequestHead;
use crate::matcher::header::HeaderRef;
use crate::matcher::metadata::lookup;
use crate::stream::{DynamicMetadata, FilterState, is_loopback};
use crate::tls::{CertificateFacts, TlsInfo};

/// Text that an input makes up: an address, a port, names that are joined. It rarely takes the heap.
type Made = SmallVec<[u8; 64]>;

/// Where a matcher stands, which decides what it can look at; as in Envoy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Choosing a filter chain for a connection.
    FilterChain,
    /// Judging a connection.
    Connection,
    /// Judging a request.
    Request,
}

/// What is known when something is matched. What is not known is left empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct MatchInput<'a> {
    /// Local address (after original_dst); `None` for a Unix socket.
    pub destination: Option<SocketAddr>,
    /// Peer, as far as it is trusted (after PROXY protocol, of a request after XFF); `None` for a Unix socket.
    pub source: Option<SocketAddr>,
    /// Peer of the socket itself.
    pub direct_source: Option<SocketAddr>,
    /// SNI in lower case; empty when there is none.
    pub server_name: &'a str,
    /// `tls`, `raw_buffer`, or empty when nothing detected it.
    pub transport_protocol: &'a str,
    /// Detected or offered application protocols, in the client's order.
    pub application_protocols: &'a [&'a str],
    /// What TLS found out.
    pub tls: Option<&'a TlsInfo>,
    /// The request.
    pub head: Option<&'a RequestHead>,
    /// Dynamic metadata.
    pub metadata: Option<&'a DynamicMetadata>,
    /// Filter state.
    pub filter_state: Option<&'a FilterState>,
    /// What conditions ask about.
    pub attributes: Option<Attributes<'a>>,
}

impl MatchInput<'_> {
    /// Same IP on both ends, loopback, or a Unix socket.
    pub fn is_local(&self) -> bool {
        match (self.source, self.destination) {
            (Some(source), Some(destination)) => {
                let source = source.ip().to_canonical();
                is_loopback(source) || source == destination.ip().to_canonical()
            }
            _ => true,
        }
    }
}

/// One thing to look at.
#[derive(Debug)]
pub(super) enum Input {
    DestinationIp,
    DestinationPort,
    SourceIp,
    SourcePort,
    DirectSourceIp,
    SourceType,
    ServerName,
    TransportProtocol,
    ApplicationProtocol,
    /// An object, or a field of one that has fields.
    FilterState {
        key: Box<str>,
        field: Box<str>,
    },
    UriSan,
    DnsSan,
    Subject,
    RequestHeader(HeaderRef),
    Metadata {
        namespace: Box<str>,
        path: Vec<Box<str>>,
    },
    /// Everything, for conditions.
    Attributes,
    /// A variable of the environment, as it was when the configuration came.
    Environment(Option<Box<[u8]>>),
}

/// What an input says.
pub(super) enum Value<'a> {
    Missing,
    Text(&'a [u8]),
    Made(Made),
    Ip(IpAddr),
    Attributes(Attributes<'a>),
    /// Of dynamic metadata; `None` if there is none at the path.
    Metadata(Option<&'a serde_json::Value>),
}

impl<'a> Value<'a> {
    fn text(text: &'a str) -> Self {
        match text {
            "" => Self::Missing,
            text => Self::Text(text.as_bytes()),
        }
    }

    fn ip_of(address: Option<SocketAddr>) -> Self {
        address.map_or(Self::Missing, |a| Self::Ip(a.ip().to_canonical()))
    }

    fn port_of(address: Option<SocketAddr>) -> Self {
        address.map_or(Self::Missing, |a| Self::Made(made(a.port())))
    }

    /// What `f` makes of it as text; `None` if it is missing, or no text.
    pub(super) fn with_text<R>(&self, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
        match self {
            Self::Missing | Self::Metadata(_) | Self::Attributes(_) => None,
            Self::Text(text) => Some(f(text)),
            Self::Made(text) => Some(f(text)),
            Self::Ip(ip) => Some(f(&made(ip))),
        }
    }

    /// It as an address.
    pub(super) fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(ip) => Some(*ip),
            other => other.with_text(|text| std::str::from_utf8(text).ok()?.parse().ok())?,
        }
    }
}

fn made(value: impl fmt::Display) -> Made {
    struct Writer(Made);
    impl fmt::Write for Writer {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.extend_from_slice(text.as_bytes());
            Ok(())
        }
    }
    let mut writer = Writer(Made::new());
    // Writing to memory cannot fail.
    let _ = write!(writer, "{value}");
    writer.0
}

/// The names joined, each between `quote`s if there is one.
fn joined<'a>(names: impl Iterator<Item = &'a str>, quote: &str) -> Value<'a> {
    let mut text = Made::new();
    for name in names {
        if !text.is_empty() {
            text.push(b',');
        }
        for part in [quote, name, quote] {
            text.extend_from_slice(part.as_bytes());
        }
    }
    if text.is_empty() {
        return Value::Missing;
    }
    Value::Made(text)
}

impl Input {
    /// Compiles an input.
    ///
    /// # Errors
    /// One that is unknown, or that knows nothing at `place`.
    pub(super) fn compile(config: &Any, place: Place) -> Result<Self, ConfigError> {
        let name = any::inner_type_name(config)?;
        let (kind, short) = name.rsplit_once('.').unwrap_or(("", &name));
        let (chain, request) = (place == Place::FilterChain, place == Place::Request);
        let input = match (kind, short) {
            ("envoy.extensions.matching.common_inputs.network.v3", short) => match short {
                "DestinationIPInput" => Self::DestinationIp,
                "DestinationPortInput" => Self::DestinationPort,
                "SourceIPInput" => Self::SourceIp,
                "SourcePortInput" => Self::SourcePort,
                "DirectSourceIPInput" => Self::DirectSourceIp,
                "ServerNameInput" => Self::ServerName,
                "FilterStateInput" => Self::filter_state(&any::unpack(config)?)?,
                "SourceTypeInput" if chain => Self::SourceType,
                "TransportProtocolInput" if chain => Self::TransportProtocol,
                "ApplicationProtocolInput" if chain => Self::ApplicationProtocol,
                "DynamicMetadataInput" if request => Self::metadata(&any::unpack(config)?)?,
                _ => return Err(unsupported(&name)),
            },
            ("envoy.extensions.matching.common_inputs.ssl.v3", "UriSanInput") => Self::UriSan,
            ("envoy.extensions.matching.common_inputs.ssl.v3", "DnsSanInput") => Self::DnsSan,
            ("envoy.extensions.matching.common_inputs.ssl.v3", "SubjectInput") => Self::Subject,
            ("envoy.extensions.matching.common_inputs.environment_variable.v3", "Config") => {
                let config: EnvironmentVariable = any::unpack(config)?;
                let value = std::env::var_os(&config.name);
                Self::Environment(value.map(|v| v.into_encoded_bytes().into()))
            }
            ("envoy.type.matcher.v3", "HttpRequestHeaderMatchInput") if request => {
                let config: HttpRequestHeaderMatchInput = any::unpack(config)?;
                Self::RequestHeader(HeaderRef::parse(&config.header_name).at("header_name")?)
            }
            ("xds.type.matcher.v3", "HttpAttributesCelMatchInput") if request => Self::Attributes,
            _ => return Err(unsupported(&name)),
        };
        Ok(input)
    }

    fn filter_state(config: &network::FilterStateInput) -> Result<Self, ConfigError> {
        match config.key.as_str() {
            "" => Err(ConfigError::new("must not be empty").at("key")),
            key => Ok(Self::FilterState {
                key: key.into(),
                field: config.field.as_str().into(),
            }),
        }
    }

    fn metadata(config: &network::DynamicMetadataInput) -> Result<Self, ConfigError> {
        let key = |segment: &network::dynamic_metadata_input::PathSegment| match &segment.segment {
            Some(Segment::Key(key)) => Ok(key.as_str().into()),
            None => Err(ConfigError::new("key is required").at("path")),
        };
        if config.path.is_empty() {
            return Err(ConfigError::new("must not be empty").at("path"));
        }
        Ok(Self::Metadata {
            namespace: config.filter.as_str().into(),
            path: config.path.iter().map(key).collect::<Result<_, _>>()?,
        })
    }

    /// What it says about `known`.
    pub(super) fn value<'a>(&'a self, known: &MatchInput<'a>) -> Result<Value<'a>, Unknown> {
        // Of a peer without a certificate nothing is known to be true; without TLS nothing is known.
        let names = |of: fn(&CertificateFacts) -> &[String]| {
            let tls = known.tls.ok_or(Unknown)?;
            let names = tls.peer.as_ref().map_or(&[][..], |peer| of(&peer.facts));
            Ok(joined(names.iter().map(String::as_str), ""))
        };
        Ok(match self {
            Self::DestinationIp => Value::ip_of(known.destination),
            Self::DestinationPort => Value::port_of(known.destination),
            Self::SourceIp => Value::ip_of(known.source),
            Self::SourcePort => Value::port_of(known.source),
            Self::DirectSourceIp => Value::ip_of(known.direct_source),
            Self::SourceType if known.is_local() => Value::Text(b"local"),
            Self::SourceType => Value::Missing,
            Self::ServerName => Value::text(known.server_name),
            Self::TransportProtocol => Value::text(known.transport_protocol),
            Self::ApplicationProtocol => joined(known.application_protocols.iter().copied(), "'"),
            Self::FilterState { key, field } => known
                .filter_state
                .and_then(|state| state.get(key)?.part(field))
                .map_or(Value::Missing, |text| match text {
                    Cow::Borrowed(text) => Value::Text(text.as_bytes()),
                    Cow::Owned(text) => Value::Made(text.into_bytes().into()),
                }),
            Self::UriSan => names(|facts| &facts.uri_sans)?,
            Self::DnsSan => names(|facts| &facts.dns_sans)?,
            Self::Subject => names(|facts| std::slice::from_ref(&facts.subject))?,
            Self::RequestHeader(header) => known
                .head
                .and_then(|head| header.in_request(head))
                .map_or(Value::Missing, |text| match text {
                    Cow::Borrowed(text) => Value::Text(text),
                    Cow::Owned(text) => Value::Made(text.into()),
                }),
            Self::Metadata { namespace, path } => Value::Metadata(
                known
                    .metadata
                    .and_then(|metadata| metadata.get(&**namespace))
                    .and_then(|object| lookup(object, path)),
            ),
            Self::Attributes => known.attributes.map_or(Value::Missing, Value::Attributes),
            Self::Environment(value) => value.as_deref().map_or(Value::Missing, Value::Text),
        })
    }
}

fn unsupported(name: &str) -> ConfigError {
    ConfigError::new(format!("{name} is not supported here"))
}
