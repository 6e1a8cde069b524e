//! Header names that the connection manager and the router read and write.

use http::{HeaderName, HeaderValue};

macro_rules! names {
    ($($(#[$doc:meta])* $const:ident = $text:literal;)*) => {
        $($(#[$doc])* pub(crate) const $const: HeaderName = HeaderName::from_static($text);)*
    };
}

names! {
    XFF = "x-forwarded-for";
    XFP = "x-forwarded-proto";
    XFCC = "x-forwarded-client-cert";
    REQUEST_ID = "x-request-id";
    INTERNAL = "x-envoy-internal";
    FORCE_TRACE = "x-envoy-force-trace";
    FORWARDED_PORT = "x-forwarded-port";
    DOWNSTREAM_CLUSTER = "x-envoy-downstream-service-cluster";
    DOWNSTREAM_NODE = "x-envoy-downstream-service-node";
    HEDGE = "x-envoy-hedge-on-per-try-timeout";
    ALT_STAT_NAME = "x-envoy-upstream-alt-stat-name";
    STREAM_DURATION = "x-envoy-upstream-stream-duration-ms";
    EXTERNAL_ADDRESS = "x-envoy-external-address";
    ATTEMPT_COUNT = "x-envoy-attempt-count";
    EXPECTED_TIMEOUT = "x-envoy-expected-rq-timeout-ms";
    UPSTREAM_TIMEOUT = "x-envoy-upstream-rq-timeout-ms";
    PER_TRY_TIMEOUT = "x-envoy-upstream-rq-per-try-timeout-ms";
    TIMEOUT_ALT_RESPONSE = "x-envoy-upstream-rq-timeout-alt-response";
    MAX_RETRIES = "x-envoy-max-retries";
    RETRY_ON = "x-envoy-retry-on";
    RETRY_GRPC_ON = "x-envoy-retry-grpc-on";
    RETRIABLE_STATUS_CODES = "x-envoy-retriable-status-codes";
    SERVICE_TIME = "x-envoy-upstream-service-time";
    OVERLOADED = "x-envoy-overloaded";
    GRPC_TIMEOUT = "grpc-timeout";
}

/// Obeyed from internal senders only; taken off everyone else's requests.
pub(super) static INTERNAL_ONLY: [HeaderName; 15] = [
    RETRIABLE_STATUS_CODES,
    HeaderName::from_static("x-envoy-retriable-header-names"),
    RETRY_ON,
    RETRY_GRPC_ON,
    MAX_RETRIES,
    ALT_STAT_NAME,
    UPSTREAM_TIMEOUT,
    PER_TRY_TIMEOUT,
    TIMEOUT_ALT_RESPONSE,
    EXPECTED_TIMEOUT,
    FORCE_TRACE,
    HeaderName::from_static("x-envoy-ip-tags"),
    HeaderName::from_static("x-envoy-original-url"),
    HEDGE,
    STREAM_DURATION,
];

/// Taken off requests that enter the mesh here.
pub(super) static EDGE_ONLY: [HeaderName; 3] = [
    HeaderName::from_static("x-envoy-decorator-operation"),
    DOWNSTREAM_CLUSTER,
    DOWNSTREAM_NODE,
];

/// A number as a value. One digit, which most counts of attempts and of milliseconds have, costs no allocation.
pub(crate) fn number(n: u64) -> HeaderValue {
    const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    let digit = usize::try_from(n).ok().and_then(|n| DIGITS.get(n));
    digit.map_or_else(|| HeaderValue::from(n), |d| HeaderValue::from_static(d))
}

/// Marks a value that differs from message to message, so that HPACK never indexes it (RFC 7541, 6.2.3). Indexed,
/// each one would push an entry out of the peer's table that could have been used again, and be compared with
/// every later one.
pub(crate) fn passing(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for n in [0, 9, 10, u64::MAX] {
            assert_eq!(number(n), n.to_string());
        }
    }
}
