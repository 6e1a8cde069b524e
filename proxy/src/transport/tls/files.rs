//! Secrets whose parts are in files: their contents are read when the secret is taken, and again when they change.
//!
//! Envoy: `watched_directory`, "SDS key rotation". Files are looked at instead of being told of by the kernel, as for
//! `path_config_source`: that sees every way of replacing them, Kubernetes' swapped links included.

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::DataSource;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::CertificateValidationContext;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use xds_client::data_source;
use xds_client::error::{At, ConfigError};
use xds_client::filesystem::{Stamp, stamp};

use super::secrets::{SecretSlot, SecretStore, SecretValue};

/// How often files are looked at. Who replaces certificates waits longer than this before he relies on them.
const INTERVAL: Duration = Duration::from_millis(200);

/// How much longer than a look the wait for the next one is: with many thousands of files looking takes a twentieth of
/// the control thread's time, and not more.
const REST: u32 = 19;

/// The longest wait, however long a look takes.
const LONGEST: Duration = Duration::from_secs(5);

/// How often a secret is read again because its files changed meanwhile.
const ATTEMPTS: u32 = 3;

/// Reads changed secrets anew, for as long as the process runs.
pub async fn watch(secrets: Arc<SecretStore>) {
    let mut wait = INTERVAL;
    loop {
        tokio::time::sleep(wait).await;
        let begun = Instant::now();
        secrets.look();
        wait = wait_after(begun.elapsed());
    }
}

fn wait_after(look: Duration) -> Duration {
    look.saturating_mul(REST).clamp(INTERVAL, LONGEST)
}

/// A secret whose files are watched for as long as somebody holds its slot.
pub(super) struct Watched {
    pub(super) slot: Weak<SecretSlot>,
    secret: Type,
    seen: Vec<Option<Stamp>>,
}

/// What looking at a watched secret showed.
pub(super) enum Look {
    Same,
    Changed(SecretValue),
    /// The one of before stays.
    Broken(ConfigError),
}

/// The data sources of a secret that may be files.
fn sources(secret: &Type) -> Vec<&DataSource> {
    let all = match secret {
        Type::TlsCertificate(certificate) => vec![
            &certificate.certificate_chain,
            &certificate.private_key,
            &certificate.ocsp_staple,
        ],
        Type::ValidationContext(context) => vec![&context.trusted_ca, &context.crl],
        Type::SessionTicketKeys(keys) => return keys.keys.iter().collect(),
        Type::GenericSecret(_) => Vec::new(),
    };
    all.into_iter().flatten().collect()
}

fn stamps(secret: &Type) -> Vec<Option<Stamp>> {
    let files = sources(secret).into_iter();
    files
        .filter_map(|source| match &source.specifier {
            Some(Specifier::Filename(path)) => Some(stamp(Path::new(path))),
            _ => None,
        })
        .collect()
}

/// Reads a secret whose files belong together: none changes while they are read. Also gives what they were.
///
/// # Errors
/// What is wrong with the secret, or its files keep changing.
pub(super) fn read(secret: &Type) -> Result<(SecretValue, Vec<Option<Stamp>>), ConfigError> {
    for _ in 0..ATTEMPTS {
        let before = stamps(secret);
        let value = SecretValue::of(secret);
        if stamps(secret) == before {
            return value.map(|value| (value, before));
        }
    }
    Err(ConfigError::new("its files keep changing"))
}

impl Watched {
    /// `None` if none of the secret is in a file.
    pub(super) fn new(
        slot: &Arc<SecretSlot>,
        secret: &Type,
        seen: Vec<Option<Stamp>>,
    ) -> Option<Self> {
        (!seen.is_empty()).then(|| Self {
            slot: Arc::downgrade(slot),
            secret: secret.clone(),
            seen,
        })
    }

    /// Reads the secret anew if its files have changed.
    pub(super) fn look(&mut self) -> Look {
        let now = stamps(&self.secret);
        if now == self.seen {
            return Look::Same;
        }
        match read(&self.secret) {
            Ok((value, seen)) => {
                self.seen = seen;
                Look::Changed(value)
            }
            Err(error) => {
                // Said once; the next change may be the rest of this one.
                self.seen = now;
                Look::Broken(error)
            }
        }
    }
}

