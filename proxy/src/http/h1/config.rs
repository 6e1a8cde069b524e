//! `Http1ProtocolOptions`, the same for connection managers and clusters.

use envoy_types::pb::envoy::config::core::v3::Http1ProtocolOptions;
use envoy_types::pb::envoy::config::core::v3::http1_protocol_options::HeaderKeyFormat;
use envoy_types::pb::envoy::config::core::v3::http1_protocol_options::header_key_format::HeaderFormat;
use envoy_types::pb::envoy::extensions::http::header_formatters::preserve_case::v3::{
    PreserveCaseFormatterConfig, preserve_case_formatter_config::FormatterTypeOnEnvoyHeaders,
};
use xds_client::any;
use xds_client::error::{At, ConfigError};

use super::{HeaderCase, Http1Settings};

impl Http1Settings {
    /// These settings with what the options say.
    ///
    /// # Errors
    /// Names the option that cannot be honoured.
    pub fn with_options(self, options: &Http1ProtocolOptions) -> Result<Self, ConfigError> {
        if !options.ignore_http_11_upgrade.is_empty() {
            return Err(ConfigError::unsupported("ignore_http_11_upgrade"));
        }
        Ok(Self {
            accept_http_10: self.accept_http_10 || options.accept_http_10,
            enable_trailers: options.enable_trailers,
            allow_chunked_length: options.allow_chunked_length,
            allow_absolute_url: options.allow_absolute_url.is_none_or(|v| v.value),
            allow_custom_methods: options.allow_custom_methods,
            header_case: options
                .header_key_format
                .as_ref()
                .map_or(Ok(HeaderCase::Lower), header_case)
                .at("header_key_format")?,
            absolute_requests: options.send_fully_qualified_url,
            ..self
        })
    }
}

fn header_case(format: &HeaderKeyFormat) -> Result<HeaderCase, ConfigError> {
    let extension = match &format.header_format {
        None => return Err(ConfigError::new("is required").at("header_format")),
        Some(HeaderFormat::ProperCaseWords(_)) => return Ok(HeaderCase::ProperWords),
        Some(HeaderFormat::StatefulFormatter(extension)) => extension,
    };
    let config: PreserveCaseFormatterConfig = extension
        .typed_config
        .as_ref()
        .ok_or_else(|| ConfigError::new("is required"))
        .and_then(any::unpack)
        .at("stateful_formatter.typed_config")?;
    Ok(HeaderCase::Preserve {
        proper_others: config.formatter_type_on_envoy_headers()
            == FormatterTypeOnEnvoyHeaders::ProperCase,
        keep_reason: config.forward_reason_phrase,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
    use envoy_types::pb::google::protobuf::Any;

    fn formatter(type_url: &str, value: Vec<u8>) -> Http1ProtocolOptions {
        let extension = TypedExtensionConfig {
            name: "f".into(),
            typed_config: Some(Any {
                type_url: type_url.into(),
                value,
            }),
        };
        Http1ProtocolOptions {
            header_key_format: Some(HeaderKeyFormat {
                header_format: Some(HeaderFormat::StatefulFormatter(extension)),
            }),
            ..Http1ProtocolOptions::default()
        }
    }

    #[test]
    fn only_the_preserve_case_formatter_is_known() {
        const NAME: &str = "type.googleapis.com/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig";
        // forward_reason_phrase, and PROPER_CASE.
        let options = formatter(NAME, vec![8, 1, 16, 1]);
        let settings = Http1Settings::default().with_options(&options).unwrap();
        let want = HeaderCase::Preserve {
            proper_others: true,
            keep_reason: true,
        };
        assert_eq!(settings.header_case, want);
        let unknown = Http1Settings::default().with_options(&formatter("x/y.Z", vec![]));
        let error = unknown.unwrap_err().to_string();
        assert!(
            error.contains("header_key_format.stateful_formatter"),
            "{error}"
        );
    }

    #[test]
    fn an_upstream_reads_http_10_whatever_the_options_say() {
        let options = Http1ProtocolOptions::default();
        let upstream = Http1Settings::upstream().with_options(&options).unwrap();
        assert!(upstream.accept_http_10 && upstream.allow_absolute_url);
        let downstream = Http1Settings::default().with_options(&options).unwrap();
        assert!(!downstream.accept_http_10);
    }
}
