//! Layered runtime: values by dotted key, later layers over earlier ones.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/configuration/operations/runtime>. Control side only: what the
//! request path needs of it is given to its settings when it changes.

mod disk;
mod stats;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use envoy_types::pb::envoy::config::bootstrap::v3::LayeredRuntime;
use envoy_types::pb::envoy::config::bootstrap::v3::runtime_layer::LayerSpecifier;
use envoy_types::pb::envoy::config::core::v3::ConfigSource;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use filters::runtime::{Fraction, Live, RuntimeKeys, RuntimeValue};
use serde_json::json;
use xds_client::error::{At, ConfigError};

use crate::telemetry::stats::Stats;
pub use disk::DiskLayer;
use stats::RuntimeStats;

/// Nesting of a layer's values.
const MAX_DEPTH: u8 = 16;

type Values = BTreeMap<String, String>;
/// Told of every change.
type Observer = Box<dyn Fn(&Runtime) + Send + Sync>;

#[derive(Debug)]
enum Source {
    Static,
    /// The admin interface fills it.
    Admin,
    Disk(DiskLayer),
    /// The resource of this name fills it.
    Rtds(String, ConfigSource),
}

#[derive(Debug)]
struct Layer {
    name: String,
    source: Source,
    values: Values,
}

/// The runtime values of the process.
#[derive(Default)]
pub struct Runtime {
    layers: Mutex<Vec<Layer>>,
    observers: Mutex<Vec<Observer>>,
    stats: Mutex<Option<RuntimeStats>>,
    flags: Followers<bool>,
    numbers: Followers<u64>,
    fractions: Followers<Fraction>,
}

/// What follows a key, as long as somebody uses it.
struct Followers<T>(Mutex<HashMap<String, Vec<Weak<Live<T>>>>>);

impl<T> Default for Followers<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: RuntimeValue> Followers<T> {
    fn read(runtime: &Runtime, key: &str) -> Option<T> {
        T::of_runtime(&runtime.get(key)?)
    }

    /// Tells all of what the runtime says now.
    fn changed(&self, runtime: &Runtime) {
        lock(&self.0).retain(|key, all| {
            all.retain(|live| live.strong_count() > 0);
            let value = Self::read(runtime, key);
            let used = all.iter().filter_map(Weak::upgrade);
            used.for_each(|live| live.set(value));
            !all.is_empty()
        });
    }

    /// What follows `key` from now on; shared by all with that default.
    fn of(&self, runtime: &Runtime, key: &str, default: T) -> Arc<Live<T>> {
        // Held over the reading: a change in between would be missed.
        let mut followers = lock(&self.0);
        let all = followers.entry(key.to_owned()).or_default();
        all.retain(|live| live.strong_count() > 0);
        let mut used = all.iter().filter_map(Weak::upgrade);
        if let Some(live) = used.find(|live| live.default_value() == default) {
            return live;
        }
        let live = Arc::new(Live::new(default));
        live.set(Self::read(runtime, key));
        all.push(Arc::downgrade(&live));
        live
    }
}

impl RuntimeKeys for Runtime {
    fn flag(&self, key: &str, default: bool) -> Arc<Live<bool>> {
        self.flags.of(self, key, default)
    }

    fn number(&self, key: &str, default: u64) -> Arc<Live<u64>> {
        self.numbers.of(self, key, default)
    }

