//! Why a piece of configuration was refused.

use std::fmt;

/// A refusal: the path of the field inside its resource and the reason. It becomes the text of a NACK,
/// of `--mode validate`, and of `error_state` in `/config_dump`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    path: String,
    reason: String,
}

impl ConfigError {
    /// A refusal at the current level; callers add their own step with [`at`](Self::at).
    pub fn new(reason: impl Into<String>) -> Self {
        Self {
            path: String::new(),
            reason: reason.into(),
        }
    }

    /// A refusal of one field: `unsupported: ...`, for features that would change behaviour.
    pub fn unsupported(field: &str) -> Self {
        Self::new("not supported").at(field)
    }

    /// Puts `step` (a field name, or `routes[3]`) in front of the path.
    #[must_use]
    pub fn at(mut self, step: impl AsRef<str>) -> Self {
        let step = step.as_ref();
        self.path = match self.path.as_str() {
            "" => step.to_owned(),
            path if path.starts_with('[') => format!("{step}{path}"),
            path => format!("{step}.{path}"),
        };
        self
    }

    /// The path of the field, for example `virtual_hosts[0].routes[3].match.safe_regex`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The reason alone.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.reason)
        } else {
            write!(f, "{}: {}", self.path, self.reason)
        }
    }
}

impl std::error::Error for ConfigError {}

/// Adds a step to the path of an error on its way up.
pub trait At<T> {
    /// See [`ConfigError::at`].
    ///
    /// # Errors
    /// The same error, with the longer path.
    fn at(self, step: impl AsRef<str>) -> Result<T, ConfigError>;
}

impl<T> At<T> for Result<T, ConfigError> {
    fn at(self, step: impl AsRef<str>) -> Result<T, ConfigError> {
        self.map_err(|e| e.at(step))
    }
}
