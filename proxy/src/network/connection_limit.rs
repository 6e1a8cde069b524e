//! `envoy.filters.network.connection_limit`: how many connections a filter chain has at a time.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::network::connection_limit::v3 as pb;
use filters::runtime::{RuntimeKeys, Setting, feature};
use filters::stream::ConnectionInfo;
use xds_client::duration::of_field;
use xds_client::error::ConfigError;

use super::{NetworkFilter, OnData, Refused};
use crate::server::listener_stats::Count;
use crate::telemetry::stats::{Counter, Gauge, Scope};

/// The filter, compiled. Its count is over all workers, and begins anew when the configuration changes, as in Envoy.
pub(super) struct ConnectionLimit {
    enabled: Setting<bool>,
    max: u64,
    delay: Duration,
    shared: Arc<Shared>,
    limited: Counter,
}

struct Shared {
    connections: Count,
    active: Gauge,
}

/// A connection's place among those that are counted.
struct Held(Arc<Shared>);

impl Held {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.active.inc();
        Self(shared.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.active.dec();
        self.0.connections.dec();
    }
}

impl ConnectionLimit {
    /// Compiles the filter. `root` is the scope of all stats.
    ///
    /// # Errors
    /// What is wrong, by field.
    pub(super) fn compile(
        proto: &pb::ConnectionLimit,
        root: &Scope,
        runtime: &dyn RuntimeKeys,
    ) -> Result<Self, ConfigError> {
        if proto.stat_prefix.is_empty() {
            return Err(ConfigError::new("must not be empty").at("stat_prefix"));
        }
        let max = match &proto.max_connections {
            Some(max) if max.value > 0 => max.value,
            Some(_) => return Err(ConfigError::new("must be at least 1").at("max_connections")),
            None => return Err(ConfigError::new("value is required").at("max_connections")),
        };
        let name = |stat: &str| format!("connection_limit.{}.{stat}", proto.stat_prefix);
        Ok(Self {
            enabled: feature(proto.runtime_enabled.as_ref(), runtime),
            max,
            delay: of_field(proto.delay.as_ref(), "delay")?.unwrap_or_default(),
            shared: Arc::new(Shared {
                connections: Count::default(),
                active: root.gauge(&name("active_connections")),
            }),
            limited: root.counter(&name("limited_connections")),
        })
    }
}

impl NetworkFilter for ConnectionLimit {
    fn admit(&self) -> Result<Option<Box<dyn Any>>, Refused> {
        if !self.enabled.get() {
            return Ok(None);
        }
        if self.shared.connections.inc_below(self.max) {
            return Ok(Some(Box::new(Held::new(&self.shared))));
        }
        self.limited.inc();
        // Those who are refused count until they are gone, too.
        self.shared.connections.inc_below(u64::MAX);
        Err(Refused {
            after: self.delay,
            held: Box::new(Held::new(&self.shared)),
            ..Refused::default()
        })
    }

    fn on_data(&self, _: &ConnectionInfo) -> OnData {
        OnData::Done
    }

    fn reads(&self) -> bool {
        false
    }
}
