//! What an entry says of a stream.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use envoy_types::pb::envoy::config::core::v3::{Metadata, RequestMethod};
use envoy_types::pb::envoy::data::accesslog::v3 as pb;
use envoy_types::pb::envoy::data::accesslog::v3::http_access_log_entry::HttpVersion;
use envoy_types::pb::envoy::data::accesslog::v3::response_flags::{Unauthorized, unauthorized};
use envoy_types::pb::envoy::data::accesslog::v3::tls_properties::certificate_properties::{
    SubjectAltName, subject_alt_name::San,
};
use envoy_types::pb::envoy::data::accesslog::v3::tls_properties::{
    CertificateProperties, TlsVersion,
};
use envoy_types::pb::google::protobuf as wkt;
use filters::flags::ResponseFlags;
use filters::formatter::FormatContext;
use filters::head::ResponseHead;
use filters::matcher::header::HeaderRef;
use filters::matcher::metadata::json_to_struct;
use filters::moments::Moment;
use filters::stream::{Address, Protocol, StreamInfo};
use filters::tls::{CertificateFacts, TlsInfo};
use prost::Message;
use xds_client::any::pack;

use super::Contents;

/// An entry of either kind.
pub(super) enum Entry {
    Http(Box<pb::HttpAccessLogEntry>),
    Tcp(Box<pb::TcpAccessLogEntry>),
}

impl Entry {
    /// How much of a message it is.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Http(entry) => entry.encoded_len(),
            Self::Tcp(entry) => entry.encoded_len(),
        }
    }
}

impl Contents {
    pub(super) fn tcp_entry(&self, context: &FormatContext<'_>) -> pb::TcpAccessLogEntry {
        pb::TcpAccessLogEntry {
            common_properties: Some(self.common(context)),
            connection_properties: Some(pb::ConnectionProperties {
                received_bytes: context.info.bytes_received,
                sent_bytes: context.info.bytes_sent,
            }),
        }
    }

    pub(super) fn http_entry(&self, context: &FormatContext<'_>) -> pb::HttpAccessLogEntry {
        let version = match context.info.protocol {
            None => HttpVersion::ProtocolUnspecified,
            Some(Protocol::Http10) => HttpVersion::Http10,
            Some(Protocol::Http11) => HttpVersion::Http11,
            Some(Protocol::Http2) => HttpVersion::Http2,
        };
        pb::HttpAccessLogEntry {
            common_properties: Some(self.common(context)),
            protocol_version: version.into(),
            request: Some(self.request(context)),
            response: Some(self.response(context)),
        }
    }

    fn request(&self, context: &FormatContext<'_>) -> pb::HttpRequestProperties {
        let body = context.info.bytes_received;
        let Some(head) = context.request else {
            return pb::HttpRequestProperties {
                request_body_bytes: body,
                ..Default::default()
            };
        };
        let header = |name: &str| {
            let value = head.headers.get(name);
            value.map_or_else(String::new, |value| text(value.as_bytes()))
        };
        pb::HttpRequestProperties {
            request_method: RequestMethod::from_str_name(head.method.as_str())
                .unwrap_or_default()
                .into(),
            scheme: head.scheme.to_string(),
            authority: head.authority.to_string(),
            path: head.path.to_string(),
            user_agent: header("user-agent"),
            referer: header("referer"),
            forwarded_for: header("x-forwarded-for"),
            request_id: header("x-request-id"),
            original_path: header("x-envoy-original-path"),
            request_headers_bytes: head.byte_size() as u64,
            request_body_bytes: body,
            request_headers: named(&self.request_headers, |name| name.in_request(head)),
            ..Default::default()
        }
    }

    fn response(&self, context: &FormatContext<'_>) -> pb::HttpResponseProperties {
        let (info, head) = (context.info, context.response);
        let status = info.response_code.filter(|status| *status != 0);
        pb::HttpResponseProperties {
            response_code: status.map(|status| wkt::UInt32Value {
                value: status.into(),
            }),
            response_headers_bytes: head.map_or(0, ResponseHead::byte_size) as u64,
            response_body_bytes: info.bytes_sent,
            response_headers: named(&self.response_headers, |name| name.in_response(head?)),
            response_trailers: named(&self.response_trailers, |name| {
                name.in_map(context.trailers?)
            }),
            response_code_details: info.details.as_deref().unwrap_or_default().to_owned(),
            ..Default::default()
        }
    }

