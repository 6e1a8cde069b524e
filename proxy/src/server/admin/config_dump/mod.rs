//! What `/config_dump` shows: the bytes of every resource as they came, with version, times and errors.
//!
//! Only the control runtime reads and writes it; JSON is made when it is asked for.

mod inline_routes;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::{Map, Value, json};
use xds_client::json::{Pool, PrintOptions};

use super::{AdminError, DumpRequest};

const ADMIN: &str = "type.googleapis.com/envoy.admin.v3.";
const BOOTSTRAP: &str = "type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap";

/// A type of resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // xDS's own names.
pub enum Kind {
    Cluster,
    Endpoint,
    Listener,
    ScopedRoute,
    Route,
    Secret,
    Ecds,
}

/// One section: its message, the field and message of static elements, of dynamic ones, of warming ones, and
/// the field of an element that holds the resource.
struct Section {
    kind: Kind,
    message: &'static str,
    fixed: (&'static str, &'static str),
    active: (&'static str, &'static str),
    warming: (&'static str, &'static str),
    resource: &'static str,
}

/// In Envoy's order.
const SECTIONS: [Section; 7] = [
    Section {
        kind: Kind::Cluster,
        message: "ClustersConfigDump",
        fixed: ("static_clusters", "StaticCluster"),
        active: ("dynamic_active_clusters", "DynamicCluster"),
        warming: ("dynamic_warming_clusters", "DynamicCluster"),
        resource: "cluster",
    },
    Section {
        kind: Kind::Endpoint,
        message: "EndpointsConfigDump",
        fixed: ("static_endpoint_configs", "StaticEndpointConfig"),
        active: ("dynamic_endpoint_configs", "DynamicEndpointConfig"),
        warming: ("dynamic_endpoint_configs", "DynamicEndpointConfig"),
        resource: "endpoint_config",
    },
    Section {
        kind: Kind::Listener,
        message: "ListenersConfigDump",
        fixed: ("static_listeners", "StaticListener"),
        active: ("dynamic_listeners", "DynamicListener"),
        warming: ("dynamic_listeners", "DynamicListener"),
        resource: "listener",
    },
    Section {
        kind: Kind::ScopedRoute,
        message: "ScopedRoutesConfigDump",
        fixed: ("inline_scoped_route_configs", "InlineScopedRouteConfigs"),
        active: ("dynamic_scoped_route_configs", "DynamicScopedRouteConfigs"),
        warming: ("dynamic_scoped_route_configs", "DynamicScopedRouteConfigs"),
        resource: "scoped_route_configs",
    },
    Section {
        kind: Kind::Route,
        message: "RoutesConfigDump",
        fixed: ("static_route_configs", "StaticRouteConfig"),
        active: ("dynamic_route_configs", "DynamicRouteConfig"),
        warming: ("dynamic_route_configs", "DynamicRouteConfig"),
        resource: "route_config",
    },
    Section {
        kind: Kind::Secret,
        message: "SecretsConfigDump",
        fixed: ("static_secrets", "StaticSecret"),
        active: ("dynamic_active_secrets", "DynamicSecret"),
        warming: ("dynamic_warming_secrets", "DynamicSecret"),
        resource: "secret",
    },
    Section {
        kind: Kind::Ecds,
        message: "EcdsConfigDump",
        fixed: ("ecds_filters", "EcdsFilterConfig"),
        active: ("ecds_filters", "EcdsFilterConfig"),
        warming: ("ecds_filters", "EcdsFilterConfig"),
        resource: "ecds_filter",
    },
];

/// A packed resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// Such as `type.googleapis.com/envoy.config.cluster.v3.Cluster`.
    pub type_url: String,
    /// The encoded message, as received.
    pub value: Bytes,
}

struct State {
    version: String,
    any: Resource,
    at: SystemTime,
}

struct Failure {
    state: State,
    details: String,
}

#[derive(Default)]
struct Entry {
    is_static: bool,
    active: Option<State>,
    warming: Option<State>,
    error: Option<Failure>,
}

#[derive(Default)]
struct Inner {
    bootstrap: Option<(Bytes, SystemTime)>,
    entries: BTreeMap<(Kind, String), Entry>,
    versions: BTreeMap<Kind, String>,
}

/// The configuration in force, and what was refused.
#[derive(Default)]
pub struct ConfigStore(Mutex<Inner>);

impl ConfigStore {
    fn with<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn entry(&self, kind: Kind, name: &str, f: impl FnOnce(&mut Entry)) {
        self.with(|inner| f(inner.entries.entry((kind, name.to_owned())).or_default()));
    }

    /// Keeps the encoded bootstrap.
    pub fn set_bootstrap(&self, bootstrap: Bytes) {
        self.with(|inner| inner.bootstrap = Some((bootstrap, SystemTime::now())));
    }

    /// The resource is in force; ends its warming and its error.
    pub fn accepted(&self, kind: Kind, name: &str, version: &str, any: Resource, is_static: bool) {
        let active = Some(state(version, any));
        self.entry(kind, name, |e| {
            *e = Entry {
                is_static,
                active,
                ..Entry::default()
            }
        });
        if !is_static {
            self.with(|inner| inner.versions.insert(kind, version.to_owned()));
        }
    }

