use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;

use super::*;

fn any<M: Message + prost::Name>(message: &M) -> wkt::Any {
    wkt::Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

fn policy(configs: Vec<wkt::Any>) -> pb::LoadBalancingPolicy {
    let entry = |any| pb::load_balancing_policy::Policy {
        typed_extension_config: Some(TypedExtensionConfig {
            name: "x".into(),
            typed_config: Some(any),
        }),
    };
    pb::LoadBalancingPolicy {
        policies: configs.into_iter().map(entry).collect(),
    }
}

fn compile(configs: Vec<wkt::Any>) -> Result<Balancing, String> {
    let cluster = pb::Cluster {
        load_balancing_policy: Some(policy(configs)),
        ..Default::default()
    };
    Balancing::compile(&cluster).map_err(|e| e.to_string())
}

#[test]
fn the_first_policy_that_is_known_counts() {
    let unknown = wkt::Any {
        type_url: "type.googleapis.com/envoy.extensions.load_balancing_policies.x.v3.X".into(),
        value: Vec::new(),
    };
    let random = any(&policies::random::v3::Random::default());
    let maglev = any(&policies::maglev::v3::Maglev::default());
    let found = compile(vec![unknown.clone(), random, maglev]).unwrap();
    assert_eq!(found, LbPolicy::Random.into());
    let error = compile(vec![unknown]).unwrap_err();
    assert!(error.contains("load_balancing_policy.policies"), "{error}");
}

#[test]
fn wrapped_policies_are_found_up_to_a_depth() {
    let mut inner = policy(vec![any(&policies::ring_hash::v3::RingHash::default())]);
    for depth in 0..8 {
        let wrapped = any(&policies::wrr_locality::v3::WrrLocality {
            endpoint_picking_policy: Some(inner),
        });
        inner = policy(vec![wrapped.clone()]);
        let found = compile(vec![wrapped]);
        if depth < MAX_NESTING {
            let found = found.unwrap();
            assert!(found.locality_weighted && matches!(found.policy, LbPolicy::Hash(_)));
        } else {
            assert!(found.unwrap_err().contains("nested too deep"));
        }
    }
}

#[test]
fn sizes_are_bounded_and_tables_prime() {
    let size = |value| Some(wkt::UInt64Value { value });
    let maglev = |value| {
        compile(vec![any(&policies::maglev::v3::Maglev {
            table_size: size(value),
            ..Default::default()
        })])
    };
    assert!(maglev(11).is_ok() && maglev(10).is_err() && maglev(u64::MAX).is_err());
    let ring = |min, max| {
        compile(vec![any(&policies::ring_hash::v3::RingHash {
            minimum_ring_size: size(min),
            maximum_ring_size: size(max),
            ..Default::default()
        })])
    };
    assert!(ring(1, 1).is_ok() && ring(2, 1).is_err() && ring(1, 9 << 20).is_err());
}

#[test]
fn least_request_makes_at_least_two_choices_or_scans_all() {
    let least = |choices: Option<u32>, method| {
        let found = compile(vec![any(&policies::least_request::v3::LeastRequest {
            choice_count: choices.map(|value| wkt::UInt32Value { value }),
            selection_method: method,
            ..Default::default()
        })]);
        match found.unwrap().policy {
            LbPolicy::LeastRequest { choices } => choices,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((least(None, 0), least(Some(1), 0)), (2, 2));
    assert_eq!((least(Some(5), 0), least(None, 1)), (5, u32::MAX));
}

#[test]
fn a_slow_start_grows_from_the_least_share_to_all() {
    let start = SlowStart {
        window: Duration::from_secs(10),
        aggression: 1.0,
        min_share: 0.1,
    };
    let share = |seconds| start.share(Duration::from_secs(seconds));
    assert_eq!((share(0), share(5), share(10)), (0.1, 0.5, 1.0));
    let fast = SlowStart {
        aggression: 2.0,
        ..start
    };
    assert!(fast.share(Duration::from_secs(5)) > 0.7);
}
