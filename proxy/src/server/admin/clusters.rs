//! `/clusters`.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::backend::{ClusterStatus, HostStatus};
use super::listeners::address;
use super::page::{Page, Query, pretty};

/// `/clusters`: `name::what::value` lines, or `envoy.admin.v3.Clusters`; `filter` limits the names.
pub(super) fn page(mut list: Vec<ClusterStatus>, query: &Query) -> Page {
    if let Some(filter) = query.get("filter").filter(|f| !f.is_empty()) {
        match regex::Regex::new(filter) {
            Ok(filter) => list.retain(|c| filter.is_match(&c.name)),
            Err(error) => return Page::error(400, format!("Invalid re2 regex: {error}")),
        }
    }
    match query.get("format") {
        Some("json") => Page::json(json(&list)),
        _ => Page::text(text(&list)),
    }
}

fn text(list: &[ClusterStatus]) -> String {
    let mut out = String::new();
    for c in list {
        let n = &c.name;
        let _ = writeln!(out, "{n}::observability_name::{}", c.observability_name);
        for (priority, limits) in ["default", "high"].iter().zip(&c.limits) {
            for (name, limit) in ["connections", "pending_requests", "requests", "retries"]
                .iter()
                .zip(limits)
            {
                let _ = writeln!(out, "{n}::{priority}_priority::max_{name}::{limit}");
            }
        }
        let _ = writeln!(out, "{n}::added_via_api::{}", c.added_via_api);
        if !c.eds_service_name.is_empty() {
            let _ = writeln!(out, "{n}::eds_service_name::{}", c.eds_service_name);
        }
        for h in &c.hosts {
            let at = format!("{n}::{}", h.address);
            for (name, value) in &h.stats {
                let _ = writeln!(out, "{at}::{name}::{value}");
            }
            let [region, zone, sub_zone] = &h.locality;
            let _ = write!(
                out,
                "{at}::hostname::{}\n{at}::health_flags::{}\n{at}::weight::{}\n{at}::region::{region}\n\
                 {at}::zone::{zone}\n{at}::sub_zone::{sub_zone}\n{at}::canary::{}\n{at}::priority::{}\n\
                 {at}::success_rate::-1\n{at}::local_origin_success_rate::-1\n",
                h.hostname, h.health_flags, h.weight, h.canary, h.priority
            );
        }
    }
    out
}

fn json(list: &[ClusterStatus]) -> String {
    let statuses: Vec<_> = list.iter().map(cluster).collect();
    pretty(&json!({"cluster_statuses": statuses}))
}

fn cluster(c: &ClusterStatus) -> Value {
    let thresholds: Vec<_> = [None, Some("HIGH")]
        .iter()
        .zip(&c.limits)
        .map(|(priority, [connections, pending, requests, retries])| {
            filled([
                ("priority", json!(priority)),
                ("max_connections", json!(connections)),
                ("max_pending_requests", json!(pending)),
                ("max_requests", json!(requests)),
                ("max_retries", json!(retries)),
            ])
        })
        .collect();
    let hosts: Vec<_> = c.hosts.iter().map(host).collect();
    filled([
        ("name", json!(c.name)),
        ("added_via_api", json!(c.added_via_api)),
        ("host_statuses", json!(hosts)),
        ("circuit_breakers", json!({"thresholds": thresholds})),
        ("observability_name", json!(c.observability_name)),
        ("eds_service_name", json!(c.eds_service_name)),
    ])
}

fn host(h: &HostStatus) -> Value {
    let stats = h.stats.iter().map(|(name, value)| {
        let gauge = name.ends_with("_active").then_some("GAUGE");
        let value = (*value > 0).then(|| value.to_string());
        filled([
            ("type", json!(gauge)),
            ("value", json!(value)),
            ("name", json!(name)),
        ])
    });
    let health = match h.health_flags.as_str() {
        "healthy" => "HEALTHY",
        flags if flags.contains("degraded") => "DEGRADED",
        _ => "UNHEALTHY",
    };
    let [region, zone, sub_zone] = &h.locality;
    let locality = filled([
        ("region", json!(region)),
        ("zone", json!(zone)),
        ("sub_zone", json!(sub_zone)),
    ]);
    filled([
        ("address", address(&h.address)),
        ("stats", stats.collect::<Vec<_>>().into()),
        ("health_status", json!({"eds_health_status": health})),
        ("weight", json!(h.weight)),
        ("hostname", json!(h.hostname)),
        ("locality", locality),
        ("priority", json!(h.priority)),
    ])
}

/// An object of the fields that have a value other than their type's default, as protobuf's JSON has it.
fn filled<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let default = |v: &Value| match v {
        Value::Null | Value::Bool(false) => true,
        Value::Number(n) => n.as_u64() == Some(0),
        Value::String(s) => s.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    let kept = fields.into_iter().filter(|(_, value)| !default(value));
    let map: Map<String, Value> = kept.map(|(name, v)| (name.to_owned(), v)).collect();
    map.into()
}
