//! How large the fields of a message may be.

use http::HeaderMap;

/// Envoy's limits, which count what is decoded: names and values, and not what HPACK saves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldLimits {
    /// Upper bound of names and values, in bytes.
    pub bytes: usize,
    /// Upper bound of fields.
    pub count: usize,
}

/// Which limit is exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excess {
    Bytes,
    Count,
}

impl Excess {
    /// As logs tell it.
    pub(super) const fn details(self) -> &'static str {
        match self {
            Self::Bytes => "http2.header_list_size_too_large",
            Self::Count => "http2.too_many_headers",
        }
    }
}

impl FieldLimits {
    /// Judges fields, and `pseudo` ones besides: how many they are and how many bytes they have.
    pub(super) fn check(
        self,
        fields: &HeaderMap,
        (count, bytes): (usize, usize),
    ) -> Result<(), Excess> {
        let sizes = fields
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len());
        if bytes + sizes.sum::<usize>() > self.bytes {
            return Err(Excess::Bytes);
        }
        match count + fields.len() > self.count {
            true => Err(Excess::Count),
            false => Ok(()),
        }
    }

    /// The limit for `h2`, which adds 32 bytes for each field and answers in its own way: larger, so that the exact
    /// one is ours.
    pub(super) fn of_library(self) -> u32 {
        let bytes = self.bytes.saturating_mul(2);
        let all = bytes.saturating_add(self.count.saturating_mul(32));
        u32::try_from(all).unwrap_or(u32::MAX)
    }
}
