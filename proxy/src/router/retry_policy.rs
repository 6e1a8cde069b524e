//! When a failed attempt is repeated (Envoy's `RetryPolicy` and router filter headers).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::retry_policy::retry_host_predicate::ConfigType;
use filters::body::ResetReason;
use filters::head::RequestHead;
use filters::matcher::header::HeaderMatcher;
use http::{HeaderMap, HeaderName, StatusCode};
use xds_client::duration;
use xds_client::error::{At, ConfigError};

use crate::router::context::{header_name, reject};

const RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const RETRY_ON: HeaderName = HeaderName::from_static("x-envoy-retry-on");
const RETRY_GRPC_ON: HeaderName = HeaderName::from_static("x-envoy-retry-grpc-on");
const MAX_RETRIES: HeaderName = HeaderName::from_static("x-envoy-max-retries");
const STATUS_CODES: HeaderName = HeaderName::from_static("x-envoy-retriable-status-codes");
const HEADER_NAMES: HeaderName = HeaderName::from_static("x-envoy-retriable-header-names");

/// The conditions of a retry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetryOn(u32);

macro_rules! conditions {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $word:literal;)*) => {
        impl RetryOn {
            $($(#[$doc])* pub const $name: Self = Self(1 << $bit);)*

            const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$name)),*];
        }
    };
}

conditions! {
    /// Any 5xx response, and every reset.
    SERVER_ERROR = 0, "5xx";
    /// 502, 503 or 504, and every reset.
    GATEWAY_ERROR = 1, "gateway-error";
    /// Any reset.
    RESET = 2, "reset";
    /// A reset before the request was sent.
    RESET_BEFORE_REQUEST = 3, "reset-before-request";
    /// The connection could not be made.
    CONNECT_FAILURE = 4, "connect-failure";
    /// The response has `x-envoy-ratelimited`.
    ENVOY_RATE_LIMITED = 5, "envoy-ratelimited";
    /// 409.
    RETRIABLE_4XX = 6, "retriable-4xx";
    /// The upstream refused the stream.
    REFUSED_STREAM = 7, "refused-stream";
    /// A status in the policy's list.
    RETRIABLE_STATUS_CODES = 8, "retriable-status-codes";
    /// A header in the policy's list.
    RETRIABLE_HEADERS = 9, "retriable-headers";
    /// HTTP/3 only, so never here.
    HTTP3_POST_CONNECT_FAILURE = 10, "http3-post-connect-failure";
    /// gRPC status 1.
    CANCELLED = 11, "cancelled";
    /// gRPC status 4.
    DEADLINE_EXCEEDED = 12, "deadline-exceeded";
    /// gRPC status 13.
    INTERNAL = 13, "internal";
    /// gRPC status 8.
    RESOURCE_EXHAUSTED = 14, "resource-exhausted";
    /// gRPC status 14.
    UNAVAILABLE = 15, "unavailable";
}

impl RetryOn {
    /// Parses a comma-separated list. Unknown words are ignored, as in Envoy.
    pub fn parse(text: &str) -> Self {
        let known = |word: &str| Self::WORDS.iter().find(|row| row.0 == word.trim());
        let bits = text.split(',').filter_map(known).map(|row| row.1.0);
        Self(bits.fold(0, |all, bit| all | bit))
    }

    /// Whether a comma-separated list holds only conditions that are known: those of gRPC, or the others.
    pub fn all_known(text: &str, grpc: bool) -> bool {
        let words = text.split(',').map(str::trim).filter(|w| !w.is_empty());
        let first_grpc = Self::CANCELLED.0;
        words.into_iter().all(|word| {
            let mut rows = Self::WORDS.iter().filter(|row| row.0 == word);
            rows.any(|row| (row.1.0 >= first_grpc) == grpc)
        })
    }

    /// Whether any condition of `other` is here.
    pub fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether there is no condition.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// All conditions of both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn wants_grpc(self, status: &[u8]) -> bool {
        self.any(match status {
            b"1" => Self::CANCELLED,
            b"4" => Self::DEADLINE_EXCEEDED,
            b"8" => Self::RESOURCE_EXHAUSTED,
            b"13" => Self::INTERNAL,
            b"14" => Self::UNAVAILABLE,
            _ => return false,
        })
    }
}

