//! `/listeners`.

use std::fmt::Write as _;

use serde_json::json;

use super::backend::ListenerStatus;
use super::page::{Page, Query, pretty};

/// `/listeners`: a line for each address, or `envoy.admin.v3.Listeners`.
pub(super) fn page(list: &[ListenerStatus], query: &Query) -> Page {
    match query.get("format") {
        Some("json") => Page::json(json(list)),
        _ => Page::text(text(list)),
    }
}

fn text(list: &[ListenerStatus]) -> String {
    let mut out = String::new();
    for listener in list {
        for address in &listener.addresses {
            let _ = writeln!(out, "{}::{address}", listener.name);
        }
    }
    out
}

fn json(list: &[ListenerStatus]) -> String {
    let statuses: Vec<_> = list
        .iter()
        .map(|listener| {
            let mut all = listener.addresses.iter().map(|a| address(a));
            let mut status = json!({"name": listener.name, "local_address": all.next()});
            let more: Vec<_> = all.collect();
            if let (false, Some(status)) = (more.is_empty(), status.as_object_mut()) {
                status.insert("additional_local_addresses".to_owned(), more.into());
            }
            status
        })
        .collect();
    pretty(&json!({"listener_statuses": statuses}))
}

/// `ip:port`, `envoy://name/` or a path as `envoy.config.core.v3.Address`.
pub(super) fn address(address: &str) -> serde_json::Value {
    match address.parse::<std::net::SocketAddr>() {
        Ok(ip) => {
            json!({"socket_address": {"address": ip.ip().to_string(), "port_value": ip.port()}})
        }
        Err(_) => match address.strip_prefix("envoy://") {
            Some(name) => {
                let name = name.trim_end_matches('/');
                json!({"envoy_internal_address": {"server_listener_name": name}})
            }
            None => json!({"pipe": {"path": address}}),
        },
    }
}
