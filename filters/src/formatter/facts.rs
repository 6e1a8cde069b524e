//! Operators without an argument that print one fact of the stream or its connection.

use std::borrow::Cow;

use super::FormatContext;
use super::address::without_port;
use crate::head::{RequestHead, ResponseHead};
use crate::stream::{Address, UpstreamInfo};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fact {
    Protocol,
    ResponseCode,
    FlagsShort,
    FlagsLong,
    BytesReceived,
    BytesSent,
    RequestHeaderBytes,
    ResponseHeaderBytes,
    TrailerBytes,
    /// What only QUIC counts.
    Zero,
    UpstreamCluster,
    UpstreamClusterRaw,
    UpstreamProtocol,
    UpstreamAttempts,
    UpstreamFailure,
    UpstreamHostName,
    UpstreamHostNameWithoutPort,
    HostsAttempted,
    HostsAttemptedWithoutPort,
    HostNamesAttempted,
    HostNamesAttemptedWithoutPort,
    UpstreamConnection,
    UpstreamConnectionsAttempted,
    UpstreamCloseType,
    DownstreamCloseType,
    Ja4,
    RouteName,
    FilterChain,
    ConnectionId,
    StreamId,
    UniqueId,
    LocalReply,
    DownstreamFailure,
    Termination,
    LogType,
    CustomFlags,
    /// What nothing here ever knows: traces, virtual clusters, JA3, TLS session ids, reasons of closing.
    Nothing,
}

impl Fact {
    /// The fact that an operator prints.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "PROTOCOL" => Self::Protocol,
            "RESPONSE_CODE" => Self::ResponseCode,
            "RESPONSE_FLAGS" => Self::FlagsShort,
            "RESPONSE_FLAGS_LONG" => Self::FlagsLong,
            "BYTES_RECEIVED" => Self::BytesReceived,
            "BYTES_SENT" => Self::BytesSent,
            "REQUEST_HEADERS_BYTES" => Self::RequestHeaderBytes,
            "RESPONSE_HEADERS_BYTES" => Self::ResponseHeaderBytes,
            "RESPONSE_TRAILERS_BYTES" => Self::TrailerBytes,
            "BYTES_RETRANSMITTED" | "PACKETS_RETRANSMITTED" => Self::Zero,
            "UPSTREAM_CLUSTER" => Self::UpstreamCluster,
            "UPSTREAM_CLUSTER_RAW" => Self::UpstreamClusterRaw,
            "UPSTREAM_PROTOCOL" => Self::UpstreamProtocol,
            "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Self::UpstreamAttempts,
            "UPSTREAM_TRANSPORT_FAILURE_REASON" => Self::UpstreamFailure,
            "UPSTREAM_HOST_NAME" => Self::UpstreamHostName,
            "UPSTREAM_HOST_NAME_WITHOUT_PORT" => Self::UpstreamHostNameWithoutPort,
            "UPSTREAM_HOSTS_ATTEMPTED" => Self::HostsAttempted,
            "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT" => Self::HostsAttemptedWithoutPort,
            "UPSTREAM_HOST_NAMES_ATTEMPTED" => Self::HostNamesAttempted,
            "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT" => Self::HostNamesAttemptedWithoutPort,
            "UPSTREAM_CONNECTION_ID" => Self::UpstreamConnection,
            "UPSTREAM_CONNECTION_IDS_ATTEMPTED" => Self::UpstreamConnectionsAttempted,
            "UPSTREAM_DETECTED_CLOSE_TYPE" => Self::UpstreamCloseType,
            "DOWNSTREAM_DETECTED_CLOSE_TYPE" => Self::DownstreamCloseType,
            "TLS_JA4_FINGERPRINT" => Self::Ja4,
            "ROUTE_NAME" => Self::RouteName,
            "FILTER_CHAIN_NAME" => Self::FilterChain,
            "CONNECTION_ID" => Self::ConnectionId,
            "STREAM_ID" => Self::StreamId,
            "UNIQUE_ID" => Self::UniqueId,
            "LOCAL_REPLY_BODY" => Self::LocalReply,
            "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => Self::DownstreamFailure,
            "CONNECTION_TERMINATION_DETAILS" => Self::Termination,
            "ACCESS_LOG_TYPE" => Self::LogType,
            "CUSTOM_FLAGS" => Self::CustomFlags,
            "TLS_JA3_FINGERPRINT"
            | "VIRTUAL_CLUSTER_NAME"
            | "TRACE_ID"
            | "SPAN_ID"
            | "DOWNSTREAM_TLS_SESSION_ID"
            | "UPSTREAM_TLS_SESSION_ID"
            | "UPSTREAM_LOCAL_CLOSE_REASON"
            | "DOWNSTREAM_LOCAL_CLOSE_REASON" => Self::Nothing,
            _ => return None,
        })
    }

    /// Whether JSON logs print the value as a number.
    pub(super) fn is_number(self) -> bool {
        matches!(
            self,
            Self::ResponseCode
                | Self::BytesReceived
                | Self::BytesSent
                | Self::RequestHeaderBytes
                | Self::ResponseHeaderBytes
                | Self::TrailerBytes
                | Self::Zero
                | Self::UpstreamAttempts
                | Self::UpstreamConnection
                | Self::ConnectionId
        )
    }

    pub(super) fn value<'a>(self, cx: &FormatContext<'a>) -> Option<Cow<'a, [u8]>> {
        let info = cx.info;
        let upstream = &info.upstream;
        let text = |s: &'a str| (!s.is_empty()).then_some(Cow::Borrowed(s.as_bytes()));
        match self {
            Self::Protocol => text(info.protocol?.as_str()),
            Self::ResponseCode => owned(info.response_code.unwrap_or(0).to_string()),
            Self::FlagsShort => owned(info.flags.short()),
            Self::FlagsLong => owned(info.flags.long()),
            Self::BytesReceived => owned(info.bytes_received.to_string()),
            Self::BytesSent => owned(info.bytes_sent.to_string()),
            Self::RequestHeaderBytes => {
                owned(cx.request.map_or(0, RequestHead::byte_size).to_string())
            }
            Self::ResponseHeaderBytes => {
                owned(cx.response.map_or(0, ResponseHead::byte_size).to_string())
            }
            Self::TrailerBytes => owned(cx.trailers.map_or(0, crate::head::byte_size).to_string()),
            Self::Zero => Some(Cow::Borrowed(b"0")),
            Self::UpstreamCluster => {
                let observed = upstream.cluster_stat_name.as_ref();
                text(observed.or(upstream.cluster.as_ref())?)
            }
            Self::UpstreamClusterRaw => text(upstream.cluster.as_deref()?),
            Self::UpstreamProtocol => text(upstream.protocol?.as_str()),
            Self::UpstreamAttempts => owned(upstream.attempts.to_string()),
            Self::UpstreamFailure => without_spaces(upstream.transport_failure.as_deref()?),
            Self::DownstreamFailure => {
                let notes = info.connection.notes.as_ref()?.borrow();
                without_spaces(notes.transport_failure.as_ref()?)
            }
            Self::UpstreamHostName => owned(name(upstream.host.as_ref()?, &upstream.host_name)),
            Self::UpstreamHostNameWithoutPort => {
                owned(bare_name(upstream.host.as_ref()?, &upstream.host_name))
            }
            Self::HostsAttempted => attempted(upstream, |address, _| address.to_string()),
            Self::HostsAttemptedWithoutPort => {
                attempted(upstream, |address, _| without_port(address))
            }
            Self::HostNamesAttempted => attempted(upstream, name),
            Self::HostNamesAttemptedWithoutPort => attempted(upstream, bare_name),
            Self::UpstreamConnection => owned(upstream.connection.unwrap_or(0).to_string()),
            Self::UpstreamConnectionsAttempted => {
                let earlier = upstream.earlier.iter().map(|a| a.connection);
                listed(earlier.chain(upstream.connection).map(|id| id.to_string()))
            }
            Self::UpstreamCloseType => {
                upstream.host.as_ref()?;
                text(upstream.close.as_str())
            }
            Self::DownstreamCloseType => text(info.close.as_str()),
            Self::Ja4 => text(info.connection.ja4.as_deref()?),
            Self::RouteName => text(info.route.as_ref()?.name()),
            Self::FilterChain => text(&info.connection.filter_chain),
            Self::ConnectionId => owned(info.connection.id.to_string()),
            Self::StreamId => info.id(cx.request).map(Cow::Borrowed),
            Self::UniqueId => owned(crate::stream::unique_id()),
            Self::LogType => text(info.log_type.name_and_number().0),
            Self::LocalReply => Some(Cow::Borrowed(cx.local_reply.unwrap_or_default())),
            Self::CustomFlags => Some(Cow::Borrowed(b"")),
            Self::Nothing => None,
            // Connections have these, and HTTP streams have not.
            Self::Termination if info.protocol.is_some() => None,
            Self::Termination => {
                let notes = info.connection.notes.as_ref()?.borrow();
                owned(notes.termination_details.as_ref()?.to_string())
            }
        }
    }
}

