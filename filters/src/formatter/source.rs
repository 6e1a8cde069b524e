//! Formats as the API carries them: `SubstitutionFormatString`.

use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::core::v3::{DataSource, TypedExtensionConfig};
use xds_client::any::inner_type_name;
use xds_client::data_source;
use xds_client::error::{At, ConfigError};

use super::Formatter;

/// The extensions whose operators are known, with or without being asked for.
const EXTENSIONS: [&str; 3] = [
    "envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery",
    "envoy.extensions.formatter.metadata.v3.Metadata",
    "envoy.extensions.formatter.cel.v3.Cel",
];

/// Refuses formatter extensions whose operators are not known.
///
/// # Errors
/// There is one.
pub fn check_extensions(extensions: &[TypedExtensionConfig]) -> Result<(), ConfigError> {
    for (i, extension) in extensions.iter().enumerate() {
        let config = extension.typed_config.as_ref();
        let name = config.map(inner_type_name).transpose()?.unwrap_or_default();
        if !EXTENSIONS.contains(&&*name) {
            let error = ConfigError::new(format!("formatter {name} is not supported"));
            return Err(error.at("typed_config").at(format!("formatters[{i}]")));
        }
    }
    Ok(())
}

/// Compiles `text_format_source`, read now.
///
/// # Errors
/// It cannot be read, is not UTF-8, or is no format.
pub fn text_format(source: &DataSource) -> Result<Formatter, ConfigError> {
    let compile = || match &source.specifier {
        Some(Specifier::InlineString(text)) => Formatter::compile(text).at("inline_string"),
        _ => {
            let text = String::from_utf8(data_source::read(source)?);
            Formatter::compile(&text.map_err(|_| ConfigError::new("not UTF-8"))?)
        }
    };
    compile().at("text_format_source")
}
