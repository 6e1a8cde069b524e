//! Secrets by name, for the contexts that refer to them.

use std::collections::BTreeMap;
use std::mem::discriminant;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsSessionTicketKeys,
};
use xds_client::data_source;
use xds_client::error::{At, ConfigError};

use super::certificate::Certificate;
use super::files::{self, Look, Watched};
use super::sessions::TicketKey;
use super::validation::Validation;
use crate::config::update_stats::UpdateStats;
use crate::telemetry::stats::{Counter, Scope};

/// A secret that has been found good.
#[derive(Debug, Clone)]
pub enum SecretValue {
    /// A certificate with its key.
    Certificate(Arc<Certificate>),
    /// What peers must be. Contexts may merge it into one of their own, so it stays a message.
    Validation(Arc<CertificateValidationContext>),
    /// What seals session tickets.
    TicketKeys(Arc<[TicketKey]>),
}

impl SecretValue {
    /// Loads a secret, the contents of its files included.
    ///
    /// # Errors
    /// What is wrong with it, by field; never the secret itself.
    pub(super) fn of(secret: &Type) -> Result<Self, ConfigError> {
        match secret {
            Type::TlsCertificate(proto) => {
                Certificate::compile(proto).map(|c| Self::Certificate(Arc::new(c)))
            }
            Type::ValidationContext(proto) => {
                // Names may come without an authority here, to be merged with one.
                let mut alone = proto.clone();
                alone.match_typed_subject_alt_names.clear();
                #[expect(deprecated, reason = "istiod still sends it to gateways")]
                alone.match_subject_alt_names.clear();
                if alone.trusted_ca.is_none() && alone.system_root_certs.is_none() {
                    alone.crl = None;
                }
                // As it came, for errors that name the files.
                Validation::compile(&alone)?;
                let context = files::with_contents(proto)?;
                Ok(Self::Validation(Arc::new(context)))
            }
            Type::SessionTicketKeys(keys) => Self::ticket_keys(keys),
            Type::GenericSecret(_) => Err(ConfigError::new("not supported")),
        }
    }

    /// Loads the keys of session tickets.
    ///
    /// # Errors
    /// There is none, or one cannot be read or has not its length.
    fn ticket_keys(proto: &TlsSessionTicketKeys) -> Result<Self, ConfigError> {
        if proto.keys.is_empty() {
            return Err(ConfigError::new("value must contain at least 1 item(s)").at("keys"));
        }
        let load = |(i, source)| {
            let bytes = data_source::read(source).map(zeroize::Zeroizing::new);
            bytes
                .and_then(|bytes| TicketKey::load(&bytes))
                .at(format!("keys[{i}]"))
        };
        let keys: Result<_, _> = proto.keys.iter().enumerate().map(load).collect();
        Ok(Self::TicketKeys(keys?))
    }
}

/// The secret in a resource.
///
/// # Errors
/// There is none.
pub fn content(secret: &Secret) -> Result<(&'static str, &Type), ConfigError> {
    let Some(content) = &secret.r#type else {
        return Err(ConfigError::new("is required").at("type"));
    };
    let field = match content {
        Type::TlsCertificate(_) => "tls_certificate",
        Type::ValidationContext(_) => "validation_context",
        Type::SessionTicketKeys(_) => "session_ticket_keys",
        Type::GenericSecret(_) => "generic_secret",
    };
    Ok((field, content))
}

/// What is compiled again when a secret changes.
pub trait Dependent: Send + Sync {
    /// A secret that it holds the slot of has a new value.
    fn secret_changed(&self);
}

/// A secret's place, which exists before the secret does.
pub struct SecretSlot {
    name: String,
    value: Mutex<Option<SecretValue>>,
    dependents: Mutex<Vec<Weak<dyn Dependent>>>,
    /// Made with the first failure; a stat lives as long as its handle.
    rotation_failed: OnceLock<Counter>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Only the control side locks these; handshakes hold compiled contexts.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for SecretSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecretSlot({}, [redacted])", self.name)
    }
}