    fn fraction(&self, key: &str, default: Fraction) -> Arc<Live<Fraction>> {
        self.fractions.of(self, key, default)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Runtime {
    /// Reads the layers of a bootstrap. `service_cluster` is the node's, below which disk layers may be told to
    /// look.
    ///
    /// # Errors
    /// A value that is no text, number, truth value or object of those, or two layers of one name, by path.
    pub fn compile(
        config: Option<&LayeredRuntime>,
        service_cluster: &str,
    ) -> Result<Self, ConfigError> {
        let config = config.map(|c| c.layers.as_slice()).unwrap_or_default();
        let mut layers = Vec::new();
        let mut names = BTreeSet::new();
        for (i, layer) in config.iter().enumerate() {
            let path = || format!("layered_runtime.layers[{i}]");
            if layer.name.is_empty() {
                return Err(ConfigError::new("value is required").at("name").at(path()));
            }
            if !names.insert(&layer.name) {
                let reason = format!("Duplicate layer name: {}", layer.name);
                return Err(ConfigError::new(reason).at("name").at(path()));
            }
            let mut values = Values::new();
            let source = match &layer.layer_specifier {
                Some(LayerSpecifier::StaticLayer(layer)) => {
                    values = flatten(layer).at("static_layer").at(path())?;
                    Source::Static
                }
                Some(LayerSpecifier::AdminLayer(_)) => Source::Admin,
                Some(LayerSpecifier::DiskLayer(layer)) => {
                    let disk = DiskLayer::new(layer, service_cluster);
                    values = disk.read();
                    Source::Disk(disk)
                }
                Some(LayerSpecifier::RtdsLayer(layer)) => {
                    let source = layer.rtds_config.clone();
                    let missing = || ConfigError::new("value is required").at("rtds_config");
                    let source = source.ok_or_else(missing).at("rtds_layer").at(path())?;
                    Source::Rtds(layer.name.clone(), source)
                }
                None => return Err(ConfigError::new("value is required").at(path())),
            };
            layers.push(Layer {
                name: layer.name.clone(),
                source,
                values,
            });
        }
        Ok(Self {
            layers: Mutex::new(layers),
            ..Self::default()
        })
    }

    /// Keeps `runtime.*` from now on.
    pub fn count_in(&self, stats: &Stats) {
        *lock(&self.stats) = Some(RuntimeStats::new(stats));
        self.changed();
    }

    /// Calls `observer` now and after every change.
    pub fn observe(&self, observer: impl Fn(&Self) + Send + Sync + 'static) {
        observer(self);
        lock(&self.observers).push(Box::new(observer));
    }

    fn changed(&self) {
        if let Some(stats) = &*lock(&self.stats) {
            let layers = lock(&self.layers);
            let admin = layers.iter().filter(|l| matches!(l.source, Source::Admin));
            stats.loaded(
                merged(&layers).len(),
                layers.len(),
                admin.map(|l| l.values.len()).sum(),
            );
        }
        for observer in lock(&self.observers).iter() {
            observer(self);
        }
        self.flags.changed(self);
        self.numbers.changed(self);
        self.fractions.changed(self);
    }

    /// The text under `key`.
    pub fn get(&self, key: &str) -> Option<String> {
        let layers = lock(&self.layers);
        let found = layers.iter().rev().find_map(|l| l.values.get(key));
        found.cloned()
    }

    /// The whole number under `key`.
    pub fn integer(&self, key: &str) -> Option<u64> {
        self.get(key)?.parse().ok()
    }

    /// The truth value under `key`, or `default`.
    pub fn feature(&self, key: &str, default: bool) -> bool {
        let value = self.get(key).and_then(|v| v.parse().ok());
        value.unwrap_or(default)
    }

    /// The JSON of `/runtime`: each key's value in each layer (empty where it has none) and in force.
    pub fn dump(&self) -> serde_json::Value {
        let layers = lock(&self.layers);
        let names: Vec<&str> = layers.iter().map(|l| l.name.as_str()).collect();
        let entry = |(key, value): (String, String)| {
            let of = |l: &Layer| l.values.get(&key).cloned().unwrap_or_default();
            let values: Vec<String> = layers.iter().map(of).collect();
            (key, json!({"layer_values": values, "final_value": value}))
        };
        let entries: BTreeMap<_, _> = merged(&layers).into_iter().map(entry).collect();
        json!({"layers": names, "entries": entries})
    }

    /// Sets keys of the admin layer; an empty value takes the key out.
    ///
    /// # Errors
    /// There is no admin layer.
    pub fn modify(&self, changes: &[(String, String)]) -> Result<(), NoAdminLayer> {
        {
            let mut layers = lock(&self.layers);
            let admin = layers
                .iter_mut()
                .find(|l| matches!(l.source, Source::Admin))
                .ok_or(NoAdminLayer)?;
            for (key, value) in changes {
                match value.is_empty() {
                    true => admin.values.remove(key),
                    false => admin.values.insert(key.clone(), value.clone()),
                };
            }
        }
        self.changed();
        Ok(())
    }

    /// The names of the resources that fill layers, and where they come from.
    pub fn rtds(&self) -> Vec<(String, ConfigSource)> {
        let layers = lock(&self.layers);
        let rtds = layers.iter().filter_map(|l| match &l.source {
            Source::Rtds(name, source) => Some((name.clone(), source.clone())),
            _ => None,
        });
        rtds.collect()
    }

    /// Fills the layer of that resource; without `values` it is emptied.
    ///
    /// # Errors
    /// As [`compile`](Self::compile); what was in force stays.
    pub fn apply_rtds(&self, name: &str, values: Option<&Struct>) -> Result<(), ConfigError> {
        let new = match values.map(flatten).transpose() {
            Ok(new) => new.unwrap_or_default(),
            Err(error) => {
                if let Some(stats) = &*lock(&self.stats) {
                    stats.refused();
                }
                return Err(error.at("layer"));
            }
        };
        for layer in lock(&self.layers).iter_mut() {
            if matches!(&layer.source, Source::Rtds(of, _) if of == name) {
                layer.values.clone_from(&new);
            }
        }
        self.changed();
        Ok(())
    }

    /// Reads the disk layers anew whose directory was exchanged since the last time.
    pub fn refresh_disk(&self) {
        let mut any = false;
        for layer in lock(&self.layers).iter_mut() {
            if let Source::Disk(disk) = &mut layer.source
                && disk.was_exchanged()
            {
                layer.values = disk.read();
                any = true;
            }
        }
        if any {
            self.changed();
        }
    }

    fn has_disk(&self) -> bool {
        let layers = lock(&self.layers);
        layers.iter().any(|l| matches!(l.source, Source::Disk(_)))
    }
}

/// `/runtime_modify` without an `admin_layer`.
#[derive(Debug, PartialEq, Eq)]
pub struct NoAdminLayer;

/// Looks after the disk layers, if there are any. Envoy is told of exchanged links by the kernel; a look each
/// second sees the same a little later.
pub async fn watch_disk(runtime: Arc<Runtime>) {
    while runtime.has_disk() {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        runtime.refresh_disk();
    }
}

fn merged(layers: &[Layer]) -> Values {
    let all = layers.iter().flat_map(|l| &l.values);
    all.map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn flatten(values: &Struct) -> Result<Values, ConfigError> {
    let mut out = Values::new();
    flatten_into(&mut out, "", values, 0)?;
    Ok(out)
}

fn flatten_into(
    out: &mut Values,
    prefix: &str,
    values: &Struct,
    depth: u8,
) -> Result<(), ConfigError> {
    if depth > MAX_DEPTH {
        return Err(ConfigError::new("nested too deeply"));
    }
    for (key, value) in &values.fields {
        let key = match prefix.is_empty() {
            true => key.clone(),
            false => format!("{prefix}.{key}"),
        };
        let text = match &value.kind {
            Some(Kind::BoolValue(v)) => v.to_string(),
            Some(Kind::NumberValue(v)) => v.to_string(),
            Some(Kind::StringValue(v)) => v.clone(),
            Some(Kind::StructValue(v)) if is_fraction(v) => {
                // One value, not two keys, as `runtime_fraction` reads it.
                xds_client::any::struct_to_json(v).to_string()
            }
            Some(Kind::StructValue(v)) => {
                flatten_into(out, &key, v, depth + 1)?;
                continue;
            }
            Some(Kind::NullValue(_) | Kind::ListValue(_)) | None => {
                return Err(ConfigError::new("Invalid runtime entry value").at(key));
            }
        };
        out.insert(key, text);
    }
    Ok(())
}

/// A `FractionalPercent` as a JSON object.
fn is_fraction(values: &Struct) -> bool {
    let has = |key: &str, is: fn(&Value) -> bool| values.fields.get(key).is_some_and(is);
    has("numerator", |v| {
        matches!(v.kind, Some(Kind::NumberValue(_) | Kind::StringValue(_)))
    }) || has("denominator", |v| {
        matches!(v.kind, Some(Kind::StringValue(_)))
    })
}

#[cfg(test)]
mod tests;
