//! `x-request-id` (Envoy: the UUID request id extension).

use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use http::HeaderValue;
use http::header::HeaderMap;
use xds_client::any;
use xds_client::error::{At, ConfigError};

use super::names;

/// Where the version digit of a UUID stands: Envoy keeps there whether a request is traced.
const TRACE_REASON: usize = 14;
const NOT_TRACED: u8 = b'4';

/// The rules for request ids of a connection manager.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestIds {
    generate: bool,
    preserve_external: bool,
    pack_trace_reason: bool,
    always_in_response: bool,
}

impl RequestIds {
    /// From the fields of the connection manager.
    ///
    /// # Errors
    /// A request id extension other than UUIDs.
    pub(super) fn compile(proto: &HttpConnectionManager) -> Result<Self, ConfigError> {
        let extension = proto.request_id_extension.as_ref();
        let uuid: UuidRequestIdConfig = match extension.and_then(|e| e.typed_config.as_ref()) {
            Some(config) => any::unpack(config).at("request_id_extension.typed_config")?,
            None => UuidRequestIdConfig::default(),
        };
        Ok(Self {
            generate: proto.generate_request_id.is_none_or(|v| v.value),
            preserve_external: proto.preserve_external_request_id,
            pack_trace_reason: uuid.pack_trace_reason.is_none_or(|v| v.value),
            always_in_response: proto.always_set_request_id_in_response,
        })
    }

    /// Makes sure that a request has an id. Clients outside cannot choose theirs, unless configured.
    pub(super) fn set(self, headers: &mut HeaderMap, edge: bool) {
        if !self.generate {
            return;
        }
        let theirs = headers.get(names::REQUEST_ID).filter(|id| !id.is_empty());
        match theirs {
            None => {}
            Some(_) if edge && !self.preserve_external => {}
            Some(id) => {
                // Nor can they choose to be traced.
                if edge
                    && self.pack_trace_reason
                    && let Some(id) = without_trace_reason(id)
                {
                    headers.insert(names::REQUEST_ID, id);
                }
                return;
            }
        }
        headers.insert(names::REQUEST_ID, new_request_id());
    }

    /// The id that a response shall carry.
    pub(super) fn for_response(self, request: &HeaderMap) -> Option<&HeaderValue> {
        // A look at each name is cheaper than the hash of this one.
        if self.always_in_response || request.keys().any(|name| *name == names::FORCE_TRACE) {
            request.get(names::REQUEST_ID)
        } else {
            None
        }
    }
}

/// The id changed to say "not traced". None if it says so, or is too short to say anything.
fn without_trace_reason(id: &HeaderValue) -> Option<HeaderValue> {
    let mut bytes = id.as_bytes().to_vec();
    if bytes.len() < 36 {
        return None;
    }
    let digit = bytes.get_mut(TRACE_REASON).filter(|d| **d != NOT_TRACED)?;
    *digit = NOT_TRACED;
    HeaderValue::from_bytes(&bytes).ok()
}

/// A version-4 UUID as a header value, formatted on the stack.
fn new_request_id() -> HeaderValue {
    let mut buffer = uuid::Uuid::encode_buffer();
    let text = uuid::Uuid::new_v4().hyphenated().encode_lower(&mut buffer);
    let value = HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""));
    names::passing(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACED: &str = "6f1d2a00-1111-9222-8333-444455556666";

    fn rules(proto: &HttpConnectionManager) -> RequestIds {
        RequestIds::compile(proto).unwrap()
    }

    fn id_after(rules: RequestIds, edge: bool, theirs: &str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(names::REQUEST_ID, theirs.parse().unwrap());
        rules.set(&mut headers, edge);
        headers[names::REQUEST_ID].to_str().unwrap().to_owned()
    }

    #[test]
    fn only_trusted_senders_choose_their_id() {
        let default = rules(&HttpConnectionManager::default());
        assert_eq!(id_after(default, false, TRACED), TRACED);
        assert_ne!(id_after(default, true, TRACED), TRACED);
        assert_eq!(id_after(default, false, "").len(), 36);
        let preserve = rules(&HttpConnectionManager {
            preserve_external_request_id: true,
            ..Default::default()
        });
        assert_eq!(id_after(preserve, true, TRACED), TRACED.replace("-9", "-4"));
        assert_eq!(id_after(preserve, true, "short"), "short");
    }

    #[test]
    fn the_response_has_it_when_asked_for() {
        let mut request = HeaderMap::new();
        request.insert(names::REQUEST_ID, HeaderValue::from_static("i"));
        let mut config = HttpConnectionManager::default();
        assert_eq!(rules(&config).for_response(&request), None);
        request.insert(names::FORCE_TRACE, HeaderValue::from_static("1"));
        assert!(rules(&config).for_response(&request).is_some());
        request.remove(names::FORCE_TRACE);
        config.always_set_request_id_in_response = true;
        assert!(rules(&config).for_response(&request).is_some());
    }
}
