//! Listeners: which wait for their routes and secrets, and which are handed to the workers.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::ConfigSource;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::google::protobuf::Any;
use hcm::http_connection_manager::RouteSpecifier;
use xds_client::error::ConfigError;

use super::{Resources, State, Static};
use crate::router::RouteSlot;
use crate::server::admin::config_dump::Kind;
use crate::transport::downstream::tls_context;
use crate::transport::tls::context::downstream_references;
use crate::transport::tls::secrets::SecretSlot;

/// A listener that waits for its routes and secrets. The slots keep the names wanted.
pub(super) struct Warming {
    pub(super) listener: Listener,
    pub(super) version: String,
    pub(super) any: Arc<Any>,
    pub(super) slots: Vec<Arc<RouteSlot>>,
    pub(super) secrets: Vec<Arc<SecretSlot>>,
}

/// The route configurations that the HTTP connection managers of a listener take from RDS.
fn rds_names(listener: &Listener) -> Vec<(String, ConfigSource)> {
    let chains = listener
        .filter_chains
        .iter()
        .chain(&listener.default_filter_chain);
    let mut names = Vec::new();
    for filter in chains.flat_map(|c| &c.filters) {
        let Some(ConfigType::TypedConfig(any)) = &filter.config_type else {
            continue;
        };
        // What is no connection manager, or a broken one, is the compiler's to judge.
        let Ok(config) = xds_client::any::unpack::<hcm::HttpConnectionManager>(any) else {
            continue;
        };
        if let Some(RouteSpecifier::Rds(rds)) = config.route_specifier {
            names.push((rds.route_config_name, rds.config_source.unwrap_or_default()));
        }
    }
    names
}

/// The secrets that the filter chains of a listener take from SDS.
fn secret_names(listener: &Listener) -> Vec<(String, ConfigSource)> {
    let chains = listener
        .filter_chains
        .iter()
        .chain(&listener.default_filter_chain);
    chains
        .filter_map(tls_context)
        .flat_map(|context| downstream_references(&context))
        .collect()
}

impl Resources {
    /// Takes a listener: at once if its routes and secrets are known, else when they are.
    pub(super) fn listener(
        &self,
        state: &mut State,
        listener: Listener,
        version: &str,
        any: &Arc<Any>,
    ) -> Result<(), ConfigError> {
        let wanted = rds_names(&listener);
        let slots: Vec<_> = wanted
            .iter()
            .map(|(name, _)| self.context.routes.slot(name))
            .collect();
        let secrets_wanted = secret_names(&listener);
        let secrets: Vec<_> = secrets_wanted
            .iter()
            .map(|(name, _)| self.context.secrets.slot(name))
            .collect();
        let routes_known = wanted
            .iter()
            .all(|(n, _)| self.context.routes.is_answered(n));
        let secrets_known = secrets
            .iter()
            .all(|s| self.context.secrets.is_answered(s.name()));
        state.sds_sources.extend(secrets_wanted);
        if routes_known && secrets_known {
            state.warming.remove(&listener.name);
            state.rds_sources.extend(wanted);
            return self.activate(state, &listener, version, any);
        }
        // Only compiling tells whether it must be refused; it is compiled again when its routes are there.
        state.listeners.validate(&listener)?;
        state.rds_sources.extend(wanted);
        self.config
            .warming(Kind::Listener, &listener.name, version, any.clone());
        state.warming.insert(
            listener.name.clone(),
            Warming {
                listener,
                version: version.to_owned(),
                any: any.clone(),
                slots,
                secrets,
            },
        );
        Ok(())
    }

    pub(super) fn activate(
        &self,
        state: &mut State,
        listener: &Listener,
        version: &str,
        any: &Arc<Any>,
    ) -> Result<(), ConfigError> {
        state.listeners.apply(listener, version)?;
        let name = (Static::Listener, listener.name.clone());
        let is_static = version.is_empty() && state.statics.contains(&name);
        self.config.accepted(
            Kind::Listener,
            &listener.name,
            version,
            any.clone(),
            is_static,
        );
        Ok(())
    }
}