    /// The resource waits for others before it is in force.
    pub fn warming(&self, kind: Kind, name: &str, version: &str, any: Resource) {
        self.entry(kind, name, |e| e.warming = Some(state(version, any)));
    }

    /// The resource was refused; what was in force stays.
    pub fn rejected(&self, kind: Kind, name: &str, version: &str, any: Resource, details: &str) {
        let (state, details) = (state(version, any), details.to_owned());
        self.entry(kind, name, |e| e.error = Some(Failure { state, details }));
    }

    /// The resource is gone.
    pub fn removed(&self, kind: Kind, name: &str) {
        self.with(|inner| inner.entries.remove(&(kind, name.to_owned())));
    }

    /// The JSON of `envoy.admin.v3.ConfigDump`.
    ///
    /// # Errors
    /// An unknown `resource` (404), or a `name_regex`, `resource` or `mask` that cannot be used (400).
    pub fn dump(&self, request: &DumpRequest) -> Result<Value, AdminError> {
        let bad = |status, message| AdminError { status, message };
        let regex =
            match request.name_regex.as_deref().filter(|r| !r.is_empty()) {
                Some(r) => Some(regex::Regex::new(&format!("^(?:{r})$")).map_err(|e| {
                    bad(400, format!("Error while parsing name_regex from {r}: {e}"))
                })?),
                None => None,
            };
        let pool = Pool::load().map_err(|e| bad(500, e.to_string()))?;
        let sections =
            self.with(|inner| inner.sections(&pool, regex.as_ref(), request.include_eds));
        let mask: Option<Vec<&str>> = request.mask.as_deref().map(|m| m.split(',').collect());
        let mut configs = Vec::new();
        if let Some(wanted) = &request.resource {
            if matches!(
                wanted.as_str(),
                "bootstrap" | "last_updated" | "version_info"
            ) {
                return Err(bad(
                    400,
                    format!(
                        "{wanted} is not a repeated field. Use ?mask={wanted} to get only this field"
                    ),
                ));
            }
            let known = SECTIONS
                .iter()
                .filter(|s| s.kind != Kind::Endpoint || request.include_eds)
                .find_map(|s| {
                    [s.fixed, s.active, s.warming]
                        .into_iter()
                        .find(|(f, _)| f == wanted)
                        .map(|(_, m)| (s.message, m))
                });
            let Some((outer, message)) = known else {
                return Err(bad(404, format!("{wanted} not found in config dump")));
            };
            let lists = sections
                .into_iter()
                .filter_map(|mut s| match s.remove(wanted.as_str()) {
                    Some(Value::Array(list)) => Some(list),
                    _ => None,
                });
            for element in lists.flatten() {
                if let Value::Object(mut element) = element {
                    element.insert("@type".into(), format!("{ADMIN}{outer}.{message}").into());
                    configs.push(match &mask {
                        Some(mask) => trim(&element, mask),
                        None => element.into(),
                    });
                }
            }
        } else {
            for section in sections {
                match &mask {
                    None => configs.push(section.into()),
                    Some(mask) => {
                        let fits = |p: &&str| {
                            section.contains_key(p.split('.').next().unwrap_or_default())
                        };
                        if mask.iter().any(fits) {
                            configs.push(trim(&section, mask));
                        }
                    }
                }
            }
            if let (true, Some(mask)) = (configs.is_empty(), &request.mask) {
                return Err(bad(
                    400,
                    format!("FieldMask {mask} could not be successfully applied to any configs."),
                ));
            }
        }
        Ok(json!({ "configs": configs }))
    }
}

impl Inner {
    fn sections(
        &self,
        pool: &Pool,
        regex: Option<&regex::Regex>,
        eds: bool,
    ) -> Vec<Map<String, Value>> {
        let mut out = Vec::new();
        if let Some((bytes, at)) = &self.bootstrap {
            let mut bootstrap = pool.print_any(BOOTSTRAP, bytes, PrintOptions::default());
            if let Some(fields) = bootstrap.as_object_mut() {
                fields.remove("@type");
            }
            out.push(object(json!({
                "@type": format!("{ADMIN}BootstrapConfigDump"), "bootstrap": bootstrap, "last_updated": time(*at),
            })));
        }
        for section in SECTIONS.iter().filter(|s| eds || s.kind != Kind::Endpoint) {
            let mut lists: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
            let of_kind = self
                .entries
                .iter()
                .filter(|((kind, _), _)| *kind == section.kind);
            for ((_, name), entry) in
                of_kind.filter(|((_, n), _)| regex.is_none_or(|r| r.is_match(n)))
            {
                for (field, element) in section.elements(pool, name, entry) {
                    lists.entry(field).or_default().push(element);
                }
            }
            if section.kind == Kind::Route {
                let routes = self.inline_routes(pool, regex);
                if !routes.is_empty() {
                    lists.insert(section.fixed.0, routes);
                }
            }
            if section.kind == Kind::Ecds && lists.is_empty() {
                continue;
            }
            let mut all = object(json!({ "@type": format!("{ADMIN}{}", section.message) }));
            if let (Kind::Cluster | Kind::Listener, Some(version)) =
                (section.kind, self.versions.get(&section.kind))
            {
                all.insert("version_info".into(), version.as_str().into());
            }
            all.extend(
                lists
                    .into_iter()
                    .map(|(field, list)| (field.to_owned(), list.into())),
            );
            out.push(all);
        }
        out
    }
}

