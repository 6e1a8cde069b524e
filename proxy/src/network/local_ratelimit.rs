//! `envoy.filters.network.local_ratelimit`: how many connections a filter chain takes in a time.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use envoy_types::pb::envoy::extensions::filters::network::local_ratelimit::v3 as pb;
use envoy_types::pb::envoy::r#type::v3::TokenBucket as TokenBucketProto;
use filters::flags::ResponseFlags;
use filters::runtime::{RuntimeKeys, Setting, feature};
use filters::stream::ConnectionInfo;
use xds_client::error::{At, ConfigError};

use super::token_bucket::TokenBucket;
use super::{NetworkFilter, OnData, Refused};
use crate::telemetry::stats::{Counter, Scope};

/// The filter, compiled. Its bucket is over all workers, and full anew when the configuration changes, as in Envoy.
pub(super) struct LocalRateLimit {
    enabled: Setting<bool>,
    bucket: Arc<TokenBucket>,
    limited: Counter,
}

/// A bucket that filters of one `share_key` and the same numbers share, as long as one of them is there.
struct Shared {
    key: String,
    proto: TokenBucketProto,
    bucket: Weak<TokenBucket>,
}

/// The bucket of this key and these numbers. Called by those who compile, never for a connection.
fn shared(key: &str, proto: &TokenBucketProto) -> Result<Arc<TokenBucket>, ConfigError> {
    static SHARED: Mutex<Vec<Shared>> = Mutex::new(Vec::new());
    let mut all = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|shared| shared.bucket.strong_count() > 0);
    let same = |shared: &&Shared| shared.key == key && shared.proto == *proto;
    if let Some(bucket) = all.iter().find(same).and_then(|s| s.bucket.upgrade()) {
        return Ok(bucket);
    }
    let bucket = Arc::new(TokenBucket::compile(proto)?);
    all.push(Shared {
        key: key.to_owned(),
        proto: *proto,
        bucket: Arc::downgrade(&bucket),
    });
    Ok(bucket)
}

impl LocalRateLimit {
    /// Compiles the filter. `root` is the scope of all stats.
    ///
    /// # Errors
    /// What is wrong, by field.
    pub(super) fn compile(
        proto: &pb::LocalRateLimit,
        root: &Scope,
        runtime: &dyn RuntimeKeys,
    ) -> Result<Self, ConfigError> {
        if proto.stat_prefix.is_empty() {
            return Err(ConfigError::new("must not be empty").at("stat_prefix"));
        }
        let missing = || ConfigError::new("value is required").at("token_bucket");
        let bucket = proto.token_bucket.as_ref().ok_or_else(missing)?;
        let bucket = match proto.share_key.as_str() {
            "" => TokenBucket::compile(bucket).map(Arc::new),
            key => shared(key, bucket),
        };
        let name = format!("local_rate_limit.{}.rate_limited", proto.stat_prefix);
        Ok(Self {
            enabled: feature(proto.runtime_enabled.as_ref(), runtime),
            bucket: bucket.at("token_bucket")?,
            limited: root.counter(&name),
        })
    }
}

impl NetworkFilter for LocalRateLimit {
    fn admit(&self) -> Result<Option<Box<dyn Any>>, Refused> {
        if !self.enabled.get() || self.bucket.take() {
            return Ok(None);
        }
        self.limited.inc();
        // Envoy's flag for this, though nothing was tried twice.
        Err(Refused {
            flags: ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED,
            ..Refused::default()
        })
    }

    fn on_data(&self, _: &ConnectionInfo) -> OnData {
        OnData::Done
    }

    fn reads(&self) -> bool {
        false
    }
}
