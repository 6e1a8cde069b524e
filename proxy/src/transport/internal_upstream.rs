//! `envoy.transport_sockets.internal_upstream`: tells the internal listener at the other end what is known on this side:
//! metadata of the host and its cluster, and filter state that is shared with the upstream. To hosts outside of the
//! process it adds nothing to the transport inside of it.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::internal_upstream::v3::{
    InternalUpstreamTransport, internal_upstream_transport::MetadataValueSource,
};
use envoy_types::pb::envoy::r#type::metadata::v3::metadata_kind::Kind;
use filters::matcher::metadata::struct_to_json;
use filters::stream::{DynamicMetadata, SharedObjects};
use xds_client::error::{At, ConfigError};

use super::upstream::{UpstreamContext, UpstreamTransport};
use crate::internal::Handover;

/// A transport that passes on what is known, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InternalTransport {
    /// The namespaces of a host's metadata that are passed on.
    of_host: Vec<String>,
    /// What is passed on: of the cluster, and once the host is known, of the host.
    metadata: Arc<DynamicMetadata>,
    inner: UpstreamTransport,
}

/// Copies a namespace; one that is not there, or is there already, adds nothing.
fn copy(name: &str, from: Option<&core::Metadata>, to: &mut DynamicMetadata) {
    if let Some(found) = from.and_then(|m| m.filter_metadata.get(name)) {
        to.entry(name.to_owned())
            .or_insert_with(|| struct_to_json(found));
    }
}

impl InternalTransport {
    /// Compiles the transport socket.
    ///
    /// # Errors
    /// What is wrong or not supported in it or in the one inside, by field.
    pub fn compile(
        proto: &InternalUpstreamTransport,
        context: &UpstreamContext<'_>,
    ) -> Result<Self, ConfigError> {
        let mut of_host = Vec::new();
        let mut metadata = DynamicMetadata::new();
        for (i, source) in proto.passthrough_metadata.iter().enumerate() {
            let MetadataValueSource { kind, name } = source;
            let at = |e: ConfigError| e.at(format!("passthrough_metadata[{i}]"));
            if name.is_empty() {
                return Err(at(ConfigError::new("value is required").at("name")));
            }
            match kind.as_ref().and_then(|kind| kind.kind.as_ref()) {
                Some(Kind::Host(_)) => of_host.push(name.clone()),
                Some(Kind::Cluster(_)) => copy(name, context.metadata, &mut metadata),
                Some(Kind::Request(_) | Kind::Route(_)) => {
                    let error = ConfigError::new("only HOST and CLUSTER metadata is supported");
                    return Err(at(error.at("kind")));
                }
                None => return Err(at(ConfigError::new("value is required").at("kind"))),
            }
        }
        let Some(socket) = &proto.transport_socket else {
            return Err(ConfigError::new("value is required").at("transport_socket"));
        };
        let inner = UpstreamTransport::compile(Some(socket), context).at("transport_socket")?;
        if matches!(inner, UpstreamTransport::Internal(_)) {
            let error = ConfigError::new("one internal_upstream inside of another");
            return Err(error.at("transport_socket"));
        }
        Ok(Self {
            of_host,
            metadata: Arc::new(metadata),
            inner,
        })
    }

    /// The transport inside.
    pub fn inner(&self) -> &UpstreamTransport {
        &self.inner
    }

    /// The same for an endpoint with this metadata.
    ///
    /// # Errors
    /// Metadata for the transport inside that cannot be honoured.
    pub fn for_endpoint(&self, metadata: Option<&core::Metadata>) -> Result<Self, ConfigError> {
        let mut all = (*self.metadata).clone();
        for name in &self.of_host {
            copy(name, metadata, &mut all);
        }
        Ok(Self {
            of_host: self.of_host.clone(),
            metadata: Arc::new(all),
            inner: self.inner.for_endpoint(metadata)?,
        })
    }

    /// What the other end is told.
    pub fn handover(&self, objects: Option<&SharedObjects>) -> Handover {
        Handover {
            metadata: (!self.metadata.is_empty()).then(|| self.metadata.clone()),
            objects: objects.cloned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::r#type::metadata::v3::{MetadataKind, metadata_kind as of};
    use envoy_types::pb::google::protobuf as wkt;

    use super::*;
    use crate::transport::tls::secrets::SecretStore;

    fn metadata(namespaces: &[(&str, &str)]) -> core::Metadata {
        let value = |text: &str| wkt::Value {
            kind: Some(wkt::value::Kind::StringValue(text.into())),
        };
        let namespace = |text: &str| wkt::Struct {
            fields: [("k".to_owned(), value(text))].into(),
        };
        let each = namespaces.iter().map(|(n, t)| ((*n).into(), namespace(t)));
        core::Metadata {
            filter_metadata: each.collect(),
            ..Default::default()
        }
    }

    fn compile(
        sources: Vec<(Kind, &str)>,
        socket: &str,
        cluster: &core::Metadata,
    ) -> Result<InternalTransport, ConfigError> {
        let source = |(kind, name): (Kind, &str)| MetadataValueSource {
            kind: Some(MetadataKind { kind: Some(kind) }),
            name: name.into(),
        };
        let proto = InternalUpstreamTransport {
            passthrough_metadata: sources.into_iter().map(source).collect(),
            transport_socket: Some(core::TransportSocket {
                name: socket.into(),
                config_type: None,
            }),
        };
        let context = UpstreamContext {
            secrets: &SecretStore::default(),
            scope: None,
            metadata: Some(cluster),
        };
        InternalTransport::compile(&proto, &context)
    }

    const RAW: &str = "envoy.transport_sockets.raw_buffer";

    #[test]
    fn what_is_named_is_passed_on_and_nothing_else() {
        let cluster = metadata(&[("a", "cluster"), ("b", "cluster"), ("secret", "x")]);
        let sources = vec![
            (Kind::Host(of::Host::default()), "a"),
            (Kind::Cluster(of::Cluster::default()), "b"),
            (Kind::Host(of::Host::default()), "absent"),
        ];
        let compiled = compile(sources, RAW, &cluster).unwrap();
        let host = metadata(&[("a", "host"), ("secret", "x")]);
        let compiled = compiled.for_endpoint(Some(&host)).unwrap();
        let told = compiled.handover(None).metadata.unwrap();
        let told: Vec<_> = told.iter().map(|(n, m)| (n.as_str(), &m["k"])).collect();
        assert_eq!(told, [("a", &"host".into()), ("b", &"cluster".into())]);
    }

    #[test]
    fn what_cannot_be_passed_on_is_refused() {
        let none = core::Metadata::default();
        let route = vec![(Kind::Route(of::Route::default()), "a")];
        let error = compile(route, RAW, &none).unwrap_err();
        assert_eq!(error.path(), "passthrough_metadata[0].kind");
        let nameless = vec![(Kind::Host(of::Host::default()), "")];
        let error = compile(nameless, RAW, &none).unwrap_err();
        assert_eq!(error.path(), "passthrough_metadata[0].name");
    }
}
