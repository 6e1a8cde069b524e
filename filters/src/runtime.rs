//! Values that the runtime may change while the process runs.
//!
//! Envoy: "Runtime configuration". The proxy's layers tell a [`Live`] value of each change; who reads it takes no lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use envoy_types::pb::envoy::config::core::v3::{RuntimeFeatureFlag, RuntimeFractionalPercent};
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use xds_client::error::{At, ConfigError};

/// What a key of the runtime may mean.
pub trait RuntimeValue: Copy + PartialEq + Send + Sync + 'static {
    /// Reads the runtime's text; none if it is something else.
    fn of_runtime(text: &str) -> Option<Self>;
    /// The value in one word.
    fn pack(self) -> u64;
    /// What [`pack`](Self::pack) has packed.
    fn unpack(word: u64) -> Self;
}

/// A truth value: a word, or a whole number that is zero or not.
impl RuntimeValue for bool {
    fn of_runtime(text: &str) -> Option<Self> {
        if let Ok(number) = text.parse::<i64>() {
            return Some(number != 0);
        }
        [false, true]
            .into_iter()
            .find(|value| text.eq_ignore_ascii_case(if *value { "true" } else { "false" }))
    }

    fn pack(self) -> u64 {
        self.into()
    }

    fn unpack(word: u64) -> Self {
        word != 0
    }
}

/// A whole number.
impl RuntimeValue for u64 {
    fn of_runtime(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn pack(self) -> u64 {
        self
    }

    fn unpack(word: u64) -> Self {
        word
    }
}

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

    /// None.
    pub const NONE: Self = Self {
        numerator: 0,
        denominator: 100,
    };

    /// Reads the message.
    ///
    /// # Errors
    /// An unknown denominator.
    pub fn compile(proto: &FractionalPercent) -> Result<Self, ConfigError> {
        let denominator = match proto.denominator {
            0 => 100,
            1 => 10_000,
            2 => 1_000_000,
            other => {
                let error = ConfigError::new(format!("unknown value {other}"));
                return Err(error.at("denominator"));
            }
        };
        Ok(Self {
            numerator: proto.numerator,
            denominator,
        })
    }

    /// Whether who has drawn this random number belongs to it.
    pub fn takes(self, random: u64) -> bool {
        random % u64::from(self.denominator.max(1)) < u64::from(self.numerator)
    }
}

/// A whole number of per cent, or a `FractionalPercent` as JSON.
impl RuntimeValue for Fraction {
    fn of_runtime(text: &str) -> Option<Self> {
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

    fn pack(self) -> u64 {
        u64::from(self.numerator) << 32 | u64::from(self.denominator)
    }

    fn unpack(word: u64) -> Self {
        Self {
            numerator: (word >> 32) as u32,
            denominator: word as u32,
        }
    }
}

/// A value that follows its key.
#[derive(Debug)]
pub struct Live<T> {
    default: T,
    now: AtomicU64,
}

impl<T: RuntimeValue> Live<T> {
    /// A value that the runtime says nothing about.
    pub fn new(default: T) -> Self {
        Self {
            default,
            now: AtomicU64::new(default.pack()),
        }
    }

    /// What holds without the runtime.
    pub fn default_value(&self) -> T {
        self.default
    }

    /// Takes what the runtime says; the default if that is nothing.
    pub fn set(&self, value: Option<T>) {
        let word = value.unwrap_or(self.default).pack();
        self.now.store(word, Ordering::Relaxed);
    }

    /// What holds now.
    pub fn get(&self) -> T {
        T::unpack(self.now.load(Ordering::Relaxed))
    }
}

/// A value of a configuration, which may have a key of the runtime.
#[derive(Debug, Clone)]
pub enum Setting<T> {
    /// It stays as it is.
    Fixed(T),
    /// The runtime may change it.
    Live(Arc<Live<T>>),
}

impl<T: RuntimeValue> Setting<T> {
    /// What holds now.
    pub fn get(&self) -> T {
        match self {
            Self::Fixed(value) => *value,
            Self::Live(live) => live.get(),
        }
    }
}

/// Finds what follows a key; the proxy implements it over its layers.
pub trait RuntimeKeys: Send + Sync {
    /// A truth value by its key, and what holds without one.
    fn flag(&self, key: &str, default: bool) -> Arc<Live<bool>>;
    /// A whole number.
    fn number(&self, key: &str, default: u64) -> Arc<Live<u64>>;
    /// A fraction.
    fn fraction(&self, key: &str, default: Fraction) -> Arc<Live<Fraction>>;
}

/// Compiles a flag; none is on.
pub fn feature(proto: Option<&RuntimeFeatureFlag>, runtime: &dyn RuntimeKeys) -> Setting<bool> {
    let Some(proto) = proto else {
        return Setting::Fixed(true);
    };
    let default = proto.default_value.as_ref().is_none_or(|v| v.value);
    match proto.runtime_key.as_str() {
        "" => Setting::Fixed(default),
        key => Setting::Live(runtime.flag(key, default)),
    }
}

/// Compiles a share; none is all.
///
/// # Errors
/// No default, or an unknown denominator.
pub fn share(
    proto: Option<&RuntimeFractionalPercent>,
    runtime: &dyn RuntimeKeys,
) -> Result<Setting<Fraction>, ConfigError> {
    let Some(proto) = proto else {
        return Ok(Setting::Fixed(Fraction::ALL));
    };
    let default = proto.default_value.as_ref();
    let default = default.ok_or_else(|| ConfigError::new("default_value is required"))?;
    let default = Fraction::compile(default).at("default_value")?;
    Ok(match proto.runtime_key.as_str() {
        "" => Setting::Fixed(default),
        key => Setting::Live(runtime.fraction(key, default)),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A runtime that says nothing.
    pub(crate) struct NoRuntime;

    impl RuntimeKeys for NoRuntime {
        fn flag(&self, _: &str, default: bool) -> Arc<Live<bool>> {
            Arc::new(Live::new(default))
        }

        fn number(&self, _: &str, default: u64) -> Arc<Live<u64>> {
            Arc::new(Live::new(default))
        }

        fn fraction(&self, _: &str, default: Fraction) -> Arc<Live<Fraction>> {
            Arc::new(Live::new(default))
        }
    }

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
    fn flags_are_words_or_whole_numbers() {
        for (text, want) in [
            ("true", Some(true)),
            ("False", Some(false)),
            ("0", Some(false)),
            ("-1", Some(true)),
            ("0.5", None),
            ("", None),
        ] {
            assert_eq!(bool::of_runtime(text), want, "{text}");
        }
    }

    #[test]
    fn a_value_follows_the_runtime_and_falls_back() {
        let live = Live::new(Fraction::ALL);
        assert!(live.get().takes(99));
        live.set(Fraction::of_runtime("50"));
        assert!(live.get().takes(49) && !live.get().takes(50));
        live.set(None);
        assert_eq!(live.get(), live.default_value());
    }
}
