//! A compiled route configuration.

use std::borrow::Cow;
use std::sync::Arc;

use bytestring::ByteString;
use envoy_types::pb::envoy::config::route::v3 as pb;
use filters::head::RequestHead;
use filters::matcher::HeaderRef;
use filters::stream::{RouteView, StreamInfo};
use http::HeaderName;
use xds_client::error::{At, ConfigError};

use super::context::{CompileContext, RouteConfigInfo, VirtualHostInfo};
use super::route::Route;
use super::virtual_host::{HostTable, VirtualHost, without_port};

/// A compiled `RouteConfiguration`: immutable, shared by all workers.
#[derive(Debug)]
pub struct RouteTable {
    name: ByteString,
    info: Arc<RouteConfigInfo>,
    virtual_hosts: Vec<VirtualHost>,
    domains: HostTable,
    /// Where the host name is read from.
    host: HeaderRef,
    ignore_port: bool,
    ignore_path_parameters: bool,
}

/// What a route table says about a request.
#[derive(Debug, Clone)]
pub enum RouteOutcome {
    /// This route takes it.
    Matched(Arc<Route>),
    /// The virtual host wants TLS (`require_tls`): redirect to the same URL with `https` by 301.
    HttpsRedirect(Arc<VirtualHostInfo>),
    /// No virtual host or no route: 404.
    NotFound,
}

impl RouteTable {
    /// Compiles the message. Whether its routes may name clusters that do not exist is the context's say
    /// (`validate_clusters`); one that does answers as its `cluster_not_found_response_code` says.
    ///
    /// # Errors
    /// The first bad or unsupported field, with its path.
    pub fn compile(
        config: &pb::RouteConfiguration,
        cx: &CompileContext<'_>,
    ) -> Result<Self, ConfigError> {
        if config.vhds.is_some() {
            return Err(ConfigError::unsupported("vhds"));
        }
        let host = match config.vhost_header.as_str() {
            "" => HeaderRef::Authority,
            name => HeaderRef::parse(name).at("vhost_header")?,
        };
        let domains = HostTable::compile(config)?;
        let info = Arc::new(RouteConfigInfo::compile(config, cx)?);
        let one =
            |(i, host)| VirtualHost::compile(host, &info, cx).at(format!("virtual_hosts[{i}]"));
        let virtual_hosts = config.virtual_hosts.iter().enumerate();
        Ok(Self {
            name: config.name.as_str().into(),
            virtual_hosts: virtual_hosts.map(one).collect::<Result<_, _>>()?,
            info,
            domains,
            host,
            ignore_port: config.ignore_port_in_host_matching,
            ignore_path_parameters: config.ignore_path_parameters_in_path_matching,
        })
    }

    /// `internal_only_headers`: taken off requests from outside.
    pub fn internal_only_headers(&self) -> &[HeaderName] {
        &self.info.internal_only_headers
    }

    /// The route configuration's name.
    pub fn name(&self) -> &ByteString {
        &self.name
    }

    /// The number of virtual hosts.
    pub fn virtual_hosts(&self) -> usize {
        self.virtual_hosts.len()
    }

    /// The number of routes in all virtual hosts.
    pub fn routes(&self) -> usize {
        self.virtual_hosts.iter().map(VirtualHost::len).sum()
    }

    /// Chooses the route of a request. `random` decides runtime fractions and weighted clusters: the
    /// same number gives the same answer.
    pub fn route(&self, head: &RequestHead, info: &StreamInfo, random: u64) -> RouteOutcome {
        // Borrowed for a header on one line, and always for the authority. Without the header that names
        // the virtual host there is none, not even `*`.
        let host = match &self.host {
            HeaderRef::Authority => Cow::Borrowed(&**head.authority.as_bytes()),
            header => match header.in_request(head) {
                Some(host) => host,
                None => return RouteOutcome::NotFound,
            },
        };
        let host = match self.ignore_port {
            true => without_port(&host),
            false => &host,
        };
        let number = self.domains.find(host);
        let Some(virtual_host) = number.and_then(|n| self.virtual_hosts.get(n)) else {
            return RouteOutcome::NotFound;
        };
        let path = match self.ignore_path_parameters {
            true => without_parameters(head.path_only()),
            false => Cow::Borrowed(head.path_only()),
        };
        virtual_host.route(head, &path, info, random)
    }
}

impl RouteOutcome {
    /// The route for filters, formatters and logs; None unless one was found.
    pub fn view(&self) -> Option<Arc<dyn RouteView>> {
        match self {
            Self::Matched(route) => Some(route.clone()),
            Self::HttpsRedirect(_) | Self::NotFound => None,
        }
    }

    /// Whether the route itself turns this upgrade on (`upgrade_configs`).
    pub fn allows_upgrade(&self, name: &str) -> bool {
        match self {
            Self::Matched(route) => route.allows_upgrade(name) == Some(true),
            Self::HttpsRedirect(_) | Self::NotFound => false,
        }
    }
}

/// A path without the parameters of its segments (RFC 3986, 3.3): what follows a `;`.
fn without_parameters(path: &str) -> Cow<'_, str> {
    if !path.contains(';') {
        return Cow::Borrowed(path);
    }
    let segments = path.split('/').map(|s| s.split(';').next().unwrap_or(s));
    Cow::Owned(segments.collect::<Vec<_>>().join("/"))
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
