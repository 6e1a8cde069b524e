//! `envoy.filters.listener.original_dst`: where a connection was meant to go before it was redirected.

use std::net::SocketAddr;

use filters::stream::Address;
use serde_json::Value;

use super::Found;
use crate::server::accepted::Accepted;

/// The namespace in which the connecting side of an internal connection leaves the address, under `local`.
const METADATA: &str = "envoy.filters.listener.original_dst";
const LOCAL: &str = "envoy.filters.listener.original_dst.local_ip";
const REMOTE: &str = "envoy.filters.listener.original_dst.remote_ip";

/// Restores the addresses: of a socket from the kernel's books, of a connection inside the process from what came with
/// it.
pub(super) fn run(io: &Accepted, found: &mut Found) {
    let Accepted::Internal(_) = io else {
        if let Some(address) = io.original_destination() {
            found.restore(address);
        }
        return;
    };
    let state = found.filter_state.as_ref();
    let told = found.metadata.get(METADATA).and_then(|m| m.get("local"));
    let local: Option<SocketAddr> = match told {
        // Text that is no address restores nothing, as in Envoy.
        Some(Value::String(text)) => text.parse().ok(),
        _ => state.and_then(|state| state.address(LOCAL)),
    };
    let remote = state.and_then(|state| state.address(REMOTE));
    if let Some(local) = local {
        found.restore(Address::Ip(local));
    }
    if let Some(remote) = remote {
        found.remote = Address::Ip(remote);
    }
}
