//! Network filters that stand before the terminal one of a filter chain: they see connections, not messages.
//!
//! A filter may refuse a connection when it has found its chain, before anything is said on it, and may look at it
//! again when bytes come. What a connection carries is the terminal filter's business (`tcp_proxy`, `http`).

mod connection_limit;
mod ext_authz;
mod gate;
mod local_ratelimit;
mod rbac;
mod set_filter_state;
#[cfg(test)]
mod tests;
mod token_bucket;

use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::google::protobuf::Any as AnyProto;
use filters::flags::ResponseFlags;
use filters::registry::GrpcConnector;
use filters::runtime::RuntimeKeys;
use filters::stream::{ConnectionInfo, ConnectionNotes, StreamInfo};
use futures_util::future::LocalBoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt};
use xds_client::any;
use xds_client::error::ConfigError;

pub use self::gate::Gate;
use crate::telemetry::stats::Scope;

/// The most filters of a chain.
const MAX_FILTERS: usize = 64;
/// The most bytes that are read and thrown away while the close of a refused connection is delayed.
const MAX_DISCARDED: usize = 1 << 20;

/// A network filter, compiled.
trait NetworkFilter: Send + Sync {
    /// A connection has found its chain. What is returned is kept as long as the connection.
    ///
    /// # Errors
    /// The connection is refused.
    fn admit(&self) -> Result<Option<Box<dyn Any>>, Refused> {
        Ok(None)
    }

    /// The connection begins: leaves something in its filter state, if [`sets_state`](Self::sets_state).
    fn on_new_connection(&self, _: &mut StreamInfo) {}

    /// Whether the filter leaves something in the filter state.
    fn sets_state(&self) -> bool {
        false
    }

    /// Bytes have come from the client, or, where that does not end the connection, its end. What a filter has to say
    /// of the connection it writes into its notes.
    fn on_data(&self, connection: &ConnectionInfo) -> OnData;

    /// Whether the filter looks at bytes at all.
    fn reads(&self) -> bool;
}

/// What a filter says to bytes.
enum OnData {
    /// They may pass, and the filter wants to see no more.
    Done,
    /// They may pass, and the filter wants to be asked again.
    Again,
    /// They may pass if this turns out to be true, and the filter wants to see no more; or else the connection ends.
    Ask(LocalBoxFuture<'static, bool>),
    /// They must not, and the connection ends after this time.
    Close(Duration),
}

/// A connection that is not taken. What it holds is kept until it is closed.
pub struct Refused {
    after: Duration,
    held: Box<dyn Any>,
    flags: ResponseFlags,
}

impl Default for Refused {
    fn default() -> Self {
        Self {
            after: Duration::ZERO,
            held: Box::new(()),
            flags: ResponseFlags::default(),
        }
    }
}

impl Refused {
    /// Leaves in the connection's notes what logs are to tell of it.
    pub fn note(&self, connection: &ConnectionInfo) {
        connection.note(|notes| notes.flags.insert(self.flags));
    }

