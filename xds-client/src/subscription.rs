//! What is subscribed to, what of it is known, and what a response changes; no I/O.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use crate::error::ConfigError;
use crate::json::name_of;

/// A resource as it came.
#[derive(Debug, Clone)]
pub struct Resource {
    /// Its name.
    pub name: String,
    /// Its version (delta), or that of the response (state of the world).
    pub version: String,
    /// The bytes, kept for `/config_dump` and to tell whether a later one differs.
    pub any: Arc<Any>,
}

/// A resource that the handler did not take. Its last good version stays.
#[derive(Debug, Clone)]
pub struct Rejected {
    /// Its name.
    pub name: String,
    /// Why.
    pub error: ConfigError,
}

/// What happens besides updates; the control plane counters of `/stats` come from these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The stream is open.
    Connected,
    /// The stream ended or could not be opened; normal, it is tried again.
    Disconnected(String),
    /// `initial_fetch_timeout` passed without an answer. `name` is `*` for a wildcard subscription.
    FetchTimeout {
        /// The resource type.
        type_url: String,
        /// The resource.
        name: String,
    },
    /// A response of this type came.
    UpdateAttempt(String),
    /// It was accepted as a whole.
    UpdateSuccess {
        /// The resource type.
        type_url: String,
        /// `version_info` or `system_version_info`.
        version: String,
    },
    /// It was refused, at least in part; the text of the NACK.
    UpdateRejected {
        /// The resource type.
        type_url: String,
        /// One line for each resource.
        error: String,
    },
    /// A response for a type that nobody subscribed to; ignored.
    UnknownType(String),
}

/// Takes updates. Called on the task of the client, one call at a time.
pub trait ResourceHandler: Send {
    /// Applies what changed: resources with new bytes, and names that went. Returns those not taken; they
    /// are NACKed and the others stay applied. `sotw_full` tells that the response listed all resources of
    /// the type.
    fn apply(
        &mut self,
        type_url: &str,
        added: Vec<Resource>,
        removed: Vec<String>,
        sotw_full: bool,
    ) -> Vec<Rejected>;

    /// Told of an [`Event`].
    fn on_event(&mut self, event: Event);
}

/// One resource type of one stream or file.
#[derive(Debug, Default)]
pub(crate) struct Subscription {
    pub type_url: String,
    /// Everything is wanted, and a response (state of the world) that lacks a name takes it away.
    pub wildcard: bool,
    /// Everything is taken, but only names that were given up go.
    pub takes_all: bool,
    pub names: BTreeSet<String>,
    pub known: HashMap<String, Resource>,
    /// Names whose latest version was refused: the good one of before is told again when it comes back.
    refused: HashSet<String>,
    /// `version_info` of the last accepted response (state of the world).
    pub version: String,
}

/// `Err` is the text of the NACK.
pub(crate) type Outcome = Result<(), String>;

impl Subscription {
    pub fn new(type_url: &str) -> Self {
        Self {
            type_url: type_url.to_owned(),
            ..Self::default()
        }
    }

    pub fn accept_delta(
        &mut self,
        response: discovery::DeltaDiscoveryResponse,
        handler: &mut dyn ResourceHandler,
    ) -> Outcome {
        let version = response.system_version_info;
        let resources = response
            .resources
            .into_iter()
            .filter_map(|r| match r.resource {
                Some(any) => Some((r.name, r.version, any)),
                // Without a body it is a heartbeat, which only prolongs a TTL.
                None => None,
            })
            .collect();
        self.accept(
            resources,
            response.removed_resources,
            false,
            version,
            handler,
        )
    }

    pub fn accept_sotw(
        &mut self,
        response: discovery::DiscoveryResponse,
        handler: &mut dyn ResourceHandler,
    ) -> Outcome {
        let version = response.version_info;
        let mut resources = Vec::with_capacity(response.resources.len());
        let mut broken = Vec::new();
        for any in response.resources {
            match unwrap(any) {
                Ok((_, any)) if name_of(&any.type_url) != name_of(&self.type_url) => {
                    broken.push(self.wrong_type(&any));
                }
                Ok((name, any)) => resources.push((name, version.clone(), any)),
                Err(e) => broken.push(e.to_string()),
            }
        }
        if !broken.is_empty() {
            // Without all the names it cannot be told what is gone.
            return self.refuse(broken.join("\n"), handler);
        }
        let mut removed = Vec::new();
        if self.wildcard {
            let present: HashSet<&str> = resources.iter().map(|r| r.0.as_str()).collect();
            let gone = |name: &&String| !present.contains(name.as_str());
            removed.extend(self.known.keys().filter(gone).cloned());
            // What was only ever refused goes too, and its error with it.
            let never = |name: &&String| gone(name) && !self.known.contains_key(*name);
            removed.extend(self.refused.iter().filter(never).cloned());
        }
        let outcome = self.accept(resources, removed, self.wildcard, version.clone(), handler);
        if outcome.is_ok() {
            self.version = version;
        }
        outcome
    }

