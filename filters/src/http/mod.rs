//! The HTTP filters.

pub mod alpn;
pub mod buffer;
pub mod compressor;
pub mod cors;
pub mod ext_authz;
pub mod ext_proc;
pub mod fault;
pub mod gzip;
pub mod jwt_authn;
pub mod rbac;
pub mod set_filter_state;
mod wire;

#[cfg(test)]
mod testing;

use std::sync::Arc;

use crate::registry::Registry;

/// Adds every filter of this module to a registry.
pub fn register(registry: &mut Registry) {
    registry.add(alpn::TYPE, Arc::new(alpn::AlpnFactory));
    registry.add(
        "envoy.extensions.filters.http.buffer.v3.Buffer",
        Arc::new(buffer::BufferFactory),
    );
    registry.add(
        "envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
        Arc::new(buffer::BufferFactory),
    );
    registry.add(
        "envoy.extensions.filters.http.cors.v3.Cors",
        Arc::new(cors::CorsFactory),
    );
    registry.add(
        "envoy.extensions.filters.http.cors.v3.CorsPolicy",
        Arc::new(cors::CorsFactory),
    );
    registry.add(
        "envoy.extensions.filters.http.fault.v3.HTTPFault",
        Arc::new(fault::FaultFactory),
    );
    registry.add(
        "envoy.extensions.filters.http.set_filter_state.v3.Config",
        Arc::new(set_filter_state::SetFilterStateFactory),
    );
    for name in [
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute",
    ] {
        registry.add(name, Arc::new(ext_authz::ExtAuthzFactory));
    }
    for name in [
        "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
        "envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute",
    ] {
        registry.add(name, Arc::new(ext_proc::ExtProcFactory));
    }
    for name in [
        "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig",
    ] {
        registry.add(name, Arc::new(jwt_authn::JwtAuthnFactory));
    }
    for name in [
        "envoy.extensions.filters.http.rbac.v3.RBAC",
        "envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
    ] {
        registry.add(name, Arc::new(rbac::RbacFactory));
    }
    for name in [
        "envoy.extensions.filters.http.compressor.v3.Compressor",
        "envoy.extensions.filters.http.compressor.v3.CompressorPerRoute",
    ] {
        registry.add(name, Arc::new(compressor::CompressorFactory));
    }
}
