//! `envoy.filters.network.set_filter_state`: leaves what is known of a connection in its filter state.

use envoy_types::pb::envoy::extensions::filters::network::set_filter_state::v3::Config;
use filters::set_filter_state::StateValue;
use filters::stream::{ConnectionInfo, StreamInfo};
use xds_client::error::{At, ConfigError};

use super::{NetworkFilter, OnData};

/// The filter, compiled.
pub(super) struct SetFilterState(Vec<StateValue>);

impl SetFilterState {
    /// Compiles the filter.
    ///
    /// # Errors
    /// Values that cannot be made, or that are to be made at other times than at the beginning.
    pub(super) fn compile(proto: &Config) -> Result<Self, ConfigError> {
        let refused = [
            (
                &proto.on_downstream_tls_handshake,
                "on_downstream_tls_handshake",
            ),
            (&proto.on_downstream_data, "on_downstream_data"),
        ];
        if let Some((_, field)) = refused.iter().find(|(values, _)| !values.is_empty()) {
            return Err(ConfigError::unsupported(field));
        }
        StateValue::compile_all(&proto.on_new_connection)
            .map(Self)
            .at("on_new_connection")
    }
}

impl NetworkFilter for SetFilterState {
    fn on_new_connection(&self, info: &mut StreamInfo) {
        StateValue::set_all(&self.0, info, None);
    }

    fn sets_state(&self) -> bool {
        true
    }

    fn on_data(&self, _: &ConnectionInfo) -> OnData {
        OnData::Done
    }

    fn reads(&self) -> bool {
        false
    }
}