pub(super) fn owned<'a>(text: String) -> Option<Cow<'a, [u8]>> {
    Some(Cow::Owned(text.into_bytes()))
}

/// Without spaces, so that it stays one column of a log.
pub(super) fn without_spaces<'a>(text: &str) -> Option<Cow<'a, [u8]>> {
    owned(text.replace(|c: char| c.is_ascii_whitespace(), "_"))
}

/// An endpoint's name, or its address.
fn name(address: &Address, name: &str) -> String {
    match name {
        "" => address.to_string(),
        name => name.to_owned(),
    }
}

/// The same without a port.
fn bare_name(address: &Address, name: &str) -> String {
    match (name, name.rsplit_once(':')) {
        ("", _) => without_port(address),
        (_, Some((host, port))) if port.bytes().all(|b| b.is_ascii_digit()) => host.to_owned(),
        _ => name.to_owned(),
    }
}

/// The endpoints that there were connections to.
fn attempted<'a>(
    upstream: &UpstreamInfo,
    form: fn(&Address, &str) -> String,
) -> Option<Cow<'a, [u8]>> {
    let earlier = upstream.earlier.iter().map(|a| form(&a.host, &a.host_name));
    let now = upstream
        .host
        .as_ref()
        .filter(|_| upstream.connection.is_some());
    listed(earlier.chain(now.map(|host| form(host, &upstream.host_name))))
}

fn listed<'a>(items: impl Iterator<Item = String>) -> Option<Cow<'a, [u8]>> {
    let all = items.collect::<Vec<_>>().join(",");
    owned(all).filter(|all| !all.is_empty())
}
