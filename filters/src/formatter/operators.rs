//! The operators of format strings.

use std::borrow::Cow;

use xds_client::error::{At, ConfigError};

use super::FormatContext;
use super::time::{DEFAULT, TimeFormat};
use super::tls::TlsFact;
use crate::matcher::header::HeaderRef;
use crate::stream::{Address, FilterObject};

#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    Request,
    Response,
    Trailers,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    Whole,
    WithoutPort,
    Port,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Which {
    DownstreamRemote,
    DownstreamDirectRemote,
    DownstreamLocal,
    DownstreamDirectLocal,
    UpstreamHost,
    UpstreamLocal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fact {
    Protocol,
    ResponseCode,
    Details,
    FlagsShort,
    FlagsLong,
    BytesReceived,
    BytesSent,
    Duration,
    UpstreamCluster,
    UpstreamProtocol,
    UpstreamAttempts,
    UpstreamFailure,
    ServerName,
    Ja4,
    /// JA3, which no listener filter makes.
    Ja3,
    RouteName,
    VirtualHost,
    FilterChain,
    ConnectionId,
    LocalReply,
    DownstreamFailure,
    Termination,
    LogType,
}

/// A compiled operator.
#[derive(Debug, Clone)]
pub(super) enum Operator {
    Header(Side, HeaderRef, Option<HeaderRef>, bool),
    StartTime(TimeFormat),
    Address(Which, Part),
    Fact(Fact),
    Text(Option<Box<str>>),
    Dynamic(Box<str>, Vec<Box<str>>),
    RouteMetadata(Box<str>, Vec<Box<str>>),
    FilterState(Box<str>, bool),
    GrpcStatus,
    Tls(Box<TlsFact>),
}

impl Operator {
    pub(super) fn compile(name: &str, argument: Option<&str>) -> Result<Self, ConfigError> {
        let need = || {
            argument
                .filter(|a| !a.is_empty())
                .ok_or_else(|| ConfigError::new(format!("%{name}% needs an argument")))
        };
        let header = |side, no_query| -> Result<Self, ConfigError> {
            let argument = need()?;
            let (main, other) = argument
                .split_once('?')
                .map_or((argument, None), |(a, b)| (a, Some(b)));
            Ok(Self::Header(
                side,
                HeaderRef::parse(main).at(name)?,
                other.map(HeaderRef::parse).transpose().at(name)?,
                no_query,
            ))
        };
        let path = |text: &str| -> (Box<str>, Vec<Box<str>>) {
            let mut keys = text.split(':').map(Box::from);
            (keys.next().unwrap_or_default(), keys.collect())
        };
        let fact = match name {
            "PROTOCOL" => Fact::Protocol,
            "RESPONSE_CODE" => Fact::ResponseCode,
            "RESPONSE_CODE_DETAILS" => Fact::Details,
            "RESPONSE_FLAGS" => Fact::FlagsShort,
            "RESPONSE_FLAGS_LONG" => Fact::FlagsLong,
            "BYTES_RECEIVED" => Fact::BytesReceived,
            "BYTES_SENT" => Fact::BytesSent,
            "DURATION" => Fact::Duration,
            "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Fact::UpstreamCluster,
            "UPSTREAM_PROTOCOL" => Fact::UpstreamProtocol,
            "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Fact::UpstreamAttempts,
            "UPSTREAM_TRANSPORT_FAILURE_REASON" => Fact::UpstreamFailure,
            "REQUESTED_SERVER_NAME" => Fact::ServerName,
            "TLS_JA4_FINGERPRINT" => Fact::Ja4,
            "TLS_JA3_FINGERPRINT" => Fact::Ja3,
            "ROUTE_NAME" => Fact::RouteName,
            "VIRTUAL_HOST_NAME" => Fact::VirtualHost,
            "FILTER_CHAIN_NAME" => Fact::FilterChain,
            "CONNECTION_ID" => Fact::ConnectionId,
            "LOCAL_REPLY_BODY" => Fact::LocalReply,
            "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => Fact::DownstreamFailure,
            "CONNECTION_TERMINATION_DETAILS" => Fact::Termination,
            "ACCESS_LOG_TYPE" => Fact::LogType,
            _ => {
                return Ok(match name {
                    "REQ" => header(Side::Request, false)?,
                    "REQ_WITHOUT_QUERY" => header(Side::Request, true)?,
                    "RESP" => header(Side::Response, false)?,
                    "TRAILER" => header(Side::Trailers, false)?,
                    "START_TIME" => Self::StartTime(TimeFormat::compile(
                        argument.filter(|a| !a.is_empty()).unwrap_or(DEFAULT),
                    )?),
                    "DYNAMIC_METADATA" => {
                        let (ns, keys) = path(need()?);
                        Self::Dynamic(ns, keys)
                    }
                    "METADATA" => match need()?.split_once(':') {
                        Some(("DYNAMIC", rest)) => {
                            let (ns, keys) = path(rest);
                            Self::Dynamic(ns, keys)
                        }
                        Some(("ROUTE", rest)) => {
                            let (ns, keys) = path(rest);
                            Self::RouteMetadata(ns, keys)
                        }
                        _ => {
                            return Err(ConfigError::new(
                                "%METADATA% knows DYNAMIC and ROUTE only",
                            ));
                        }
                    },
                    "FILTER_STATE" => match need()?.split_once(':') {
                        Some((key, "PLAIN")) => Self::FilterState(key.into(), true),
                        Some((key, "TYPED")) => Self::FilterState(key.into(), false),
                        None => Self::FilterState(need()?.into(), false),
                        _ => {
                            return Err(ConfigError::new(
                                "%FILTER_STATE% knows PLAIN and TYPED only",
                            ));
                        }
                    },
                    "ENVIRONMENT" => Self::Text(std::env::var(need()?).ok().map(Into::into)),
                    "HOSTNAME" => Self::Text(
                        std::fs::read_to_string("/proc/sys/kernel/hostname")
                            .ok()
                            .map(|s| s.trim().into()),
                    ),
                    "GRPC_STATUS_NUMBER" => Self::GrpcStatus,
                    _ => match TlsFact::compile(name, argument)? {
                        Some(fact) => Self::Tls(Box::new(fact)),
                        None => return Self::address(name),
                    },
                });
            }
        };
        Ok(Self::Fact(fact))
    }

    fn address(name: &str) -> Result<Self, ConfigError> {
        let (base, part) = if let Some(base) = name.strip_suffix("_WITHOUT_PORT") {
            (base, Part::WithoutPort)
        } else if let Some(base) = name.strip_suffix("_PORT") {
            // DOWNSTREAM_REMOTE_PORT, but DOWNSTREAM_REMOTE_ADDRESS.
            return Self::which(&format!("{base}_ADDRESS"), name)
                .map(|w| Self::Address(w, Part::Port));
        } else {
            (name, Part::Whole)
        };
        Self::which(base, name).map(|w| Self::Address(w, part))
    }

    fn which(base: &str, name: &str) -> Result<Which, ConfigError> {
        Ok(match base {
            "DOWNSTREAM_REMOTE_ADDRESS" => Which::DownstreamRemote,
            "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Which::DownstreamDirectRemote,
            "DOWNSTREAM_LOCAL_ADDRESS" => Which::DownstreamLocal,
            "DOWNSTREAM_DIRECT_LOCAL_ADDRESS" => Which::DownstreamDirectLocal,
            "UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS" => Which::UpstreamHost,
            "UPSTREAM_LOCAL_ADDRESS" => Which::UpstreamLocal,
            _ => {
                return Err(ConfigError::new(format!(
                    "not supported in StreamInfo: %{name}%"
                )));
            }
        })
    }

    /// Whether JSON logs print the value as a number.
    pub(super) fn is_number(&self) -> bool {
        use Fact::{
            BytesReceived, BytesSent, ConnectionId, Duration, ResponseCode, UpstreamAttempts,
        };
        matches!(
            self,
            Self::GrpcStatus
                | Self::Address(_, Part::Port)
                | Self::Fact(
                    ResponseCode
                        | BytesReceived
                        | BytesSent
                        | Duration
                        | UpstreamAttempts
                        | ConnectionId
                )
        )
    }

    pub(super) fn value<'a>(&'a self, cx: &FormatContext<'a>) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Header(side, main, other, no_query) => {
                let read = |name: &HeaderRef| match side {
                    Side::Request => name.in_request(cx.request?),
                    Side::Response => name.in_response(cx.response?),
                    Side::Trailers => name.in_map(cx.trailers?),
                };
                let value = read(main).or_else(|| read(other.as_ref()?))?;
                match memchr::memchr(b'?', &value) {
                    Some(at) if *no_query => Some(match value {
                        Cow::Borrowed(v) => Cow::Borrowed(v.get(..at)?),
                        Cow::Owned(mut v) => {
                            v.truncate(at);
                            Cow::Owned(v)
                        }
                    }),
                    _ => Some(value),
                }
            }
            Self::StartTime(format) => owned(format.format(cx.info.start_time)),
            Self::Address(which, part) => {
                let info = cx.info;
                let address = match which {
                    Which::DownstreamRemote => &info.remote,
                    Which::DownstreamDirectRemote => &info.connection.direct_remote,
                    Which::DownstreamLocal => &info.connection.local,
                    Which::DownstreamDirectLocal => &info.connection.direct_local,
                    Which::UpstreamHost => info.upstream.host.as_ref()?,
                    Which::UpstreamLocal => info.upstream.local.as_ref()?,
                };
                match (part, address) {
                    (Part::WithoutPort, Address::Ip(ip)) => owned(ip.ip().to_string()),
                    (Part::Port, Address::Ip(ip)) => owned(ip.port().to_string()),
                    (Part::Port, _) => None,
                    _ => owned(address.to_string()),
                }
            }
            Self::Fact(fact) => fact.value(cx),
            Self::Tls(fact) => fact.value(cx.info),
            Self::Text(text) => text.as_deref().map(|t| Cow::Borrowed(t.as_bytes())),
            Self::Dynamic(ns, keys) => {
                let object = cx.info.dynamic_metadata.get(&**ns)?;
                if keys.is_empty() {
                    return serde_json::to_vec(object).ok().map(Cow::Owned);
                }
                json(crate::matcher::metadata::lookup(object, keys)?)
            }
            Self::RouteMetadata(ns, keys) => {
                let object = cx.info.route.as_ref()?.metadata(ns)?;
                json(keys.iter().try_fold(object, |v, k| v.get(&**k))?)
            }
            Self::FilterState(key, plain) => match cx.info.filter_state.get(key)? {
                FilterObject::Text(text) if *plain => Some(Cow::Borrowed(text.as_bytes())),
                FilterObject::Text(text) => serde_json::to_vec(&**text).ok().map(Cow::Owned),
                FilterObject::Address(address) if *plain => owned(address.to_string()),
                FilterObject::Name(name) if *plain => Some(Cow::Borrowed(name.as_bytes())),
                FilterObject::Flag(flag) => owned(flag.to_string()),
                FilterObject::Number(number) if *plain => owned(number.to_string()),
                FilterObject::Number(number) => owned(format!("\"{number}\"")),
                _ => None,
            },
            Self::GrpcStatus => {
                let name = http::HeaderName::from_static("grpc-status");
                let value = cx.trailers.and_then(|t| t.get(&name));
                let value = value.or_else(|| cx.response?.headers.get(&name))?;
                Some(Cow::Borrowed(value.as_bytes()))
            }
        }
    }
}

