//! A filter that panics: what ends with it, and what goes on.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3::FilterChain as FilterChainProto;
use envoy_types::pb::envoy::config::route::v3 as route;
use filters::body::Body;
use filters::filter::{SharedInfo, Slot, Step};
use filters::head::RequestHead;
use filters::registry::{FactoryContext, HttpFilterFactory, Registry};
use filters::stream::RouteFilterConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::config::testing;
use crate::server::drain::{DrainManager, DrainStrategy};
use crate::server::listener::ListenerContext;
use crate::server::listener_manager::ListenerManager;
use crate::server::socket::BindAddress;
use crate::telemetry::stats::Stats;

const LONG: Duration = Duration::from_secs(600);
const FILTER: &str = "test.Panics";

/// Panics when it is asked to.
struct Panics;

impl filters::filter::HttpFilter for Panics {
    fn on_request<'a>(
        &'a self,
        head: &'a mut RequestHead,
        _: &'a mut Body,
        _: &'a mut Slot,
        _: &'a SharedInfo,
    ) -> Step<'a> {
        assert!(&*head.path != "/panic", "asked to");
        Step::CONTINUE
    }
}

impl HttpFilterFactory for Panics {
    fn compile(
        &self,
        _: &Any,
        _: &FactoryContext,
    ) -> Result<Arc<dyn filters::filter::HttpFilter>, ConfigError> {
        Ok(Arc::new(Panics))
    }

    fn compile_route(&self, _: &Any, _: &FactoryContext) -> Result<RouteFilterConfig, ConfigError> {
        Ok(RouteFilterConfig::Disabled)
    }
}

fn manager() -> ListenerManager {
    let stats = Stats::new();
    let mut registry = Registry::default();
    registry.add(FILTER, Arc::new(Panics));
    let mut manager = ListenerManager::new(
        1,
        Arc::new(ListenerContext::new(u64::MAX, &stats)),
        Arc::new(DrainManager::new(LONG, DrainStrategy::Immediate)),
        Arc::new(ChainCompiler(testing::context(registry, stats))),
        Arc::new(|_: &str| None),
    );
    manager.start_workers().unwrap();
    manager
}

fn http_filter(name: &str, type_name: &str) -> HttpFilter {
    HttpFilter {
        name: name.into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(Any {
            type_url: format!("type.googleapis.com/{type_name}"),
            value: Vec::new(),
        })),
        ..Default::default()
    }
}

/// A listener that answers every request itself.
fn listener() -> Listener {
    let answer = route::Route {
        r#match: Some(route::RouteMatch {
            path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".into())),
            ..Default::default()
        }),
        action: Some(route::route::Action::DirectResponse(
            route::DirectResponseAction {
                status: 204,
                ..Default::default()
            },
        )),
        ..Default::default()
    };
    let routes = route::RouteConfiguration {
        virtual_hosts: vec![route::VirtualHost {
            name: "all".into(),
            domains: vec!["*".into()],
            routes: vec![answer],
            ..Default::default()
        }],
        ..Default::default()
    };
    let manager = HttpConnectionManager {
        stat_prefix: "p".into(),
        route_specifier: Some(hcm::RouteSpecifier::RouteConfig(routes)),
        http_filters: vec![
            http_filter("panics", FILTER),
            http_filter("router", "envoy.extensions.filters.http.router.v3.Router"),
        ],
        ..Default::default()
    };
    Listener {
        name: "l".into(),
        address: Some(core::Address {
            address: Some(core::address::Address::SocketAddress(core::SocketAddress {
                address: "127.0.0.1".into(),
                port_specifier: Some(core::socket_address::PortSpecifier::PortValue(0)),
                ..Default::default()
            })),
        }),
        filter_chains: vec![FilterChainProto {
            filters: vec![Filter {
                name: "hcm".into(),
                config_type: Some(filter::ConfigType::TypedConfig(any::pack(&manager))),
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}

async fn connect(manager: &ListenerManager) -> TcpStream {
    let (_, bound, _) = manager.listeners().next().unwrap();
    let BindAddress::Tcp { address, .. } = bound[0] else {
        panic!("not TCP");
    };
    TcpStream::connect(address).await.unwrap()
}

/// Sends a request and reads up to the end of a head without a body; empty if the connection ends instead.
async fn get(io: &mut TcpStream, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
    io.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        if io.read_buf(&mut answer).await.unwrap_or(0) == 0 {
            break;
        }
    }
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_panic_over_http_1_ends_its_connection_only() {
    let mut manager = manager();
    manager.apply(&listener(), "1").unwrap();
    let mut other = connect(&manager).await;
    assert!(get(&mut other, "/").await.starts_with("HTTP/1.1 204"));
    let mut io = connect(&manager).await;
    assert!(get(&mut io, "/").await.starts_with("HTTP/1.1 204"));
    assert_eq!(get(&mut io, "/panic").await, "");
    assert!(get(&mut other, "/").await.starts_with("HTTP/1.1 204"));
    let mut new = connect(&manager).await;
    assert!(get(&mut new, "/").await.starts_with("HTTP/1.1 204"));
    assert_eq!(manager.context().connection_panics.value(), 1);
}

#[tokio::test]
async fn a_panic_over_http_2_ends_its_stream_only() {
    let mut manager = manager();
    manager.apply(&listener(), "1").unwrap();
    let io = connect(&manager).await;
    let (send, connection) = ::h2::client::handshake(io).await.unwrap();
    tokio::spawn(connection);
    for (path, served) in [("/", true), ("/panic", false), ("/", true)] {
        let request = http::Request::get(format!("http://a{path}"));
        let mut send: ::h2::client::SendRequest<Bytes> = send.clone().ready().await.unwrap();
        let (response, _) = send.send_request(request.body(()).unwrap(), true).unwrap();
        assert_eq!(response.await.is_ok(), served, "{path}");
    }
    assert_eq!(manager.context().connection_panics.value(), 1);
}
