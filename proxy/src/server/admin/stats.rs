//! `/stats`: which stats are asked for, as text and JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::backend::AdminBackend;
use super::page::{Page, Query};
use super::prometheus::prometheus;
use crate::telemetry::stats::{
    Distribution, HistogramValue, QUANTILES, Snapshot, Stats, StatsSettings,
};

/// Which stats a request asks for.
#[derive(Default)]
pub(super) struct Selection {
    pub(super) used_only: bool,
    pub(super) filter: Option<regex::Regex>,
    pub(super) invert: bool,
    /// None for all types.
    pub(super) kind: Option<Kind>,
    pub(super) buckets: Option<Buckets>,
}

/// How a histogram is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Buckets {
    /// How many values are below each bound.
    Cumulative,
    /// How many are between a bound and the one before.
    Disjoint,
    /// Quantiles.
    Summary,
}

/// The page, for Prometheus or as the query says.
pub(super) fn page(
    backend: &dyn AdminBackend,
    stats: &Stats,
    query: &Query,
    for_prometheus: bool,
) -> Page {
    let selection = match Selection::parse(query) {
        Ok(selection) => selection,
        Err(error) => return Page::error(400, error),
    };
    backend.update_stats();
    match query.get("format") {
        _ if for_prometheus => Page::text(prometheus(stats, &selection)),
        Some("prometheus") => Page::text(prometheus(stats, &selection)),
        Some("json") => Page::json(json(stats, &selection)),
        None | Some("" | "text") => Page::text(text(stats, &selection)),
        Some(_) => Page::error(400, "usage: /stats?format=(json|prometheus|text)\n\n"),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counters,
    Gauges,
    Histograms,
    TextReadouts,
}

impl Selection {
    fn parse(query: &Query) -> Result<Self, String> {
        let filter = query.get("filter").filter(|f| !f.is_empty());
        let filter = filter.map(regex::Regex::new).transpose();
        Ok(Self {
            used_only: query.has("usedonly"),
            filter: filter.map_err(|e| format!("Invalid re2 regex: {e}"))?,
            invert: query.has("invert_filter"),
            kind: match query.get("type") {
                None | Some("" | "All") => None,
                Some("Counters") => Some(Kind::Counters),
                Some("Gauges") => Some(Kind::Gauges),
                Some("Histograms") => Some(Kind::Histograms),
                Some("TextReadouts") => Some(Kind::TextReadouts),
                Some(_) => return Err("invalid &type= param".to_owned()),
            },
            buckets: match query.get("histogram_buckets") {
                None | Some("") => None,
                Some("cumulative") => Some(Buckets::Cumulative),
                Some("disjoint") => Some(Buckets::Disjoint),
                Some("summary" | "none") => Some(Buckets::Summary),
                Some(_) => {
                    let usage = "usage: /stats?histogram_buckets=(cumulative|disjoint|summary)\n";
                    return Err(usage.to_owned());
                }
            },
        })
    }

    pub(super) fn apply(&self, stats: &Stats) -> Snapshot {
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
    fixed(value, (5.0 - exponent).max(0.0) as usize)
}

/// So many decimals at most, without zeros at the end.
pub(super) fn fixed(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

pub(super) fn quantile(distribution: &Distribution, q: f64) -> String {
    distribution
        .quantile(q)
        .map_or_else(|| "nan".to_owned(), short)
}

/// Bounds, and how many values of the interval and of all there are at each.
fn counts(h: &HistogramValue, settings: &StatsSettings, buckets: Buckets) -> Vec<(f64, u64, u64)> {
    let mut before = (0, 0);
    let mut out = Vec::new();
    for bound in settings.buckets(&h.name) {
        let at = (
            h.interval.count_below(*bound),
            h.cumulative.count_below(*bound),
        );
        out.push(match buckets {
            Buckets::Disjoint => (
                *bound,
                at.0.saturating_sub(before.0),
                at.1.saturating_sub(before.1),
            ),
            _ => (*bound, at.0, at.1),
        });
        before = at;
    }
    out
}

fn line(h: &HistogramValue, settings: &StatsSettings, buckets: Buckets) -> String {
    if !h.used {
        return "No recorded values".to_owned();
    }
    if buckets != Buckets::Summary {
        let all = counts(h, settings, buckets).into_iter();
        let all =
            all.map(|(bound, interval, total)| format!("B{}({interval},{total})", short(bound)));
        return all.collect::<Vec<_>>().join(" ");
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
    let buckets = selection.buckets.unwrap_or(Buckets::Summary);
    let mut out = String::new();
    for (name, value) in scalars(&all) {
        let _ = writeln!(out, "{name}: {value}");
    }
    for h in &all.histograms {
        let _ = writeln!(out, "{}: {}", h.name, line(h, stats.settings(), buckets));
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

/// `format=json`, written by hand: numbers are to look as Envoy's do.
pub(super) fn json(stats: &Stats, selection: &Selection) -> String {
    let all = selection.apply(stats);
    let mut items: Vec<String> = scalars(&all)
        .iter()
        .map(|(name, value)| format!("{{\"name\":{},\"value\":{value}}}", quoted(name)))
        .collect();
    if !all.histograms.is_empty() {
        items.push(match selection.buckets {
            None | Some(Buckets::Summary) => quantiles_json(&all.histograms),
            Some(buckets) => buckets_json(&all.histograms, stats.settings(), buckets),
        });
    }
    format!("{{\"stats\":[{}]}}", items.join(","))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn quantiles_json(histograms: &[HistogramValue]) -> String {
    let value = |d: &Distribution, q| d.quantile(q).map_or_else(|| "null".to_owned(), short);
    let one = |h: &HistogramValue| {
        let values = QUANTILES.iter().map(|(_, q)| {
            let (cumulative, interval) = (value(&h.cumulative, *q), value(&h.interval, *q));
            format!("{{\"cumulative\":{cumulative},\"interval\":{interval}}}")
        });
        let values: Vec<String> = values.collect();
        format!(
            "{{\"name\":{},\"values\":[{}]}}",
            quoted(&h.name),
            values.join(",")
        )
    };
    let computed: Vec<String> = histograms.iter().map(one).collect();
    let quantiles: Vec<&str> = QUANTILES.iter().map(|(name, _)| *name).collect();
    format!(
        "{{\"histograms\":{{\"supported_quantiles\":[{}],\"computed_quantiles\":[{}]}}}}",
        quantiles.join(","),
        computed.join(",")
    )
}

fn buckets_json(
    histograms: &[HistogramValue],
    settings: &StatsSettings,
    buckets: Buckets,
) -> String {
    let one = |h: &HistogramValue| {
        let all = counts(h, settings, buckets).into_iter();
        let all = all.map(|(bound, interval, total)| {
            format!("{{\"upper_bound\":{bound},\"interval\":{interval},\"cumulative\":{total}}}")
        });
        let all: Vec<String> = all.collect();
        format!(
            "{{\"name\":{},\"buckets\":[{}]}}",
            quoted(&h.name),
            all.join(",")
        )
    };
    let all: Vec<String> = histograms.iter().map(one).collect();
    format!("{{\"histograms\":[{}]}}", all.join(","))
}
