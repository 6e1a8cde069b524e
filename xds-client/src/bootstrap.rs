//! Reads the bootstrap: `--config-path` and `--config-yaml`.

use std::fs;
use std::path::{Path, PathBuf};

use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use prost::{Message, Name};
use serde_json::Value as Json;
use serde_yaml_ng::Value as Yaml;

use crate::error::ConfigError;
use crate::json::{self, Pool, UnknownFields};

/// Where the bootstrap comes from.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions<'a> {
    /// `-c`: a file whose extension tells the format, `.json`, `.yaml`, `.yml` or `.pb` (binary).
    pub path: Option<&'a Path>,
    /// `--config-yaml`: YAML or JSON, merged over the file as protobuf merges messages (a set scalar
    /// replaces, lists are appended).
    pub config_yaml: Option<&'a str>,
    /// `--allow-unknown-static-fields`.
    pub allow_unknown: bool,
}

/// Why the bootstrap could not be read; names the file, the field's path and the reason.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a file nor an inline configuration was given.
    #[error("no configuration: give --config-path or --config-yaml")]
    Nothing,
    /// The file cannot be read.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not of its format, or not a bootstrap.
    #[error("{origin}: {error}")]
    Invalid {
        /// The file, or `--config-yaml`.
        origin: String,
        /// Path and reason.
        error: ConfigError,
    },
}

/// Reads and merges the bootstrap, and checks it against the constraints of Envoy's API.
///
/// # Errors
/// See [`Error`].
pub fn load(options: LoadOptions<'_>) -> Result<Bootstrap, Error> {
    let invalid = |origin: &str, error| Error::Invalid {
        origin: origin.to_owned(),
        error,
    };
    let unknown = if options.allow_unknown {
        UnknownFields::Allow
    } else {
        UnknownFields::Reject
    };
    // Encoded messages put behind one another decode as their merge.
    let mut bytes = Vec::new();
    if let Some(path) = options.path {
        let content = fs::read(path).map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        })?;
        bytes = encode(&Bootstrap::full_name(), path, &content, unknown)
            .map_err(|e| invalid(&path.display().to_string(), e))?;
    }
    if let Some(text) = options.config_yaml.filter(|t| !t.trim().is_empty()) {
        let over = yaml_to_json(text)
            .and_then(|json| Pool::load()?.parse(&Bootstrap::full_name(), &json, unknown))
            .map_err(|e| invalid("--config-yaml", e))?;
        bytes.extend(json::encode(&over));
    } else if options.path.is_none() {
        return Err(Error::Nothing);
    }
    let origin = options
        .path
        .map_or("--config-yaml".into(), |p| p.display().to_string());
    let bootstrap = Bootstrap::decode(bytes.as_slice())
        .map_err(|e| invalid(&origin, ConfigError::new(e.to_string())))?;
    crate::constraints::check(&Bootstrap::full_name(), &bytes).map_err(|e| invalid(&origin, e))?;
    Ok(bootstrap)
}

/// The binary form of a message in a file whose extension tells the format.
pub(crate) fn encode(
    full_name: &str,
    path: &Path,
    content: &[u8],
    unknown: UnknownFields,
) -> Result<Vec<u8>, ConfigError> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
    let text = || std::str::from_utf8(content).map_err(|_| ConfigError::new("not UTF-8"));
    let value = match extension.to_ascii_lowercase().as_str() {
        "pb" => return Ok(content.to_vec()),
        "pb_text" | "pbtxt" | "textproto" => {
            return Err(ConfigError::new(
                "the protobuf text format is not supported; use JSON, YAML or .pb",
            ));
        }
        "json" => {
            serde_json::from_str(text()?).map_err(|e| ConfigError::new(format!("not JSON: {e}")))?
        }
        "yaml" | "yml" => yaml_to_json(text()?)?,
        _ => {
            return Err(ConfigError::new(
                "the file's extension tells no format: .json, .yaml, .yml or .pb",
            ));
        }
    };
    let message = Pool::load()?.parse(full_name, &value, unknown)?;
    Ok(json::encode(&message))
}

