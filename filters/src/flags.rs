//! Response flags: why a response is not simply the upstream's (Envoy's `%RESPONSE_FLAGS%`).

/// A set of response flags, which remembers the order in which they were set: Envoy prints them in it.
#[derive(Debug, Clone, Copy, Default)]
pub struct ResponseFlags {
    bits: u32,
    /// The flags' numbers plus one, six bits each, the first one lowest. A stream never has ten flags.
    order: u64,
}

impl PartialEq for ResponseFlags {
    fn eq(&self, other: &Self) -> bool {
        self.bits == other.bits
    }
}

impl Eq for ResponseFlags {}

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $short:literal, $long:literal;)*) => {
        impl ResponseFlags {
            $($(#[$doc])* pub const $name: Self = Self::flag($bit);)*

            /// By number.
            const TABLE: &'static [(&'static str, &'static str)] = &[$(($short, $long)),*];
        }
    };
}

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
    const fn flag(number: u32) -> Self {
        Self {
            bits: 1 << number,
            order: number as u64 + 1,
        }
    }

    /// Adds the flags of `other`.
    pub fn insert(&mut self, other: Self) {
        for number in other.numbers() {
            let flag = Self::flag(number);
            if self.bits & flag.bits == 0 {
                // Beyond ten the order is lost, and so is the flag's name in the log, but not the flag.
                let used = 64 - self.order.leading_zeros();
                self.order |= flag
                    .order
                    .checked_shl(used.next_multiple_of(6))
                    .unwrap_or(0);
                self.bits |= flag.bits;
            }
        }
    }

    /// The flags' numbers in the order in which they were set.
    fn numbers(self) -> impl Iterator<Item = u32> {
        let slots = (0..10).map(move |slot| self.order >> (slot * 6) & 0x3f);
        slots
            .take_while(|slot| *slot != 0)
            .filter_map(|slot| u32::try_from(slot - 1).ok())
    }

    /// Whether all flags of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.bits & other.bits == other.bits
    }

    /// Whether no flag is set.
    pub fn is_empty(self) -> bool {
        self.bits == 0
    }

    /// The short names joined by commas, `-` for none: `%RESPONSE_FLAGS%`.
    pub fn short(self) -> String {
        self.join(|row| row.0)
    }

    /// The long names joined by commas, `-` for none: `%RESPONSE_FLAGS_LONG%`.
    pub fn long(self) -> String {
        self.join(|row| row.1)
    }

    /// The flag with this short name, for access-log filters.
    pub fn from_short(name: &str) -> Option<Self> {
        let number = Self::TABLE.iter().position(|row| row.0 == name)?;
        u32::try_from(number).ok().map(Self::flag)
    }

    fn join(self, name: impl Fn(&(&'static str, &'static str)) -> &'static str) -> String {
        if self.is_empty() {
            return "-".to_owned();
        }
        let rows = self
            .numbers()
            .filter_map(|number| Self::TABLE.get(number as usize));
        rows.map(name).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_printed_in_the_order_in_which_they_were_set() {
        let mut flags = ResponseFlags::default();
        assert_eq!((flags.short(), flags.is_empty()), ("-".to_owned(), true));
        flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
        flags.insert(ResponseFlags::FAILED_LOCAL_HEALTH_CHECK);
        flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
        let mut more = ResponseFlags::DOWNSTREAM_REMOTE_RESET;
        more.insert(flags);
        assert_eq!(flags.short(), "URX,LH");
        assert_eq!(more.short(), "DR,URX,LH");
        assert!(more.contains(flags) && !flags.contains(more));
    }

    #[test]
    fn every_name_is_the_flag_of_its_number_and_any_number_of_flags_can_be_set() {
        let mut all = ResponseFlags::default();
        for (number, row) in ResponseFlags::TABLE.iter().enumerate() {
            let flag = ResponseFlags::from_short(row.0).unwrap();
            assert_eq!((flag.bits, flag.short()), (1 << number, row.0.to_owned()));
            all.insert(flag);
        }
        assert_eq!(all.bits.count_ones() as usize, ResponseFlags::TABLE.len());
        assert_eq!(ResponseFlags::from_short("nothing"), None);
    }
}
