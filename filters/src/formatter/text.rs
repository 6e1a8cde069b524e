//! `SubstitutionFormatString`, where it makes text.

use envoy_types::pb::envoy::config::core::v3::SubstitutionFormatString;
use envoy_types::pb::envoy::config::core::v3::substitution_format_string::Format;
use xds_client::error::{At, ConfigError};

use super::{FormatContext, Formatter, check_extensions, text_format};

/// A format with what stands for missing values.
#[derive(Debug)]
pub struct TextFormat {
    format: Formatter,
    omit_empty: bool,
}

impl TextFormat {
    /// Compiles the message.
    ///
    /// # Errors
    /// What is wrong with the format, or a kind of format that is not supported here, by field.
    pub fn compile(proto: &SubstitutionFormatString) -> Result<Self, ConfigError> {
        check_extensions(&proto.formatters)?;
        let format = match &proto.format {
            Some(Format::TextFormatSource(source)) => text_format(source),
            #[allow(deprecated)] // control planes still send it
            Some(Format::TextFormat(text)) => Formatter::compile(text).at("text_format"),
            Some(Format::JsonFormat(_)) => Err(ConfigError::unsupported("json_format")),
            None => Err(ConfigError::new("value is required").at("format")),
        };
        Ok(Self {
            format: format?,
            omit_empty: proto.omit_empty_values,
        })
    }

    /// The text for these facts.
    pub fn bytes(&self, context: &FormatContext<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let missing: &[u8] = if self.omit_empty { b"" } else { b"-" };
        self.format.write_or(context, &mut bytes, missing);
        bytes
    }
}
