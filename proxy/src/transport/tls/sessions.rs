//! Sessions that clients resume: tickets and the memory of a server without tickets.
//!
//! Whatever resumes a session skips the verification of the client, so a session is bound to the rules that it began
//! under: another context's tickets, or those from before a change of the rules, do not open.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{NoServerSessionStorage, ServerSessionMemoryCache};
use rustls::server::{ProducesTickets, StoresServerSessions};
use xds_client::error::ConfigError;
use zeroize::Zeroizing;

use super::digest::{Sha256, sha256};

/// Sessions that a server without tickets remembers.
const REMEMBERED: usize = 1024;
/// How long a session can be resumed, unless `session_timeout` says otherwise (BoringSSL's default).
const LIFETIME: Duration = Duration::from_secs(7200);
/// The length of a key in `session_ticket_keys`: a name of 16 bytes, and twice 32 bytes.
const KEY: usize = 80;
const NAME: usize = 16;
const NONCE: usize = 12;
const TIME: usize = 8;

/// A key of `session_ticket_keys`.
pub struct TicketKey {
    name: [u8; NAME],
    key: RandomizedNonceKey,
}

impl std::fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TicketKey([redacted])")
    }
}

struct Aes256;

impl hkdf::KeyType for Aes256 {
    fn len(&self) -> usize {
        32
    }
}

impl TicketKey {
    /// Loads a key.
    ///
    /// # Errors
    /// It has not 80 bytes.
    pub(super) fn load(bytes: &[u8]) -> Result<Self, ConfigError> {
        let failed = || {
            ConfigError::new(format!(
                "Incorrect TLS session ticket key length. Length {}, expected length {KEY}.",
                bytes.len()
            ))
        };
        if bytes.len() != KEY {
            return Err(failed());
        }
        let (name, secret) = bytes.split_at_checked(NAME).ok_or_else(failed)?;
        // Both secrets make the one key of AES-GCM, which needs no second one for the authentication.
        let mut key = Zeroizing::new([0; 32]);
        let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, name).extract(secret);
        extracted
            .expand(&[b"fairway session ticket"], Aes256)
            .and_then(|okm| okm.fill(&mut *key))
            .map_err(|_| ConfigError::new("cannot be used"))?;
        Ok(Self {
            name: name.try_into().map_err(|_| failed())?,
            key: RandomizedNonceKey::new(&AES_256_GCM, &*key)
                .map_err(|_| ConfigError::new("cannot be used"))?,
        })
    }
}

/// Tickets under configured keys: the first one seals, every one opens.
#[derive(Debug)]
struct Keyed {
    keys: Arc<[TicketKey]>,
    rules: Sha256,
}

impl ProducesTickets for Keyed {
    fn enabled(&self) -> bool {
        !self.keys.is_empty()
    }

