//! Response flags: why a response is not simply the upstream's (Envoy's `%RESPONSE_FLAGS%`).

/// A set of response flags.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResponseFlags(u64);

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $short:literal, $long:literal;)*) => {
        impl ResponseFlags {
            $($(#[$doc])* pub const $name: Self = Self(1 << $bit);)*

            const TABLE: &'static [(u64, &'static str, &'static str)] =
                &[$((1 << $bit, $short, $long)),*];
        }
    };
}

// In the order in which Envoy prints them.
flags! {
    /// Local service failed its health check.
    FAILED_LOCAL_HEALTH_CHECK = 0, "LH", "FailedLocalHealthCheck";
    /// No healthy upstream host.
    NO_HEALTHY_UPSTREAM = 1, "UH", "NoHealthyUpstream";
    /// The upstream request timed out.
    UPSTREAM_REQUEST_TIMEOUT = 2, "UT", "UpstreamRequestTimeout";
    /// The stream was reset locally.
    LOCAL_RESET = 3, "LR", "LocalReset";
    /// The upstream reset the stream.
    UPSTREAM_REMOTE_RESET = 4, "UR", "UpstreamRemoteReset";
    /// The upstream connection could not be made.
    UPSTREAM_CONNECTION_FAILURE = 5, "UF", "UpstreamConnectionFailure";
    /// The upstream connection closed.
    UPSTREAM_CONNECTION_TERMINATION = 6, "UC", "UpstreamConnectionTermination";
    /// A circuit breaker said no.
    UPSTREAM_OVERFLOW = 7, "UO", "UpstreamOverflow";
    /// No route matched.
    NO_ROUTE_FOUND = 8, "NR", "NoRouteFound";
    /// A delay was injected.
    DELAY_INJECTED = 9, "DI", "DelayInjected";
    /// An abort was injected.
    FAULT_INJECTED = 10, "FI", "FaultInjected";
    /// The request was rate limited locally.
    RATE_LIMITED = 11, "RL", "RateLimited";
    /// The authorization service denied the request.
    UNAUTHORIZED_EXTERNAL = 12, "UAEX", "UnauthorizedExternalService";
    /// The rate limit service failed.
    RATELIMIT_SERVICE_ERROR = 13, "RLSE", "RateLimitServiceError";
    /// The downstream connection closed.
    DOWNSTREAM_CONNECTION_TERMINATION = 14, "DC", "DownstreamConnectionTermination";
    /// The retry limit was reached.
    UPSTREAM_RETRY_LIMIT_EXCEEDED = 15, "URX", "UpstreamRetryLimitExceeded";
    /// The stream was idle for too long.
    STREAM_IDLE_TIMEOUT = 16, "SI", "StreamIdleTimeout";
    /// A strictly checked header was invalid.
    INVALID_ENVOY_REQUEST_HEADERS = 17, "IH", "InvalidEnvoyRequestHeaders";
    /// The downstream broke the protocol.
    DOWNSTREAM_PROTOCOL_ERROR = 18, "DPE", "DownstreamProtocolError";
    /// The upstream stream lived for too long.
    UPSTREAM_MAX_STREAM_DURATION_REACHED = 19, "UMSDR", "UpstreamMaxStreamDurationReached";
    /// The response was served from a cache.
    RESPONSE_FROM_CACHE_FILTER = 20, "RFCF", "ResponseFromCacheFilter";
    /// No filter configuration arrived.
    NO_FILTER_CONFIG_FOUND = 21, "NFCF", "NoFilterConfigFound";
    /// The stream or connection lived for too long.
    DURATION_TIMEOUT = 22, "DT", "DurationTimeout";
    /// The upstream broke the protocol.
    UPSTREAM_PROTOCOL_ERROR = 23, "UPE", "UpstreamProtocolError";
    /// The cluster does not exist.
    NO_CLUSTER_FOUND = 24, "NC", "NoClusterFound";
    /// The overload manager ended the request.
    OVERLOAD_MANAGER = 25, "OM", "OverloadManagerTerminated";
    /// A DNS look-up failed.
    DNS_RESOLUTION_FAILED = 26, "DF", "DnsResolutionFailed";
    /// The control plane configured an overload drop.
    DROP_OVERLOAD = 27, "DO", "DropOverload";
    /// The downstream reset the stream.
    DOWNSTREAM_REMOTE_RESET = 28, "DR", "DownstreamRemoteReset";
}

impl ResponseFlags {
    /// Adds the flags of `other`.
    pub fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Whether all flags of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether no flag is set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The short names joined by commas, `-` for none: `%RESPONSE_FLAGS%`.
    pub fn short(self) -> String {
        self.join(|row| row.1)
    }

    /// The long names joined by commas, `-` for none: `%RESPONSE_FLAGS_LONG%`.
    pub fn long(self) -> String {
        self.join(|row| row.2)
    }

    /// The flag with this short name, for access-log filters.
    pub fn from_short(name: &str) -> Option<Self> {
        Self::TABLE
            .iter()
            .find(|row| row.1 == name)
            .map(|row| Self(row.0))
    }

    fn join(self, name: impl Fn(&(u64, &'static str, &'static str)) -> &'static str) -> String {
        if self.is_empty() {
            return "-".to_owned();
        }
        let names: Vec<_> = Self::TABLE
            .iter()
            .filter(|r| self.0 & r.0 != 0)
            .map(name)
            .collect();
        names.join(",")
    }
}