    fn wrong_type(&self, any: &Any) -> String {
        format!("type {} in a response of {}", any.type_url, self.type_url)
    }

    fn refuse(&self, error: String, handler: &mut dyn ResourceHandler) -> Outcome {
        handler.on_event(Event::UpdateRejected {
            type_url: self.type_url.clone(),
            error: error.clone(),
        });
        Err(error)
    }

    fn accept(
        &mut self,
        resources: Vec<(String, String, Any)>,
        removed: Vec<String>,
        full: bool,
        version: String,
        handler: &mut dyn ResourceHandler,
    ) -> Outcome {
        handler.on_event(Event::UpdateAttempt(self.type_url.clone()));
        let mut seen = HashSet::new();
        for (name, ..) in &resources {
            if !seen.insert(name.as_str()) {
                return self.refuse(format!("duplicate resource {name} found"), handler);
            }
        }
        let mut rejected: Vec<Rejected> = Vec::new();
        let mut added = Vec::new();
        for (name, version, any) in resources {
            if !self.wildcard && !self.takes_all && !self.names.contains(&name) {
                continue; // unsubscribed meanwhile
            }
            if name_of(&any.type_url) != name_of(&self.type_url) {
                rejected.push(Rejected {
                    name,
                    error: ConfigError::new(self.wrong_type(&any)),
                });
                continue;
            }
            if let Some(known) = self.known.get_mut(&name)
                && *known.any == any
                && !self.refused.contains(&name)
            {
                known.version = version;
                continue;
            }
            added.push(Resource {
                name,
                version,
                any: Arc::new(any),
            });
        }
        if full || !added.is_empty() || !removed.is_empty() {
            rejected.extend(handler.apply(&self.type_url, added.clone(), removed.clone(), full));
        }
        let bad: HashSet<&str> = rejected.iter().map(|r| r.name.as_str()).collect();
        for name in &removed {
            self.known.remove(name);
            self.refused.remove(name);
        }
        for resource in &added {
            match bad.contains(resource.name.as_str()) {
                true => self.refused.insert(resource.name.clone()),
                false => self.refused.remove(&resource.name),
            };
        }
        for resource in added.into_iter().filter(|r| !bad.contains(r.name.as_str())) {
            self.known.insert(resource.name.clone(), resource);
        }
        if rejected.is_empty() {
            handler.on_event(Event::UpdateSuccess {
                type_url: self.type_url.clone(),
                version,
            });
            return Ok(());
        }
        let lines: Vec<_> = rejected
            .iter()
            .map(|r| format!("{}: {}", r.name, r.error))
            .collect();
        self.refuse(lines.join("\n"), handler)
    }
}

/// A state-of-the-world resource and its name, out of a `Resource` wrapper if it is in one.
fn unwrap(any: Any) -> Result<(String, Any), ConfigError> {
    /// Every xDS resource has its name in field 1.
    #[derive(Clone, PartialEq, Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
    }
    let error = |e: prost::DecodeError| ConfigError::new(format!("{}: {e}", any.type_url));
    if name_of(&any.type_url) == "envoy.service.discovery.v3.Resource" {
        let wrapper = discovery::Resource::decode(any.value.as_slice()).map_err(error)?;
        let inner = wrapper
            .resource
            .ok_or_else(|| ConfigError::new("empty resource"))?;
        return Ok((wrapper.name, inner));
    }
    let name = Named::decode(any.value.as_slice()).map_err(error)?.name;
    if name.is_empty() {
        return Err(ConfigError::new(format!(
            "a {} without a name",
            any.type_url
        )));
    }
    Ok((name, any))
}