impl SecretSlot {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            value: Mutex::default(),
            dependents: Mutex::default(),
            rotation_failed: OnceLock::new(),
        }
    }

    /// A slot that holds `value` for good.
    pub(super) fn fixed(value: SecretValue) -> Arc<Self> {
        let slot = Self::new("");
        *lock(&slot.value) = Some(value);
        Arc::new(slot)
    }

    /// The secret's name; empty for one that is inline.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The secret, if it is there.
    pub fn value(&self) -> Option<SecretValue> {
        lock(&self.value).clone()
    }

    /// Tells `dependent` of changes for as long as it lives.
    pub(super) fn depend(&self, dependent: Weak<dyn Dependent>) {
        let mut dependents = lock(&self.dependents);
        dependents.retain(|d| d.strong_count() > 0);
        dependents.push(dependent);
    }

    fn set(&self, value: SecretValue) {
        *lock(&self.value) = Some(value);
        // Outside the lock, for they read their slots.
        let dependents: Vec<_> = lock(&self.dependents)
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for dependent in dependents {
            dependent.secret_changed();
        }
    }
}

struct Entry {
    slot: Arc<SecretSlot>,
    /// It has come, or nobody waits for it any longer.
    answered: bool,
    /// From the bootstrap: not asked for, and always wanted.
    fixed: bool,
    /// `sds.<name>.*`, made with the first answer.
    updates: Option<UpdateStats>,
}

/// The secrets of the process.
#[derive(Default)]
pub struct SecretStore {
    entries: Mutex<BTreeMap<String, Entry>>,
    watched: Mutex<Vec<Watched>>,
    /// The scope without a prefix; none: nothing is counted.
    scope: OnceLock<Scope>,
}

impl std::fmt::Debug for SecretStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecretStore({} names)", lock(&self.entries).len())
    }
}

impl SecretStore {
    /// The slot of a name. Asking is interest, which ends when the slot is dropped.
    pub fn slot(&self, name: &str) -> Arc<SecretSlot> {
        let new = || Entry {
            slot: Arc::new(SecretSlot::new(name)),
            answered: false,
            fixed: false,
            updates: None,
        };
        lock(&self.entries)
            .entry(name.to_owned())
            .or_insert_with(new)
            .slot
            .clone()
    }

    /// Counts `sds.<name>.*` in this scope, the one without a prefix.
    pub fn count_in(&self, root: Scope) {
        let _ = self.scope.set(root);
    }

    /// A secret in a slot of its own, without a name. Its files are watched if it says so.
    pub(super) fn inline(&self, secret: &Type) -> Result<Arc<SecretSlot>, ConfigError> {
        let (value, seen) = files::read(secret)?;
        let slot = SecretSlot::fixed(value);
        if is_watched(secret) {
            lock(&self.watched).extend(Watched::new(&slot, secret, seen));
        }
        Ok(slot)
    }

    /// Publishes a secret of the bootstrap. Its files are watched if it says so.
    ///
    /// # Errors
    /// What is wrong with it, by field.
    pub fn load_static(&self, name: &str, secret: &Type) -> Result<(), ConfigError> {
        let slot = self.slot(name);
        self.take(&slot, secret, is_watched(secret))?;
        if let Some(entry) = lock(&self.entries).get_mut(name) {
            entry.answered = true;
            entry.fixed = true;
        }
        Ok(())
    }

    /// Publishes a secret that came by SDS. Its files are always watched. Names that nobody wants are passed over.
    ///
    /// # Errors
    /// What is wrong with it, by field; the one of before stays, and nobody waits for the name any longer.
    pub fn load(&self, name: &str, secret: &Type) -> Result<(), ConfigError> {
        let slot = {
            let mut entries = lock(&self.entries);
            let Some(entry) = entries.get_mut(name).filter(|e| !e.fixed) else {
                return SecretValue::of(secret).map(drop);
            };
            entry.answered = true;
            entry.slot.clone()
        };
        self.take(&slot, secret, true)
    }

    fn take(&self, slot: &Arc<SecretSlot>, secret: &Type, watch: bool) -> Result<(), ConfigError> {
        let (value, seen) = files::read(secret)?;
        if slot
            .value()
            .is_some_and(|old| discriminant(&old) != discriminant(&value))
        {
            // Those who hold the slot could use nothing of it.
            return Err(ConfigError::new("is of another kind than the one before"));
        }
        let mut watched = lock(&self.watched);
        watched.retain(|w| w.slot.as_ptr() != Arc::as_ptr(slot));
        if watch {
            watched.extend(Watched::new(slot, secret, seen));
        }
        drop(watched);
        slot.set(value);
        Ok(())
    }