/// A response header that says when to try again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResetHeader {
    /// Its name.
    pub name: HeaderName,
    /// Whether it holds seconds since the epoch rather than seconds from now.
    pub unix_timestamp: bool,
}

/// `rate_limited_retry_back_off`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimitedBackOff {
    /// The headers, the first usable one counts.
    pub reset_headers: Vec<ResetHeader>,
    /// Longer waits are not believed; 300 s by default.
    pub max_interval: Duration,
}

/// A compiled retry policy.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// The conditions.
    pub retry_on: RetryOn,
    /// How many retries at most; 1 by default.
    pub num_retries: u32,
    /// The limit of one attempt; None is no limit of its own.
    pub per_try_timeout: Option<Duration>,
    /// How long an attempt may be silent.
    pub per_try_idle_timeout: Option<Duration>,
    /// For `retriable-status-codes`.
    pub retriable_status_codes: Vec<u16>,
    /// For `retriable-headers`.
    pub retriable_headers: Vec<HeaderMatcher>,
    /// If there are any, only requests that match one are retried.
    pub retriable_request_headers: Vec<HeaderMatcher>,
    /// Whether hosts that were tried are avoided.
    pub previous_hosts: bool,
    /// Whether canary hosts are avoided.
    pub omit_canary: bool,
    /// How often another host is looked for; 1 by default.
    pub host_selection_attempts: u32,
    /// The back-off's base; 25 ms by default.
    pub base_interval: Duration,
    /// The longest back-off; ten times the base by default.
    pub max_interval: Duration,
    /// Waits that the upstream asks for.
    pub rate_limited: Option<RateLimitedBackOff>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        let base = Duration::from_millis(25);
        Self {
            retry_on: RetryOn::default(),
            num_retries: 1,
            per_try_timeout: None,
            per_try_idle_timeout: None,
            retriable_status_codes: Vec::new(),
            retriable_headers: Vec::new(),
            retriable_request_headers: Vec::new(),
            previous_hosts: false,
            omit_canary: false,
            host_selection_attempts: 1,
            base_interval: base,
            max_interval: base * 10,
            rate_limited: None,
        }
    }
}

impl RetryPolicy {
    /// Compiles the message.
    ///
    /// # Errors
    /// An invalid or unsupported field, with its path.
    pub fn compile(proto: &pb::RetryPolicy) -> Result<Self, ConfigError> {
        reject(&[
            (proto.retry_priority.is_some(), "retry_priority"),
            (
                !proto.retry_options_predicates.is_empty(),
                "retry_options_predicates",
            ),
            (proto.refresh_cluster_on_retry, "refresh_cluster_on_retry"),
        ])?;
        let mut policy = Self {
            retry_on: RetryOn::parse(&proto.retry_on),
            num_retries: proto.num_retries.as_ref().map_or(1, |n| n.value),
            per_try_timeout: duration::of_field(proto.per_try_timeout.as_ref(), "per_try_timeout")?
                .filter(|d| !d.is_zero()),
            per_try_idle_timeout: duration::of_field(
                proto.per_try_idle_timeout.as_ref(),
                "per_try_idle_timeout",
            )?
            .filter(|d| !d.is_zero()),
            retriable_headers: matchers(&proto.retriable_headers, "retriable_headers")?,
            retriable_request_headers: matchers(
                &proto.retriable_request_headers,
                "retriable_request_headers",
            )?,
            ..Self::default()
        };
        // A number that is no status matches no response.
        let codes = proto.retriable_status_codes.iter();
        policy.retriable_status_codes = codes.filter_map(|c| u16::try_from(*c).ok()).collect();
        if proto.host_selection_retry_max_attempts != 0 {
            policy.host_selection_attempts =
                u32::try_from(proto.host_selection_retry_max_attempts).unwrap_or(u32::MAX);
        }
        for (i, predicate) in proto.retry_host_predicate.iter().enumerate() {
            let url = predicate.config_type.as_ref();
            let url = url.map_or("", |ConfigType::TypedConfig(any)| any.type_url.as_str());
            let kind = if url.is_empty() { &predicate.name } else { url };
            if kind.contains("previous_hosts") {
                policy.previous_hosts = true;
            } else if kind.contains("omit_canary_hosts") {
                policy.omit_canary = true;
            } else {
                return Err(ConfigError::unsupported(&format!(
                    "retry_host_predicate[{i}]"
                )));
            }
        }
        if let Some(back_off) = &proto.retry_back_off {
            policy.back_off(back_off).at("retry_back_off")?;
        }
        let limited = proto.rate_limited_retry_back_off.as_ref();
        let limited = limited.map(RateLimitedBackOff::compile).transpose();
        policy.rate_limited = limited.at("rate_limited_retry_back_off")?;
        Ok(policy)
    }

