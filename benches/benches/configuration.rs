//! Compiling what istiod 1.27 sent to a plain gateway.

#![allow(clippy::expect_used)] // See the crate.

use std::sync::Arc;

use benches::captures::resources;
use benches::context::chain_context;
use divan::Bencher;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use fairway::config::chain::ChainCompiler;
use fairway::server::compiled::CompiledListener;
use fairway::upstream::manager::ClusterManager;

fn main() {
    divan::main();
}

#[divan::bench]
fn clusters(bencher: Bencher<'_, '_>) {
    let clusters: Vec<Cluster> = resources("cds");
    bencher
        .counter(divan::counter::ItemsCount::new(clusters.len()))
        .bench_local(|| {
            let mut manager = ClusterManager::new();
            for cluster in &clusters {
                manager.apply_cluster(cluster, "1").expect("a cluster");
            }
            manager
        });
}

#[divan::bench]
fn routes(bencher: Bencher<'_, '_>) {
    let (configs, context) = (resources::<RouteConfiguration>("rds"), chain_context());
    let count = configs
        .iter()
        .flat_map(|c| &c.virtual_hosts)
        .map(|h| h.routes.len());
    bencher
        .counter(divan::counter::ItemsCount::new(count.sum::<usize>()))
        .bench_local(|| {
            for config in &configs {
                divan::black_box(context.compile_routes(config, true).expect("routes"));
            }
        });
}

#[divan::bench]
fn listeners(bencher: Bencher<'_, '_>) {
    let listeners: Vec<_> = resources::<Listener>("lds")
        .into_iter()
        .map(Arc::new)
        .collect();
    let compiler = ChainCompiler(chain_context());
    let scope = compiler.0.stats.scope("");
    bencher
        .counter(divan::counter::ItemsCount::new(listeners.len()))
        .bench_local(|| {
            for listener in &listeners {
                let compiled = CompiledListener::compile(listener, "1", None, &compiler, &scope);
                divan::black_box(compiled.expect("a listener"));
            }
        });
}
