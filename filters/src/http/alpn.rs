//! istio's ALPN filter: offers the protocols of istio's sidecars to upstreams, so that these tell mesh traffic from
//! other (`istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig`).

use std::sync::Arc;

use bytestring::ByteString;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};
use xds_client::any::{inner_type_name, typed_struct_value, unpack};
use xds_client::error::ConfigError;

use crate::body::Body;
use crate::filter::{HttpFilter, SharedInfo, Slot, Step};
use crate::head::RequestHead;
use crate::registry::{FactoryContext, HttpFilterFactory};
use crate::stream::RouteFilterConfig;

/// The type of the filter's configuration.
pub const TYPE: &str = "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig";

/// Names of protocols, best first.
pub type AlpnNames = Arc<[ByteString]>;

/// The protocols to offer, by the version of HTTP that the upstream is spoken to in. The router asks for them on TLS
/// connections, unless the cluster's metadata says `istio: {alpn_override: "false"}`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct AlpnOverride {
    /// For HTTP/1.1.
    pub http1: Option<AlpnNames>,
    /// For HTTP/2.
    pub http2: Option<AlpnNames>,
}

#[derive(Clone, PartialEq, Message)]
struct Config {
    #[prost(message, repeated, tag = "1")]
    alpn_override: Vec<Override>,
}

#[derive(Clone, PartialEq, Message)]
struct Override {
    /// 0: HTTP/1.0, in which no upstream is spoken to; 1: HTTP/1.1; 2: HTTP/2.
    #[prost(int32, tag = "1")]
    upstream_protocol: i32,
    #[prost(string, repeated, tag = "2")]
    alpn_override: Vec<String>,
}

impl Name for Config {
    const PACKAGE: &'static str = "istio.envoy.config.filter.http.alpn.v2alpha1";
    const NAME: &'static str = "FilterConfig";
}

/// Compiles the filter.
pub struct AlpnFactory;

struct AlpnFilter(Arc<AlpnOverride>);

impl AlpnOverride {
    fn compile(config: &Config) -> Result<Self, ConfigError> {
        let mut compiled = Self::default();
        for (i, entry) in config.alpn_override.iter().enumerate() {
            let at = format!("alpn_override[{i}]");
            for (j, name) in entry.alpn_override.iter().enumerate() {
                if name.is_empty() || name.len() > 255 {
                    return Err(ConfigError::new("must have 1 to 255 bytes")
                        .at(format!("alpn_override[{j}]"))
                        .at(at));
                }
            }
            let names: AlpnNames = entry
                .alpn_override
                .iter()
                .map(|n| n.as_str().into())
                .collect();
            let names = (!names.is_empty()).then_some(names);
            match entry.upstream_protocol {
                0 => {}
                1 => compiled.http1 = names,
                2 => compiled.http2 = names,
                _ => {
                    return Err(ConfigError::new("unknown value")
                        .at("upstream_protocol")
                        .at(at));
                }
            }
        }
        Ok(compiled)
    }
}

impl HttpFilterFactory for AlpnFactory {
    fn compile(&self, any: &Any, _: &FactoryContext) -> Result<Arc<dyn HttpFilter>, ConfigError> {
        // This message has no descriptor here that JSON could be read by.
        if typed_struct_value(any)?.is_some() {
            let name = inner_type_name(any)?;
            return Err(ConfigError::new(format!(
                "{name} in a TypedStruct is not supported"
            )));
        }
        let compiled = AlpnOverride::compile(&unpack(any)?)?;
        Ok(Arc::new(AlpnFilter(Arc::new(compiled))))
    }

    fn compile_route(&self, _: &Any, _: &FactoryContext) -> Result<RouteFilterConfig, ConfigError> {
        Err(ConfigError::new(
            "the filter has no per-route configuration",
        ))
    }
}

impl HttpFilter for AlpnFilter {
    fn on_request<'a>(
        &'a self,
        _: &'a mut RequestHead,
        _: &'a mut Body,
        _: &'a mut Slot,
        info: &'a SharedInfo,
    ) -> Step<'a> {
        info.borrow_mut().upstream_alpn = Some(self.0.clone());
        Step::CONTINUE
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::chain::tests::info;
    use crate::registry::tests::cx;

    fn entry(upstream_protocol: i32, names: &[&str]) -> Override {
        Override {
            upstream_protocol,
            alpn_override: names.iter().map(ToString::to_string).collect(),
        }
    }

    fn any(entries: Vec<Override>) -> Any {
        Any {
            type_url: format!("type.googleapis.com/{TYPE}"),
            value: Config {
                alpn_override: entries,
            }
            .encode_to_vec(),
        }
    }

    #[test]
    fn what_istiod_sends_reaches_the_router() {
        let config = any(vec![
            entry(0, &["istio-http/1.0", "istio", "http/1.0"]),
            entry(1, &["istio-http/1.1", "istio", "http/1.1"]),
            entry(2, &["istio-h2", "istio", "h2"]),
        ]);
        let filter = AlpnFactory.compile(&config, &cx()).ok().unwrap();
        let facts = info();
        let mut head = RequestHead::new(Method::GET, "/");
        let _ = filter.on_request(&mut head, &mut Body::Empty, &mut None, &facts);
        let asked = facts.borrow().upstream_alpn.clone().unwrap();
        let text = |names: &Option<AlpnNames>| names.as_ref().unwrap().join(",");
        assert_eq!(text(&asked.http1), "istio-http/1.1,istio,http/1.1");
        assert_eq!(text(&asked.http2), "istio-h2,istio,h2");
    }

    #[test]
    fn a_name_that_cannot_be_sent_is_refused() {
        let error = |entries| AlpnFactory.compile(&any(entries), &cx()).err().unwrap();
        let empty = error(vec![entry(1, &["a", ""])]);
        assert_eq!(empty.path(), "alpn_override[0].alpn_override[1]");
        let unknown = error(vec![entry(3, &["h3"])]);
        assert_eq!(unknown.path(), "alpn_override[0].upstream_protocol");
    }
}