    fn common(&self, context: &FormatContext<'_>) -> pb::AccessLogCommon {
        let info = context.info;
        let (connection, upstream) = (&info.connection, &info.upstream);
        let since = |moment| time(info, info.moments.get(moment));
        let notes = connection.notes.as_ref().map(|notes| notes.borrow());
        let failure = notes.as_ref().and_then(|n| n.transport_failure.clone());
        let details = notes.as_ref().and_then(|n| n.termination_details.clone());
        let filter_state = self.filter_state.iter().filter_map(|key| {
            let value = info.filter_state.text(key)?.into_owned();
            Some((key.clone(), pack(&wkt::StringValue { value })))
        });
        let metadata = &info.dynamic_metadata;
        pb::AccessLogCommon {
            downstream_remote_address: Some(info.remote.to_proto()),
            downstream_local_address: Some(connection.local.to_proto()),
            downstream_direct_remote_address: Some(connection.direct_remote.to_proto()),
            tls_properties: tls(info),
            start_time: Some(timestamp(info.start_time)),
            time_to_last_rx_byte: time(info, info.request_end),
            time_to_first_upstream_tx_byte: since(Moment::UpstreamSendBegin),
            time_to_last_upstream_tx_byte: since(Moment::UpstreamSendEnd),
            time_to_first_upstream_rx_byte: since(Moment::UpstreamReceiveBegin),
            time_to_last_upstream_rx_byte: since(Moment::UpstreamReceiveEnd),
            time_to_first_downstream_tx_byte: since(Moment::DownstreamSendBegin),
            time_to_last_downstream_tx_byte: since(Moment::DownstreamSendEnd),
            upstream_remote_address: upstream.host.as_ref().map(Address::to_proto),
            upstream_local_address: upstream.local.as_ref().map(Address::to_proto),
            upstream_cluster: match &upstream.host {
                Some(_) => upstream.cluster.as_deref().unwrap_or_default().to_owned(),
                None => String::new(),
            },
            response_flags: flags(info.flags),
            metadata: (!metadata.is_empty()).then(|| Metadata {
                filter_metadata: metadata
                    .iter()
                    .map(|(name, object)| (name.clone(), json_to_struct(object)))
                    .collect(),
                ..Metadata::default()
            }),
            upstream_transport_failure_reason: owned(upstream.transport_failure.as_deref()),
            route_name: owned(info.route.as_ref().map(|route| route.name())),
            filter_state_objects: filter_state.collect(),
            custom_tags: self.tags.iter().filter_map(|tag| tag.of(context)).collect(),
            duration: info.log_type.is_end().then(|| proto(info.start.elapsed())),
            upstream_request_attempt_count: upstream.attempts,
            connection_termination_details: owned(details.as_deref()),
            stream_id: info.id(context.request).map_or_else(String::new, text),
            downstream_transport_failure_reason: owned(failure.as_deref()),
            access_log_type: info.log_type.name_and_number().1,
            ..Default::default()
        }
    }
}

fn owned(value: Option<&str>) -> String {
    value.unwrap_or_default().to_owned()
}

/// Bytes as protobuf's strings have to be; what is not UTF-8 becomes `!`, as in Envoy.
pub(super) fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => String::from_utf8_lossy(bytes).replace('\u{fffd}', "!"),
    }
}

/// The headers that are there, under the names that were asked for.
fn named<'a>(
    names: &[(String, HeaderRef)],
    read: impl Fn(&HeaderRef) -> Option<std::borrow::Cow<'a, [u8]>>,
) -> std::collections::HashMap<String, String> {
    let there = names.iter();
    let there = there.filter_map(|(name, header)| Some((name.clone(), text(&read(header)?))));
    there.collect()
}

fn proto(time: Duration) -> wkt::Duration {
    wkt::Duration {
        seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(time.subsec_nanos()).unwrap_or(0),
    }
}

/// How long after the stream's beginning.
fn time(info: &StreamInfo, at: Option<Instant>) -> Option<wkt::Duration> {
    Some(proto(at?.saturating_duration_since(info.start)))
}

fn timestamp(time: SystemTime) -> wkt::Timestamp {
    let since = proto(time.duration_since(UNIX_EPOCH).unwrap_or_default());
    wkt::Timestamp {
        seconds: since.seconds,
        nanos: since.nanos,
    }
}

