use super::*;

#[test]
fn sums_over_threads_and_folds_ended_ones() {
    let stats = Stats::new();
    let scope = stats.scope("cluster.a.");
    let (counter, gauge, histogram) = (scope.counter("n"), scope.gauge("g"), scope.histogram("h"));
    std::thread::scope(|threads| {
        let work = || {
            for _ in 0..1000 {
                counter.inc();
                gauge.add(2);
                gauge.dec();
                histogram.record(12);
            }
        };
        let threads: Vec<_> = (0..4).map(|_| threads.spawn(work)).collect();
        // An explicit join also waits for the threads' destructors, which fold their cells.
        threads.into_iter().for_each(|t| t.join().unwrap());
    });
    assert_eq!((counter.value(), gauge.value()), (4000, 4000));
    assert_eq!(
        lock(&stats.core.registry).shards.len(),
        0,
        "ended threads' cells are folded"
    );
    assert_eq!(stats.snapshot().histograms[0].cumulative.count(), 4000);
    gauge.set(-3);
    gauge.inc();
    assert_eq!(gauge.value(), -2);
    stats.reset_counters();
    assert_eq!(counter.value(), 0);
    counter.add(2);
    assert_eq!(
        scope.counter("n").value(),
        2,
        "the same name is the same stat"
    );
}

#[test]
fn ids_are_used_again_and_start_at_zero() {
    let stats = Stats::new();
    for i in 0..5000 {
        let scope = stats.scope(&format!("cluster.c{i}."));
        let (counter, histogram) = (scope.counter("x"), scope.histogram("h"));
        assert_eq!(counter.value(), 0);
        counter.add(7);
        histogram.record(i);
        assert_eq!(stats.snapshot().histograms[0].cumulative.count(), 1);
    }
    let registry = lock(&stats.core.registry);
    assert!(registry.next <= 2 && registry.next_histogram <= 2);
    assert!(registry.counters.is_empty() && registry.histograms.is_empty());
}

#[test]
fn quantiles_and_sum_as_a_real_envoy_printed_them() {
    let stats = Stats::new();
    let histogram = stats.scope("").histogram("h");
    for value in [1, 2, 4] {
        histogram.record(value);
    }
    let h = stats.snapshot().histograms.remove(0);
    let at: Vec<f64> = QUANTILES
        .iter()
        .filter_map(|(_, q)| h.cumulative.quantile(*q))
        .collect();
    assert_eq!(
        at,
        [1.05, 1.05, 2.05, 4.05, 4.05, 4.05, 4.05, 4.05, 4.05, 4.05]
    );
    assert_eq!(
        h.cumulative.sum(),
        "7.1457822514733084773297377978452".parse::<f64>().unwrap()
    );
    assert_eq!(
        (h.cumulative.count_below(1.0), h.cumulative.count_below(0.5)),
        (1, 0)
    );
    assert_eq!(h.interval.quantile(0.5), None);
    stats.flush();
    histogram.record(u64::MAX);
    let h = stats.snapshot().histograms.remove(0);
    assert_eq!((h.interval.count(), h.cumulative.count()), (3, 4));
}

#[test]
fn tags_are_cut_from_names() {
    let settings = StatsSettings::default();
    let (name, tags) = settings.tags("cluster.foo.upstream_rq_200");
    assert_eq!(name, "cluster.upstream_rq");
    assert_eq!(
        tags,
        [
            ("envoy.response_code".to_owned(), "200".to_owned()),
            ("envoy.cluster_name".to_owned(), "foo".to_owned())
        ]
    );
    let (name, tags) = settings.tags("listener.127.0.0.1_80.http.in.downstream_rq_2xx");
    assert_eq!(name, "listener.http.downstream_rq_xx");
    assert_eq!(tags.len(), 3);
}

#[test]
fn matcher_and_broken_regex() {
    use envoy_types::pb::envoy::config::metrics::v3 as pb;
    use envoy_types::pb::envoy::r#type::matcher::v3 as m;
    let config = pb::StatsConfig {
        stats_tags: vec![pb::TagSpecifier {
            tag_name: "bad".into(),
            tag_value: Some(pb::tag_specifier::TagValue::Regex("(((".into())),
        }],
        stats_matcher: Some(pb::StatsMatcher {
            stats_matcher: Some(pb::stats_matcher::StatsMatcher::InclusionList(
                m::ListStringMatcher {
                    patterns: vec![m::StringMatcher {
                        ignore_case: false,
                        match_pattern: Some(m::string_matcher::MatchPattern::Prefix(
                            "server.".into(),
                        )),
                    }],
                },
            )),
        }),
        ..Default::default()
    };
    let stats = Stats::with_settings(StatsSettings::from_proto(&config));
    let (kept, dropped) = (
        stats.scope("server.").gauge("state"),
        stats.scope("x.").counter("n"),
    );
    kept.set(0);
    dropped.inc();
    let snapshot = stats.snapshot();
    assert_eq!((snapshot.gauges.len(), snapshot.counters.len()), (1, 0));
    assert!(snapshot.gauges[0].used);
}
