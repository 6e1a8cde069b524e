//! What the connection manager does to a request before it is routed: hop-by-hop fields, client address,
//! scheme, Envoy's own headers, request id, path and host normalisation.
//!
//! Envoy: "HTTP header manipulation" and `ConnectionManagerUtility::mutateRequestHeaders`.

use std::net::{IpAddr, SocketAddr};

use bytestring::ByteString;
use filters::head::RequestHead;
use filters::stream::{Address, ConnectionInfo};
use http::header::{self, HeaderValue};

use super::config::HcmConfig;
use super::names;
use crate::http::local_address::local_address;
use crate::http::validate;

/// What mutation found out about the sender.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sender {
    /// The client's address as far as it can be trusted.
    pub(super) remote: Address,
    /// Whether the request came from inside (`x-envoy-internal`): its `x-envoy-*` headers are obeyed.
    pub(super) internal: bool,
}

/// Applies all header rules. The path is normalised separately, because that can fail.
pub(super) fn mutate(
    head: &mut RequestHead,
    config: &HcmConfig,
    connection: &ConnectionInfo,
) -> Sender {
    remove_hop_by_hop(head);
    let single_address;
    let mut remote = connection.remote.clone();
    if config.use_remote_address {
        single_address = !head.headers.contains_key(names::XFF);
        if config.xff_num_trusted_hops > 0
            && let Some(ip) = address_from_xff(head, config.xff_num_trusted_hops - 1)
        {
            remote = Address::Ip(SocketAddr::new(ip, 0));
        }
        if !config.skip_xff_append {
            append_xff(head, connection);
        }
        if config.xff_num_trusted_hops == 0 || !head.headers.contains_key(names::XFP) {
            head.headers
                .insert(names::XFP, scheme_value(connection.secure));
        }
    } else {
        single_address = xff_count(head) == 1;
        if let Some(ip) = address_from_xff(head, config.xff_num_trusted_hops) {
            remote = Address::Ip(SocketAddr::new(ip, 0));
        }
        if !head.headers.contains_key(names::XFP) {
            head.headers
                .insert(names::XFP, scheme_value(connection.secure));
        }
    }
    head.scheme = match head.headers.get(names::XFP).map(HeaderValue::as_bytes) {
        Some(b"https") => ByteString::from_static("https"),
        Some(b"http") => ByteString::from_static("http"),
        _ if connection.secure => ByteString::from_static("https"),
        _ => ByteString::from_static("http"),
    };
    let internal = single_address && config.is_internal(&remote);
    let edge = !internal && config.use_remote_address;
    if internal {
        head.headers
            .insert(names::INTERNAL, HeaderValue::from_static("true"));
    } else {
        remove_internal_headers(head, edge);
        if edge && let Some(value) = remote.ip().and_then(|a| ip_value(a.ip())) {
            head.headers.insert(names::EXTERNAL_ADDRESS, value);
        }
    }
    if let Some(via) = &config.via {
        head.headers.append(header::VIA, via.clone());
    }
    if !config.forward_client_cert {
        head.headers.remove(names::XFCC);
    }
    if config.generate_request_id {
        let replace = edge && !config.preserve_external_request_id;
        if replace || !head.headers.contains_key(names::REQUEST_ID) {
            head.headers.insert(names::REQUEST_ID, new_request_id());
        }
    }
    config.strip_port.apply(head, connection);
    Sender { remote, internal }
}

/// The fields that are only about the client's connection, or that only we may say.
fn remove_hop_by_hop(head: &mut RequestHead) {
    let headers = &mut head.headers;
    validate::remove_hop_by_hop(headers);
    if let Some(te) = headers.get(header::TE)
        && !te.as_bytes().eq_ignore_ascii_case(b"trailers")
    {
        headers.remove(header::TE);
    }
    headers.remove(names::INTERNAL);
}

/// The headers that only an internal sender may set.
fn remove_internal_headers(head: &mut RequestHead, edge: bool) {
    // Nearly all external requests carry none of them: one scan over the names that are there is cheaper
    // than hashing every name that could be.
    if !head
        .headers
        .keys()
        .any(|name| name.as_str().starts_with("x-envoy-"))
    {
        return;
    }
    for name in &names::INTERNAL_ONLY {
        head.headers.remove(name);
    }
    if edge {
        for name in &names::EDGE_ONLY {
            head.headers.remove(name);
        }
    }
}

fn append_xff(head: &mut RequestHead, connection: &ConnectionInfo) {
    let ip = match &connection.remote {
        // A peer on this machine is known to others by our address.
        Address::Ip(remote) if remote.ip().is_loopback() => local_address(),
        Address::Ip(remote) => remote.ip(),
        _ => return,
    };
    append_to_xff(head, ip);
}

/// Appends an address to `x-forwarded-for`, which becomes one line.
pub(crate) fn append_to_xff(head: &mut RequestHead, ip: IpAddr) {
    let joined = match joined_xff(head) {
        None => ip.to_string(),
        Some(before) => format!("{before},{ip}"),
    };
    if let Ok(value) = HeaderValue::try_from(joined) {
        head.headers.insert(names::XFF, value);
    }
}

fn joined_xff(head: &RequestHead) -> Option<String> {
    let mut values = head.headers.get_all(names::XFF).iter();
    let mut joined = String::from_utf8_lossy(values.next()?.as_bytes()).into_owned();
    for value in values {
        joined.push(',');
        joined.push_str(&String::from_utf8_lossy(value.as_bytes()));
    }
    Some(joined)
}

fn xff_count(head: &RequestHead) -> usize {
    joined_xff(head).map_or(0, |all| all.split(',').count())
}

/// The address `skip` places before the last in `x-forwarded-for`, if it is one.
fn address_from_xff(head: &RequestHead, skip: u32) -> Option<IpAddr> {
    let joined = joined_xff(head)?;
    joined.rsplit(',').nth(skip as usize)?.trim().parse().ok()
}

fn scheme_value(secure: bool) -> HeaderValue {
    HeaderValue::from_static(if secure { "https" } else { "http" })
}

fn ip_value(ip: IpAddr) -> Option<HeaderValue> {
    HeaderValue::try_from(ip.to_string()).ok()
}

/// A version-4 UUID as a header value, formatted on the stack.
fn new_request_id() -> HeaderValue {
    let mut buffer = uuid::Uuid::encode_buffer();
    let text = uuid::Uuid::new_v4().hyphenated().encode_lower(&mut buffer);
    let value = HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""));
    names::passing(value)
}

/// What to do about a request's port in its authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum StripPort {
    /// Leave it.
    #[default]
    Keep,
    /// Take it off if it is the listener's.
    Matching,
    /// Take any port off.
    Any,
}

impl StripPort {
    fn apply(self, head: &mut RequestHead, connection: &ConnectionInfo) {
        if self == Self::Keep || head.method == http::Method::CONNECT {
            return;
        }
        let Some((host, port)) = split_port(&head.authority) else {
            return;
        };
        let ours = connection.local.ip().map(|a| a.port());
        if self == Self::Any || ours == Some(port) {
            head.authority = ByteString::from(host);
        }
    }
}

/// Splits `host:port`; IPv6 literals keep their brackets.
fn split_port(authority: &str) -> Option<(&str, u16)> {
    let (host, port) = authority.rsplit_once(':')?;
    if host.contains(':') && !host.ends_with(']') {
        return None;
    }
    Some((host, port.parse().ok()?))
}
