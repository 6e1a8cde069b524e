//! TLVs that configuration adds to headers (`TlvEntry`).

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::TlvEntry;
use filters::formatter::{FormatContext, TextFormat};
use filters::stream::StreamInfo;
use prost::Message;
use xds_client::error::{At, ConfigError};

use super::tlv_type;

/// A type and a value.
pub type Tlv = (u8, Bytes);

/// TLVs whose values are known, and after them, as in Envoy, those whose values are made for each connection.
#[derive(Debug, Clone, Default)]
pub struct AddedTlvs {
    /// The first.
    pub fixed: Vec<Tlv>,
    formatted: Vec<(u8, Arc<TextFormat>)>,
    /// The messages, to tell equal ones.
    source: Vec<Vec<u8>>,
}

impl PartialEq for AddedTlvs {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for AddedTlvs {}

impl AddedTlvs {
    /// Compiles a list.
    ///
    /// # Errors
    /// A type over 255, not exactly one of a value and a format, or a bad format, by field.
    pub fn compile(protos: &[TlvEntry]) -> Result<Self, ConfigError> {
        let mut made = Self::default();
        for (i, entry) in protos.iter().enumerate() {
            made.push(entry).at(format!("[{i}]"))?;
        }
        Ok(made)
    }

    fn push(&mut self, entry: &TlvEntry) -> Result<(), ConfigError> {
        let kind = tlv_type(entry.r#type).at("type")?;
        match (&entry.format_string, entry.value.is_empty()) {
            (None, true) => {
                let reason = "one of 'value' or 'format_string' must be set";
                return Err(ConfigError::new(reason));
            }
            (Some(_), false) => {
                let reason = "only one of 'value' or 'format_string' may be set";
                return Err(ConfigError::new(reason));
            }
            (None, false) => self
                .fixed
                .push((kind, Bytes::copy_from_slice(&entry.value))),
            (Some(format), true) => {
                let format = TextFormat::compile(format).at("format_string")?;
                self.formatted.push((kind, Arc::new(format)));
            }
        }
        self.source.push(entry.encode_to_vec());
        Ok(())
    }

    /// The same with an endpoint's own in front, which take the place of those of their types. Formats are for
    /// clusters: an endpoint's TLV has a value, as in Envoy.
    ///
    /// # Errors
    /// A type over 255.
    pub fn with_own(&self, own: &[TlvEntry]) -> Result<Self, ConfigError> {
        let mut made = Self::default();
        for (i, entry) in own.iter().enumerate() {
            let kind = tlv_type(entry.r#type).at("type").at(format!("[{i}]"))?;
            made.fixed
                .push((kind, Bytes::copy_from_slice(&entry.value)));
            made.source.push(entry.encode_to_vec());
        }
        let is_own = |kind: u8| own.iter().any(|entry| entry.r#type == u32::from(kind));
        let fixed = self.fixed.iter().filter(|(kind, _)| !is_own(*kind));
        made.fixed.extend(fixed.cloned());
        let formatted = self.formatted.iter().filter(|(kind, _)| !is_own(*kind));
        made.formatted.extend(formatted.cloned());
        made.source.extend_from_slice(&self.source);
        Ok(made)
    }

    /// All of them for a connection.
    pub fn all(&self, info: &StreamInfo) -> Vec<Tlv> {
        let made = self.format(info);
        let made = made.as_deref().unwrap_or_default();
        self.fixed.iter().chain(made).cloned().collect()
    }

    /// The values that are made for a connection; `None`, without an allocation, if there are none.
    pub fn format(&self, info: &StreamInfo) -> Option<Rc<[Tlv]>> {
        if self.formatted.is_empty() {
            return None;
        }
        let context = FormatContext::without_message(info);
        let made = self.formatted.iter();
        let made = made.map(|(kind, format)| (*kind, format.bytes(&context).into()));
        Some(made.collect())
    }
}