impl Inner {
    /// The route configurations that connection managers have inline, which Envoy calls static wherever the
    /// listener came from.
    fn inline_routes(&self, pool: &Pool, regex: Option<&regex::Regex>) -> Vec<Value> {
        let listeners = self.entries.range((Kind::Listener, String::new())..);
        let listeners = listeners.take_while(|((kind, _), _)| *kind == Kind::Listener);
        let mut out = Vec::new();
        for state in listeners.filter_map(|(_, entry)| entry.active.as_ref()) {
            for routes in inline_routes::of_listener(&state.any.value) {
                if regex.is_none_or(|r| r.is_match(&routes.name)) {
                    let config = pool.print_message(&routes, PrintOptions::default());
                    out.push(json!({ "route_config": config, "last_updated": time(state.at) }));
                }
            }
        }
        out
    }
}

impl Section {
    fn elements(&self, pool: &Pool, name: &str, entry: &Entry) -> Vec<(&'static str, Value)> {
        let print =
            |any: &Resource| pool.print_any(&any.type_url, &any.value, PrintOptions::default());
        let element = |state: &State| {
            let resource = match self.kind {
                Kind::ScopedRoute => json!([print(&state.any)]),
                _ => print(&state.any),
            };
            let mut out =
                object(json!({ self.resource: resource, "last_updated": time(state.at) }));
            if !state.version.is_empty() {
                out.insert("version_info".into(), state.version.as_str().into());
            }
            out
        };
        let error = entry.error.as_ref().map(|e| {
            json!({
                "failed_configuration": print(&e.state.any), "details": e.details,
                "last_update_attempt": time(e.state.at), "version_info": e.state.version,
            })
        });
        let named = matches!(self.kind, Kind::Listener | Kind::Secret | Kind::ScopedRoute);
        let dress = |mut element: Map<String, Value>| {
            if named && !(self.kind == Kind::Listener && entry.is_static) {
                element.insert("name".into(), name.into());
            }
            if let (Some(error), false) = (&error, entry.is_static) {
                element.insert("error_state".into(), error.clone());
            }
            Value::Object(element)
        };
        if let (true, Some(state)) = (entry.is_static, &entry.active) {
            return vec![(self.fixed.0, dress(element(state)))];
        }
        if self.kind == Kind::Listener {
            let mut both = Map::new();
            for (field, state) in [
                ("active_state", &entry.active),
                ("warming_state", &entry.warming),
            ] {
                both.extend(
                    state
                        .as_ref()
                        .map(|s| (field.to_owned(), element(s).into())),
                );
            }
            return vec![(self.active.0, dress(both))];
        }
        let states = [
            (self.active.0, &entry.active),
            (self.warming.0, &entry.warming),
        ];
        let mut out: Vec<_> = states
            .into_iter()
            .filter_map(|(field, state)| Some((field, dress(element(state.as_ref()?)))))
            .collect();
        if out.is_empty() && error.is_some() {
            out.push((self.active.0, dress(Map::new())));
        }
        out
    }
}

fn state(version: &str, any: Resource) -> State {
    State {
        version: version.to_owned(),
        any,
        at: SystemTime::now(),
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// RFC 3339 in UTC with milliseconds.
fn time(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let s = since.as_secs();
    let (year, month, day) = crate::bootstrap::logging::civil(s / 86_400);
    let (h, m, millis) = (s / 3600 % 24, s / 60 % 60, since.subsec_millis());
    format!(
        "{year}-{month:02}-{day:02}T{h:02}:{m:02}:{:02}.{millis:03}Z",
        s % 60
    )
}

/// Keeps `@type` and what the mask's paths lead to.
fn trim(from: &Map<String, Value>, mask: &[&str]) -> Value {
    let mut out = Map::new();
    out.extend(from.get("@type").map(|t| ("@type".to_owned(), t.clone())));
    for (field, value) in from {
        let rests: Vec<Option<&str>> = mask
            .iter()
            .filter_map(|p| p.strip_prefix(field.as_str()))
            .filter_map(|r| {
                if r.is_empty() {
                    Some(None)
                } else {
                    r.strip_prefix('.').map(Some)
                }
            })
            .collect();
        let deeper: Vec<&str> = rests.iter().copied().flatten().collect();
        let kept = match value {
            _ if rests.contains(&None) => value.clone(),
            Value::Object(inner) if !deeper.is_empty() => trim(inner, &deeper),
            _ => continue,
        };
        out.insert(field.clone(), kept);
    }
    out.into()
}

#[cfg(test)]
mod tests;
