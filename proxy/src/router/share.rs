//! Shares of requests that the runtime may change (`RuntimeFractionalPercent`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use xds_client::error::{At, ConfigError};

/// A fraction: so many of so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fraction {
    /// How many.
    pub numerator: u32,
    /// Of how many; not zero.
    pub denominator: u32,
}

impl Fraction {
    /// All.
    pub const ALL: Self = Self {
        numerator: 100,
        denominator: 100,
    };

    /// What a runtime's value says: a whole number of per cent, or a `FractionalPercent` as JSON.
    pub fn of_runtime(text: &str) -> Option<Self> {
        if let Ok(percent) = text.parse::<u64>() {
            let numerator = u32::try_from(percent.min(100)).unwrap_or(100);
            return Some(Self {
                numerator,
                ..Self::ALL
            });
        }
        let value: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
        let numerator = match value.get("numerator") {
            None => 0,
            // A protobuf `Struct` knows only floating point numbers.
            Some(n) => n
                .as_f64()
                .filter(|n| n.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(n))?
                as u32,
        };
        let denominator = match value.get("denominator").map(serde_json::Value::as_str) {
            None | Some(Some("HUNDRED")) => 100,
            Some(Some("TEN_THOUSAND")) => 10_000,
            Some(Some("MILLION")) => 1_000_000,
            Some(_) => return None,
        };
        Some(Self {
            numerator,
            denominator,
        })
    }

    fn takes(self, random: u64) -> bool {
        random % u64::from(self.denominator.max(1)) < u64::from(self.numerator)
    }
}

/// A share whose fraction stands under a key of the runtime, if that has one.
#[derive(Debug)]
pub struct LiveShare {
    default: Fraction,
    /// Numerator and denominator in one word.
    now: AtomicU64,
}

impl LiveShare {
    /// A share that the runtime says nothing about.
    pub fn new(default: Fraction) -> Self {
        let share = Self {
            default,
            now: AtomicU64::new(0),
        };
        share.set(None);
        share
    }

    /// What holds without the runtime.
    pub fn default_fraction(&self) -> Fraction {
        self.default
    }

    /// Takes what the runtime says; the default if that is nothing.
    pub fn set(&self, fraction: Option<Fraction>) {
        let Fraction {
            numerator,
            denominator,
        } = fraction.unwrap_or(self.default);
        let packed = u64::from(numerator) << 32 | u64::from(denominator);
        self.now.store(packed, Ordering::Relaxed);
    }

    fn get(&self) -> Fraction {
        let packed = self.now.load(Ordering::Relaxed);
        Fraction {
            numerator: (packed >> 32) as u32,
            denominator: packed as u32,
        }
    }
}

/// Finds the share under a runtime key, by key and default.
pub type Shares<'a> = &'a dyn Fn(&str, Fraction) -> Arc<LiveShare>;

/// A share of requests.
#[derive(Debug, Clone)]
pub enum Share {
    /// It stays as it is.
    Fixed(Fraction),
    /// The runtime may change it.
    Live(Arc<LiveShare>),
}

impl Share {
    /// Compiles the message; none is all.
    ///
    /// # Errors
    /// No default, or an unknown denominator.
    pub fn compile(
        proto: Option<&RuntimeFractionalPercent>,
        shares: Shares<'_>,
    ) -> Result<Self, ConfigError> {
        let Some(proto) = proto else {
            return Ok(Self::Fixed(Fraction::ALL));
        };
        let percent = proto.default_value.as_ref();
        let percent = percent.ok_or_else(|| ConfigError::new("default_value is required"))?;
        let denominator = match percent.denominator {
            0 => 100,
            1 => 10_000,
            2 => 1_000_000,
            other => {
                let error = ConfigError::new(format!("unknown value {other}"));
                return Err(error).at("default_value.denominator");
            }
        };
        let default = Fraction {
            numerator: percent.numerator,
            denominator,
        };
        Ok(match proto.runtime_key.as_str() {
            "" => Self::Fixed(default),
            key => Self::Live(shares(key, default)),
        })
    }

    /// Whether a request with this random number belongs to it.
    pub fn takes(&self, random: u64) -> bool {
        match self {
            Self::Fixed(fraction) => fraction.takes(random),
            Self::Live(live) => live.get().takes(random),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_says_per_cent_or_a_fraction() {
        let of = |text: &str| Fraction::of_runtime(text).map(|f| (f.numerator, f.denominator));
        for (text, want) in [
            ("0", Some((0, 100))),
            ("50", Some((50, 100))),
            ("5000", Some((100, 100))),
            (r#"{"numerator": 7}"#, Some((7, 100))),
            (
                r#"{"numerator": 1, "denominator": "TEN_THOUSAND"}"#,
                Some((1, 10_000)),
            ),
            (r#"{"denominator": "MILLION"}"#, Some((0, 1_000_000))),
            (r#"{"numerator": 1000000.0}"#, Some((1_000_000, 100))),
            (r#"{"numerator": -1}"#, None),
            (r#"{"numerator": 0.5}"#, None),
            (r#"{"numerator": 1, "denominator": "TEN"}"#, None),
            ("true", None),
            ("", None),
        ] {
            assert_eq!(of(text), want, "{text}");
        }
    }

    #[test]
    fn a_share_follows_the_runtime_and_falls_back() {
        let live = Arc::new(LiveShare::new(Fraction::ALL));
        let share = Share::Live(live.clone());
        assert!(share.takes(99));
        live.set(Fraction::of_runtime("50"));
        assert!(share.takes(49) && !share.takes(50));
        live.set(None);
        assert!(share.takes(99));
    }
}