/// YAML (or JSON) as a JSON value, `<<` merged, scalar keys as strings.
///
/// # Errors
/// If the text is not YAML, or has a tag or a key that is no scalar.
pub fn yaml_to_json(text: &str) -> Result<Json, ConfigError> {
    // JSON may be indented with tabs, which YAML forbids.
    if let Ok(json) = serde_json::from_str(text) {
        return Ok(json);
    }
    let error = |e: serde_yaml_ng::Error| ConfigError::new(format!("not YAML: {e}"));
    let mut yaml: Yaml = serde_yaml_ng::from_str(text).map_err(error)?;
    yaml.apply_merge().map_err(error)?;
    convert(yaml)
}

fn convert(yaml: Yaml) -> Result<Json, ConfigError> {
    Ok(match yaml {
        Yaml::Null => Json::Null,
        Yaml::Bool(b) => b.into(),
        Yaml::Number(n) => n
            .as_u64()
            .map(Json::from)
            .or_else(|| n.as_i64().map(Json::from))
            .or_else(|| n.as_f64().map(Json::from))
            .unwrap_or_default(),
        Yaml::String(s) => s.into(),
        Yaml::Sequence(list) => {
            Json::Array(list.into_iter().map(convert).collect::<Result<_, _>>()?)
        }
        Yaml::Mapping(map) => Json::Object(
            map.into_iter()
                .map(|(key, value)| {
                    let key = match key {
                        Yaml::String(s) => s,
                        Yaml::Number(n) => n.to_string(),
                        Yaml::Bool(b) => b.to_string(),
                        _ => return Err(ConfigError::new("a key that is no string")),
                    };
                    let value = convert(value).map_err(|e| e.at(&key))?;
                    Ok((key, value))
                })
                .collect::<Result<_, _>>()?,
        ),
        Yaml::Tagged(tagged) => {
            return Err(ConfigError::new(format!("YAML tag {}", tagged.tag)));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yaml(text: &str) -> Result<Bootstrap, Error> {
        load(LoadOptions {
            config_yaml: Some(text),
            ..LoadOptions::default()
        })
    }

    #[test]
    fn yaml_with_large_numbers() {
        let b = yaml(
            "node: {id: n, cluster: c}\nstats_flush_interval: 5s\nstatic_resources:\n  clusters:\n  - \
             {name: c, per_connection_buffer_limit_bytes: 4294967295}\n",
        )
        .unwrap();
        let clusters = &b.static_resources.as_ref().unwrap().clusters;
        let limit = clusters[0].per_connection_buffer_limit_bytes;
        assert_eq!(limit.unwrap().value, u32::MAX);
        assert_eq!(b.node.unwrap().id, "n");
    }

    #[test]
    fn inline_is_merged_over_the_file() {
        let dir = std::env::temp_dir().join(format!("fairway-bootstrap-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("b.json");
        fs::write(
            &path,
            "{\"node\": {\"id\": \"a\", \"cluster\": \"c\"}, \"flagsPath\": \"x\"}",
        )
        .unwrap();
        let b = load(LoadOptions {
            path: Some(&path),
            config_yaml: Some("node: {id: b}"),
            allow_unknown: false,
        })
        .unwrap();
        let node = b.node.unwrap();
        assert_eq!(
            (
                node.id.as_str(),
                node.cluster.as_str(),
                b.flags_path.as_str()
            ),
            ("b", "c", "x")
        );

        let text = dir.join("b.pb_text");
        fs::write(&text, "node {}").unwrap();
        let e = load(LoadOptions {
            path: Some(&text),
            ..LoadOptions::default()
        })
        .unwrap_err();
        assert!(
            e.to_string().contains("b.pb_text") && e.to_string().contains("text format"),
            "{e}"
        );
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn errors_name_origin_and_path() {
        let e = yaml("static_resources: {clusters: [{nam: x}]}")
            .unwrap_err()
            .to_string();
        assert!(
            e.starts_with("--config-yaml: static_resources.clusters[0].nam: "),
            "{e}"
        );
        assert!(matches!(load(LoadOptions::default()), Err(Error::Nothing)));
        assert!(yaml("a: [").is_err());
    }
}
