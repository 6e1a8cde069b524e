//! Counts of responses by status: `upstream_rq_<code>`, `upstream_rq_<class>xx`, `upstream_rq_completed`.
//!
//! Envoy: "HTTP dynamic statistics" (`CodeStatsImpl`). Names exist from the first response that has them.

use std::sync::OnceLock;

use crate::telemetry::stats::{Counter, Histogram, Scope};

/// The counts below one prefix.
#[derive(Default)]
struct Category {
    completed: OnceLock<Counter>,
    classes: [OnceLock<Counter>; 5],
    codes: [OnceLock<Box<[OnceLock<Counter>; 100]>>; 5],
    time: OnceLock<Histogram>,
}

impl Category {
    fn count(&self, scope: &Scope, prefix: &str, status: u16) {
        let completed = || scope.counter(&format!("{prefix}upstream_rq_completed"));
        self.completed.get_or_init(completed).inc();
        // Codes outside of 100 to 599 have no counter of their own, which bounds the number of names.
        let Some(class) = usize::from(status / 100).checked_sub(1) else {
            return;
        };
        if let Some(counter) = self.classes.get(class) {
            let make = || scope.counter(&format!("{prefix}upstream_rq_{}xx", class + 1));
            counter.get_or_init(make).inc();
        }
        if let Some(codes) = self.codes.get(class) {
            let codes = codes.get_or_init(|| Box::new([const { OnceLock::new() }; 100]));
            if let Some(counter) = codes.get(usize::from(status % 100)) {
                let make = || scope.counter(&format!("{prefix}upstream_rq_{status}"));
                counter.get_or_init(make).inc();
            }
        }
    }

    fn time(&self, scope: &Scope, prefix: &str, ms: u64) {
        let make = || scope.histogram(&format!("{prefix}upstream_rq_time"));
        self.time.get_or_init(make).record(ms);
    }
}

/// What a response is counted as beside the plain counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResponseKind {
    /// The request was internal (`x-envoy-internal`).
    pub internal: bool,
    /// A canary answered (`x-envoy-upstream-canary`, or the endpoint's metadata).
    pub canary: bool,
}

/// A cluster's counts of responses.
#[derive(Default)]
pub struct CodeStats {
    scope: Option<Scope>,
    all: Category,
    internal: Category,
    external: Category,
    canary: Category,
    retry: Category,
}

impl CodeStats {
    /// Counts in the cluster's scope.
    pub(crate) fn new(scope: Scope) -> Self {
        Self {
            scope: Some(scope),
            ..Self::default()
        }
    }

    fn categories(&self, kind: ResponseKind) -> impl Iterator<Item = (&Category, &'static str)> {
        let origin = if kind.internal {
            (&self.internal, "internal.")
        } else {
            (&self.external, "external.")
        };
        let canary = kind.canary.then_some((&self.canary, "canary."));
        [(&self.all, ""), origin].into_iter().chain(canary)
    }

    /// Counts a response, the upstream's or our own in its place.
    pub fn count(&self, status: u16, kind: ResponseKind) {
        if let Some(scope) = &self.scope {
            for (category, prefix) in self.categories(kind) {
                category.count(scope, prefix, status);
            }
        }
    }

    /// Counts a response that a retry takes the place of.
    pub fn count_retried(&self, status: u16) {
        if let Some(scope) = &self.scope {
            self.retry.count(scope, "retry.", status);
        }
    }

    /// Records how long a request took until the end of its response, in milliseconds.
    pub fn time(&self, ms: u64, kind: ResponseKind) {
        if let Some(scope) = &self.scope {
            for (category, prefix) in self.categories(kind) {
                category.time(scope, prefix, ms);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::stats::Stats;

    #[test]
    fn responses_count_by_class_code_and_origin_within_bounds() {
        let store = Stats::new();
        let stats = CodeStats::new(store.scope("cluster.a."));
        let internal = ResponseKind {
            internal: true,
            canary: true,
        };
        for status in [200, 503, 599, 0, 99, 600, 999, u16::MAX] {
            stats.count(status, ResponseKind::default());
        }
        stats.count(200, internal);
        stats.count_retried(503);
        stats.time(3, internal);
        let snapshot = store.snapshot();
        let value = |name: &str| {
            let name = format!("cluster.a.{name}");
            let mut all = snapshot.counters.iter();
            all.find(|c| *c.name == *name).map(|c| c.value)
        };
        for (name, want) in [
            ("upstream_rq_200", Some(2)),
            ("upstream_rq_503", Some(1)),
            ("upstream_rq_2xx", Some(2)),
            ("upstream_rq_5xx", Some(2)),
            ("upstream_rq_completed", Some(9)),
            ("upstream_rq_600", None),
            ("upstream_rq_201", None),
            ("upstream_rq_6xx", None),
            ("internal.upstream_rq_200", Some(1)),
            ("external.upstream_rq_200", Some(1)),
            ("canary.upstream_rq_2xx", Some(1)),
            ("retry.upstream_rq_503", Some(1)),
        ] {
            assert_eq!(value(name), want, "{name}");
        }
        let histograms = snapshot.histograms.iter().map(|h| &*h.name);
        assert_eq!(
            histograms.collect::<Vec<_>>(),
            [
                "cluster.a.canary.upstream_rq_time",
                "cluster.a.internal.upstream_rq_time",
                "cluster.a.upstream_rq_time"
            ]
        );
    }
}