/// A context with the contents of its files in their place, so that none is needed when it is compiled.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn with_contents(
    proto: &CertificateValidationContext,
) -> Result<CertificateValidationContext, ConfigError> {
    let mut context = proto.clone();
    for (source, field) in [
        (&mut context.trusted_ca, "trusted_ca"),
        (&mut context.crl, "crl"),
    ] {
        if let Some(source) = source
            && matches!(source.specifier, Some(Specifier::Filename(_)))
        {
            let bytes = data_source::read(source).at(field)?;
            source.specifier = Some(Specifier::InlineBytes(bytes));
        }
    }
    Ok(context)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use envoy_types::pb::envoy::config::core::v3::WatchedDirectory;
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::TlsCertificate;

    use super::super::testing::Authority;
    use super::*;
    use crate::telemetry::stats::Stats;

    /// A folder with a certificate and its key behind links, as Kubernetes mounts a Secret.
    struct Mount {
        root: PathBuf,
        version: u32,
    }

    fn text(source: Option<&DataSource>) -> Vec<u8> {
        data_source::read(source.unwrap()).unwrap()
    }

    impl Mount {
        fn new(name: &str, certificate: &TlsCertificate) -> Self {
            let root = format!("fairway-mount-{name}-{}", std::process::id());
            let mut mount = Self {
                root: std::env::temp_dir().join(root),
                version: 0,
            };
            let _ = std::fs::remove_dir_all(&mount.root);
            std::fs::create_dir(&mount.root).unwrap();
            mount.swap(certificate);
            for file in ["tls.crt", "tls.key"] {
                symlink(Path::new("..data").join(file), mount.root.join(file)).unwrap();
            }
            mount
        }

        fn swap(&mut self, certificate: &TlsCertificate) {
            self.version += 1;
            let folder = self.root.join(format!("..v{}", self.version));
            std::fs::create_dir(&folder).unwrap();
            let chain = text(certificate.certificate_chain.as_ref());
            std::fs::write(folder.join("tls.crt"), chain).unwrap();
            let key = text(certificate.private_key.as_ref());
            std::fs::write(folder.join("tls.key"), key).unwrap();
            symlink(&folder, self.root.join("..tmp")).unwrap();
            std::fs::rename(self.root.join("..tmp"), self.root.join("..data")).unwrap();
        }

        fn source(&self, file: &str) -> Option<DataSource> {
            let path = self.root.join(file).to_str().unwrap().to_owned();
            Some(DataSource {
                specifier: Some(Specifier::Filename(path)),
                ..Default::default()
            })
        }

        fn secret(&self) -> Type {
            Type::TlsCertificate(TlsCertificate {
                certificate_chain: self.source("tls.crt"),
                private_key: self.source("tls.key"),
                watched_directory: Some(WatchedDirectory {
                    path: self.root.to_str().unwrap().to_owned(),
                    ..Default::default()
                }),
                ..Default::default()
            })
        }
    }

    impl Drop for Mount {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.root);
        }
    }

    fn name(slot: &SecretSlot) -> String {
        match slot.value().unwrap() {
            SecretValue::Certificate(c) => c.facts.dns_sans.join(","),
            SecretValue::Validation(_) | SecretValue::TicketKeys(_) => String::new(),
        }
    }

    #[test]
    fn swapped_links_are_seen_and_a_broken_secret_leaves_the_one_of_before() {
        let authority = Authority::new("ca");
        let mut mount = Mount::new("swap", &authority.issue(&["one.example"]));
        let (store, stats) = (SecretStore::default(), Stats::new());
        store.count_in(stats.scope(""));
        let slot = store.slot("a");
        store.load("a", &mount.secret()).unwrap();
        assert_eq!(name(&slot), "one.example");
        store.look();
        mount.swap(&authority.issue(&["two.example"]));
        store.look();
        assert_eq!(name(&slot), "two.example");
        // The certificate of one and the key of another.
        let mut torn = authority.issue(&["three.example"]);
        torn.private_key = authority.issue(&["four.example"]).private_key;
        mount.swap(&torn);
        store.look();
        store.look();
        assert_eq!(name(&slot), "two.example");
        let failed = stats.scope("sds.a.").counter("key_rotation_failed");
        assert_eq!(failed.value(), 1);
        mount.swap(&authority.issue(&["five.example"]));
        store.look();
        assert_eq!(name(&slot), "five.example");
        // Replaced by one that is no file: the files count no longer.
        let inline = Type::TlsCertificate(authority.issue(&["six.example"]));
        store.load("a", &inline).unwrap();
        mount.swap(&authority.issue(&["seven.example"]));
        store.look();
        assert_eq!(name(&slot), "six.example");
    }

    #[test]
    fn inline_secrets_are_watched_where_they_say_so() {
        let authority = Authority::new("ca");
        let mut mount = Mount::new("inline", &authority.issue(&["one.example"]));
        let store = SecretStore::default();
        let watched = store.inline(&mount.secret()).unwrap();
        let Type::TlsCertificate(mut proto) = mount.secret() else {
            unreachable!()
        };
        proto.watched_directory = None;
        let fixed = store.inline(&Type::TlsCertificate(proto)).unwrap();
        mount.swap(&authority.issue(&["two.example"]));
        store.look();
        assert_eq!(name(&watched), "two.example");
        assert_eq!(name(&fixed), "one.example");
    }

    #[test]
    fn many_files_are_looked_at_less_often() {
        let after = |ms| wait_after(Duration::from_millis(ms)).as_millis();
        assert_eq!((after(0), after(10), after(20)), (200, 200, 380));
        assert_eq!(after(u64::MAX), 5000);
    }

    #[test]
    fn authorities_are_read_when_they_are_taken_and_not_later() {
        let authority = Authority::new("ca");
        let mut certificate = authority.issue(&["one.example"]);
        certificate.certificate_chain = authority.trusted().trusted_ca;
        let mount = Mount::new("ca", &certificate);
        let context = CertificateValidationContext {
            trusted_ca: mount.source("tls.crt"),
            ..Default::default()
        };
        let store = SecretStore::default();
        let slot = store.inline(&Type::ValidationContext(context)).unwrap();
        drop(mount);
        let Some(SecretValue::Validation(context)) = slot.value() else {
            unreachable!()
        };
        let read = data_source::read(context.trusted_ca.as_ref().unwrap());
        assert_eq!(read.unwrap(), text(certificate.certificate_chain.as_ref()));
    }
}
