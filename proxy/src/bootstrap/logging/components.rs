//! Envoy's log components, and which of our modules log under which.

/// Envoy's components. Those no code here logs under are accepted and silent.
pub(super) const COMPONENTS: &[&str] = &[
    "admin",
    "alternate_protocols_cache",
    "assert",
    "aws",
    "backtrace",
    "basic_auth",
    "cache_filter",
    "client",
    "compression",
    "config",
    "conn_handler",
    "connection",
    "credential_injector",
    "decompression",
    "dns",
    "dubbo",
    "dynamic_modules",
    "envoy_bug",
    "ext_authz",
    "ext_proc",
    "file",
    "filter",
    "forward_proxy",
    "geolocation",
    "golang",
    "grpc",
    "happy_eyeballs",
    "hc",
    "health_checker",
    "http",
    "http2",
    "hystrix",
    "init",
    "io",
    "jwt",
    "kafka",
    "key_value_store",
    "lua",
    "main",
    "matcher",
    "misc",
    "mongo",
    "multi_connection",
    "oauth2",
    "pool",
    "quic",
    "quic_stream",
    "rate_limit_quota",
    "rbac",
    "rds",
    "redis",
    "rocketmq",
    "router",
    "runtime",
    "secret",
    "stats",
    "tap",
    "testing",
    "thrift",
    "tracing",
    "udp",
    "upstream",
    "wasm",
    "websocket",
];

/// Module prefixes and their components; the first that fits counts.
const TARGETS: &[(&str, &str)] = &[
    ("fairway::server::admin", "admin"),
    ("fairway::server::listener", "conn_handler"),
    ("fairway::server::worker", "conn_handler"),
    ("fairway::server", "main"),
    ("fairway::bootstrap", "main"),
    ("fairway::http::h2", "http2"),
    ("fairway::http", "http"),
    ("fairway::router", "router"),
    ("fairway::upstream", "upstream"),
    ("fairway::telemetry", "stats"),
    ("fairway::transport", "connection"),
    ("fairway::config", "config"),
    ("fairway", "main"),
    ("xds_client", "config"),
    ("filters", "filter"),
    ("h2", "http2"),
    ("hickory", "dns"),
    ("hyper", "http"),
    ("tonic", "grpc"),
    ("pingora", "connection"),
];

pub(super) fn index(component: &str) -> Option<usize> {
    COMPONENTS.binary_search(&component).ok()
}

/// The component of a `tracing` target: a component's own name, or by module.
pub(super) fn component(target: &str) -> &'static str {
    let named = index(target).and_then(|i| COMPONENTS.get(i));
    let by_module = || {
        let fits = TARGETS
            .iter()
            .find(|(prefix, _)| target.starts_with(prefix));
        fits.map_or("misc", |(_, name)| name)
    };
    named.copied().unwrap_or_else(by_module)
}