    fn lifetime(&self) -> u32 {
        0 // `Timed` says it
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let key = self.keys.first()?;
        let mut sealed = plain.to_vec();
        let nonce = key
            .key
            .seal_in_place_append_tag(Aad::from(&self.rules), &mut sealed)
            .ok()?;
        Some([&key.name[..], nonce.as_ref(), &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_at_checked(NAME)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE)?;
        let nonce: [u8; NONCE] = nonce.try_into().ok()?;
        let key = self.keys.iter().find(|key| key.name == name)?;
        let mut opened = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let plain = key
            .key
            .open_in_place(nonce, Aad::from(&self.rules), &mut opened)
            .ok()?
            .len();
        opened.truncate(plain);
        Some(opened)
    }
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// `value` with the time in front.
fn stamped(value: &[u8], now: u64) -> Vec<u8> {
    [&now.to_be_bytes()[..], value].concat()
}

/// What [`stamped`] was given, unless that is longer ago than `lifetime`, or yet to come.
fn fresh(value: &[u8], lifetime: Duration, now: u64) -> Option<Vec<u8>> {
    let (time, value) = value.split_at_checked(TIME)?;
    let age = now.checked_sub(u64::from_be_bytes(time.try_into().ok()?))?;
    (age <= lifetime.as_secs()).then(|| value.to_vec())
}

/// Ends the lives of tickets, or of sessions in memory.
#[derive(Debug)]
struct Timed<T: ?Sized> {
    lifetime: Duration,
    inner: Arc<T>,
}

impl ProducesTickets for Timed<dyn ProducesTickets> {
    fn enabled(&self) -> bool {
        self.inner.enabled()
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(self.lifetime.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.inner.encrypt(&stamped(plain, now()))
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        fresh(&self.inner.decrypt(ticket)?, self.lifetime, now())
    }
}

impl StoresServerSessions for Timed<dyn StoresServerSessions> {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.inner.put(key, stamped(&value, now()))
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        fresh(&self.inner.get(key)?, self.lifetime, now())
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        fresh(&self.inner.take(key)?, self.lifetime, now())
    }

    fn can_cache(&self) -> bool {
        self.inner.can_cache()
    }
}

/// How a context lets sessions resume.
#[derive(Debug, Clone, Copy)]
pub(super) struct SessionSettings {
    pub(super) stateless: bool,
    pub(super) stateful: bool,
    pub(super) lifetime: Duration,
}

impl SessionSettings {
    /// `session_timeout` or the default.
    pub(super) fn lifetime(timeout: Option<Duration>) -> Duration {
        timeout.unwrap_or(LIFETIME)
    }
}

/// What lets sessions resume under one set of rules.
#[derive(Debug, Clone)]
pub(super) struct Sessions {
    pub(super) tickets: Option<Arc<dyn ProducesTickets>>,
    pub(super) store: Arc<dyn StoresServerSessions>,
}

impl Sessions {
    /// `rules` is what clients must be; `keys` seal tickets, or else random ones that change by themselves.
    ///
    /// # Errors
    /// There is no randomness.
    pub(super) fn new(
        settings: SessionSettings,
        rules: &[u8],
        keys: Option<Arc<[TicketKey]>>,
    ) -> Result<Self, ConfigError> {
        let lifetime = settings.lifetime;
        let tickets = || -> Result<Arc<dyn ProducesTickets>, ConfigError> {
            let inner: Arc<dyn ProducesTickets> = match keys {
                Some(keys) => Arc::new(Keyed {
                    keys,
                    rules: sha256(rules),
                }),
                None => Ticketer::new().map_err(|e| ConfigError::new(e.to_string()))?,
            };
            Ok(Arc::new(Timed { lifetime, inner }))
        };
        Ok(Self {
            tickets: settings.stateless.then(tickets).transpose()?,
            store: if settings.stateful {
                let inner: Arc<dyn StoresServerSessions> =
                    ServerSessionMemoryCache::new(REMEMBERED);
                Arc::new(Timed { lifetime, inner })
            } else {
                Arc::new(NoServerSessionStorage {})
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions(rules: &[u8], keys: &[u8]) -> Arc<dyn ProducesTickets> {
        let keys = keys.iter().map(|k| TicketKey::load(&[*k; KEY]).unwrap());
        let settings = SessionSettings {
            stateless: true,
            stateful: false,
            lifetime: LIFETIME,
        };
        let sessions = Sessions::new(settings, rules, Some(keys.collect())).unwrap();
        sessions.tickets.unwrap()
    }

    #[test]
    fn tickets_open_with_every_key_and_only_under_their_rules() {
        let old = sessions(b"rules", &[1]);
        let ticket = old.encrypt(b"session").unwrap();
        let rotated = sessions(b"rules", &[2, 1]);
        assert_eq!(rotated.decrypt(&ticket).unwrap(), b"session");
        let newer = rotated.encrypt(b"session").unwrap();
        assert!(old.decrypt(&newer).is_none());
        assert!(sessions(b"others", &[1]).decrypt(&ticket).is_none());
        assert!(sessions(b"rules", &[2]).decrypt(&ticket).is_none());
        for at in 0..ticket.len() {
            let mut broken = ticket.clone();
            broken[at] ^= 1;
            assert!(old.decrypt(&broken).is_none(), "{at}");
            assert!(old.decrypt(&ticket[..at]).is_none(), "{at}");
        }
        assert_eq!(old.lifetime(), 7200);
    }

    #[test]
    fn old_sessions_end() {
        let lifetime = Duration::from_secs(10);
        let value = stamped(b"session", 100);
        assert_eq!(fresh(&value, lifetime, 110).unwrap(), b"session");
        assert!(fresh(&value, lifetime, 111).is_none());
        assert!(fresh(&value, lifetime, 99).is_none());
        assert!(fresh(b"short", lifetime, 99).is_none());
    }

    #[test]
    fn keys_have_their_length() {
        let error = TicketKey::load(&[1; 79]).unwrap_err();
        assert_eq!(
            error.reason(),
            "Incorrect TLS session ticket key length. Length 79, expected length 80."
        );
        let key = TicketKey::load(&[7; KEY]).unwrap();
        assert!(!format!("{key:?}").contains('7'));
    }
}
