//! A layer of files: each file a key, directories its dotted prefix.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use envoy_types::pb::envoy::config::bootstrap::v3::runtime_layer;

/// Directories below the layer's that are looked into.
const MAX_DEPTH: usize = 16;
/// A longer file is no runtime value.
const MAX_BYTES: u64 = 64 * 1024;

/// Where a layer's files are.
#[derive(Debug)]
pub struct DiskLayer {
    /// The link that is exchanged to bring new values.
    root: PathBuf,
    directory: PathBuf,
    /// Device and inode that the link led to last.
    seen: Option<(u64, u64)>,
}

impl DiskLayer {
    /// The layer of a bootstrap.
    pub(super) fn new(config: &runtime_layer::DiskLayer, service_cluster: &str) -> Self {
        let root = PathBuf::from(&config.symlink_root);
        let mut directory = root.join(&config.subdirectory);
        if config.append_service_cluster {
            directory.push(service_cluster);
        }
        let seen = identity(&root);
        Self {
            root,
            directory,
            seen,
        }
    }

    /// Whether the link leads elsewhere than the last time it was asked about.
    pub(super) fn was_exchanged(&mut self) -> bool {
        let now = identity(&self.root);
        std::mem::replace(&mut self.seen, now) != now
    }

    /// Every file's text by key. A directory that is not there is empty.
    pub(super) fn read(&self) -> BTreeMap<String, String> {
        let mut values = BTreeMap::new();
        read_into(&mut values, &self.directory, "", 0);
        values
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn read_into(values: &mut BTreeMap<String, String>, directory: &Path, prefix: &str, depth: usize) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // Kubernetes keeps the real directories of a config map behind names that begin with dots.
        if name.starts_with('.') {
            continue;
        }
        let key = format!("{prefix}{name}");
        let Ok(metadata) = std::fs::metadata(entry.path()) else {
            continue;
        };
        if metadata.is_dir() && depth < MAX_DEPTH {
            read_into(values, &entry.path(), &format!("{key}."), depth + 1);
        } else if metadata.is_file() && metadata.len() <= MAX_BYTES {
            match std::fs::read_to_string(entry.path()) {
                Ok(text) => {
                    values.insert(key, value(&text));
                }
                Err(e) => tracing::warn!("runtime file {}: {e}", entry.path().display()),
            }
        }
    }
}

/// The text without comment lines and without white space at its end.
fn value(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
    lines.join("\n").trim_end().to_owned()
}
