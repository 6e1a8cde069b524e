//! `/stats` and `/stats/prometheus`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::telemetry::stats::{Distribution, HistogramValue, QUANTILES, Snapshot, Stats};

/// Which stats a request asks for.
#[derive(Default)]
pub(super) struct Selection {
    pub(super) used_only: bool,
    pub(super) filter: Option<regex::Regex>,
    pub(super) invert: bool,
    /// None for all types.
    pub(super) kind: Option<Kind>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counters,
    Gauges,
    Histograms,
    TextReadouts,
}

impl Selection {
    fn apply(&self, stats: &Stats) -> Snapshot {
        let mut all = stats.snapshot();
        let keep = |name: &str, used: bool| {
            (used || !self.used_only)
                && self
                    .filter
                    .as_ref()
                    .is_none_or(|f| f.is_match(name) != self.invert)
        };
        let is = |kind| self.kind.is_none_or(|k| k == kind);
        all.counters
            .retain(|s| is(Kind::Counters) && keep(&s.name, s.used));
        all.gauges
            .retain(|s| is(Kind::Gauges) && keep(&s.name, s.used));
        all.histograms
            .retain(|s| is(Kind::Histograms) && keep(&s.name, s.used));
        all
    }
}

/// Six significant digits at most, as C's `%g` prints what histograms hold.
fn short(value: f64) -> String {
    let exponent = if value > 0.0 {
        value.log10().floor()
    } else {
        0.0
    };
    if exponent >= 6.0 {
        let text = format!("{value:.5e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let digits = digits.trim_end_matches('0').trim_end_matches('.');
        return format!("{digits}e+{exponent:0>2}");
    }
    let decimals = (5.0 - exponent).max(0.0) as usize;
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

fn quantile(distribution: &Distribution, q: f64) -> String {
    distribution
        .quantile(q)
        .map_or_else(|| "nan".to_owned(), short)
}

fn summary(h: &HistogramValue) -> String {
    if !h.used {
        return "No recorded values".to_owned();
    }
    let parts: Vec<String> = QUANTILES
        .iter()
        .map(|(name, q)| {
            format!(
                "P{name}({},{})",
                quantile(&h.interval, *q),
                quantile(&h.cumulative, *q)
            )
        })
        .collect();
    parts.join(" ")
}

/// Counters and gauges together by name, then histograms: `NAME: VALUE`.
pub(super) fn text(stats: &Stats, selection: &Selection) -> String {
    let all = selection.apply(stats);
    let mut out = String::new();
    for (name, value) in scalars(&all) {
        let _ = writeln!(out, "{name}: {value}");
    }
    for h in &all.histograms {
        let _ = writeln!(out, "{}: {}", h.name, summary(h));
    }
    out
}

fn scalars(all: &Snapshot) -> BTreeMap<&str, i128> {
    let counters = all.counters.iter().map(|c| (&*c.name, i128::from(c.value)));
    // Envoy's gauges are unsigned; one below zero is printed as it is.
    counters
        .chain(all.gauges.iter().map(|g| (&*g.name, i128::from(g.value))))
        .collect()
}

/// `format=json`.
pub(super) fn json(stats: &Stats, selection: &Selection) -> String {
    let all = selection.apply(stats);
    let string = |s: &str| serde_json::Value::from(s).to_string();
    let mut items: Vec<String> = scalars(&all)
        .iter()
        .map(|(name, value)| format!("{{\"name\":{},\"value\":{value}}}", string(name)))
        .collect();
    if !all.histograms.is_empty() {
        let value = |d: &Distribution, q| d.quantile(q).map_or_else(|| "null".to_owned(), short);
        let computed: Vec<String> = all
            .histograms
            .iter()
            .map(|h| {
                let values: Vec<String> = QUANTILES
                    .iter()
                    .map(|(_, q)| {
                        let (cumulative, interval) =
                            (value(&h.cumulative, *q), value(&h.interval, *q));
                        format!("{{\"cumulative\":{cumulative},\"interval\":{interval}}}")
                    })
                    .collect();
                format!(
                    "{{\"name\":{},\"values\":[{}]}}",
                    string(&h.name),
                    values.join(",")
                )
            })
            .collect();
        let quantiles: Vec<&str> = QUANTILES.iter().map(|(name, _)| *name).collect();
        items.push(format!(
            "{{\"histograms\":{{\"supported_quantiles\":[{}],\"computed_quantiles\":[{}]}}}}",
            quantiles.join(","),
            computed.join(",")
        ));
    }
    format!("{{\"stats\":[{}]}}", items.join(","))
}

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
    let decimals = (31.0 - value.abs().log10().floor()).clamp(0.0, 60.0) as usize;
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
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
    for (name, list) in groups {
        let _ = writeln!(out, "# TYPE {name} histogram");
        for (labels, h) in list {
            let comma = if labels.is_empty() { "" } else { "," };
            for bound in settings.buckets(&h.name) {
                let count = h.cumulative.count_below(*bound);
                let _ = writeln!(
                    out,
                    "{name}_bucket{{{labels}{comma}le=\"{}\"}} {count}",
                    exact_bound(*bound)
                );
            }
            let count = h.cumulative.count();
            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
            let _ = writeln!(out, "{name}_sum{{{labels}}} {}", exact(h.cumulative.sum()));
            let _ = writeln!(out, "{name}_count{{{labels}}} {count}");
        }
    }
    out
}

fn exact_bound(bound: f64) -> String {
    format!("{bound}")
}
