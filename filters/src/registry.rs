//! From extension type URLs to compiled HTTP filters.

use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::GrpcService;
use envoy_types::pb::envoy::config::route::v3::FilterConfig;
use envoy_types::pb::google::protobuf::Any;
use xds_client::any::{inner_type_name, unpack};
use xds_client::error::{At, ConfigError};

use crate::filter::HttpFilter;
use crate::grpc::GrpcChannel;
use crate::http;
use crate::runtime::RuntimeKeys;
use crate::stream::{FilterId, RouteFilterConfig};

/// Gives filters their way to gRPC services; the proxy implements it over its clusters.
pub trait GrpcConnector: Send + Sync {
    /// A channel to the service. It connects when first used.
    ///
    /// # Errors
    /// The service's configuration is unsupported or names an unknown cluster.
    fn channel(&self, service: &GrpcService) -> Result<GrpcChannel, ConfigError>;
}

/// A number that only grows.
pub trait FilterCounter: Send + Sync {
    /// Adds one.
    fn inc(&self);
}

/// A number that grows and shrinks.
pub trait FilterGauge: Send + Sync {
    /// Adds one.
    fn inc(&self);
    /// Takes one away.
    fn dec(&self);
}

/// Where a filter counts; the proxy implements it over its stats.
pub trait FilterStats: Send + Sync {
    /// The counter of this name below the filter's place: `http.<stat_prefix>.` in a connection manager.
    fn counter(&self, name: &str) -> Arc<dyn FilterCounter>;
    /// The gauge of this name there.
    fn gauge(&self, name: &str) -> Arc<dyn FilterGauge>;
}

/// What a factory may use.
#[derive(Clone)]
pub struct FactoryContext {
    /// The filter's interned name, for its per-route configuration.
    pub id: FilterId,
    /// The way to gRPC services.
    pub grpc: Arc<dyn GrpcConnector>,
    /// Where the filter counts.
    pub stats: Arc<dyn FilterStats>,
    /// What the runtime may change.
    pub runtime: Arc<dyn RuntimeKeys>,
}

/// Compiles one type of HTTP filter.
pub trait HttpFilterFactory: Send + Sync {
    /// Compiles the filter of one chain position.
    ///
    /// # Errors
    /// The configuration does not decode, is invalid, or asks for what is unsupported.
    fn compile(&self, any: &Any, cx: &FactoryContext) -> Result<Arc<dyn HttpFilter>, ConfigError>;

    /// Compiles a per-route configuration.
    ///
    /// # Errors
    /// As [`compile`](Self::compile), or the filter has no per-route configuration.
    fn compile_route(
        &self,
        any: &Any,
        cx: &FactoryContext,
    ) -> Result<RouteFilterConfig, ConfigError>;
}

/// A compiled chain position.
pub enum Compiled {
    /// An implemented filter.
    Filter(Arc<dyn HttpFilter>),
    /// The terminal router.
    Router,
    /// A filter without effect on messages that Fairway knows and leaves out; for a log line and a
    /// counter. Holds the type's name.
    Harmless(&'static str),
}

/// Filters that change no message: telemetry and Istio's peer metadata.
const HARMLESS: &[&str] = &[
    "io.istio.http.peer_metadata.Config",
    "istio.metadata_exchange.PluginConfig",
    "stats.PluginConfig",
    "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
];

const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
const FILTER_CONFIG: &str = "envoy.config.route.v3.FilterConfig";

/// The HTTP filters that Fairway has, by type.
pub struct Registry {
    factories: HashMap<&'static str, Arc<dyn HttpFilterFactory>>,
}

impl Default for Registry {
    fn default() -> Self {
        let mut registry = Self {
            factories: HashMap::new(),
        };
        http::register(&mut registry);
        registry
    }
}

impl Registry {
    /// Adds a factory for a message type (its full name), replacing an earlier one.
    pub fn add(&mut self, name: &'static str, factory: Arc<dyn HttpFilterFactory>) {
        self.factories.insert(name, factory);
    }

    /// The types of every filter there is, the router's among them.
    pub fn types(&self) -> impl Iterator<Item = &'static str> {
        self.factories.keys().copied().chain([ROUTER])
    }

    /// Compiles the configuration of one chain position.
    ///
    /// # Errors
    /// The type is unsupported (the error names it) or its factory refused the configuration.
    pub fn compile(&self, any: &Any, cx: &FactoryContext) -> Result<Compiled, ConfigError> {
        let name = inner_type_name(any)?;
        if name == ROUTER {
            return Ok(Compiled::Router);
        }
        if let Some(known) = HARMLESS.iter().find(|h| **h == name) {
            return Ok(Compiled::Harmless(known));
        }
        self.factory(&name)?.compile(any, cx).map(Compiled::Filter)
    }

    /// Compiles one value of `typed_per_filter_config`; `None` for harmless filters and for unsupported
    /// ones marked `is_optional`.
    ///
    /// # Errors
    /// As [`compile`](Self::compile).
    pub fn compile_route(
        &self,
        any: &Any,
        cx: &FactoryContext,
    ) -> Result<Option<RouteFilterConfig>, ConfigError> {
        if inner_type_name(any)? != FILTER_CONFIG {
            return self.compile_route_inner(any, cx);
        }
        let wrapper: FilterConfig = unpack(any)?;
        if wrapper.disabled {
            return Ok(Some(RouteFilterConfig::Disabled));
        }
        // Without a configuration, or with one of no type, the wrapper turns on a filter that is disabled by default.
        let Some(config) = wrapper.config.as_ref().filter(|c| !c.type_url.is_empty()) else {
            return Ok(Some(RouteFilterConfig::Config(Arc::new(()))));
        };
        let known =
            inner_type_name(config).is_ok_and(|name| self.factories.contains_key(name.as_str()));
        if wrapper.is_optional && !known {
            return Ok(None);
        }
        self.compile_route_inner(config, cx).at("config")
    }

