//! Internal listeners: connections that are handed over inside the process (Envoy: "Internal listener", "Internal
//! upstream transport").
//!
//! A cluster whose endpoint is an `envoy_internal_address` connects to the listener of that name on its own worker: the
//! two ends of an in-memory [`stream`], with what the one side tells the other of the connection. From there on it is a
//! connection like any other, with the listener's filters, chains, numbers, logs and drains. Tunnels, many of which may
//! come in one connection, are [`spread`] over the workers.

pub mod registry;
pub mod spread;
pub mod stream;

use std::sync::Arc;

use filters::stream::{Address, DynamicMetadata, SharedObjects};

use self::stream::InternalStream;

/// The address of whoever connects to an internal listener, as Envoy calls it.
pub fn client_address() -> Address {
    Address::Internal("internal_client_address".into(), "".into())
}

/// What the connecting side tells the listener.
#[derive(Debug, Clone, Default)]
pub struct Handover {
    /// Metadata of the host and its cluster, as far as it is passed through.
    pub metadata: Option<Arc<DynamicMetadata>>,
    /// Filter state that is shared with the upstream.
    pub objects: Option<SharedObjects>,
}

/// A connection as an internal listener gets it.
pub struct InternalConnection {
    /// Its bytes.
    pub stream: InternalStream,
    /// The address that was connected to.
    pub local: Address,
    /// What came with it.
    pub handover: Handover,
}
