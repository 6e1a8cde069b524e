//! Who sent a request: the client's address behind proxies, and whether it is one of ours.
//!
//! Envoy: "x-forwarded-for", `use_remote_address`, `original_ip_detection_extensions`,
//! `internal_address_config`.

use std::net::{IpAddr, SocketAddr};

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::http::original_ip_detection::custom_header::v3::CustomHeaderConfig;
use envoy_types::pb::envoy::extensions::http::original_ip_detection::xff::v3::XffConfig;
use filters::head::RequestHead;
use filters::matcher::CidrSet;
use filters::stream::{Address, ConnectionInfo, is_loopback};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use smallvec::SmallVec;
use xds_client::any;
use xds_client::error::{At, ConfigError};

use super::names;
use crate::http::local_address::local_address;

/// How clients are told from the proxies between them and us.
pub(super) struct ClientAddress {
    how: How,
    internal: Option<CidrSet>,
}

enum How {
    /// `use_remote_address`: we stand at the edge, and `x-forwarded-for` is believed for this many hops.
    Edge { trusted_hops: u32, append: bool },
    /// The first of these that finds an address.
    Detect(Box<[Detection]>),
}

enum Detection {
    /// The address this many places before the last in `x-forwarded-for`.
    Hops { hops: u32, append: bool },
    /// The last address in `x-forwarded-for` that is not one of these proxies', if our peer is.
    Trusted { proxies: CidrSet, append: bool },
    /// The address in a header.
    Header {
        name: HeaderName,
        may_be_internal: bool,
        reject: Option<StatusCode>,
    },
}

/// The sender of a request.
#[derive(Debug, PartialEq)]
pub(super) struct Client {
    /// Its address as far as it can be trusted.
    pub(super) remote: Address,
    /// Whether it is inside (`x-envoy-internal`): its `x-envoy-*` headers are obeyed.
    pub(super) internal: bool,
}

/// An address, and whether it may make the request an internal one.
type Found = (IpAddr, bool);

impl ClientAddress {
    /// Compiles the fields that are about addresses.
    ///
    /// # Errors
    /// Names the field that cannot be honoured.
    pub(super) fn compile(proto: &HttpConnectionManager) -> Result<Self, ConfigError> {
        let extensions = &proto.original_ip_detection_extensions;
        let at_edge = proto.use_remote_address.is_some_and(|v| v.value);
        if !extensions.is_empty() && (at_edge || proto.xff_num_trusted_hops > 0) {
            let reason = "excludes use_remote_address and xff_num_trusted_hops";
            return Err(ConfigError::new(reason).at("original_ip_detection_extensions"));
        }
        let how = if at_edge {
            How::Edge {
                trusted_hops: proto.xff_num_trusted_hops,
                append: !proto.skip_xff_append,
            }
        } else if extensions.is_empty() {
            let hops = proto.xff_num_trusted_hops;
            How::Detect(
                [Detection::Hops {
                    hops,
                    append: false,
                }]
                .into(),
            )
        } else {
            let one = |(i, e)| {
                Detection::compile(e).at(format!(
                    "original_ip_detection_extensions[{i}].typed_config"
                ))
            };
            How::Detect(
                extensions
                    .iter()
                    .enumerate()
                    .map(one)
                    .collect::<Result<_, _>>()?,
            )
        };
        let internal = match &proto.internal_address_config {
            Some(config) if config.unix_sockets => {
                return Err(ConfigError::unsupported(
                    "internal_address_config.unix_sockets",
                ));
            }
            Some(config) => Some(
                CidrSet::compile(&config.cidr_ranges).at("internal_address_config.cidr_ranges")?,
            ),
            None => None,
        };
        Ok(Self { how, internal })
    }

    /// Whether we are the first of our proxies that a client meets.
    pub(super) fn is_edge(&self) -> bool {
        matches!(self.how, How::Edge { .. })
    }

