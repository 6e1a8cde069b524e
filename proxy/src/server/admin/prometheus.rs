//! `/stats/prometheus`: the text format 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::stats::{Buckets, Selection, fixed, quantile};
use crate::telemetry::stats::{HistogramValue, QUANTILES, Stats, StatsSettings};

/// A metric or label name: what Prometheus does not allow becomes `_`.
fn sanitize(name: &str) -> String {
    let mut out: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '_' {
                c
            } else {
                '_'
            }
        })
        .collect();
    if out.starts_with(|c: char| c.is_ascii_digit()) {
        out.insert(0, '_');
    }
    out
}

/// `envoy_` in front, except of names that ask for their own namespace (`_istio...`: custom stats).
fn metric(name: &str) -> String {
    match ["istiocustom.", "wasmcustom.", "_"]
        .iter()
        .find_map(|p| name.strip_prefix(p))
    {
        Some(custom) => sanitize(custom),
        None if name.starts_with("istio_") => sanitize(name),
        None => format!("envoy_{}", sanitize(name)),
    }
}

fn labels(tags: &[(String, String)]) -> String {
    let escape = |v: &str| {
        v.replace('\\', "\\\\")
            .replace('\n', "\\n")
            .replace('"', "\\\"")
    };
    let list: Vec<String> = tags
        .iter()
        .map(|(name, value)| format!("{}=\"{}\"", sanitize(name), escape(value)))
        .collect();
    list.join(",")
}

/// The exact decimal expansion to 32 significant digits.
fn exact(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let decimals = (31.0 - value.abs().log10().floor()).clamp(0.0, 60.0);
    fixed(value, decimals as usize)
}

/// Prometheus text format 0.0.4: counters, gauges, histograms, each group by metric name.
pub(super) fn prometheus(stats: &Stats, selection: &Selection) -> String {
    let all = selection.apply(stats);
    let settings = stats.settings();
    let mut out = String::new();
    let scalars = |out: &mut String, kind: &str, list: Vec<(&str, String)>| {
        let mut groups: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
        for (name, value) in list {
            let (rest, tags) = settings.tags(name);
            groups
                .entry(metric(&rest))
                .or_default()
                .push((labels(&tags), value));
        }
        for (name, lines) in groups {
            let _ = writeln!(out, "# TYPE {name} {kind}");
            for (labels, value) in lines {
                let _ = writeln!(out, "{name}{{{labels}}} {value}");
            }
        }
    };
    let counters = all
        .counters
        .iter()
        .map(|c| (&*c.name, c.value.to_string()))
        .collect();
    scalars(&mut out, "counter", counters);
    let gauges = all
        .gauges
        .iter()
        .map(|g| (&*g.name, g.value.to_string()))
        .collect();
    scalars(&mut out, "gauge", gauges);
    let mut groups: BTreeMap<String, Vec<(String, &HistogramValue)>> = BTreeMap::new();
    for h in &all.histograms {
        let (rest, tags) = settings.tags(&h.name);
        groups
            .entry(metric(&rest))
            .or_default()
            .push((labels(&tags), h));
    }
    let summary = selection.buckets == Some(Buckets::Summary);
    for (name, list) in groups {
        let kind = if summary { "summary" } else { "histogram" };
        let _ = writeln!(out, "# TYPE {name} {kind}");
        for (labels, h) in list {
            match summary {
                true => quantile_lines(&mut out, &name, &labels, h),
                false => bucket_lines(&mut out, &name, &labels, h, settings),
            }
            let _ = writeln!(out, "{name}_sum{{{labels}}} {}", exact(h.cumulative.sum()));
            let count = h.cumulative.count();
            let _ = writeln!(out, "{name}_count{{{labels}}} {count}");
        }
    }
    out
}

fn bucket_lines(
    out: &mut String,
    name: &str,
    labels: &str,
    h: &HistogramValue,
    settings: &StatsSettings,
) {
    let comma = if labels.is_empty() { "" } else { "," };
    for bound in settings.buckets(&h.name) {
        let count = h.cumulative.count_below(*bound);
        let _ = writeln!(
            out,
            "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}"
        );
    }
    let count = h.cumulative.count();
    let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
}

fn quantile_lines(out: &mut String, name: &str, labels: &str, h: &HistogramValue) {
    let comma = if labels.is_empty() { "" } else { "," };
    for (_, q) in QUANTILES {
        let value = quantile(&h.cumulative, q);
        let _ = writeln!(out, "{name}{{{labels}{comma}quantile=\"{q}\"}} {value}");
    }
}
