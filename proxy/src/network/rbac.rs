//! `envoy.filters.network.rbac`: who may speak on a connection.

use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::{self as pb, rbac};
use filters::rbac::{Decision, Engine, LOG_HINT, Layer, Subject};
use filters::stream::ConnectionInfo;
use xds_client::duration::of_field;
use xds_client::error::ConfigError;

use super::{NetworkFilter, OnData};
use crate::telemetry::stats::{Counter, Scope};

/// The namespace of what shadow rules find.
const NAMESPACE: &str = "envoy.filters.network.rbac";

/// The filter, compiled.
pub(super) struct Rbac {
    rules: Option<Engine>,
    shadow: Option<Engine>,
    shadow_prefix: String,
    /// Ask with every piece of data.
    continuous: bool,
    delay: Duration,
    allowed: Counter,
    denied: Counter,
    shadow_allowed: Counter,
    shadow_denied: Counter,
}

impl Rbac {
    /// Compiles the filter. `root` is the scope of all stats.
    ///
    /// # Errors
    /// What is wrong or not supported, by field.
    pub(super) fn compile(proto: &pb::Rbac, root: &Scope) -> Result<Self, ConfigError> {
        if proto.stat_prefix.is_empty() {
            return Err(ConfigError::new("must not be empty").at("stat_prefix"));
        }
        let (rules, matcher) = (proto.rules.as_ref(), proto.matcher.as_ref());
        let shadow_rules = (proto.shadow_rules.as_ref(), proto.shadow_matcher.as_ref());
        let prefix = dotted(&proto.stat_prefix);
        let shadow_prefix = dotted(&proto.shadow_rules_stat_prefix);
        let name = |stat: &str| format!("{prefix}rbac.{stat}");
        let shadow = |stat: &str| name(&format!("{shadow_prefix}{stat}"));
        Ok(Self {
            rules: Engine::compile(rules, matcher, Layer::Network, "")?,
            shadow: Engine::compile(shadow_rules.0, shadow_rules.1, Layer::Network, "shadow_")?,
            shadow_prefix: proto.shadow_rules_stat_prefix.clone(),
            continuous: match rbac::EnforcementType::try_from(proto.enforcement_type) {
                Ok(rbac::EnforcementType::OneTimeOnFirstByte) => false,
                Ok(rbac::EnforcementType::Continuous) => true,
                Err(_) => return Err(ConfigError::new("unknown value").at("enforcement_type")),
            },
            delay: of_field(proto.delay_deny.as_ref(), "delay_deny")?.unwrap_or_default(),
            allowed: root.counter(&name("allowed")),
            denied: root.counter(&name("denied")),
            shadow_allowed: root.counter(&shadow("shadow_allowed")),
            shadow_denied: root.counter(&shadow("shadow_denied")),
        })
    }

    fn decide<'a>(engine: &'a Engine, connection: &ConnectionInfo) -> Decision<'a> {
        let notes = connection.notes.as_ref().map(|notes| notes.borrow());
        let metadata = notes.as_ref().map(|notes| &notes.dynamic_metadata);
        engine.decide(&Subject::connection(connection, metadata))
    }
}

/// A prefix of stats, with the dot that parts it from their names.
fn dotted(prefix: &str) -> String {
    match prefix {
        "" => String::new(),
        prefix => format!("{}.", prefix.trim_end_matches('.')),
    }
}

impl NetworkFilter for Rbac {
    fn reads(&self) -> bool {
        true
    }

    fn on_data(&self, connection: &ConnectionInfo) -> OnData {
        let verdict = if self.continuous {
            OnData::Again
        } else {
            OnData::Done
        };
        let notes = connection.notes.as_ref();
        if let Some(shadow) = &self.shadow {
            let decision = Self::decide(shadow, connection);
            match decision.allowed {
                true => self.shadow_allowed.inc(),
                false => self.shadow_denied.inc(),
            }
            if let Some(notes) = notes {
                let metadata = &mut notes.borrow_mut().dynamic_metadata;
                let object = metadata.entry(NAMESPACE.to_owned()).or_default();
                decision.note_shadow(&self.shadow_prefix, object);
            }
        }
        let Some(rules) = &self.rules else {
            return verdict;
        };
        let decision = Self::decide(rules, connection);
        if let (Some(hint), Some(notes)) = (decision.log_hint, notes) {
            let metadata = &mut notes.borrow_mut().dynamic_metadata;
            let object = metadata.entry(LOG_HINT.0.to_owned()).or_default();
            object.insert(LOG_HINT.1.to_owned(), hint.into());
        }
        if decision.allowed {
            self.allowed.inc();
            return verdict;
        }
        self.denied.inc();
        let details = decision.details();
        tracing::debug!(remote = %connection.remote, "connection refused: {details}");
        if let Some(notes) = notes {
            notes.borrow_mut().termination_details = Some(details.into());
        }
        OnData::Close(self.delay)
    }
}
