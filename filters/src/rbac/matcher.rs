//! The `matcher` form: a generic matcher whose actions allow, deny or log.

use std::cell::Cell;

use envoy_types::pb::envoy::config::rbac::v3::{self as pb, rbac};
use envoy_types::pb::xds::r#type::matcher::v3::Matcher;
use xds_client::any;
use xds_client::error::ConfigError;

use super::{Action, Decision, Layer, Subject};
use crate::matcher::MatcherTree;
use crate::matcher::tree::Place;

/// A compiled matcher.
#[derive(Debug)]
pub(super) struct MatcherRules {
    tree: MatcherTree<Rule>,
    /// Whether an action is for logging: then every match says whether it is.
    logs: bool,
}

#[derive(Debug)]
struct Rule {
    name: String,
    action: Action,
}

impl MatcherRules {
    pub(super) fn compile(proto: &Matcher, layer: Layer) -> Result<Self, ConfigError> {
        let place = match layer {
            Layer::Network => Place::Connection,
            Layer::Http => Place::Request,
        };
        let logs = Cell::new(false);
        let tree = MatcherTree::compile(proto, place, &|config| {
            let proto: pb::Action = any::unpack(config)?;
            if proto.name.is_empty() {
                return Err(ConfigError::new("must not be empty").at("name"));
            }
            let action = Action::compile(proto.action)?;
            logs.set(logs.get() || action == Action::Log);
            Ok(Rule {
                name: proto.name,
                action,
            })
        })?;
        Ok(Self {
            tree,
            logs: logs.get(),
        })
    }

    /// Decides; what nothing is said about, or what depends on something unknown, is not allowed.
    pub(super) fn decide(&self, subject: &Subject<'_>) -> Decision<'_> {
        let found = self.tree.find(&subject.match_input());
        let rule = found.ok().flatten();
        Decision {
            allowed: rule.is_some_and(|rule| rule.action != Action::Deny),
            policy: rule.map(|rule| rule.name.as_str()),
            log_hint: rule
                .filter(|_| self.logs)
                .map(|rule| rule.action == Action::Log),
        }
    }
}

impl Action {
    /// Compiles the enumeration.
    pub(super) fn compile(proto: i32) -> Result<Self, ConfigError> {
        match rbac::Action::try_from(proto) {
            Ok(rbac::Action::Allow) => Ok(Self::Allow),
            Ok(rbac::Action::Deny) => Ok(Self::Deny),
            Ok(rbac::Action::Log) => Ok(Self::Log),
            Err(_) => Err(ConfigError::new("unknown value").at("action")),
        }
    }
}
