//! The attributes that expressions can ask for, under Envoy's names ("Attributes" in its documentation).

use std::borrow::Cow;

use http::HeaderName;
use http::header;

use super::owned;
use super::value::Value;
use crate::head::RequestHead;
use crate::matcher::header::HeaderRef;
use crate::stream::{
    Address, ConnectionInfo, DynamicMetadata, FilterObject, FilterState, Protocol,
};
use crate::tls::{CertificateFacts, TlsInfo};

/// A group of attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    Request,
    RequestHeaders,
    Source,
    Destination,
    Connection,
    Metadata,
    FilterMetadata,
    FilterState,
}

/// What the attributes are told from.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    /// The connection.
    pub connection: &'a ConnectionInfo,
    /// The client as far as it can be trusted.
    pub remote: &'a Address,
    /// The request, if there is one.
    pub head: Option<&'a RequestHead>,
    /// Its protocol.
    pub protocol: Option<Protocol>,
    /// What has come of its body so far, bytes.
    pub bytes_received: u64,
    /// Dynamic metadata; `None` is empty.
    pub metadata: Option<&'a DynamicMetadata>,
    /// Filter state; `None` is empty.
    pub filter_state: Option<&'a FilterState>,
}

impl Group {
    /// The group of this name at the top.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "request" => Self::Request,
            "source" => Self::Source,
            "destination" => Self::Destination,
            "connection" => Self::Connection,
            "metadata" => Self::Metadata,
            "filter_state" => Self::FilterState,
            _ => return None,
        })
    }

    /// Groups at the top that Envoy knows and we do not.
    pub(super) const UNSUPPORTED: [&str; 4] =
        ["response", "upstream", "upstream_filter_state", "xds"];

    /// Whether the group has the same attributes for everybody: then a name must be known when it is compiled.
    pub(super) fn is_fixed(self) -> bool {
        !matches!(
            self,
            Self::RequestHeaders | Self::FilterMetadata | Self::FilterState
        )
    }

    /// Attributes that Envoy knows and we do not.
    pub(super) fn unsupported(self) -> &'static [&'static str] {
        match self {
            Self::Request => &["time", "duration", "total_size", "headers_bytes"],
            Self::Connection => &[
                "termination_details",
                "transport_failure_reason",
                "peer_certificate",
            ],
            Self::Metadata => &["typed_filter_metadata"],
            _ => &[],
        }
    }
}

fn text(text: &str) -> Value<'_> {
    Value::Text(Cow::Borrowed(text.as_bytes()))
}

impl<'a> Attributes<'a> {
    /// An attribute, if it is there.
    pub(super) fn get(&self, group: Group, name: &[u8]) -> Option<Value<'a>> {
        let name = std::str::from_utf8(name).ok()?;
        match group {
            Group::Request => self.request(name),
            Group::RequestHeaders => self.header(&HeaderRef::parse(name).ok()?),
            Group::Source => address(self.remote, name),
            Group::Destination => address(&self.connection.local, name),
            Group::Connection => self.connection(name),
            Group::Metadata => {
                (name == "filter_metadata").then_some(Value::Group(Group::FilterMetadata))
            }
            Group::FilterMetadata => self.metadata?.get(name).map(|object| {
                let entry = |(key, value): (&'a String, &'a serde_json::Value)| {
                    (text(key), Value::json(value))
                };
                Value::Map(object.iter().map(entry).collect())
            }),
            Group::FilterState => Some(match self.filter_state?.get(name)? {
                FilterObject::Fields(fields) => {
                    let entry = |(key, value): (&'a String, &'a String)| (text(key), text(value));
                    Value::Map(fields.iter().map(entry).collect())
                }
                object => Value::Bytes(match object.text()? {
                    Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
                    Cow::Owned(text) => owned(text),
                }),
            }),
        }
    }

    fn header(&self, header: &HeaderRef) -> Option<Value<'a>> {
        header.in_request(self.head?).map(Value::Text)
    }

    fn request(&self, name: &str) -> Option<Value<'a>> {
        let named = |name: HeaderName| self.header(&HeaderRef::Name(name));
        match name {
            "headers" => Some(Value::Group(Group::RequestHeaders)),
            "path" => self.header(&HeaderRef::Path),
            "host" => self.header(&HeaderRef::Authority),
            "scheme" => self.header(&HeaderRef::Scheme),
            "method" => self.header(&HeaderRef::Method),
            "referer" => named(header::REFERER),
            "useragent" => named(header::USER_AGENT),
            "id" => named(HeaderName::from_static("x-request-id")),
            "protocol" => self.protocol.map(|protocol| text(protocol.as_str())),
            "url_path" => Some(text(self.head?.path.split('?').next()?)),
            "query" => {
                let query = self
                    .head?
                    .path
                    .split_once('?')
                    .map_or("", |(_, query)| query);
                Some(text(query.split('#').next()?))
            }
            "size" => match self.head?.headers.get(header::CONTENT_LENGTH) {
                Some(length) => length.to_str().ok()?.parse().ok().map(Value::Int),
                None => i64::try_from(self.bytes_received).ok().map(Value::Int),
            },
            _ => None,
        }
    }

    fn connection(&self, name: &str) -> Option<Value<'a>> {
        let connection = self.connection;
        let tls = connection.tls.as_deref();
        let peer = |tls: &'a TlsInfo| tls.peer.as_ref();
        match name {
            "id" => Some(Value::Uint(connection.id)),
            "mtls" => Some(Value::Bool(tls.and_then(peer).is_some())),
            "requested_server_name" => {
                Some(text(connection.server_name.as_deref().unwrap_or_default()))
            }
            "tls_version" => tls.map(|tls| text(tls.version)),
            _ => {
                let tls = tls?;
                let facts = match name.split_once("_peer_certificate") {
                    Some(_) => peer(tls).map(|peer| &peer.facts),
                    None => tls.local.as_deref(),
                };
                of_certificate(facts, name)
            }
        }
    }
}

/// A name or the digest of a certificate. The subject of none is empty.
fn of_certificate<'a>(facts: Option<&'a CertificateFacts>, name: &str) -> Option<Value<'a>> {
    let first = |names: fn(&CertificateFacts) -> &[String]| names(facts?).first().map(|n| text(n));
    match name {
        "subject_local_certificate" | "subject_peer_certificate" => {
            Some(text(facts.map_or("", |facts| &facts.subject)))
        }
        "uri_san_local_certificate" | "uri_san_peer_certificate" => first(|facts| &facts.uri_sans),
        "dns_san_local_certificate" | "dns_san_peer_certificate" => first(|facts| &facts.dns_sans),
        "sha256_peer_certificate_digest" => facts.map(|facts| text(&facts.sha256)),
        _ => None,
    }
}

fn address<'a>(address: &'a Address, name: &str) -> Option<Value<'a>> {
    match name {
        "address" => Some(Value::Text(owned(address.to_string()))),
        "port" => address.ip().map(|ip| Value::Int(ip.port().into())),
        _ => None,
    }
}
