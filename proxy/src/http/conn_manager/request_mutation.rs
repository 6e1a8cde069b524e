//! What the connection manager does to a request's headers before it is routed: hop-by-hop fields, client
//! address, scheme, Envoy's own headers, request id.
//!
//! Envoy: "HTTP header manipulation" and `ConnectionManagerUtility::mutateRequestHeaders`.

use bytestring::ByteString;
use filters::head::RequestHead;
use filters::stream::ConnectionInfo;
use http::header::{self, HeaderValue};
use http::{HeaderMap, HeaderName, StatusCode};

use super::client_address::{Client, append_to_line};
use super::config::HcmConfig;
use super::names;
use crate::http::validate;

/// Applies all header rules. Path and host are normalised before, because that can fail. Headers that the
/// route configuration calls internal are `internal_only`.
///
/// # Errors
/// The status to refuse the request with.
pub(super) fn mutate(
    head: &mut RequestHead,
    config: &HcmConfig,
    connection: &ConnectionInfo,
    internal_only: &[HeaderName],
) -> Result<Client, StatusCode> {
    let present = Present::in_request(&head.headers);
    remove_hop_by_hop(head, present);
    let client = config.client.find(head, connection)?;
    forward_transport(head, config, connection);
    let edge = !client.internal && config.client.is_edge();
    if client.internal {
        head.headers
            .insert(names::INTERNAL, HeaderValue::from_static("true"));
    } else {
        if present.envoy {
            remove_internal_headers(head, edge);
        }
        for name in internal_only {
            head.headers.remove(name);
        }
    }
    if let Some(agent) = &config.user_agent {
        agent.add(head);
    }
    if let Some(via) = &config.via {
        append_to_line(&mut head.headers, &header::VIA, b", ", via.as_bytes());
    }
    if edge && let Some(address) = client.remote.ip() {
        let address = HeaderValue::try_from(address.ip().to_string());
        if let Ok(address) = address {
            head.headers.insert(names::EXTERNAL_ADDRESS, address);
        }
    }
    config.request_ids.set(&mut head.headers, edge);
    let tls = connection.tls.as_deref();
    if present.certificate || tls.is_some() {
        config.client_certificates.apply(&mut head.headers, tls);
    }
    Ok(client)
}

/// What `add_user_agent` adds.
pub(super) struct UserAgent {
    /// The node's cluster.
    pub(super) cluster: HeaderValue,
    /// The node's id, if it has one.
    pub(super) node: Option<HeaderValue>,
}

impl UserAgent {
    fn add(&self, head: &mut RequestHead) {
        let headers = &mut head.headers;
        headers.insert(names::DOWNSTREAM_CLUSTER, self.cluster.clone());
        if headers
            .get(header::USER_AGENT)
            .is_none_or(HeaderValue::is_empty)
        {
            headers.insert(header::USER_AGENT, self.cluster.clone());
        }
        if let Some(node) = &self.node {
            headers.insert(names::DOWNSTREAM_NODE, node.clone());
        }
    }
}

/// Settles how the client reached us: `x-forwarded-proto`, `x-forwarded-port` and the scheme.
fn forward_transport(head: &mut RequestHead, config: &HcmConfig, connection: &ConnectionInfo) {
    let believed = config.client.trusts_peer();
    let headers = &mut head.headers;
    let said = match believed && config.overwrite_scheme.is_none() {
        true => headers.get(names::XFP),
        false => None,
    };
    let secure = match said.map(HeaderValue::as_bytes) {
        Some(b"https") => true,
        Some(b"http") => false,
        Some(_) => connection.secure,
        None => {
            let secure = config.overwrite_scheme.unwrap_or(connection.secure);
            headers.insert(names::XFP, scheme_value(secure));
            secure
        }
    };
    head.scheme = ByteString::from_static(scheme(secure));
    if config.append_forwarded_port
        && (!believed || !headers.contains_key(names::FORWARDED_PORT))
        && let Some(local) = connection.local.ip()
    {
        headers.insert(names::FORWARDED_PORT, HeaderValue::from(local.port()));
    }
}

/// What nearly no request carries. One scan over the names that are there is cheaper than hashing every name that
/// could be.
#[derive(Clone, Copy, Default)]
struct Present {
    te: bool,
    /// Any `x-envoy-*`.
    envoy: bool,
    /// `x-forwarded-client-cert`.
    certificate: bool,
}

impl Present {
    fn in_request(headers: &HeaderMap) -> Self {
        headers.keys().fold(Self::default(), |seen, name| Self {
            te: seen.te || *name == header::TE,
            envoy: seen.envoy || name.as_str().starts_with("x-envoy-"),
            certificate: seen.certificate || *name == names::XFCC,
        })
    }
}

/// The fields that are only about the client's connection, or that only we may say.
fn remove_hop_by_hop(head: &mut RequestHead, present: Present) {
    let headers = &mut head.headers;
    validate::remove_hop_by_hop(headers);
    if present.te {
        if takes_trailers(headers) {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(header::TE);
        }
    }
    if present.envoy {
        headers.remove(names::INTERNAL);
    }
}

/// Whether `te` lists `trailers`: the only part of it that concerns more than one hop (RFC 9110, 10.1.4).
fn takes_trailers(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::TE).iter();
    let mut options = lines.flat_map(|line| line.as_bytes().split(|b| *b == b','));
    options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

/// The headers that only an internal sender may set.
fn remove_internal_headers(head: &mut RequestHead, edge: bool) {
    for name in &names::INTERNAL_ONLY {
        head.headers.remove(name);
    }
    if edge {
        for name in &names::EDGE_ONLY {
            head.headers.remove(name);
        }
    }
}

fn scheme(secure: bool) -> &'static str {
    if secure { "https" } else { "http" }
}

fn scheme_value(secure: bool) -> HeaderValue {
    HeaderValue::from_static(scheme(secure))
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    #[test]
    fn only_trailers_is_left_of_te() {
        for (lines, want) in [
            (&["trailers"][..], Some("trailers")),
            (&["gzip, Trailers "], Some("trailers")),
            (&["gzip", "trailers"], Some("trailers")),
            (&["trailers;q=0.5"], None),
            (&["gzip"], None),
            (&[], None),
        ] {
            let mut head = RequestHead::new(Method::GET, "/");
            for line in lines {
                head.headers.append(header::TE, line.parse().unwrap());
            }
            let present = Present::in_request(&head.headers);
            remove_hop_by_hop(&mut head, present);
            let te = head.headers.get(header::TE);
            assert_eq!(te.map(|v| v.to_str().unwrap()), want, "{lines:?}");
        }
    }

    #[test]
    fn strangers_cannot_steer_us() {
        let mut head = RequestHead::new(Method::GET, "/");
        for name in [
            "x-envoy-retry-on",
            "x-envoy-decorator-operation",
            "x-envoy-other",
        ] {
            let name = HeaderName::from_static(name);
            head.headers.insert(name, HeaderValue::from_static("v"));
        }
        let names = |head: &RequestHead| {
            let mut names: Vec<_> = head.headers.keys().map(|n| n.as_str().to_owned()).collect();
            names.sort();
            names
        };
        remove_internal_headers(&mut head, false);
        assert_eq!(
            names(&head),
            ["x-envoy-decorator-operation", "x-envoy-other"]
        );
        remove_internal_headers(&mut head, true);
        assert_eq!(names(&head), ["x-envoy-other"]);
    }
}
