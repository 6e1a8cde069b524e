//! What the filters that call gRPC services share: heads and metadata as Envoy's messages, and back.

use std::borrow::Cow;

use bytestring::ByteString;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf as wkt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use xds_client::any::struct_to_json;

use crate::head::{RequestHead, ResponseHead};
use crate::stream::StreamInfo;

/// Headers that a service sees at most, so that what is sent stays bounded by the codec's own limits.
type Pairs<'a> = Vec<(&'a str, Cow<'a, [u8]>)>;

/// A request's pseudo-headers and headers in Envoy's order.
pub(super) fn request_pairs(head: &RequestHead) -> Pairs<'_> {
    let text = |t: &'_ str| Cow::Owned(t.as_bytes().to_vec());
    let mut pairs: Pairs<'_> = vec![
        (":authority", text(&head.authority)),
        (":path", text(&head.path)),
        (":method", text(head.method.as_str())),
        (":scheme", text(&head.scheme)),
    ];
    pairs.extend(map_pairs(&head.headers));
    pairs
}

/// A header block's pairs.
pub(super) fn map_pairs(map: &HeaderMap) -> impl Iterator<Item = (&str, Cow<'_, [u8]>)> {
    map.iter()
        .map(|(n, v)| (n.as_str(), Cow::Borrowed(v.as_bytes())))
}

/// Pairs as Envoy's message, with the bytes in `raw_value`.
pub(super) fn header_map<'a>(
    pairs: impl IntoIterator<Item = (&'a str, Cow<'a, [u8]>)>,
) -> core::HeaderMap {
    let headers = pairs.into_iter().map(|(key, value)| core::HeaderValue {
        key: key.to_owned(),
        value: String::new(),
        raw_value: value.into_owned(),
    });
    core::HeaderMap {
        headers: headers.collect(),
    }
}

/// Something whose headers a service may change.
pub(super) trait Target {
    /// The ordinary headers.
    fn map(&mut self) -> &mut HeaderMap;
    /// Sets a pseudo-header or `host`; what is not there or not valid is passed over, as in Envoy.
    fn set_pseudo(&mut self, _name: &str, _value: &[u8]) {}
}

impl Target for HeaderMap {
    fn map(&mut self) -> &mut HeaderMap {
        self
    }
}

impl Target for ResponseHead {
    fn map(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }
    fn set_pseudo(&mut self, name: &str, value: &[u8]) {
        if name == ":status"
            && let Ok(status) = StatusCode::from_bytes(value)
            && status.as_u16() >= 200
        {
            self.status = status;
        }
    }
}

impl Target for RequestHead {
    fn map(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }
    fn set_pseudo(&mut self, name: &str, value: &[u8]) {
        // The header's own grammar keeps CR, LF and NUL out of the request line.
        let Ok(value) = HeaderValue::from_bytes(value) else {
            return;
        };
        let Ok(text) = value.to_str() else { return };
        match name {
            ":path" if text.starts_with('/') && !text.contains(' ') => {
                self.path = ByteString::from(text);
            }
            ":authority" | "host" => self.authority = ByteString::from(text),
            ":method" => {
                if let Ok(method) = Method::from_bytes(text.as_bytes()) {
                    self.method = method;
                }
            }
            ":scheme" if text == "http" || text == "https" => {
                self.scheme = ByteString::from(text);
            }
            _ => {}
        }
    }
}

/// What `append_action` 0 without `append` means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unset {
    /// Add a value.
    Append,
    /// Replace the values.
    Overwrite,
}

/// Hop-by-hop fields and framing are the codec's.
fn is_framing(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "transfer-encoding"
            | "upgrade"
            | "te"
            | "content-length"
    )
}

/// Applies additions and overwrites. Pseudo-headers and `host` are only ever overwritten; invalid names
/// and values, and framing, are passed over.
#[allow(deprecated)] // `append` is still sent
pub(super) fn apply(options: &[core::HeaderValueOption], unset: Unset, target: &mut impl Target) {
    for option in options {
        let Some(header) = &option.header else {
            continue;
        };
        let value = match header.raw_value.is_empty() {
            true => header.value.as_bytes(),
            false => header.raw_value.as_slice(),
        };
        let key = header.key.to_ascii_lowercase();
        if key.starts_with(':') || key == "host" {
            target.set_pseudo(&key, value);
            continue;
        }
        let name = HeaderName::from_bytes(key.as_bytes());
        let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) else {
            continue;
        };
        if is_framing(name.as_str()) {
            continue;
        }
        let map = target.map();
        let present = map.contains_key(&name);
        let action = match (&option.append, option.append_action) {
            (Some(append), _) if append.value => 0,
            (Some(_), _) => 2,
            (None, 0) if unset == Unset::Overwrite => 2,
            (None, action) => action,
        };
        match action {
            0 => drop(map.append(name, value)),
            1 if !present => drop(map.append(name, value)),
            2 => drop(map.insert(name, value)),
            3 if present => drop(map.insert(name, value)),
            _ => {}
        }
    }
}

/// Removes headers; pseudo-headers, `host` and framing stay.
pub(super) fn remove(names: &[String], map: &mut HeaderMap) {
    for name in names {
        if let Ok(name) = HeaderName::from_bytes(name.as_bytes())
            && !is_framing(name.as_str())
        {
            map.remove(name);
        }
    }
}

/// The valid final status in `status`, or `default`.
pub(super) fn status(status: Option<&HttpStatus>, default: StatusCode) -> StatusCode {
    status
        .and_then(|s| u16::try_from(s.code).ok())
        .filter(|code| (200..600).contains(code))
        .and_then(|code| StatusCode::from_u16(code).ok())
        .unwrap_or(default)
}

/// Merges a service's metadata into a namespace.
pub(super) fn merge_metadata(info: &mut StreamInfo, namespace: &str, fields: &wkt::Struct) {
    if let serde_json::Value::Object(map) = struct_to_json(fields) {
        // Allocates only when a service answers with metadata.
        let slot = info.dynamic_metadata.entry(namespace.to_owned());
        slot.or_default().extend(map);
    }
}
