//! Compression of responses with gzip (`envoy.extensions.filters.http.compressor.v3`).

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::compression::gzip::compressor::v3::Gzip;
use envoy_types::pb::envoy::extensions::filters::http::compressor::v3::{
    Compressor, CompressorPerRoute, compressor_per_route::Override,
};
use envoy_types::pb::google::protobuf::Any;
use flate2::Compression;
use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE,
    ETAG, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use xds_client::any::unpack;
use xds_client::error::{At, ConfigError};

use super::gzip::GzipBody;
use crate::body::Body;
use crate::filter::{HttpFilter, SharedInfo, Slot, Step};
use crate::head::{RequestHead, ResponseHead};
use crate::registry::{FactoryContext, HttpFilterFactory};
use crate::stream::RouteFilterConfig;

/// Envoy's default content types.
const TYPES: &[&str] = &[
    "application/javascript",
    "application/json",
    "application/xhtml+xml",
    "image/svg+xml",
    "text/css",
    "text/html",
    "text/plain",
    "text/xml",
];

/// Compiles the filter.
pub struct CompressorFactory;

struct CompressorFilter {
    level: Compression,
    types: Vec<String>,
    min_length: u64,
    keep_etag: bool,
}

/// The request accepts gzip.
struct Accepted;

impl HttpFilterFactory for CompressorFactory {
    fn compile(&self, any: &Any, _: &FactoryContext) -> Result<Arc<dyn HttpFilter>, ConfigError> {
        let proto: Compressor = unpack(any)?;
        let library = proto.compressor_library.as_ref();
        let library = library.and_then(|l| l.typed_config.as_ref());
        let library =
            library.ok_or_else(|| ConfigError::new("is required").at("compressor_library"))?;
        let gzip: Gzip = unpack(library).at("compressor_library.typed_config")?;
        let response = proto.response_direction_config.unwrap_or_default();
        let common = response.common_config.unwrap_or_default();
        #[allow(deprecated)] // the old places of these fields are refused, not guessed at
        let old = proto.content_length.is_some()
            || !proto.content_type.is_empty()
            || proto.disable_on_etag_header
            || proto.remove_accept_encoding_header
            || proto.runtime_enabled.is_some();
        for (set, field) in [
            (
                old,
                "content_length, content_type and other deprecated fields",
            ),
            (
                proto.request_direction_config.is_some(),
                "request_direction_config",
            ),
            (proto.choose_first, "choose_first"),
            (
                common.enabled.is_some(),
                "response_direction_config.common_config.enabled",
            ),
            (
                !common.content_type_matcher.is_empty(),
                "response_direction_config.common_config.content_type_matcher",
            ),
            (
                response.remove_accept_encoding_header,
                "response_direction_config.remove_accept_encoding_header",
            ),
            (
                response.weaken_etag_on_compress,
                "response_direction_config.weaken_etag_on_compress",
            ),
            (
                !response.uncompressible_response_codes.is_empty(),
                "response_direction_config.uncompressible_response_codes",
            ),
            (
                response.status_header_enabled,
                "response_direction_config.status_header_enabled",
            ),
        ] {
            if set {
                return Err(ConfigError::unsupported(field));
            }
        }
        // BEST_COMPRESSION and LEVEL_9 are 9, BEST_SPEED and LEVEL_1 are 1; 0 is zlib's default.
        let level = match u32::try_from(gzip.compression_level) {
            Ok(0) => Compression::default(),
            Ok(level @ 1..=9) => Compression::new(level),
            _ => return Err(ConfigError::new("unknown").at("compressor_library.compression_level")),
        };
        #[allow(deprecated)] // its successor, a matcher, is refused above
        let types = match common.content_type.is_empty() {
            true => TYPES.iter().map(|t| (*t).to_owned()).collect(),
            false => (common.content_type.iter())
                .map(|t| t.to_ascii_lowercase())
                .collect(),
        };
        Ok(Arc::new(CompressorFilter {
            level,
            types,
            min_length: common.min_content_length.map_or(30, |v| u64::from(v.value)),
            keep_etag: response.disable_on_etag_header,
        }))
    }

    fn compile_route(
        &self,
        any: &Any,
        _: &FactoryContext,
    ) -> Result<RouteFilterConfig, ConfigError> {
        match unpack::<CompressorPerRoute>(any)?.r#override {
            Some(Override::Disabled(true)) => Ok(RouteFilterConfig::Disabled),
            Some(Override::Overrides(_)) => Err(ConfigError::unsupported("overrides")),
            _ => Err(ConfigError::new("is required").at("override")),
        }
    }
}

/// Whether any of the header's values has this token, up to a `;`.
fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    headers.get_all(name).iter().any(|value| {
        value.to_str().is_ok_and(|text| {
            text.split(',').any(|item| {
                let item = item.split(';').next().unwrap_or(item);
                item.trim().eq_ignore_ascii_case(token)
            })
        })
    })
}

/// Whether `accept-encoding` takes gzip (RFC 9110, 12.5.3): by its own weight or that of `*`, and not
/// less than what it gives `identity` by name.
fn accepts(headers: &HeaderMap) -> bool {
    let (mut gzip, mut any, mut identity) = (None, None, None);
    for value in headers.get_all(ACCEPT_ENCODING) {
        for item in value.to_str().unwrap_or_default().split(',') {
            let mut parts = item.split(';');
            let name = parts.next().unwrap_or_default().trim();
            let weight = parts.find_map(|p| p.trim().strip_prefix("q=")?.parse::<f32>().ok());
            let slot = match name {
                n if n.eq_ignore_ascii_case("gzip") => &mut gzip,
                n if n.eq_ignore_ascii_case("identity") => &mut identity,
                "*" => &mut any,
                _ => continue,
            };
            *slot = Some(weight.unwrap_or(1.0));
        }
    }
    let weight = gzip.or(any).unwrap_or(0.0);
    weight > 0.0 && weight >= identity.unwrap_or(0.0)
}

