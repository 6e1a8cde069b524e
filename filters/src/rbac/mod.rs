//! Role-based access control: policies, compiled once, that say who may do what.
//!
//! Envoy: `envoy.config.rbac.v3.RBAC`. The network filter and the HTTP filter evaluate the same engine: the one
//! over the facts of a connection, the other over those of a stream. What cannot be compiled is an error: a rule
//! that is left out would let somebody in.

// Control planes still send deprecated fields of Envoy's API, and Envoy obeys them.
#![allow(deprecated)]

mod matcher;
mod permission;
mod principal;
#[cfg(test)]
mod tests;

use std::fmt;

use envoy_types::pb::envoy::config::rbac::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::HeaderMatcher as HeaderMatcherProto;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    MetadataMatcher as MetadataMatcherProto, PathMatcher, path_matcher,
};
use envoy_types::pb::xds::r#type::matcher::v3::Matcher;
use serde_json::{Map, Value};
use xds_client::error::{At, ConfigError};

use crate::cel::{Attributes, Expression};
use crate::head::RequestHead;
use crate::matcher::{HeaderMatcher, MatchInput, MetadataMatcher, StringMatcher};
use crate::stream::{
    Address, ConnectionInfo, DynamicMetadata, FilterState, Protocol, RouteView, StreamInfo,
};

use self::matcher::MatcherRules;
use self::permission::Permission;
use self::principal::Principal;

/// The namespace and key under which [`Action::Log`] leaves its finding in the dynamic metadata.
pub const LOG_HINT: (&str, &str) = ("envoy.common", "access_log_hint");

/// What policies are evaluated over.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The connection.
    pub connection: &'a ConnectionInfo,
    /// The client as far as it can be trusted (PROXY protocol, XFF).
    pub remote: &'a Address,
    /// The request; `None` for a connection.
    pub head: Option<&'a RequestHead>,
    /// Dynamic metadata; `None` is empty.
    pub metadata: Option<&'a DynamicMetadata>,
    /// Filter state; `None` is empty.
    pub filter_state: Option<&'a FilterState>,
    /// The chosen route.
    pub route: Option<&'a dyn RouteView>,
    /// The protocol of the request.
    pub protocol: Option<Protocol>,
    /// What has come of its body so far, bytes.
    pub bytes_received: u64,
}

impl<'a> Subject<'a> {
    /// A request of a stream.
    pub fn request(head: &'a RequestHead, info: &'a StreamInfo) -> Self {
        Self {
            connection: &info.connection,
            remote: &info.remote,
            head: Some(head),
            metadata: Some(&info.dynamic_metadata),
            filter_state: Some(&info.filter_state),
            route: info.route.as_deref(),
            protocol: info.protocol,
            bytes_received: info.bytes_received,
        }
    }

    /// A connection, with what was noted about it.
    pub fn connection(
        connection: &'a ConnectionInfo,
        metadata: Option<&'a DynamicMetadata>,
    ) -> Self {
        Self {
            connection,
            remote: &connection.remote,
            head: None,
            metadata,
            filter_state: connection.filter_state.as_deref(),
            route: None,
            protocol: None,
            bytes_received: 0,
        }
    }

    fn metadata(&self, namespace: &str) -> Option<&'a Map<String, Value>> {
        self.metadata?.get(namespace)
    }

    /// The path without query and fragment.
    fn path(&self) -> Option<&'a str> {
        self.head
            .map(RequestHead::path_only)
            .filter(|path| !path.is_empty())
    }

    fn match_input(&self) -> MatchInput<'a> {
        let connection = self.connection;
        MatchInput {
            destination: connection.local.ip(),
            source: self.remote.ip(),
            direct_source: connection.direct_remote.ip(),
            server_name: connection.server_name.as_deref().unwrap_or_default(),
            tls: connection.tls.as_deref(),
            head: self.head,
            metadata: self.metadata,
            filter_state: self.filter_state,
            attributes: Some(self.attributes()),
            ..MatchInput::default()
        }
    }

    fn attributes(&self) -> Attributes<'a> {
        Attributes {
            connection: self.connection,
            remote: self.remote,
            head: self.head,
            protocol: self.protocol,
            bytes_received: self.bytes_received,
            metadata: self.metadata,
            filter_state: self.filter_state,
        }
    }

    fn header(&self, matcher: &HeaderMatcher) -> bool {
        // Never met without a request: the compiler refuses such rules there.
        self.head.is_some_and(|head| matcher.matches(head))
    }
}

