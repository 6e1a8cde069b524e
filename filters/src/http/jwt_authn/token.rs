//! JSON Web Tokens as they come (RFC 7519, in the compact form of RFC 7515), and what can be wrong with them.

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};
use thiserror::Error;

/// Why a request has not proved who it is from; what the client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Failure {
    /// No token.
    #[error("Jwt is missing")]
    Missing,
    /// Not three parts.
    #[error("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections")]
    Form,
    /// Not base64url.
    #[error("Jwt {0} is an invalid Base64url encoded")]
    Base64(&'static str),
    /// Not a JSON object.
    #[error("Jwt {0} is an invalid JSON")]
    Json(&'static str),
    /// No `alg`.
    #[error("Jwt header [alg] field is required and must be a string")]
    Algorithm,
    /// One that is not had.
    #[error("Jwt header [alg] is not supported")]
    UnknownAlgorithm,
    /// A `kid` that is no string.
    #[error("Jwt header [kid] field is not a string")]
    KeyId,
    /// A claim that should be a string.
    #[error("Jwt payload [{0}] field is not a string")]
    Text(&'static str),
    /// A claim that should be a number.
    #[error("Jwt payload [{0}] field is not an integer")]
    Integer(&'static str),
    /// A number out of range.
    #[error("Jwt payload [{0}] field is not a positive 64 bit integer")]
    Range(&'static str),
    /// An `aud` that is something else.
    #[error("Jwt payload [aud] field is not a string or string list")]
    Audience,
    /// From somebody else.
    #[error("Jwt issuer is not configured")]
    Issuer,
    /// `nbf` is to come.
    #[error("Jwt not yet valid")]
    NotYet,
    /// `exp` is over.
    #[error("Jwt is expired")]
    Expired,
    /// For somebody else.
    #[error("Audiences in Jwt are not allowed")]
    Audiences,
    /// The issuer has no key that might have signed.
    #[error("Jwks doesn't have key to match kid or alg from Jwt")]
    NoKey,
    /// None of them has.
    #[error("Jwt verification fails")]
    Signature,
}

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A token that is well formed. Nothing of it is proved.
#[derive(Debug)]
pub struct Token<'a> {
    /// The JOSE header.
    pub header: Map<String, Value>,
    /// How it says it is signed.
    pub algorithm: Algorithm,
    /// All claims.
    pub claims: Map<String, Value>,
    /// `iss`; empty if there is none.
    pub issuer: String,
    /// `aud`.
    pub audiences: Vec<String>,
    /// The claims as they came.
    pub payload: &'a str,
    /// What is signed: the header, a dot, the payload.
    pub signed: &'a str,
    /// The signature as it came.
    pub signature: &'a str,
    not_before: u64,
    expires: u64,
}

fn object(text: &str, part: &'static str) -> Result<Map<String, Value>, Failure> {
    let bytes = BASE64.decode(text).map_err(|_| Failure::Base64(part))?;
    serde_json::from_slice(&bytes).map_err(|_| Failure::Json(part))
}

fn text(claims: &Map<String, Value>, name: &'static str) -> Result<String, Failure> {
    match claims.get(name) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(Failure::Text(name)),
    }
}

/// A time in seconds; 0 if there is none.
fn seconds(claims: &Map<String, Value>, name: &'static str) -> Result<u64, Failure> {
    let Some(value) = claims.get(name) else {
        return Ok(0);
    };
    match (value.as_u64(), value.as_f64()) {
        (Some(whole), _) => Ok(whole),
        // Below 2^64 by the range; the part of a second is dropped.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        (None, Some(number)) if (0.0..1.8e19).contains(&number) => Ok(number as u64),
        (None, Some(_)) => Err(Failure::Range(name)),
        (None, None) => Err(Failure::Integer(name)),
    }
}

fn audiences(claims: &Map<String, Value>) -> Result<Vec<String>, Failure> {
    let one = |value: &Value| value.as_str().map(str::to_owned).ok_or(Failure::Audience);
    match claims.get("aud") {
        None => Ok(Vec::new()),
        Some(Value::Array(all)) => all.iter().map(one).collect(),
        Some(single) => Ok(vec![one(single)?]),
    }
}

fn algorithm(header: &Map<String, Value>) -> Result<Algorithm, Failure> {
    let name = header.get("alg").and_then(Value::as_str);
    let name = name.ok_or(Failure::Algorithm)?;
    name.parse().map_err(|_| Failure::UnknownAlgorithm)
}

impl<'a> Token<'a> {
    /// Reads a token.
    ///
    /// # Errors
    /// It is not well formed.
    pub fn parse(token: &'a str) -> Result<Self, Failure> {
        let mut parts = token.split('.');
        let (Some(head), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Failure::Form);
        };
        if head.is_empty() || payload.is_empty() || signature.is_empty() {
            return Err(Failure::Form);
        }
        let header = object(head, "header")?;
        let algorithm = algorithm(&header)?;
        if header.get("kid").is_some_and(|id| !id.is_string()) {
            return Err(Failure::KeyId);
        }
        let claims = object(payload, "payload")?;
        let issuer = text(&claims, "iss")?;
        text(&claims, "sub")?;
        seconds(&claims, "iat")?;
        let not_before = seconds(&claims, "nbf")?;
        let expires = seconds(&claims, "exp")?;
        text(&claims, "jti")?;
        let audiences = audiences(&claims)?;
        let decoded = BASE64.decode(signature);
        decoded.map_err(|_| Failure::Base64("signature"))?;
        Ok(Self {
            header,
            algorithm,
            issuer,
            audiences,
            claims,
            payload,
            signed: token.rsplit_once('.').map_or(token, |(signed, _)| signed),
            signature,
            not_before,
            expires,
        })
    }

    /// Whose key it says it is signed with.
    pub fn key_id(&self) -> Option<&str> {
        self.header.get("kid").and_then(Value::as_str)
    }

    /// Whether it holds at `now` (seconds since 1970), by clocks that are `skew` apart.
    ///
    /// # Errors
    /// Not yet, or no more.
    pub fn check_time(&self, now: u64, skew: u64) -> Result<(), Failure> {
        if now.saturating_add(skew) < self.not_before {
            return Err(Failure::NotYet);
        }
        if self.expires != 0 && now > self.expires.saturating_add(skew) {
            return Err(Failure::Expired);
        }
        Ok(())
    }
}

/// A claim by the names that lead to it.
pub fn claim<'a>(claims: &'a Map<String, Value>, path: &[Box<str>]) -> Option<&'a Value> {
    crate::matcher::metadata::lookup(claims, path)
}

/// A simple claim as the value of a header.
pub fn claim_text(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Bool(yes) => yes.to_string(),
        Value::Number(number) => match number.as_f64()? {
            whole if whole >= 0.0 && whole.fract() == 0.0 => match number.as_u64() {
                Some(exact) => exact.to_string(),
                None => format!("{whole:.0}"),
            },
            other => format!("{other:.6}"),
        },
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    };
    (!text.is_empty()).then_some(text)
}