    /// Reads secrets anew whose files have changed.
    pub(super) fn look(&self) {
        let mut changed = Vec::new();
        lock(&self.watched).retain_mut(|watched| {
            let Some(slot) = watched.slot.upgrade() else {
                return false;
            };
            match watched.look() {
                Look::Same => {}
                Look::Changed(value) => changed.push((slot, value)),
                Look::Broken(error) => {
                    let name = match slot.name() {
                        "" => "inline",
                        name => name,
                    };
                    tracing::error!("secret {name}: {error}; the one of before stays");
                    if let Some(scope) = self.scope.get() {
                        let scope = scope.scope(&format!("sds.{name}."));
                        let new = || scope.counter("key_rotation_failed");
                        slot.rotation_failed.get_or_init(new).inc();
                    }
                }
            }
            true
        });
        // Not while the list is locked: contexts are compiled again now.
        for (slot, value) in changed {
            tracing::info!("secret {}: its files have changed", slot.name());
            slot.set(value);
        }
    }

    /// Counts for a name that SDS is asked for.
    pub fn count(&self, name: &str, count: impl FnOnce(&UpdateStats)) {
        let Some(root) = self.scope.get() else { return };
        if let Some(entry) = lock(&self.entries).get_mut(name).filter(|e| !e.fixed) {
            let new = || UpdateStats::new(&root.scope(&format!("sds.{name}.")));
            count(entry.updates.get_or_insert_with(new));
        }
    }

    /// No answer came in time, or one that was refused: nobody waits for this name any longer. A secret that was
    /// good stays.
    pub fn give_up(&self, name: &str) {
        if let Some(entry) = lock(&self.entries).get_mut(name) {
            entry.answered = true;
        }
    }

    /// Whether waiting for the name is over.
    pub fn is_answered(&self, name: &str) -> bool {
        lock(&self.entries).get(name).is_some_and(|e| e.answered)
    }

    /// Whether the bootstrap has a secret of this name.
    pub fn is_static(&self, name: &str) -> bool {
        lock(&self.entries).get(name).is_some_and(|e| e.fixed)
    }

    /// Forgets the slots that nobody holds any longer, and gives the names of those to ask for.
    pub fn wanted(&self) -> Vec<String> {
        let mut entries = lock(&self.entries);
        entries.retain(|_, e| e.fixed || Arc::strong_count(&e.slot) > 1);
        let asked = entries.iter().filter(|(_, e)| !e.fixed);
        asked.map(|(name, _)| name.clone()).collect()
    }
}

/// Whether a secret asks for its files to be watched.
fn is_watched(secret: &Type) -> bool {
    match secret {
        Type::TlsCertificate(proto) => proto.watched_directory.is_some(),
        Type::ValidationContext(proto) => proto.watched_directory.is_some(),
        Type::SessionTicketKeys(_) | Type::GenericSecret(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::testing::Authority;
    use super::*;

    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Dependent for Counted {
        fn secret_changed(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn secret(authority: &Authority) -> Type {
        Type::TlsCertificate(authority.issue(&["a.example"]))
    }

    #[test]
    fn dependents_hear_of_changes_as_long_as_they_live() {
        let (store, authority) = (SecretStore::default(), Authority::new("ca"));
        let slot = store.slot("a");
        let dependent = Arc::new(Counted::default());
        let weak: Weak<dyn Dependent> = Arc::downgrade(&(dependent.clone() as Arc<dyn Dependent>));
        slot.depend(weak);
        assert!(slot.value().is_none() && !store.is_answered("a"));
        store.load("a", &secret(&authority)).unwrap();
        store.load("b", &secret(&authority)).unwrap();
        assert!(slot.value().is_some() && store.is_answered("a"));
        assert_eq!(dependent.0.load(Ordering::Relaxed), 1);
        assert_eq!(store.wanted(), ["a"]);
        assert!(!format!("{slot:?}").contains("PRIVATE"));
        drop(slot);
        assert!(store.wanted().is_empty());
    }

    #[test]
    fn a_secret_never_becomes_one_of_another_kind() {
        let (store, authority) = (SecretStore::default(), Authority::new("ca"));
        let slot = store.slot("a");
        store.load("a", &secret(&authority)).unwrap();
        let other = Type::ValidationContext(authority.trusted());
        assert!(store.load("a", &other).is_err());
        assert!(matches!(slot.value(), Some(SecretValue::Certificate(_))));
    }

    #[test]
    fn static_secrets_stay_and_are_not_asked_for() {
        let (store, authority) = (SecretStore::default(), Authority::new("ca"));
        store.load_static("a", &secret(&authority)).unwrap();
        assert!(store.wanted().is_empty() && store.is_answered("a") && store.is_static("a"));
        assert!(store.slot("a").value().is_some());
    }

    #[test]
    fn a_secret_without_content_is_refused() {
        let error = content(&Secret::default()).unwrap_err();
        assert_eq!(error.path(), "type");
    }
}