/// Where policies apply, which decides what they may look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// Connections: there are no headers.
    Network,
    /// HTTP requests.
    Http,
}

/// What a match means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Only what matches is allowed.
    Allow,
    /// What matches is not allowed.
    Deny,
    /// Everything is allowed; what matches is noted.
    Log,
}

/// Rules, compiled.
#[derive(Debug)]
pub struct Engine(Rules);

#[derive(Debug)]
enum Rules {
    /// Policies by name, of which the first that matches is the one that is told of; and what a match means.
    Policies(Action, Vec<Policy>),
    Matcher(MatcherRules),
}

#[derive(Debug)]
struct Policy {
    name: String,
    permissions: Vec<Permission>,
    principals: Vec<Principal>,
    /// What must be true besides.
    condition: Option<Expression>,
}

/// What an engine says of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision<'a> {
    /// Whether it may go on.
    pub allowed: bool,
    /// The policy that matched.
    pub policy: Option<&'a str>,
    /// What [`LOG_HINT`] shall hold, if the rules are for logging.
    pub log_hint: Option<bool>,
}

impl Engine {
    /// Compiles what is configured, if anything is: the matcher, or the policies where there is none. `prefix` is
    /// that of the fields' names.
    ///
    /// # Errors
    /// The path of what is wrong or not supported: checked conditions, audit loggers, and rules about requests where
    /// there are none.
    pub fn compile(
        rules: Option<&pb::Rbac>,
        matcher: Option<&Matcher>,
        layer: Layer,
        prefix: &str,
    ) -> Result<Option<Self>, ConfigError> {
        let rules = match (matcher, rules) {
            (Some(matcher), _) => MatcherRules::compile(matcher, layer)
                .map(Rules::Matcher)
                .at(format!("{prefix}matcher"))?,
            (None, Some(rules)) => policies(rules, layer).at(format!("{prefix}rules"))?,
            (None, None) => return Ok(None),
        };
        Ok(Some(Self(rules)))
    }

    /// Decides about a subject.
    pub fn decide(&self, subject: &Subject<'_>) -> Decision<'_> {
        let (action, policies) = match &self.0 {
            Rules::Matcher(matcher) => return matcher.decide(subject),
            Rules::Policies(action, policies) => (*action, policies),
        };
        let policy = policies.iter().find(|p| p.matches(subject));
        let matched = policy.is_some();
        Decision {
            allowed: match action {
                Action::Allow => matched,
                Action::Deny => !matched,
                Action::Log => true,
            },
            policy: policy.map(|p| p.name.as_str()),
            log_hint: (action == Action::Log).then_some(matched),
        }
    }
}

fn policies(proto: &pb::Rbac, layer: Layer) -> Result<Rules, ConfigError> {
    let audited = proto.audit_logging_options.as_ref();
    if audited.is_some_and(|a| a.logger_configs.iter().any(|l| !l.is_optional)) {
        return Err(ConfigError::unsupported(
            "audit_logging_options.logger_configs",
        ));
    }
    let compile = |(name, policy): (&String, &pb::Policy)| {
        Policy::compile(name, policy, layer).at(format!("policies[{name}]"))
    };
    let mut policies: Vec<Policy> = proto
        .policies
        .iter()
        .map(compile)
        .collect::<Result<_, _>>()?;
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Rules::Policies(Action::compile(proto.action)?, policies))
}

impl Policy {
    fn compile(name: &str, proto: &pb::Policy, layer: Layer) -> Result<Self, ConfigError> {
        if proto.checked_condition.is_some() {
            return Err(ConfigError::unsupported("checked_condition"));
        }
        Ok(Self {
            name: name.to_owned(),
            permissions: each(&proto.permissions, |p| Permission::compile(p, layer))
                .at("permissions")?,
            principals: each(&proto.principals, |p| Principal::compile(p, layer))
                .at("principals")?,
            condition: proto
                .condition
                .as_ref()
                .map(Expression::compile)
                .transpose()
                .at("condition")?,
        })
    }

    fn matches(&self, subject: &Subject<'_>) -> bool {
        self.permissions.iter().any(|p| p.matches(subject))
            && self.principals.iter().any(|p| p.matches(subject))
            && self
                .condition
                .as_ref()
                .is_none_or(|c| c.is_true(&subject.attributes()))
    }
}