    fn back_off(&mut self, proto: &pb::retry_policy::RetryBackOff) -> Result<(), ConfigError> {
        let base = duration::of_field(proto.base_interval.as_ref(), "base_interval")?;
        let base = base
            .filter(|d| !d.is_zero())
            .ok_or_else(|| ConfigError::new("must be greater than 0").at("base_interval"))?;
        let max = duration::of_field(proto.max_interval.as_ref(), "max_interval")?;
        // Envoy rounds up to whole milliseconds.
        self.base_interval = base.max(Duration::from_millis(1));
        self.max_interval = max.unwrap_or(self.base_interval.saturating_mul(10));
        if self.max_interval < base {
            return Err(ConfigError::new("must be at least base_interval").at("max_interval"));
        }
        self.max_interval = self.max_interval.max(self.base_interval);
        Ok(())
    }

    /// The policy for one request: a route's, changed by what the request's `x-envoy-retry-*` headers ask
    /// for (only internal senders' survive the connection manager), which are taken off. None if nothing
    /// would be retried.
    pub fn for_request(policy: Option<&Arc<Self>>, head: &mut RequestHead) -> Option<Arc<Self>> {
        let mut policy = policy.cloned();
        let text = |headers: &mut HeaderMap, name: &HeaderName| {
            let value = headers.remove(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        let guarded = policy.as_ref().is_some_and(|p| {
            let guards = &p.retriable_request_headers;
            !guards.is_empty() && !guards.iter().any(|m| m.matches(head))
        });
        let headers = &mut head.headers;
        // Nearly no request steers its retries: one pass over the names that are there is cheaper than five look-ups.
        let steers =
            |name: &HeaderName| name.as_str().starts_with("x-envoy-retr") || *name == MAX_RETRIES;
        if !headers.keys().any(steers) {
            return policy.filter(|p| !guarded && !p.retry_on.is_empty());
        }
        let on = [RETRY_ON, RETRY_GRPC_ON].map(|name| text(headers, &name));
        let max = text(headers, &MAX_RETRIES).and_then(|v| v.trim().parse::<u32>().ok());
        let codes = text(headers, &STATUS_CODES);
        let names = text(headers, &HEADER_NAMES);
        if guarded {
            return None;
        }
        for on in on.into_iter().flatten() {
            let asked = RetryOn::parse(&on);
            let own = Arc::make_mut(policy.get_or_insert_default());
            own.retry_on = own.retry_on.union(asked);
        }
        let mut policy = policy.filter(|p| !p.retry_on.is_empty())?;
        if let Some(max) = max {
            Arc::make_mut(&mut policy).num_retries = max;
        }
        if let Some(codes) = codes {
            let codes = codes
                .split(',')
                .filter_map(|c| c.trim().parse::<u16>().ok());
            Arc::make_mut(&mut policy)
                .retriable_status_codes
                .extend(codes);
        }
        if let Some(names) = names {
            let names = names.split(',').map(str::trim).filter(|n| !n.is_empty());
            let present = |name: &str| {
                HeaderMatcher::compile(&pb::HeaderMatcher {
                    name: name.to_owned(),
                    ..pb::HeaderMatcher::default()
                })
            };
            let matchers = names.filter_map(|name| present(name).ok());
            Arc::make_mut(&mut policy)
                .retriable_headers
                .extend(matchers);
        }
        Some(policy)
    }

    /// Whether a response is a reason to try again.
    pub fn wants_retry_response(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        let on = self.retry_on;
        if headers.contains_key(OVERLOADED) {
            return false;
        }
        // Rate limiting decides alone, whatever the status.
        if headers.contains_key(RATE_LIMITED) {
            return on.any(RetryOn::ENVOY_RATE_LIMITED);
        }
        let code = status.as_u16();
        (on.any(RetryOn::SERVER_ERROR) && status.is_server_error())
            || (on.any(RetryOn::GATEWAY_ERROR) && matches!(code, 502..=504))
            || (on.any(RetryOn::RETRIABLE_4XX) && code == 409)
            || (on.any(RetryOn::RETRIABLE_STATUS_CODES)
                && self.retriable_status_codes.contains(&code))
            || (on.any(RetryOn::RETRIABLE_HEADERS)
                && self
                    .retriable_headers
                    .iter()
                    .any(|m| m.matches_map(headers)))
            || headers
                .get(GRPC_STATUS)
                .is_some_and(|s| on.wants_grpc(s.as_bytes()))
    }

    /// Whether a reset before the response is a reason to try again. `request_sent` is whether any of the
    /// request has gone to the upstream.
    pub fn wants_retry_reset(&self, reason: ResetReason, request_sent: bool) -> bool {
        use ResetReason as R;
        let on = self.retry_on;
        if reason == R::Overflow {
            return false;
        }
        on.any(RetryOn::RESET)
            || (on.any(RetryOn::RESET_BEFORE_REQUEST) && !request_sent)
            || on.any(RetryOn::SERVER_ERROR.union(RetryOn::GATEWAY_ERROR))
            || (on.any(RetryOn::REFUSED_STREAM) && reason == R::RemoteRefusedStreamReset)
            || (on.any(RetryOn::CONNECT_FAILURE)
                && matches!(
                    reason,
                    R::RemoteConnectionFailure | R::LocalConnectionFailure | R::ConnectionTimeout
                ))
    }

    /// How long the upstream asks to wait (`rate_limited_retry_back_off`): by the first of the headers that says so
    /// and is not beyond the maximum. As in Envoy, a wait of a millisecond or less says nothing.
    pub fn asked_wait(&self, headers: &HeaderMap) -> Option<Duration> {
        let limited = self.rate_limited.as_ref()?;
        let wait = |header: &ResetHeader| {
            let text = headers.get(&header.name)?.to_str().ok()?;
            let seconds = Duration::from_secs(text.trim().parse().ok()?);
            if !header.unix_timestamp {
                return Some(seconds);
            }
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            seconds.checked_sub(now.ok()?)
        };
        let asked = limited.reset_headers.iter().filter_map(wait);
        asked
            .take_while(|wait| *wait > Duration::from_millis(1))
            .find(|wait| *wait <= limited.max_interval)
    }

    /// The wait before retry number `retry` (1 for the first): fully jittered and exponential, from a
    /// random number.
    pub fn back_off_delay(&self, retry: u32, random: u64) -> Duration {
        let factor = 1u32 << (retry.clamp(1, 32) - 1);
        let limit = self.base_interval.saturating_mul(factor);
        let limit = limit.min(self.max_interval).as_millis();
        let limit = u64::try_from(limit).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(random % limit)
    }
}

impl RateLimitedBackOff {
    fn compile(proto: &pb::retry_policy::RateLimitedRetryBackOff) -> Result<Self, ConfigError> {
        let each = |(i, h): (usize, &pb::retry_policy::ResetHeader)| {
            Ok(ResetHeader {
                name: header_name(&h.name).at(format!("reset_headers[{i}].name"))?,
                unix_timestamp: h.format == 1,
            })
        };
        let headers = proto.reset_headers.iter().enumerate().map(each);
        let max = duration::of_field(proto.max_interval.as_ref(), "max_interval")?;
        Ok(Self {
            reset_headers: headers.collect::<Result<_, ConfigError>>()?,
            max_interval: max.unwrap_or(Duration::from_secs(300)),
        })
    }
}

fn matchers(list: &[pb::HeaderMatcher], field: &str) -> Result<Vec<HeaderMatcher>, ConfigError> {
    let each = |(i, m)| HeaderMatcher::compile(m).at(format!("{field}[{i}]"));
    list.iter().enumerate().map(each).collect()
}

#[cfg(test)]
#[path = "retry_policy_tests.rs"]
mod tests;