impl CompressorFilter {
    fn suits(&self, head: &ResponseHead, body: &Body) -> bool {
        let headers = &head.headers;
        let kind = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let kind = kind.map(|k| k.split(';').next().unwrap_or(k).trim());
        let length = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok());
        let length = length.and_then(|l| l.parse().ok()).or(body.remaining());
        let excluded = body.is_end()
            || matches!(head.status.as_u16(), 100..=199 | 204 | 206 | 304)
            || headers.contains_key(CONTENT_ENCODING)
            || has_token(headers, CACHE_CONTROL, "no-transform")
            || (self.keep_etag && headers.contains_key(ETAG));
        !excluded
            && kind.is_none_or(|k| self.types.iter().any(|t| t.eq_ignore_ascii_case(k)))
            && length.is_none_or(|l| l >= self.min_length)
    }
}

impl HttpFilter for CompressorFilter {
    fn on_request<'a>(
        &'a self,
        head: &'a mut RequestHead,
        _: &'a mut Body,
        slot: &'a mut Slot,
        _: &'a SharedInfo,
    ) -> Step<'a> {
        if !head.is_tunnel() && accepts(&head.headers) {
            // A box of nothing is no allocation.
            *slot = Some(Box::new(Accepted));
        }
        Step::CONTINUE
    }

    fn on_response<'a>(
        &'a self,
        head: &'a mut ResponseHead,
        body: &'a mut Body,
        slot: &'a mut Slot,
        _: &'a SharedInfo,
    ) -> Step<'a> {
        if !self.suits(head, body) {
            return Step::CONTINUE;
        }
        let headers = &mut head.headers;
        // The answer depends on the header, whether this one is compressed or not.
        if !has_token(headers, VARY, "accept-encoding") && !has_token(headers, VARY, "*") {
            headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
        }
        if slot.is_none() {
            return Step::CONTINUE;
        }
        // A strong validator names other bytes; Envoy takes it out and keeps weak ones.
        let weak = |v: &HeaderValue| matches!(v.as_bytes(), [b'W' | b'w', b'/', ..]);
        if headers.get(ETAG).is_some_and(|v| !weak(v)) {
            headers.remove(ETAG);
        }
        headers.remove(CONTENT_LENGTH);
        headers.remove(ACCEPT_RANGES);
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        *body = Body::stream(GzipBody::new(std::mem::take(body), self.level));
        Step::CONTINUE
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use bytes::Bytes;
    use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
    use http::{Method, StatusCode};
    use xds_client::any::pack;

    use super::*;
    use crate::chain::tests::info;

    async fn run(
        accept: &'static str,
        headers: &[(&'static str, &'static str)],
    ) -> (ResponseHead, Body) {
        let config = Compressor {
            compressor_library: Some(TypedExtensionConfig {
                name: "gzip".into(),
                typed_config: Some(pack(&Gzip::default())),
            }),
            ..Compressor::default()
        };
        let cx = crate::registry::tests::cx();
        let filter = CompressorFactory.compile(&pack(&config), &cx).unwrap();
        let (facts, mut slot) = (info(), None);
        let mut request = RequestHead::new(Method::GET, "/");
        request
            .headers
            .insert(ACCEPT_ENCODING, HeaderValue::from_static(accept));
        filter.on_request(&mut request, &mut Body::Empty, &mut slot, &facts);
        let mut head = ResponseHead::new(StatusCode::OK);
        for (name, value) in headers {
            head.headers.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        let mut body = Body::from(Bytes::from_static(&[b'a'; 1000]));
        filter.on_response(&mut head, &mut body, &mut slot, &facts);
        (head, body)
    }

    #[tokio::test]
    async fn compresses_what_suits() {
        let headers = [
            ("content-type", "text/html; charset=utf-8"),
            ("content-length", "1000"),
            ("etag", "\"x\""),
        ];
        let (head, mut body) = run("br, gzip;q=0.5", &headers).await;
        assert_eq!(head.headers[CONTENT_ENCODING], "gzip");
        assert_eq!(head.headers[VARY], "Accept-Encoding");
        assert!(!head.headers.contains_key(CONTENT_LENGTH) && !head.headers.contains_key(ETAG));
        let all = body.collect(9999).await.unwrap().data;
        let mut plain = Vec::new();
        let mut decoder = flate2::read::GzDecoder::new(&all[..]);
        decoder.read_to_end(&mut plain).unwrap();
        assert_eq!(plain, [b'a'; 1000]);
    }

    #[tokio::test]
    async fn leaves_the_rest() {
        for (accept, name, value) in [
            ("gzip;q=0", "content-type", "text/html"),
            ("br", "content-type", "text/html"),
            ("gzip;q=0.1, identity", "content-type", "text/html"),
            ("gzip", "content-type", "image/png"),
            ("gzip", "content-length", "29"),
            ("gzip", "content-encoding", "br"),
            ("gzip", "cache-control", "public, no-transform"),
        ] {
            let (head, body) = run(accept, &[(name, value)]).await;
            assert_eq!(body.remaining(), Some(1000), "{accept} {name} {value}");
            assert_ne!(
                head.headers.get(CONTENT_ENCODING).map(|v| v.as_bytes()),
                Some(&b"gzip"[..])
            );
        }
    }
}
