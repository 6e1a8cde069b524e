//! Envoy's `DataSource`: bytes that are inline, in a file or in the environment.

use envoy_types::pb::envoy::config::core::v3::DataSource;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;

use crate::error::ConfigError;

/// The most bytes that a file named by a data source may have: far more than any bundle of certificates.
pub const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// Where a data source has its bytes, as Envoy's messages name it: the file's path, or `<inline>`.
pub fn location(source: &DataSource) -> &str {
    match &source.specifier {
        Some(Specifier::Filename(path)) => path,
        _ => "<inline>",
    }
}

/// Reads a data source now. An unset one is empty.
///
/// # Errors
/// The file or the variable is missing, or the file is larger than [`MAX_FILE_BYTES`].
pub fn read(source: &DataSource) -> Result<Vec<u8>, ConfigError> {
    match &source.specifier {
        None => Ok(Vec::new()),
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes.clone()),
        Some(Specifier::InlineString(text)) => Ok(text.clone().into_bytes()),
        Some(Specifier::EnvironmentVariable(name)) => std::env::var(name)
            .map(String::into_bytes)
            .map_err(|_| ConfigError::new(format!("environment variable '{name}' is not set"))),
        Some(Specifier::Filename(path)) => {
            let failed = |e: std::io::Error| ConfigError::new(format!("cannot read '{path}': {e}"));
            let size = std::fs::metadata(path).map_err(failed)?.len();
            if size > MAX_FILE_BYTES {
                return Err(ConfigError::new(format!(
                    "'{path}' has {size} bytes, more than {MAX_FILE_BYTES}"
                )));
            }
            std::fs::read(path).map_err(failed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(specifier: Specifier) -> DataSource {
        DataSource {
            specifier: Some(specifier),
            ..Default::default()
        }
    }

    #[test]
    fn every_kind_is_read_and_a_missing_one_is_named() {
        assert_eq!(read(&DataSource::default()), Ok(Vec::new()));
        assert_eq!(
            read(&source(Specifier::InlineString("a".into()))),
            Ok(b"a".to_vec())
        );
        assert_eq!(
            read(&source(Specifier::InlineBytes(vec![0, 1]))),
            Ok(vec![0, 1])
        );
        let path = std::env::temp_dir().join(format!("fairway-source-{}", std::process::id()));
        std::fs::write(&path, "text").unwrap();
        let name = path.to_str().unwrap().to_owned();
        let file = source(Specifier::Filename(name.clone()));
        assert_eq!(location(&file), name);
        assert_eq!(read(&file), Ok(b"text".to_vec()));
        std::fs::remove_file(&path).unwrap();
        assert!(read(&file).unwrap_err().reason().contains(&name));
        let variable = source(Specifier::EnvironmentVariable("FAIRWAY_NO_SUCH".into()));
        assert!(
            read(&variable)
                .unwrap_err()
                .reason()
                .contains("FAIRWAY_NO_SUCH")
        );
    }
}
