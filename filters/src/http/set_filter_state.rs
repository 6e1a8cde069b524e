//! `envoy.filters.http.set_filter_state`: leaves what a request says, and what is known of its connection, in the
//! stream's filter state.

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::filters::http::set_filter_state::v3::Config;
use envoy_types::pb::google::protobuf::Any;
use xds_client::any::unpack;
use xds_client::error::{At, ConfigError};

use crate::body::Body;
use crate::filter::{HttpFilter, SharedInfo, Slot, Step};
use crate::head::RequestHead;
use crate::registry::{FactoryContext, HttpFilterFactory};
use crate::set_filter_state::StateValue;
use crate::stream::RouteFilterConfig;

/// Compiles the filter.
pub struct SetFilterStateFactory;

struct SetFilterState {
    values: Vec<StateValue>,
    clear_route_cache: bool,
}

impl HttpFilterFactory for SetFilterStateFactory {
    fn compile(&self, any: &Any, _: &FactoryContext) -> Result<Arc<dyn HttpFilter>, ConfigError> {
        let config: Config = unpack(any)?;
        let values = StateValue::compile_all(&config.on_request_headers);
        Ok(Arc::new(SetFilterState {
            values: values.at("on_request_headers")?,
            clear_route_cache: config.clear_route_cache,
        }))
    }

    fn compile_route(&self, _: &Any, _: &FactoryContext) -> Result<RouteFilterConfig, ConfigError> {
        Err(ConfigError::new(
            "per-route configuration of set_filter_state is not supported",
        ))
    }
}

impl HttpFilter for SetFilterState {
    fn on_request<'a>(
        &'a self,
        head: &'a mut RequestHead,
        _: &'a mut Body,
        _: &'a mut Slot,
        info: &'a SharedInfo,
    ) -> Step<'a> {
        let mut info = info.borrow_mut();
        StateValue::set_all(&self.values, &mut info, Some(head));
        info.route_stale |= self.clear_route_cache;
        Step::CONTINUE
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::extensions::filters::common::set_filter_state::v3::filter_state_value::SharedWithUpstream;
    use http::Method;
    use xds_client::any::pack;

    use super::*;
    use crate::chain::tests::info;
    use crate::registry::tests::cx;
    use crate::set_filter_state::tests::value;

    const LOCAL: &str = "envoy.filters.listener.original_dst.local_ip";

    /// What a request for `authority` leaves.
    fn run(authority: &str) -> SharedInfo {
        let mut shared = value(LOCAL, "", "%REQ(:AUTHORITY)%");
        shared.shared_with_upstream = SharedWithUpstream::Once.into();
        let config = Config {
            on_request_headers: vec![
                shared,
                value("name", "envoy.string", "%REQ(:AUTHORITY)%"),
                value("again", "envoy.string", "<%FILTER_STATE(name:PLAIN)%>"),
            ],
            clear_route_cache: true,
        };
        let filter = SetFilterStateFactory.compile(&pack(&config), &cx());
        let facts = info();
        let mut head = RequestHead::new(Method::CONNECT, "");
        head.authority = authority.into();
        let filter = filter.ok().unwrap();
        let _ = filter.on_request(&mut head, &mut Body::Empty, &mut None, &facts);
        facts
    }

    #[test]
    fn objects_are_set_in_order_and_shared_as_configured() {
        let facts = run("10.0.0.1:80");
        let facts = facts.borrow();
        let state = &facts.filter_state;
        assert_eq!(state.address(LOCAL), "10.0.0.1:80".parse().ok());
        assert_eq!(state.text("again").as_deref(), Some("<10.0.0.1:80>"));
        assert!(facts.route_stale);
        let next = crate::stream::FilterState::received(&state.shared().unwrap());
        assert_eq!(next.address(LOCAL), "10.0.0.1:80".parse().ok());
        assert_eq!(next.get("name"), None);
    }

    #[test]
    fn an_authority_that_is_no_address_leaves_none() {
        let facts = run("a.test:80");
        let facts = facts.borrow();
        assert_eq!(facts.filter_state.get(LOCAL), None);
        assert_eq!(
            facts.filter_state.text("name").as_deref(),
            Some("a.test:80")
        );
    }
}
