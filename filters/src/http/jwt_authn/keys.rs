//! The keys of an issuer: JSON Web Key Sets (RFC 7517).

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, crypto};
use serde_json::Value;
use xds_client::error::ConfigError;

use super::token::{Failure, Token};

struct Key {
    id: Option<String>,
    algorithm: Option<String>,
    key: DecodingKey,
}

/// A key set, of one key at least. Keys that cannot be used are left out, as in Envoy.
pub struct Keys(Vec<Key>);

/// The family of keys that can sign so. A token must not choose another for a key: a public RSA key is no HMAC secret.
fn family(algorithm: Algorithm) -> AlgorithmFamily {
    match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => AlgorithmFamily::Hmac,
        Algorithm::ES256 | Algorithm::ES384 => AlgorithmFamily::Ec,
        Algorithm::EdDSA => AlgorithmFamily::Ed,
        _ => AlgorithmFamily::Rsa,
    }
}

impl Keys {
    /// Reads a key set.
    ///
    /// # Errors
    /// It is none, or has no key that can be used.
    pub fn parse(text: &[u8]) -> Result<Self, ConfigError> {
        let set: Value = serde_json::from_slice(text)
            .map_err(|e| ConfigError::new(format!("is no JSON: {e}")))?;
        let keys = set.get("keys").and_then(Value::as_array);
        let keys = keys.into_iter().flatten().filter_map(|value| {
            let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
            let text = |name| value.get(name).and_then(Value::as_str).map(str::to_owned);
            Some(Key {
                id: text("kid"),
                algorithm: text("alg"),
                key: DecodingKey::from_jwk(&jwk).ok()?,
            })
        });
        let keys: Vec<Key> = keys.collect();
        match keys.is_empty() {
            true => Err(ConfigError::new("has no key that can be used")),
            false => Ok(Self(keys)),
        }
    }

    /// Whether one of the keys has signed a token.
    ///
    /// # Errors
    /// None has, or none might have.
    pub fn check(&self, token: &Token<'_>) -> Result<(), Failure> {
        let named = token.header.get("alg").and_then(Value::as_str);
        let differs =
            |a: Option<&str>, b: Option<&str>| matches!((a, b), (Some(a), Some(b)) if a != b);
        let fit = self.0.iter().filter(|key| {
            !differs(key.id.as_deref(), token.key_id()) && !differs(key.algorithm.as_deref(), named)
        });
        let mut failure = Failure::NoKey;
        for key in fit {
            failure = Failure::Signature;
            let good = key.key.family() == family(token.algorithm)
                && crypto::verify(
                    token.signature,
                    token.signed.as_bytes(),
                    &key.key,
                    token.algorithm,
                )
                .unwrap_or(false);
            if good {
                return Ok(());
            }
        }
        Err(failure)
    }
}