    /// Whether what our peer says about the client's connection counts (`x-forwarded-proto`, `-port`).
    pub(super) fn trusts_peer(&self) -> bool {
        !matches!(
            self.how,
            How::Edge {
                trusted_hops: 0,
                ..
            }
        )
    }

    /// Finds the sender, and adds our peer to `x-forwarded-for` where that is our part.
    ///
    /// # Errors
    /// The status to refuse the request with: a detection extension demands an address.
    pub(super) fn find(
        &self,
        head: &mut RequestHead,
        connection: &ConnectionInfo,
    ) -> Result<Client, StatusCode> {
        let sent = join_lines(&mut head.headers, &names::XFF);
        let peer = connection.remote.ip().map(|a| a.ip());
        let (found, may_be_internal) = match &self.how {
            How::Edge {
                trusted_hops,
                append,
            } => {
                let behind = trusted_hops.checked_sub(1).filter(|_| sent);
                let found = behind.and_then(|hops| forwarded(&head.headers, hops));
                if *append {
                    append_peer(head, peer);
                }
                (found.map(|(ip, _)| ip), !sent)
            }
            How::Detect(detections) => {
                let mut found = None;
                for detection in detections {
                    let (address, append) = detection.find(&head.headers, sent, peer)?;
                    if append {
                        append_peer(head, peer);
                    }
                    if address.is_some() {
                        found = address;
                        break;
                    }
                }
                // A peer that only passes requests on is never taken for their sender.
                (
                    found.map(|(ip, _)| ip),
                    found.is_some_and(|(_, may_be)| may_be),
                )
            }
        };
        let internal = may_be_internal && found.or(peer).is_some_and(|ip| self.is_internal(ip));
        let remote = match found {
            Some(ip) => Address::Ip(SocketAddr::new(ip, 0)),
            None => connection.remote.clone(),
        };
        Ok(Client { remote, internal })
    }

    /// Since Envoy 1.33 no address is internal unless it is configured.
    fn is_internal(&self, ip: IpAddr) -> bool {
        self.internal.as_ref().is_some_and(|set| set.contains(ip))
    }
}

impl Detection {
    fn compile(extension: &TypedExtensionConfig) -> Result<Self, ConfigError> {
        let config = extension.typed_config.as_ref();
        let config = config.ok_or_else(|| ConfigError::new("is required"))?;
        let url = any::inner_type_url(config)?;
        match url.rsplit('/').next().unwrap_or_default() {
            "envoy.extensions.http.original_ip_detection.xff.v3.XffConfig" => {
                Self::xff(&any::unpack(config)?)
            }
            "envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig" => {
                Self::header(&any::unpack(config)?)
            }
            other => Err(ConfigError::new(format!("{other} is not supported"))),
        }
    }

    fn xff(config: &XffConfig) -> Result<Self, ConfigError> {
        let append = config.skip_xff_append.is_some_and(|v| !v.value);
        let hops = config.xff_num_trusted_hops;
        match &config.xff_trusted_cidrs {
            None => Ok(Self::Hops { hops, append }),
            Some(_) if hops > 0 => Err(ConfigError::new(
                "xff_num_trusted_hops and xff_trusted_cidrs are both set",
            )),
            Some(trusted) => Ok(Self::Trusted {
                proxies: CidrSet::compile(&trusted.cidrs).at("xff_trusted_cidrs.cidrs")?,
                append,
            }),
        }
    }

    fn header(config: &CustomHeaderConfig) -> Result<Self, ConfigError> {
        let reject = config.reject_with_status.as_ref().map(|status| {
            // Only an error can refuse.
            u16::try_from(status.code)
                .ok()
                .and_then(|code| StatusCode::from_u16(code).ok())
                .filter(|code| code.is_client_error() || code.is_server_error())
                .unwrap_or(StatusCode::FORBIDDEN)
        });
        Ok(Self::Header {
            name: crate::router::context::header_name(&config.header_name).at("header_name")?,
            may_be_internal: config.allow_extension_to_set_address_as_trusted,
            reject,
        })
    }

