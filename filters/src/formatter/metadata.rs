//! Operators that read metadata: of the stream, or of what was configured.

use std::borrow::Cow;

use serde_json::Value;
use xds_client::error::ConfigError;

use super::FormatContext;

/// Whose metadata it is.
#[derive(Debug, Clone, Copy)]
enum Source {
    Dynamic,
    Cluster,
    Route,
    UpstreamHost,
    Listener,
    FilterChain,
    VirtualHost,
}

/// A value by its path.
#[derive(Debug, Clone)]
pub(super) struct MetadataPath {
    source: Source,
    namespace: Box<str>,
    keys: Vec<Box<str>>,
}

impl MetadataPath {
    /// Compiles an operator; `None` if it is not one of these.
    ///
    /// # Errors
    /// An unknown source.
    pub(super) fn compile(name: &str, argument: &str) -> Result<Option<Self>, ConfigError> {
        let (source, path) = match name {
            "DYNAMIC_METADATA" => (Source::Dynamic, argument),
            "CLUSTER_METADATA" => (Source::Cluster, argument),
            "UPSTREAM_METADATA" => (Source::UpstreamHost, argument),
            "METADATA" => {
                let (source, path) = argument.split_once(':').unwrap_or((argument, ""));
                let source = match source {
                    "DYNAMIC" => Source::Dynamic,
                    "CLUSTER" => Source::Cluster,
                    "ROUTE" => Source::Route,
                    "UPSTREAM_HOST" => Source::UpstreamHost,
                    "LISTENER" => Source::Listener,
                    "LISTENER_FILTER_CHAIN" => Source::FilterChain,
                    "VIRTUAL_HOST" => Source::VirtualHost,
                    other => {
                        let text = format!("{other} is not a supported type of metadata");
                        return Err(ConfigError::new(text));
                    }
                };
                (source, path)
            }
            _ => return Ok(None),
        };
        let mut keys = path.split(':').map(Box::from);
        Ok(Some(Self {
            source,
            namespace: keys.next().unwrap_or_default(),
            keys: keys.collect(),
        }))
    }

    /// The value, if there is one.
    pub(super) fn json<'a>(&self, cx: &FormatContext<'a>) -> Option<Cow<'a, Value>> {
        let info = cx.info;
        let namespace = &*self.namespace;
        let value = match self.source {
            Source::Dynamic => {
                let object = info.dynamic_metadata.get(namespace)?;
                return match self.keys.is_empty() {
                    true => Some(Cow::Owned(object.clone().into())),
                    false => {
                        crate::matcher::metadata::lookup(object, &self.keys).map(Cow::Borrowed)
                    }
                };
            }
            Source::Cluster => info.upstream.cluster_metadata.get(namespace),
            Source::UpstreamHost => info.upstream.host_metadata.get(namespace),
            Source::Route => info.route.as_ref()?.metadata(namespace),
            Source::VirtualHost => info.route.as_ref()?.virtual_host_metadata(namespace),
            Source::Listener => info.connection.listener_metadata.get(namespace),
            Source::FilterChain => info.connection.filter_chain_metadata.get(namespace),
        }?;
        let found = self.keys.iter().try_fold(value, |v, k| v.get(&**k))?;
        Some(Cow::Borrowed(found))
    }

    /// The value as Envoy prints it: a string bare, anything else as JSON.
    pub(super) fn text<'a>(&self, cx: &FormatContext<'a>) -> Option<Cow<'a, [u8]>> {
        match self.json(cx)? {
            Cow::Borrowed(Value::Null) | Cow::Owned(Value::Null) => None,
            Cow::Borrowed(Value::String(text)) => Some(Cow::Borrowed(text.as_bytes())),
            Cow::Owned(Value::String(text)) => Some(Cow::Owned(text.into_bytes())),
            other => serde_json::to_vec(&*other).ok().map(Cow::Owned),
        }
    }
}
