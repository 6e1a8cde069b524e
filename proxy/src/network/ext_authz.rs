//! `envoy.filters.network.ext_authz`: a service says over gRPC who may speak on a connection.

use std::rc::Rc;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::network::ext_authz::v3 as pb;
use envoy_types::pb::envoy::service::auth::v3 as auth;
use filters::authorization::{Authorizer, peer};
use filters::flags::ResponseFlags;
use filters::matcher::metadata::{MetadataMatcher, struct_to_json};
use filters::registry::GrpcConnector;
use filters::stream::ConnectionInfo;
use xds_client::error::{At, ConfigError};

use super::{NetworkFilter, OnData};
use crate::telemetry::stats::{Counter, Gauge, Scope};

/// The namespace of the metadata that the service returns.
const NAMESPACE: &str = "envoy.filters.network.ext_authz";

/// The filter, compiled.
pub(super) struct ExtAuthz {
    service: Arc<Authorizer>,
    failure_mode_allow: bool,
    /// Which connections the service is asked about: all, or those whose metadata is so.
    only: Option<MetadataMatcher>,
    stats: Arc<Stats>,
}

/// `ext_authz.<stat_prefix>.*`
struct Stats {
    active: Gauge,
    total: Counter,
    disabled: Counter,
    ok: Counter,
    denied: Counter,
    error: Counter,
    failure_mode_allowed: Counter,
    cx_closed: Counter,
}

/// A question that has no answer yet.
struct Active(Arc<Stats>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.dec();
    }
}

impl ExtAuthz {
    /// Compiles the filter. `root` is the scope of all stats.
    ///
    /// # Errors
    /// What is wrong or not supported, by field.
    pub(super) fn compile(
        proto: &pb::ExtAuthz,
        root: &Scope,
        grpc: &dyn GrpcConnector,
    ) -> Result<Self, ConfigError> {
        if proto.stat_prefix.is_empty() {
            return Err(ConfigError::new("must not be empty").at("stat_prefix"));
        }
        // The service would decide without what it is to be told.
        for (set, field) in [
            (proto.include_peer_certificate, "include_peer_certificate"),
            (proto.include_tls_session, "include_tls_session"),
            (proto.send_tls_alert_on_denial, "send_tls_alert_on_denial"),
            (
                !proto.bootstrap_metadata_labels_key.is_empty(),
                "bootstrap_metadata_labels_key",
            ),
            (
                !proto.metadata_context_namespaces.is_empty(),
                "metadata_context_namespaces",
            ),
            (
                !proto.typed_metadata_context_namespaces.is_empty(),
                "typed_metadata_context_namespaces",
            ),
            (proto.shadow_mode, "shadow_mode"),
        ] {
            if set {
                return Err(ConfigError::unsupported(field));
            }
        }
        let service = proto.grpc_service.as_ref();
        let service = service.ok_or_else(|| ConfigError::new("is required").at("grpc_service"))?;
        let only = proto.filter_enabled_metadata.as_ref();
        let only = only
            .map(|m| MetadataMatcher::compile(m).at("filter_enabled_metadata"))
            .transpose()?;
        let name = |stat: &str| {
            format!(
                "ext_authz.{}.{stat}",
                proto.stat_prefix.trim_end_matches('.')
            )
        };
        let counter = |stat| root.counter(&name(stat));
        Ok(Self {
            service: Arc::new(Authorizer::compile(service, grpc)?),
            failure_mode_allow: proto.failure_mode_allow,
            only,
            stats: Arc::new(Stats {
                active: root.gauge(&name("active")),
                total: counter("total"),
                disabled: counter("disabled"),
                ok: counter("ok"),
                denied: counter("denied"),
                error: counter("error"),
                failure_mode_allowed: counter("failure_mode_allowed"),
                cx_closed: counter("cx_closed"),
            }),
        })
    }

    fn is_for(&self, connection: &ConnectionInfo) -> bool {
        self.only.as_ref().is_none_or(|only| {
            let notes = connection.notes.as_ref().map(|notes| notes.borrow());
            let metadata = notes.as_ref().map(|notes| &notes.dynamic_metadata);
            only.matches_object(metadata.and_then(|all| all.get(only.namespace())))
        })
    }
}

/// Counts an answer, and says whether it lets the connection pass, or else why not.
fn judge(
    answer: Option<&auth::CheckResponse>,
    failure_mode_allow: bool,
    stats: &Stats,
) -> Result<(), &'static str> {
    match answer {
        Some(answer) if answer.status.as_ref().is_none_or(|status| status.code == 0) => {
            stats.ok.inc();
            Ok(())
        }
        Some(_) => {
            stats.denied.inc();
            Err("ext_authz_denied")
        }
        None => {
            stats.error.inc();
            if failure_mode_allow {
                stats.failure_mode_allowed.inc();
                return Ok(());
            }
            Err("ext_authz_error")
        }
    }
}

impl NetworkFilter for ExtAuthz {
    fn reads(&self) -> bool {
        true
    }

    fn on_data(&self, connection: &ConnectionInfo) -> OnData {
        if !self.is_for(connection) {
            self.stats.disabled.inc();
            // What other filters note may change that.
            return OnData::Again;
        }
        self.stats.total.inc();
        self.stats.active.inc();
        let active = Active(self.stats.clone());
        let request = auth::CheckRequest {
            attributes: Some(auth::AttributeContext {
                source: Some(peer(&connection.remote)),
                destination: Some(peer(&connection.local)),
                metadata_context: Some(core::Metadata::default()),
                ..auth::AttributeContext::default()
            }),
        };
        let (service, notes) = (
            self.service.clone(),
            connection.notes.as_ref().map(Rc::clone),
        );
        let failure_mode_allow = self.failure_mode_allow;
        OnData::Ask(Box::pin(async move {
            let answer = service.check(request).await;
            let verdict = judge(answer.as_ref(), failure_mode_allow, &active.0);
            if verdict.is_err() {
                active.0.cx_closed.inc();
            }
            if let Some(notes) = notes {
                let mut notes = notes.borrow_mut();
                if let Some(fields) = answer.and_then(|answer| answer.dynamic_metadata) {
                    let object = notes.dynamic_metadata.entry(NAMESPACE.to_owned());
                    object.or_default().extend(struct_to_json(&fields));
                }
                if let Err(reason) = verdict {
                    notes.flags.insert(ResponseFlags::UNAUTHORIZED_EXTERNAL);
                    notes.details = Some(reason.into());
                }
            }
            verdict.is_ok()
        }))
    }
}