    /// Waits until it is time to close the connection, which nobody serves.
    pub async fn wait(self, mut io: impl AsyncRead + Unpin) {
        let discard = async {
            let mut buffer = [0; 4096];
            let mut left = MAX_DISCARDED;
            loop {
                match io.read(&mut buffer).await {
                    Ok(n) if n > 0 => left = left.saturating_sub(n),
                    Ok(_) | Err(_) => return,
                }
                if left == 0 {
                    // The client has sent enough; the rest waits in the kernel.
                    std::future::pending::<()>().await;
                }
            }
        };
        if !self.after.is_zero() {
            let _ = tokio::time::timeout(self.after, discard).await;
        }
        drop(self.held);
    }
}

/// The network filters of a chain, in order.
#[derive(Clone, Default)]
pub struct NetworkFilters(Arc<[Arc<dyn NetworkFilter>]>);

/// The network filters of a chain while it is compiled.
#[derive(Default)]
pub struct NetworkFiltersBuilder(Vec<Arc<dyn NetworkFilter>>);

impl NetworkFiltersBuilder {
    /// Adds the filter of type `name`, and returns whether there is one. `root` is the scope of all stats, `runtime`
    /// what the runtime may change, `grpc` the way to services.
    ///
    /// # Errors
    /// What is wrong or not supported in its configuration, by field.
    pub fn add(
        &mut self,
        name: &str,
        config: &AnyProto,
        root: &Scope,
        runtime: &dyn RuntimeKeys,
        grpc: &dyn GrpcConnector,
    ) -> Result<bool, ConfigError> {
        if self.0.len() >= MAX_FILTERS {
            return Err(ConfigError::new("more than 64 filters"));
        }
        self.0.push(match name {
            "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz" => {
                let proto = any::unpack(config)?;
                Arc::new(ext_authz::ExtAuthz::compile(&proto, root, grpc)?)
            }
            "envoy.extensions.filters.network.rbac.v3.RBAC" => {
                Arc::new(rbac::Rbac::compile(&any::unpack(config)?, root)?)
            }
            "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit" => {
                let proto = any::unpack(config)?;
                let limit = connection_limit::ConnectionLimit::compile(&proto, root, runtime)?;
                Arc::new(limit)
            }
            "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit" => {
                let proto = any::unpack(config)?;
                let limit = local_ratelimit::LocalRateLimit::compile(&proto, root, runtime)?;
                Arc::new(limit)
            }
            "envoy.extensions.filters.network.set_filter_state.v3.Config" => {
                let proto = any::unpack(config)?;
                Arc::new(set_filter_state::SetFilterState::compile(&proto)?)
            }
            _ => return Ok(false),
        });
        Ok(true)
    }

    /// All that were added.
    pub fn build(self) -> NetworkFilters {
        NetworkFilters(self.0.into())
    }
}

/// What filters keep as long as a connection lives.
pub struct Admitted {
    _held: Vec<Box<dyn Any>>,
}

impl NetworkFilters {
    /// Asks the filters whether they take a connection.
    ///
    /// # Errors
    /// One does not.
    pub fn admit(&self) -> Result<Admitted, Refused> {
        // No filters, no allocation.
        let mut held = Vec::new();
        for filter in &*self.0 {
            match filter.admit() {
                Ok(kept) => held.extend(kept),
                Err(mut refused) => {
                    held.push(std::mem::replace(&mut refused.held, Box::new(())));
                    refused.held = Box::new(held);
                    return Err(refused);
                }
            }
        }
        Ok(Admitted { _held: held })
    }

    /// Lets the filters set the state of a connection that begins.
    pub fn begin(&self, connection: Rc<ConnectionInfo>) -> Rc<ConnectionInfo> {
        let mut setting = self.0.iter().filter(|f| f.sets_state()).peekable();
        if setting.peek().is_none() {
            return connection;
        }
        let mut info = StreamInfo::for_connection(connection);
        setting.for_each(|filter| filter.on_new_connection(&mut info));
        let mut connection = Rc::unwrap_or_clone(info.connection);
        connection.filter_state = Some(Rc::new(info.filter_state.into_connection()));
        Rc::new(connection)
    }

    /// Whether a filter looks at bytes, for which they must go through a [`Gate`].
    pub fn read(&self) -> bool {
        self.0.iter().any(|filter| filter.reads())
    }

    /// Puts the filters between `io`, whose first bytes were `prefix`, and whoever reads it. `ends_pass`: whether
    /// the connection goes on after the client's end.
    pub fn gate<IO>(
        &self,
        io: IO,
        prefix: Bytes,
        connection: Rc<ConnectionInfo>,
        ends_pass: bool,
    ) -> Gate<IO> {
        Gate::new(self.0.clone(), io, prefix, connection, ends_pass)
    }
}

/// The connection with room for notes.
pub fn with_notes(connection: Rc<ConnectionInfo>) -> Rc<ConnectionInfo> {
    if connection.notes.is_some() {
        return connection;
    }
    let mut connection = Rc::unwrap_or_clone(connection);
    connection.notes = Some(Rc::new(RefCell::new(ConnectionNotes::default())));
    Rc::new(connection)
}