impl Fact {
    fn value<'a>(self, cx: &FormatContext<'a>) -> Option<Cow<'a, [u8]>> {
        let info = cx.info;
        let text = |s: &'a str| (!s.is_empty()).then_some(Cow::Borrowed(s.as_bytes()));
        match self {
            Self::Protocol => text(info.protocol?.as_str()),
            Self::ResponseCode => owned(info.response_code.unwrap_or(0).to_string()),
            Self::Details => text(info.details.as_deref()?),
            Self::FlagsShort => owned(info.flags.short()),
            Self::FlagsLong => owned(info.flags.long()),
            Self::BytesReceived => owned(info.bytes_received.to_string()),
            Self::BytesSent => owned(info.bytes_sent.to_string()),
            Self::Duration => owned(info.start.elapsed().as_millis().to_string()),
            Self::UpstreamCluster => text(info.upstream.cluster.as_deref()?),
            Self::UpstreamProtocol => text(info.upstream.protocol?.as_str()),
            Self::UpstreamAttempts => owned(info.upstream.attempts.to_string()),
            // No spaces, so that it stays one column of a log.
            Self::UpstreamFailure => owned(
                info.upstream
                    .transport_failure
                    .as_deref()?
                    .replace(' ', "_"),
            ),
            Self::DownstreamFailure => {
                let notes = info.connection.notes.as_ref()?.borrow();
                owned(notes.transport_failure.as_ref()?.replace(' ', "_"))
            }
            Self::ServerName => text(info.connection.server_name.as_deref()?),
            Self::Ja4 => text(info.connection.ja4.as_deref()?),
            Self::Ja3 => None,
            Self::RouteName => text(info.route.as_ref()?.name()),
            Self::VirtualHost => text(info.route.as_ref()?.virtual_host()),
            Self::FilterChain => text(&info.connection.filter_chain),
            Self::ConnectionId => owned(info.connection.id.to_string()),
            Self::LogType => text(info.log_type.name_and_number().0),
            Self::LocalReply => cx.local_reply.map(Cow::Borrowed),
            // Connections have these, and HTTP streams have not.
            Self::Termination if info.protocol.is_some() => None,
            Self::Termination => {
                let notes = info.connection.notes.as_ref()?.borrow();
                owned(notes.termination_details.as_ref()?.to_string())
            }
        }
    }
}

fn owned<'a>(text: String) -> Option<Cow<'a, [u8]>> {
    Some(Cow::Owned(text.into_bytes()))
}

/// A string bare, anything else as JSON, as Envoy prints metadata.
fn json(value: &serde_json::Value) -> Option<Cow<'_, [u8]>> {
    match value {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(Cow::Borrowed(text.as_bytes())),
        other => serde_json::to_vec(other).ok().map(Cow::Owned),
    }
}
