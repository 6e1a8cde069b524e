//! Secrets: static ones and those from SDS, and how they may be shown.

use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::core::v3::{ConfigSource, DataSource};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type as SecretType;
use envoy_types::pb::google::protobuf::Any;
use xds_client::any::unpack;
use xds_client::error::{At, ConfigError};
use xds_client::subscription::Resource;

use super::{Resources, SDS, pack};
use crate::server::admin::config_dump::Kind;
use crate::transport::tls::context::references;
use crate::transport::tls::secrets::content;
use crate::transport::upstream::tls_contexts;

/// The secrets that the TLS contexts of a cluster take from SDS.
pub(super) fn cluster_secrets(cluster: &Cluster) -> Vec<(String, ConfigSource)> {
    tls_contexts(cluster)
        .into_iter()
        .filter_map(|context| context.common_tls_context)
        .flat_map(|common| references(&common))
        .collect()
}

/// Puts a mark in place of what is in `source`, of the same kind; for what is elsewhere, too.
fn mark(source: &mut DataSource) {
    const MARK: &str = "[redacted]";
    source.watched_directory = None;
    source.specifier = Some(match source.specifier {
        Some(Specifier::InlineString(_)) => Specifier::InlineString(MARK.to_owned()),
        _ => Specifier::InlineBytes(MARK.into()),
    });
}

/// A secret as the configuration store may keep it: without its keys.
pub(super) fn redacted(secret: &Secret) -> Any {
    let mut shown = secret.clone();
    match &mut shown.r#type {
        Some(SecretType::TlsCertificate(certificate)) => {
            for source in [
                &mut certificate.private_key,
                &mut certificate.password,
                &mut certificate.pkcs12,
            ] {
                source.iter_mut().for_each(mark);
            }
        }
        Some(SecretType::SessionTicketKeys(keys)) => keys.keys.iter_mut().for_each(mark),
        Some(SecretType::GenericSecret(generic)) => {
            generic.secret.iter_mut().for_each(mark);
            generic.secrets.values_mut().for_each(mark);
        }
        Some(SecretType::ValidationContext(_)) | None => {}
    }
    pack(SDS, &shown)
}

impl Resources {
    pub(super) fn static_secrets(&self, secrets: &[Secret]) -> Result<(), ConfigError> {
        for (i, secret) in secrets.iter().enumerate() {
            let path = || format!("static_resources.secrets[{i}]");
            let (field, content) = content(secret).at(path())?;
            let loaded = self.context.secrets.load_static(&secret.name, content);
            loaded.at(field).at(path())?;
            let any = Arc::new(redacted(secret));
            self.config
                .accepted(Kind::Secret, &secret.name, "", any, true);
        }
        Ok(())
    }

    /// Shows a secret that has been asked for, until it comes.
    pub(super) fn secret_awaited(&self, name: &str) {
        let secret = Secret {
            name: name.to_owned(),
            ..Secret::default()
        };
        let any = Arc::new(pack(SDS, &secret));
        self.config.warming(Kind::Secret, name, "", any);
    }

    pub(super) fn secret(&self, resource: &Resource) -> Result<(), ConfigError> {
        let secret: Secret = unpack(&resource.any)?;
        let loaded = content(&secret).and_then(|(field, content)| {
            let loaded = self.context.secrets.load(&resource.name, content);
            loaded.at(field)
        });
        match loaded {
            Ok(()) => {
                let any = Arc::new(redacted(&secret));
                self.config
                    .accepted(Kind::Secret, &resource.name, &resource.version, any, false);
                Ok(())
            }
            Err(e) => {
                // The last good one serves on; contexts that never had one stay closed.
                self.context.secrets.give_up(&resource.name);
                Err(e)
            }
        }
    }
}
