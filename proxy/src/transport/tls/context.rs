//! `CommonTlsContext`: what contexts of filter chains and of clusters have in common.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::ConfigSource;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::downstream_tls_context::SessionTicketKeysType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
};
use prost::Message;
use xds_client::error::{At, ConfigError};

use super::certificate::Certificate;
use super::parameters::Parameters;
use super::secrets::{SecretSlot, SecretStore, SecretValue};
use super::validation::Validation;

/// A `CommonTlsContext` whose secrets may still be on their way.
#[derive(Debug)]
pub(super) struct CommonContext {
    pub(super) parameters: Parameters,
    pub(super) alpn: Vec<Vec<u8>>,
    certificates: Vec<Arc<SecretSlot>>,
    /// The context's own part of the validation.
    validation: Option<Arc<SecretSlot>>,
    /// The part that comes by SDS and is merged into it.
    validation_secret: Option<Arc<SecretSlot>>,
}

/// What a context's secrets are at one time.
pub(super) struct Ready {
    pub(super) certificates: Vec<Arc<Certificate>>,
    /// `None` if the context asks for no validation.
    pub(super) validation: Option<CertificateValidationContext>,
}

/// The secrets that a context takes from SDS, with their sources. Those without a source are the bootstrap's.
pub fn references(common: &CommonTlsContext) -> Vec<(String, ConfigSource)> {
    let mut configs: Vec<&SdsSecretConfig> =
        common.tls_certificate_sds_secret_configs.iter().collect();
    match &common.validation_context_type {
        Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => {
            configs.push(config);
        }
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            configs.extend(&combined.validation_context_sds_secret_config);
        }
        _ => {}
    }
    configs.into_iter().filter_map(source_of).collect()
}

/// The secrets that a server's context takes from SDS.
pub fn downstream_references(context: &DownstreamTlsContext) -> Vec<(String, ConfigSource)> {
    let mut found = match &context.common_tls_context {
        Some(common) => references(common),
        None => Vec::new(),
    };
    if let Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(config)) =
        &context.session_ticket_keys_type
    {
        found.extend(source_of(config));
    }
    found
}

fn source_of(config: &SdsSecretConfig) -> Option<(String, ConfigSource)> {
    Some((config.name.clone(), config.sds_config.clone()?))
}

impl CommonContext {
    pub(super) fn compile(
        proto: &CommonTlsContext,
        secrets: &SecretStore,
    ) -> Result<Self, ConfigError> {
        #[expect(deprecated, reason = "a set field must not be passed over")]
        let unsupported = [
            (
                proto.tls_certificate_provider_instance.is_some(),
                "tls_certificate_provider_instance",
            ),
            (
                proto.tls_certificate_certificate_provider.is_some(),
                "tls_certificate_certificate_provider",
            ),
            (
                proto
                    .tls_certificate_certificate_provider_instance
                    .is_some(),
                "tls_certificate_certificate_provider_instance",
            ),
            (
                proto.custom_tls_certificate_selector.is_some(),
                "custom_tls_certificate_selector",
            ),
            (proto.custom_handshaker.is_some(), "custom_handshaker"),
            // Keys of sessions in a file are for debug builds of a debugger, not for a proxy.
            (proto.key_log.is_some(), "key_log"),
        ];
        if let Some((_, field)) = unsupported.iter().find(|(set, _)| *set) {
            return Err(ConfigError::unsupported(field));
        }
        let mut alpn = Vec::new();
        for (i, name) in proto.alpn_protocols.iter().enumerate() {
            if name.is_empty() || name.len() > 255 {
                return Err(
                    ConfigError::new("must have 1 to 255 bytes").at(format!("alpn_protocols[{i}]"))
                );
            }
            alpn.push(name.clone().into_bytes());
        }
        let mut certificates = Vec::new();
        for (i, inline) in proto.tls_certificates.iter().enumerate() {
            let slot = secrets.inline(&Type::TlsCertificate(inline.clone()));
            certificates.push(slot.at(format!("tls_certificates[{i}]"))?);
        }
        for (i, config) in proto.tls_certificate_sds_secret_configs.iter().enumerate() {
            let path = format!("tls_certificate_sds_secret_configs[{i}]");
            certificates.push(slot(config, secrets).at(path)?);
        }
        let (validation, validation_secret) = match &proto.validation_context_type {
            None => (None, None),
            Some(ValidationContextType::ValidationContext(inline)) => {
                Validation::compile(inline).at("validation_context")?;
                let own = secrets.inline(&Type::ValidationContext(inline.clone()));
                (Some(own.at("validation_context")?), None)
            }
            Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => {
                let slot = slot(config, secrets).at("validation_context_sds_secret_config")?;
                (None, Some(slot))
            }
            Some(ValidationContextType::CombinedValidationContext(combined)) => {
                let step = "combined_validation_context";
                let Some(config) = &combined.validation_context_sds_secret_config else {
                    return Err(ConfigError::new("value is required")
                        .at("validation_context_sds_secret_config")
                        .at(step));
                };
                let slot = slot(config, secrets).at(step)?;
                let own = combined.default_validation_context.clone();
                let own = own.map(|own| secrets.inline(&Type::ValidationContext(own)));
                let own = own.transpose().at("default_validation_context").at(step)?;
                (own, Some(slot))
            }
            Some(_) => {
                return Err(ConfigError::unsupported(
                    "validation_context_certificate_provider",
                ));
            }
        };
        Ok(Self {
            parameters: Parameters::compile(proto.tls_params.as_ref()).at("tls_params")?,
            alpn,
            certificates,
            validation,
            validation_secret,
        })
    }