    /// The address if there is one, and whether the peer is to be added to `x-forwarded-for`.
    fn find(
        &self,
        headers: &HeaderMap,
        sent: bool,
        peer: Option<IpAddr>,
    ) -> Result<(Option<Found>, bool), StatusCode> {
        match self {
            Self::Hops { append, .. } if !sent => Ok((None, *append)),
            Self::Hops { hops, append } => Ok((forwarded(headers, *hops), *append)),
            Self::Trusted { proxies, append } => {
                if peer.is_some_and(|ip| proxies.contains(ip)) {
                    Ok((before_proxies(headers, proxies), *append))
                } else {
                    Ok((None, true))
                }
            }
            Self::Header {
                name,
                may_be_internal,
                reject,
            } => {
                let found = headers.get(name).and_then(|v| address(v.as_bytes()));
                match (found, reject) {
                    (None, Some(status)) => Err(*status),
                    (found, _) => Ok((found.map(|ip| (ip, *may_be_internal)), false)),
                }
            }
        }
    }
}

/// The entries of `x-forwarded-for`, the last first.
fn entries(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let value = headers.get(names::XFF).map(HeaderValue::as_bytes);
    value.into_iter().flat_map(|v| v.rsplit(|b| *b == b','))
}

/// The address `hops` places before the last in `x-forwarded-for`. Only one that stands alone may be
/// internal.
fn forwarded(headers: &HeaderMap, hops: u32) -> Option<Found> {
    let hops = usize::try_from(hops).ok()?;
    let ip = address(entries(headers).nth(hops)?)?;
    Some((ip, hops == 0 && entries(headers).nth(1).is_none()))
}

/// The last address in `x-forwarded-for` that is none of the proxies', or the first of all. None if what
/// stands there is no address.
fn before_proxies(headers: &HeaderMap, proxies: &CidrSet) -> Option<Found> {
    let mut found = None;
    for (i, entry) in entries(headers).enumerate() {
        let ip = address(entry)?;
        found = Some((ip, i == 0 && entries(headers).nth(1).is_none()));
        if !proxies.contains(ip) {
            break;
        }
    }
    found
}

fn address(text: &[u8]) -> Option<IpAddr> {
    std::str::from_utf8(text.trim_ascii()).ok()?.parse().ok()
}

/// Adds our peer to `x-forwarded-for`. One on this machine is known to others by the machine's address.
fn append_peer(head: &mut RequestHead, peer: Option<IpAddr>) {
    match peer {
        Some(peer) if is_loopback(peer) => append_to_xff(head, local_address()),
        Some(peer) => append_to_xff(head, peer),
        None => {}
    }
}

/// Appends an address to `x-forwarded-for`, which becomes one line.
pub(crate) fn append_to_xff(head: &mut RequestHead, ip: IpAddr) {
    let ip = ip.to_string();
    append_to_line(&mut head.headers, &names::XFF, b",", ip.as_bytes());
}

/// Makes one line of several (RFC 9110, 5.3). False if there is none.
fn join_lines(headers: &mut HeaderMap, name: &HeaderName) -> bool {
    let mut lines = headers.get_all(name).iter();
    let (any, several) = (lines.next().is_some(), lines.next().is_some());
    if several {
        append_to_line(headers, name, b",", b"");
    }
    any
}

/// Appends a value to a list header that stays on one line.
pub(super) fn append_to_line(
    headers: &mut HeaderMap,
    name: &HeaderName,
    separator: &[u8],
    value: &[u8],
) {
    let joined = {
        let lines = headers.get_all(name).iter().map(HeaderValue::as_bytes);
        let parts = lines.chain(std::iter::once(value));
        let parts: SmallVec<[&[u8]; 4]> = parts.filter(|part| !part.is_empty()).collect();
        parts.join(separator)
    };
    if let Ok(joined) = HeaderValue::try_from(joined) {
        headers.insert(name.clone(), joined);
    }
}

#[cfg(test)]
#[path = "client_address_tests.rs"]
mod tests;
