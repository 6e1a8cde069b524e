use envoy_types::pb::google::protobuf as wkt;
use http::{HeaderValue, Method};

use super::*;

fn on(text: &str) -> pb::RetryPolicy {
    pb::RetryPolicy {
        retry_on: text.into(),
        ..Default::default()
    }
}

fn ms(ms: i64) -> Option<wkt::Duration> {
    Some(wkt::Duration {
        seconds: ms / 1000,
        nanos: i32::try_from(ms % 1000 * 1_000_000).unwrap(),
    })
}

fn back_off(base: i64, max: Option<i64>) -> Result<RetryPolicy, ConfigError> {
    RetryPolicy::compile(&pb::RetryPolicy {
        retry_back_off: Some(pb::retry_policy::RetryBackOff {
            base_interval: ms(base),
            max_interval: max.and_then(ms),
        }),
        ..Default::default()
    })
}

#[test]
fn conditions_are_words_between_commas_and_unknown_ones_are_passed_over() {
    let parsed = RetryOn::parse(" 5xx ,reset,nonsense,,unavailable");
    for (condition, wanted) in [
        (RetryOn::SERVER_ERROR, true),
        (RetryOn::RESET, true),
        (RetryOn::UNAVAILABLE, true),
        (RetryOn::GATEWAY_ERROR, false),
        (RetryOn::RESET_BEFORE_REQUEST, false),
    ] {
        assert_eq!(parsed.any(condition), wanted);
    }
    assert!(RetryOn::parse("").is_empty() && RetryOn::parse("5XX;reset").is_empty());
    assert!(RetryOn::all_known("5xx, reset", false) && RetryOn::all_known("", true));
    assert!(!RetryOn::all_known("5xx,unavailable", false));
    assert!(!RetryOn::all_known("5xx", true) && RetryOn::all_known("internal", true));
}

#[test]
fn what_is_not_set_has_envoy_s_defaults() {
    let policy = RetryPolicy::compile(&on("5xx")).unwrap();
    assert_eq!(policy.num_retries, 1);
    assert_eq!(
        (policy.per_try_timeout, policy.previous_hosts),
        (None, false)
    );
    let policy = back_off(20, None).unwrap();
    assert_eq!(policy.base_interval, Duration::from_millis(20));
    assert_eq!(policy.max_interval, Duration::from_millis(200));
    let zero = pb::RetryPolicy {
        num_retries: Some(wkt::UInt32Value { value: 0 }),
        per_try_timeout: ms(0),
        retriable_status_codes: vec![429, 70_000],
        ..on("5xx")
    };
    let policy = RetryPolicy::compile(&zero).unwrap();
    assert_eq!((policy.num_retries, policy.per_try_timeout), (0, None));
    assert_eq!(policy.retriable_status_codes, [429]);
}

#[test]
fn what_cannot_be_honoured_is_named() {
    let path = |proto: &pb::RetryPolicy| {
        let error = RetryPolicy::compile(proto).unwrap_err();
        error.path().to_owned()
    };
    let predicate = pb::retry_policy::RetryHostPredicate {
        name: "other".into(),
        ..Default::default()
    };
    let predicates = pb::RetryPolicy {
        retry_host_predicate: vec![predicate],
        ..Default::default()
    };
    assert_eq!(path(&predicates), "retry_host_predicate[0]");
    let negative = pb::RetryPolicy {
        per_try_timeout: ms(-1000),
        ..Default::default()
    };
    assert_eq!(path(&negative), "per_try_timeout");
    for (base, max, field) in [
        (0, None, "retry_back_off.base_interval"),
        (20, Some(10), "retry_back_off.max_interval"),
    ] {
        assert_eq!(back_off(base, max).unwrap_err().path(), field);
    }
}

#[test]
fn waits_grow_up_to_their_maximum_and_never_overflow() {
    let policy = back_off(10, Some(1000)).unwrap();
    for (retry, limit) in [(1, 10), (2, 20), (4, 80), (8, 1000), (1000, 1000)] {
        for random in [0, 7, u64::MAX] {
            let wait = policy.back_off_delay(retry, random);
            assert!(wait < Duration::from_millis(limit), "{retry}: {wait:?}");
        }
    }
    let longest = 315_576_000_000_000;
    let policy = back_off(longest, Some(longest)).unwrap();
    policy.back_off_delay(u32::MAX, u64::MAX);
}

#[test]
fn a_request_s_headers_add_to_the_route_s_policy_and_are_taken_off() {
    let policy = std::sync::Arc::new(RetryPolicy::compile(&on("5xx")).unwrap());
    let head = |fields: &[(&'static str, &'static str)]| {
        let mut head = RequestHead::new(Method::GET, "/");
        for (name, value) in fields {
            head.headers.insert(*name, HeaderValue::from_static(value));
        }
        head
    };
    let mut steering = head(&[
        ("x-envoy-retry-on", "retriable-status-codes"),
        ("x-envoy-max-retries", " 3"),
        ("x-envoy-retriable-status-codes", "404, x,409"),
    ]);
    let own = RetryPolicy::for_request(Some(&policy), &mut steering).unwrap();
    assert!(steering.headers.is_empty());
    assert_eq!(own.num_retries, 3);
    assert_eq!(own.retriable_status_codes, [404, 409]);
    let none = HeaderMap::new();
    for (status, wanted) in [(200, false), (404, true), (500, true)] {
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(own.wants_retry_response(status, &none), wanted, "{status}");
    }
    assert!(RetryPolicy::for_request(None, &mut head(&[])).is_none());
    let mut alone = head(&[("x-envoy-retry-on", "reset")]);
    assert!(RetryPolicy::for_request(None, &mut alone).is_some());

    let guarded = RetryPolicy::compile(&pb::RetryPolicy {
        retriable_request_headers: vec![pb::HeaderMatcher {
            name: "x-again".into(),
            ..Default::default()
        }],
        ..on("5xx")
    });
    let guarded = std::sync::Arc::new(guarded.unwrap());
    let mut asked = head(&[("x-envoy-retry-on", "5xx")]);
    assert!(RetryPolicy::for_request(Some(&guarded), &mut asked).is_none());
    assert!(asked.headers.is_empty());
    let mut again = head(&[("x-again", "yes")]);
    assert!(RetryPolicy::for_request(Some(&guarded), &mut again).is_some());
}
