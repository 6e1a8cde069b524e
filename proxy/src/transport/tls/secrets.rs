//! Secrets by name, for the contexts that refer to them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsSessionTicketKeys,
};
use xds_client::data_source;
use xds_client::error::{At, ConfigError};

use super::certificate::Certificate;
use super::sessions::TicketKey;
use super::validation::Validation;

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
    /// Loads a secret.
    ///
    /// # Errors
    /// What is wrong with it, by field; never the secret itself.
    pub fn compile(secret: &Secret) -> Result<Self, ConfigError> {
        match &secret.r#type {
            Some(Type::TlsCertificate(proto)) => Certificate::compile(proto)
                .map(|c| Self::Certificate(Arc::new(c)))
                .at("tls_certificate"),
            Some(Type::ValidationContext(proto)) => {
                // Names may come without an authority here, to be merged with one.
                let mut alone = proto.clone();
                alone.match_typed_subject_alt_names.clear();
                Validation::compile(&alone).at("validation_context")?;
                Ok(Self::Validation(Arc::new(proto.clone())))
            }
            Some(Type::SessionTicketKeys(keys)) => {
                Self::ticket_keys(keys).at("session_ticket_keys")
            }
            Some(Type::GenericSecret(_)) => Err(ConfigError::unsupported("generic_secret")),
            None => Err(ConfigError::new("is required").at("type")),
        }
    }

    /// Loads the keys of session tickets.
    ///
    /// # Errors
    /// There is none, or one cannot be read or has not its length.
    pub(super) fn ticket_keys(proto: &TlsSessionTicketKeys) -> Result<Self, ConfigError> {
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

#[derive(Debug)]
struct Entry {
    slot: Arc<SecretSlot>,
    /// It has come, or nobody waits for it any longer.
    answered: bool,
    /// From the bootstrap: not asked for, and always wanted.
    fixed: bool,
}

/// The secrets of the process.
#[derive(Debug, Default)]
pub struct SecretStore(Mutex<BTreeMap<String, Entry>>);

impl SecretStore {
    /// The slot of a name. Asking is interest, which ends when the slot is dropped.
    pub fn slot(&self, name: &str) -> Arc<SecretSlot> {
        let new = || Entry {
            slot: Arc::new(SecretSlot::new(name)),
            answered: false,
            fixed: false,
        };
        lock(&self.0)
            .entry(name.to_owned())
            .or_insert_with(new)
            .slot
            .clone()
    }

    /// Publishes a secret of the bootstrap.
    pub fn apply_static(&self, name: &str, value: SecretValue) {
        let slot = self.slot(name);
        if let Some(entry) = lock(&self.0).get_mut(name) {
            entry.answered = true;
            entry.fixed = true;
        }
        slot.set(value);
    }

    /// Publishes a secret. Names that nobody wants are passed over.
    pub fn apply(&self, name: &str, value: SecretValue) {
        let slot = {
            let mut entries = lock(&self.0);
            let Some(entry) = entries.get_mut(name).filter(|e| !e.fixed) else {
                return;
            };
            entry.answered = true;
            entry.slot.clone()
        };
        slot.set(value);
    }

    /// No answer came in time, or one that was refused: nobody waits for this name any longer. A secret that was
    /// good stays.
    pub fn give_up(&self, name: &str) {
        if let Some(entry) = lock(&self.0).get_mut(name) {
            entry.answered = true;
        }
    }

    /// Whether waiting for the name is over.
    pub fn is_answered(&self, name: &str) -> bool {
        lock(&self.0).get(name).is_some_and(|e| e.answered)
    }

    /// Whether the bootstrap has a secret of this name.
    pub fn is_static(&self, name: &str) -> bool {
        lock(&self.0).get(name).is_some_and(|e| e.fixed)
    }

    /// Forgets the slots that nobody holds any longer, and gives the names of those to ask for.
    pub fn wanted(&self) -> Vec<String> {
        let mut entries = lock(&self.0);
        entries.retain(|_, e| e.fixed || Arc::strong_count(&e.slot) > 1);
        let asked = entries.iter().filter(|(_, e)| !e.fixed);
        asked.map(|(name, _)| name.clone()).collect()
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

    fn secret(authority: &Authority) -> SecretValue {
        SecretValue::compile(&Secret {
            name: "a".into(),
            r#type: Some(Type::TlsCertificate(authority.issue(&["a.example"]))),
        })
        .unwrap()
    }

    #[test]
    fn dependents_hear_of_changes_as_long_as_they_live() {
        let (store, authority) = (SecretStore::default(), Authority::new("ca"));
        let slot = store.slot("a");
        let dependent = Arc::new(Counted::default());
        let weak: Weak<dyn Dependent> = Arc::downgrade(&(dependent.clone() as Arc<dyn Dependent>));
        slot.depend(weak);
        assert!(slot.value().is_none() && !store.is_answered("a"));
        store.apply("a", secret(&authority));
        store.apply("b", secret(&authority));
        assert!(slot.value().is_some() && store.is_answered("a"));
        assert_eq!(dependent.0.load(Ordering::Relaxed), 1);
        assert_eq!(store.wanted(), ["a"]);
        assert!(!format!("{slot:?}").contains("PRIVATE"));
        drop(slot);
        assert!(store.wanted().is_empty());
    }

    #[test]
    fn static_secrets_stay_and_are_not_asked_for() {
        let (store, authority) = (SecretStore::default(), Authority::new("ca"));
        store.apply_static("a", secret(&authority));
        assert!(store.wanted().is_empty() && store.is_answered("a") && store.is_static("a"));
        assert!(store.slot("a").value().is_some());
    }

    #[test]
    fn a_secret_without_content_is_refused() {
        let error = SecretValue::compile(&Secret::default()).unwrap_err();
        assert_eq!(error.path(), "type");
    }
}