    /// Every slot it waits for and is compiled again for.
    pub(super) fn slots(&self) -> impl Iterator<Item = &Arc<SecretSlot>> {
        let validation = self.validation.iter().chain(&self.validation_secret);
        self.certificates.iter().chain(validation)
    }

    pub(super) fn has_certificates(&self) -> bool {
        !self.certificates.is_empty()
    }

    /// The secrets as they are now; `None` while one is missing or of the wrong kind. Of several certificates one is
    /// enough: whoever waits for the others waits before the context is used.
    pub(super) fn ready(&self) -> Option<Ready> {
        let certificate = |slot: &Arc<SecretSlot>| match slot.value()? {
            SecretValue::Certificate(certificate) => Some(certificate),
            SecretValue::Validation(_) | SecretValue::TicketKeys(_) => None,
        };
        let certificates: Vec<_> = self.certificates.iter().filter_map(certificate).collect();
        if certificates.is_empty() && self.has_certificates() {
            return None;
        }
        let validation = |slot: &Arc<SecretSlot>| match slot.value()? {
            SecretValue::Validation(validation) => Some(validation),
            SecretValue::Certificate(_) | SecretValue::TicketKeys(_) => None,
        };
        let own = match &self.validation {
            None => None,
            Some(slot) => Some(validation(slot)?),
        };
        let validation = match &self.validation_secret {
            None => own.map(Arc::unwrap_or_clone),
            Some(slot) => Some(merge(own.as_deref(), &*validation(slot)?)),
        };
        Some(Ready {
            certificates,
            validation,
        })
    }
}

pub(super) fn slot(
    config: &SdsSecretConfig,
    secrets: &SecretStore,
) -> Result<Arc<SecretSlot>, ConfigError> {
    if config.name.is_empty() {
        return Err(ConfigError::new("value is required").at("name"));
    }
    if config.sds_config.is_none() && !secrets.is_static(&config.name) {
        return Err(ConfigError::new(format!(
            "Unknown static secret: {}",
            config.name
        )));
    }
    Ok(secrets.slot(&config.name))
}

/// Protobuf's merge, as Envoy does it: lists are joined, what the secret sets wins.
fn merge(
    own: Option<&CertificateValidationContext>,
    secret: &CertificateValidationContext,
) -> CertificateValidationContext {
    let Some(own) = own else {
        return secret.clone();
    };
    let mut merged = own.clone();
    // Its own encoding is always readable.
    let _ = merged.merge(secret.encode_to_vec().as_slice());
    merged
}
