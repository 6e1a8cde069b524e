//! The router filter's own options (Envoy's `envoy.filters.http.router`).

use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter, http_filter,
};
use envoy_types::pb::google::protobuf::Any;
use filters::filter::LocalReply;
use filters::flags::ResponseFlags;
use filters::head::RequestHead;
use http::{HeaderName, StatusCode};
use xds_client::any;
use xds_client::error::ConfigError;

use super::context::reject;
use super::retry_policy::RetryOn;
use crate::http::conn_manager::names;

const UPSTREAM_CODEC: &str = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec";

/// The options of one chain's router.
#[derive(Debug, Clone, Default)]
pub struct RouterOptions {
    /// No `x-envoy-*` headers are added on the way up or down.
    pub suppress_envoy_headers: bool,
    /// `x-envoy-expected-rq-timeout-ms` is an internal sender's word on the timeout.
    pub respect_expected_timeout: bool,
    strict: Vec<(HeaderName, Syntax)>,
}

/// What a header that steers the router must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Syntax {
    Number,
    RetryOn,
    RetryGrpcOn,
}

impl RouterOptions {
    /// Compiles the filter's configuration. `dynamic_stats`, `start_child_span` and
    /// `suppress_grpc_request_failure_code_stats` change no request, and nothing here.
    ///
    /// # Errors
    /// An unknown name in `strict_check_headers`, or an option that is not supported.
    pub fn compile(config: &Any) -> Result<Self, ConfigError> {
        let proto: Router = any::unpack(config)?;
        let early_data = proto.reject_connect_request_early_data;
        reject(&[
            (!proto.upstream_log.is_empty(), "upstream_log"),
            (
                early_data.is_some_and(|v| v.value),
                "reject_connect_request_early_data",
            ),
        ])?;
        for (i, filter) in proto.upstream_http_filters.iter().enumerate() {
            if !is_upstream_codec(filter) {
                let field = format!("upstream_http_filters[{i}]");
                return Err(ConfigError::unsupported(&field));
            }
        }
        let strict = proto.strict_check_headers.iter().enumerate();
        let strict = strict.map(|(i, name)| strict_header(name, i));
        Ok(Self {
            suppress_envoy_headers: proto.suppress_envoy_headers,
            respect_expected_timeout: proto.respect_expected_rq_timeout,
            strict: strict.collect::<Result<_, _>>()?,
        })
    }

    /// The answer to a request with a header that is checked and does not hold what it must.
    pub(super) fn check(&self, head: &RequestHead) -> Option<LocalReply> {
        self.strict.iter().find_map(|(name, syntax)| {
            let value = head.headers.get(name)?;
            let text = String::from_utf8_lossy(value.as_bytes());
            if syntax.accepts(&text) {
                return None;
            }
            let body = format!("invalid header '{name}' with value '{text}'");
            let details = format!("request_headers_failed_strict_check{{{name}}}");
            let reply = LocalReply::new(StatusCode::BAD_REQUEST, body, details);
            Some(reply.with_flags(ResponseFlags::INVALID_ENVOY_REQUEST_HEADERS))
        })
    }
}

impl Syntax {
    fn accepts(self, text: &str) -> bool {
        match self {
            Self::Number => text.parse::<u64>().is_ok(),
            Self::RetryOn => RetryOn::all_known(text, false),
            Self::RetryGrpcOn => RetryOn::all_known(text, true),
        }
    }
}

fn strict_header(name: &str, index: usize) -> Result<(HeaderName, Syntax), ConfigError> {
    let known = [
        (names::UPSTREAM_TIMEOUT, Syntax::Number),
        (names::PER_TRY_TIMEOUT, Syntax::Number),
        (names::MAX_RETRIES, Syntax::Number),
        (names::RETRY_ON, Syntax::RetryOn),
        (names::RETRY_GRPC_ON, Syntax::RetryGrpcOn),
    ];
    let mut found = known.into_iter().filter(|(known, _)| known == name);
    found.next().ok_or_else(|| {
        ConfigError::new(format!("{name:?} is no header that can be checked"))
            .at(format!("strict_check_headers[{index}]"))
    })
}

/// The codec that ends every upstream chain, which says nothing.
fn is_upstream_codec(filter: &HttpFilter) -> bool {
    let Some(http_filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
        return false;
    };
    any::inner_type_url(config).is_ok_and(|url| url.rsplit('/').next() == Some(UPSTREAM_CODEC))
}

#[cfg(test)]
mod tests {
    use http::Method;
    use prost::Message;

    use super::*;

    fn options(proto: &Router) -> Result<RouterOptions, ConfigError> {
        RouterOptions::compile(&Any {
            type_url: "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router".into(),
            value: proto.encode_to_vec(),
        })
    }

    #[test]
    fn checked_headers_are_refused_by_name() {
        let proto = Router {
            strict_check_headers: vec![
                "x-envoy-max-retries".into(),
                "x-envoy-retry-on".into(),
                "x-envoy-retry-grpc-on".into(),
            ],
            ..Router::default()
        };
        let options = options(&proto).unwrap();
        for (name, value, ok) in [
            ("x-envoy-max-retries", "12", true),
            ("x-envoy-max-retries", "", false),
            ("x-envoy-max-retries", "-1", false),
            ("x-envoy-retry-on", "5xx, reset", true),
            ("x-envoy-retry-on", "", true),
            ("x-envoy-retry-on", "cancelled", false),
            ("x-envoy-retry-grpc-on", "cancelled", true),
            ("x-envoy-retry-grpc-on", "5xx", false),
            ("x-envoy-upstream-rq-timeout-ms", "soon", true),
        ] {
            let mut head = RequestHead::new(Method::GET, "/");
            let key = HeaderName::from_static(name);
            head.headers.insert(key, value.parse().unwrap());
            let reply = options.check(&head);
            assert_eq!(reply.is_none(), ok, "{name}: {value}");
            if let Some(reply) = reply {
                assert_eq!(reply.status, 400);
                assert!(reply.details.ends_with(&format!("{{{name}}}")));
            }
        }
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let refused = |proto: &Router| options(proto).unwrap_err().to_string();
        let unknown = Router {
            strict_check_headers: vec!["x-other".into()],
            ..Router::default()
        };
        assert!(refused(&unknown).starts_with("strict_check_headers[0]: "));
        let log = Router {
            upstream_log: vec![Default::default()],
            ..Router::default()
        };
        assert!(refused(&log).contains("upstream_log"));
        let filter = Router {
            upstream_http_filters: vec![HttpFilter::default()],
            ..Router::default()
        };
        assert!(refused(&filter).contains("upstream_http_filters[0]"));
    }
}