fn flags(all: ResponseFlags) -> Option<pb::ResponseFlags> {
    use ResponseFlags as F;
    let has = |flag| all.contains(flag);
    (!all.is_empty()).then(|| pb::ResponseFlags {
        failed_local_healthcheck: has(F::FAILED_LOCAL_HEALTH_CHECK),
        no_healthy_upstream: has(F::NO_HEALTHY_UPSTREAM),
        upstream_request_timeout: has(F::UPSTREAM_REQUEST_TIMEOUT),
        local_reset: has(F::LOCAL_RESET),
        upstream_remote_reset: has(F::UPSTREAM_REMOTE_RESET),
        upstream_connection_failure: has(F::UPSTREAM_CONNECTION_FAILURE),
        upstream_connection_termination: has(F::UPSTREAM_CONNECTION_TERMINATION),
        upstream_overflow: has(F::UPSTREAM_OVERFLOW),
        no_route_found: has(F::NO_ROUTE_FOUND),
        delay_injected: has(F::DELAY_INJECTED),
        fault_injected: has(F::FAULT_INJECTED),
        rate_limited: has(F::RATE_LIMITED),
        unauthorized_details: has(F::UNAUTHORIZED_EXTERNAL).then(|| Unauthorized {
            reason: unauthorized::Reason::ExternalService.into(),
        }),
        rate_limit_service_error: has(F::RATELIMIT_SERVICE_ERROR),
        downstream_connection_termination: has(F::DOWNSTREAM_CONNECTION_TERMINATION),
        upstream_retry_limit_exceeded: has(F::UPSTREAM_RETRY_LIMIT_EXCEEDED),
        stream_idle_timeout: has(F::STREAM_IDLE_TIMEOUT),
        invalid_envoy_request_headers: has(F::INVALID_ENVOY_REQUEST_HEADERS),
        downstream_protocol_error: has(F::DOWNSTREAM_PROTOCOL_ERROR),
        upstream_max_stream_duration_reached: has(F::UPSTREAM_MAX_STREAM_DURATION_REACHED),
        response_from_cache_filter: has(F::RESPONSE_FROM_CACHE_FILTER),
        no_filter_config_found: has(F::NO_FILTER_CONFIG_FOUND),
        duration_timeout: has(F::DURATION_TIMEOUT),
        upstream_protocol_error: has(F::UPSTREAM_PROTOCOL_ERROR),
        no_cluster_found: has(F::NO_CLUSTER_FOUND),
        overload_manager: has(F::OVERLOAD_MANAGER),
        dns_resolution_failure: has(F::DNS_RESOLUTION_FAILED),
        downstream_remote_reset: has(F::DOWNSTREAM_REMOTE_RESET),
    })
}

/// What is known of TLS; without it, the name that was asked for may be known.
fn tls(info: &StreamInfo) -> Option<pb::TlsProperties> {
    let connection = &info.connection;
    let name = connection.server_name.as_deref().filter(|n| !n.is_empty());
    let made = pb::TlsProperties {
        tls_sni_hostname: owned(name),
        ..Default::default()
    };
    let Some(tls) = connection.tls.as_deref() else {
        return name.map(|_| made);
    };
    let version = match tls.version {
        "TLSv1.2" => TlsVersion::TlSv12,
        "TLSv1.3" => TlsVersion::TlSv13,
        _ => TlsVersion::VersionUnspecified,
    };
    Some(pb::TlsProperties {
        tls_version: version.into(),
        tls_cipher_suite: cipher(tls).map(|value| wkt::UInt32Value { value }),
        local_certificate_properties: Some(certificate(tls.local.as_deref(), false)),
        peer_certificate_properties: Some(certificate(tls.peer.as_ref().map(|p| &p.facts), true)),
        ..made
    })
}

/// The number of a cipher suite (IANA), of those that there are.
fn cipher(tls: &TlsInfo) -> Option<u32> {
    Some(match tls.cipher {
        "TLS_AES_128_GCM_SHA256" => 0x1301,
        "TLS_AES_256_GCM_SHA384" => 0x1302,
        "TLS_CHACHA20_POLY1305_SHA256" => 0x1303,
        "ECDHE-ECDSA-AES128-GCM-SHA256" => 0xc02b,
        "ECDHE-ECDSA-AES256-GCM-SHA384" => 0xc02c,
        "ECDHE-RSA-AES128-GCM-SHA256" => 0xc02f,
        "ECDHE-RSA-AES256-GCM-SHA384" => 0xc030,
        "ECDHE-RSA-CHACHA20-POLY1305" => 0xcca8,
        "ECDHE-ECDSA-CHACHA20-POLY1305" => 0xcca9,
        _ => return None,
    })
}

/// The names of a certificate; `peer`: who issued it, too.
fn certificate(facts: Option<&CertificateFacts>, peer: bool) -> CertificateProperties {
    let Some(facts) = facts else {
        return CertificateProperties::default();
    };
    let uris = facts.uri_sans.iter().cloned().map(San::Uri);
    let all = uris.chain(facts.dns_sans.iter().cloned().map(San::Dns));
    CertificateProperties {
        subject_alt_name: all.map(|san| SubjectAltName { san: Some(san) }).collect(),
        subject: facts.subject.clone(),
        issuer: match peer {
            true => facts.issuer.clone(),
            false => String::new(),
        },
    }
}