    fn compile_route_inner(
        &self,
        any: &Any,
        cx: &FactoryContext,
    ) -> Result<Option<RouteFilterConfig>, ConfigError> {
        let name = inner_type_name(any)?;
        if HARMLESS.contains(&name.as_str()) {
            return Ok(None);
        }
        self.factory(&name)?.compile_route(any, cx).map(Some)
    }

    fn factory(&self, name: &str) -> Result<&Arc<dyn HttpFilterFactory>, ConfigError> {
        self.factories
            .get(name)
            .ok_or_else(|| ConfigError::new(format!("HTTP filter type {name} is not supported")))
    }
}

/// Gives each filter name a number, so that the request path compares numbers.
#[derive(Debug, Default)]
pub struct FilterNames {
    ids: HashMap<String, FilterId>,
}

impl FilterNames {
    /// The number of `name`, the same for the same name.
    pub fn intern(&mut self, name: &str) -> FilterId {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = FilterId(u32::try_from(self.ids.len()).unwrap_or(u32::MAX));
        self.ids.insert(name.to_owned(), id);
        id
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use prost::Message;

    use super::*;

    struct NoGrpc;
    impl GrpcConnector for NoGrpc {
        fn channel(&self, _: &GrpcService) -> Result<GrpcChannel, ConfigError> {
            Err(ConfigError::unsupported("grpc_service"))
        }
    }

    /// Counts nothing.
    #[derive(Clone)]
    pub(crate) struct NoStats;
    impl FilterStats for NoStats {
        fn counter(&self, _: &str) -> Arc<dyn FilterCounter> {
            Arc::new(self.clone())
        }
        fn gauge(&self, _: &str) -> Arc<dyn FilterGauge> {
            Arc::new(self.clone())
        }
    }
    impl FilterCounter for NoStats {
        fn inc(&self) {}
    }
    impl FilterGauge for NoStats {
        fn inc(&self) {}
        fn dec(&self) {}
    }

    pub(crate) fn cx() -> FactoryContext {
        FactoryContext {
            id: FilterId(0),
            grpc: Arc::new(NoGrpc),
            stats: Arc::new(NoStats),
            runtime: Arc::new(crate::runtime::tests::NoRuntime),
        }
    }

    /// The first field of both `TypedStruct` messages.
    #[derive(Clone, PartialEq, Message)]
    struct TypedStructHead {
        #[prost(string, tag = "1")]
        type_url: String,
    }

    fn any(name: &str, value: Vec<u8>) -> Any {
        Any {
            type_url: format!("type.googleapis.com/{name}"),
            value,
        }
    }

    #[test]
    fn dispatches_by_inner_type() {
        let registry = Registry::default();
        let stats = TypedStructHead {
            type_url: "type.googleapis.com/stats.PluginConfig".into(),
        };
        let wrapped = any("udpa.type.v1.TypedStruct", stats.encode_to_vec());
        let compiled = registry.compile(&wrapped, &cx());
        assert!(matches!(
            compiled,
            Ok(Compiled::Harmless("stats.PluginConfig"))
        ));
        assert!(matches!(
            registry.compile(&any(ROUTER, vec![]), &cx()),
            Ok(Compiled::Router)
        ));
        let cors = TypedStructHead {
            type_url: "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors".into(),
        };
        let wrapped = any("xds.type.v3.TypedStruct", cors.encode_to_vec());
        let compiled = registry.compile(&wrapped, &cx());
        assert!(matches!(compiled, Ok(Compiled::Filter(_))));
        let unknown = registry.compile(&any("a.b.Health", vec![]), &cx());
        assert!(unknown.err().unwrap().to_string().contains("a.b.Health"));
    }

    #[test]
    fn filter_config_wrapper() {
        let registry = Registry::default();
        let mut wrapper = FilterConfig {
            disabled: true,
            ..FilterConfig::default()
        };
        let off = registry.compile_route(&any(FILTER_CONFIG, wrapper.encode_to_vec()), &cx());
        assert!(matches!(off, Ok(Some(RouteFilterConfig::Disabled))));
        wrapper.disabled = false;
        wrapper.config = Some(Any::default());
        let on = registry.compile_route(&any(FILTER_CONFIG, wrapper.encode_to_vec()), &cx());
        assert!(matches!(on, Ok(Some(RouteFilterConfig::Config(_)))));
        wrapper.config = Some(any("a.b.Unknown", vec![]));
        let refused = registry.compile_route(&any(FILTER_CONFIG, wrapper.encode_to_vec()), &cx());
        assert_eq!(refused.unwrap_err().path(), "config");
        wrapper.is_optional = true;
        let skipped = registry.compile_route(&any(FILTER_CONFIG, wrapper.encode_to_vec()), &cx());
        assert!(matches!(skipped, Ok(None)));
    }

    #[test]
    fn names_are_stable() {
        let mut names = FilterNames::default();
        let a = names.intern("a");
        assert_ne!(names.intern("b"), a);
        assert_eq!(names.intern("a"), a);
    }
}