impl Decision<'_> {
    /// The details of a refusal, as in Envoy: `rbac_access_denied_matched_policy[name]`.
    pub fn details(&self) -> String {
        let name = self.policy.unwrap_or("none");
        let name: String = name
            .chars()
            .map(|c| if c.is_ascii_whitespace() { '_' } else { c })
            .collect();
        format!("rbac_access_denied_matched_policy[{name}]")
    }

    /// What enforced rules of the HTTP filter leave in the dynamic metadata, likewise: `<prefix>enforced_...`.
    pub fn note_enforced(&self, prefix: &str, metadata: &mut Map<String, Value>) {
        self.note(prefix, "enforced", metadata);
    }

    fn note(&self, prefix: &str, kind: &str, metadata: &mut Map<String, Value>) {
        if let Some(policy) = self.policy {
            metadata.insert(format!("{prefix}{kind}_effective_policy_id"), policy.into());
        }
        let result = Value::String(self.to_string());
        metadata.insert(format!("{prefix}{kind}_engine_result"), result);
    }

    /// What shadow rules leave in the dynamic metadata: the policy under `<prefix>shadow_effective_policy_id`, and
    /// `allowed` or `denied` under `<prefix>shadow_engine_result`.
    pub fn note_shadow(&self, prefix: &str, metadata: &mut Map<String, Value>) {
        self.note(prefix, "shadow", metadata);
    }
}

impl fmt::Display for Decision<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.allowed { "allowed" } else { "denied" })
    }
}

/// Compiles a list, which must not be empty.
fn each<P, T>(
    protos: &[P],
    compile: impl Fn(&P) -> Result<T, ConfigError>,
) -> Result<Vec<T>, ConfigError> {
    if protos.is_empty() {
        return Err(ConfigError::new("must not be empty"));
    }
    let compile = |(i, proto)| compile(proto).at(format!("[{i}]"));
    protos.iter().enumerate().map(compile).collect()
}

/// `any`, which says nothing unless it is true.
fn any(value: bool) -> Result<(), ConfigError> {
    match value {
        true => Ok(()),
        false => Err(ConfigError::new("value must equal true").at("any")),
    }
}

/// A rule about headers, where there are any.
fn header(proto: &HeaderMatcherProto, layer: Layer) -> Result<HeaderMatcher, ConfigError> {
    match layer {
        Layer::Http => HeaderMatcher::compile(proto).at("header"),
        Layer::Network => Err(ConfigError::new("not supported for connections").at("header")),
    }
}

/// A rule about the path without the query.
fn path(proto: &PathMatcher) -> Result<StringMatcher, ConfigError> {
    match &proto.rule {
        Some(path_matcher::Rule::Path(matcher)) => StringMatcher::compile(matcher).at("path"),
        None => Err(ConfigError::new("value is required").at("rule")),
    }
    .at("url_path")
}

/// A rule about metadata, of the stream or of its route.
#[derive(Debug)]
struct Metadata {
    matcher: MetadataMatcher,
    of_route: bool,
}

impl Metadata {
    fn dynamic(proto: &MetadataMatcherProto) -> Result<Self, ConfigError> {
        Ok(Self {
            matcher: MetadataMatcher::compile(proto).at("metadata")?,
            of_route: false,
        })
    }

    fn sourced(proto: &pb::SourcedMetadata) -> Result<Self, ConfigError> {
        let matcher = proto
            .metadata_matcher
            .as_ref()
            .ok_or_else(|| ConfigError::new("value is required"))
            .and_then(MetadataMatcher::compile)
            .at("metadata_matcher")
            .at("sourced_metadata")?;
        let of_route = match pb::MetadataSource::try_from(proto.metadata_source) {
            Ok(pb::MetadataSource::Dynamic) => false,
            Ok(pb::MetadataSource::Route) => true,
            Err(_) => {
                let error = ConfigError::new("unknown value").at("metadata_source");
                return Err(error.at("sourced_metadata"));
            }
        };
        Ok(Self { matcher, of_route })
    }

    fn matches(&self, subject: &Subject<'_>) -> bool {
        if !self.of_route {
            let object = subject.metadata(self.matcher.namespace());
            return self.matcher.matches_object(object);
        }
        // Without a route nothing is said about it, not even by an inverted rule.
        subject.route.is_some_and(|route| {
            let value = route.metadata(self.matcher.namespace());
            self.matcher
                .matches_object(value.and_then(Value::as_object))
        })
    }
}
