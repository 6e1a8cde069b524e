//! How control planes are reached: at the first endpoint of a static cluster, in plaintext or over TLS.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use filters::head::RequestHead;
use filters::stream::{Address, Protocol};
use http::Method;
use tokio::net::{TcpStream, UnixStream};
use xds_client::ads::{Connecting as Opening, Connector, Transport};
use xds_client::error::ConfigError;

use crate::transport::options::TransportOptions;
use crate::transport::tls::upstream::{Connecting, UpstreamTls};
use crate::transport::upstream::UpstreamTransport;
use crate::upstream::cluster_config::{ClusterConfig, Stores};
use crate::upstream::host::Target;

/// The static clusters that streams can use, by name.
pub(super) struct Ways(HashMap<String, Way>);

/// A cluster and its first endpoint.
struct Way {
    to: To,
    hostname: String,
    /// Metadata, which may choose the transport.
    endpoint: Option<Metadata>,
    locality: Option<Metadata>,
    cluster: Cluster,
}

#[derive(Debug, Clone)]
enum To {
    /// Host and port, resolved anew for each connection.
    Tcp(String),
    Unix(PathBuf),
}

impl Ways {
    pub(super) fn new(bootstrap: &Bootstrap) -> Self {
        let statics = bootstrap.static_resources.as_ref();
        let clusters = statics.map(|s| s.clusters.as_slice()).unwrap_or_default();
        let with = |c: &Cluster| Some((c.name.clone(), Way::new(c)?));
        Self(clusters.iter().filter_map(with).collect())
    }

    fn get(&self, cluster: &str) -> Result<&Way, ConfigError> {
        self.0.get(cluster).ok_or_else(|| {
            ConfigError::new(format!(
                "'{cluster}' is not a static cluster with one endpoint"
            ))
            .at("grpc_services[0].envoy_grpc.cluster_name")
        })
    }

    /// Whether there is such a cluster.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn check(&self, cluster: &str) -> Result<(), ConfigError> {
        self.get(cluster).map(drop)
    }

    /// The way to a cluster, for requests to `authority`.
    ///
    /// # Errors
    /// There is no such cluster, or its transport socket is not supported.
    pub(super) fn open(
        &self,
        cluster: &str,
        authority: &str,
        stores: &Stores,
    ) -> Result<Transport, ConfigError> {
        let way = self.get(cluster)?;
        let config = ClusterConfig::compile(&way.cluster, stores)?;
        let mut head = RequestHead::new(Method::POST, "/");
        head.authority = authority.into();
        match config.transport_for(way.endpoint.as_ref(), way.locality.as_ref()) {
            UpstreamTransport::Raw => Ok(match &way.to {
                To::Tcp(address) => Transport::Tcp(address.clone()),
                To::Unix(path) => Transport::Unix(path.clone()),
            }),
            UpstreamTransport::Tls(tls) => Ok(Transport::Secure(Arc::new(Secure {
                to: way.to.clone(),
                hostname: way.hostname.clone(),
                options: config.transport_options(&head, Protocol::Http2, None, Default::default()),
                tls: tls.clone(),
            }))),
            UpstreamTransport::Unavailable(text) => Err(ConfigError::new(&**text)),
            UpstreamTransport::Proxied(_) => Err(ConfigError::new(
                "a control plane is told of no client (PROXY protocol)",
            )),
            UpstreamTransport::Internal(_) => Err(ConfigError::new(
                "a control plane is no internal listener (internal_upstream)",
            )),
        }
    }
}

impl Way {
    fn new(cluster: &Cluster) -> Option<Self> {
        let endpoints = &cluster.load_assignment.as_ref()?.endpoints;
        let locality = endpoints.iter().find(|l| !l.lb_endpoints.is_empty())?;
        let first = locality.lb_endpoints.first()?;
        let Some(HostIdentifier::Endpoint(endpoint)) = &first.host_identifier else {
            return None;
        };
        let (to, name) = match Target::compile(endpoint.address.as_ref()).ok()? {
            Target::Address(Address::Ip(address)) => (To::Tcp(address.to_string()), None),
            Target::Address(Address::Pipe(path)) => (To::Unix((&*path).into()), None),
            Target::Name(name, port) => (To::Tcp(format!("{name}:{port}")), Some(name)),
            _ => return None,
        };
        let hostname = match endpoint.hostname.as_str() {
            "" => name.map(|name| name.to_string()).unwrap_or_default(),
            hostname => hostname.to_owned(),
        };
        Some(Self {
            to,
            hostname,
            endpoint: first.metadata.clone(),
            locality: locality.metadata.clone(),
            cluster: cluster.clone(),
        })
    }
}

/// TLS to a control plane.
#[derive(Debug, Clone)]
struct Secure {
    to: To,
    hostname: String,
    options: TransportOptions,
    tls: Arc<UpstreamTls>,
}

impl Connector for Secure {
    fn connect(&self) -> Opening {
        let this = self.clone();
        Box::pin(async move {
            // At the start they may be on their way; whoever connects has a timeout.
            this.tls.secrets().await;
            match &this.to {
                To::Tcp(address) => {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    let peer = stream.peer_addr()?.ip();
                    let connected = this.tls.connect(stream, this.connecting(Some(peer))).await;
                    Ok(Box::new(connected?.0) as _)
                }
                To::Unix(path) => {
                    let stream = UnixStream::connect(path).await?;
                    let connected = this.tls.connect(stream, this.connecting(None)).await;
                    Ok(Box::new(connected?.0) as _)
                }
            }
        })
    }
}

impl Secure {
    fn connecting(&self, address: Option<IpAddr>) -> Connecting<'_> {
        Connecting {
            address,
            hostname: &self.hostname,
            options: &self.options,
            protocols: &["h2"],
        }
    }
}
