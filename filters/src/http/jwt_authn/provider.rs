//! Providers: who may issue tokens, with which keys, and what becomes of a token that is good.

use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::{
    JwtClaimToHeader, JwtProvider, jwt_provider::JwksSourceSpecifier as Source,
};
use http::{HeaderName, HeaderValue};
use serde_json::{Map, Value};
use xds_client::data_source;
use xds_client::error::{At, ConfigError};

use super::keys::Keys;
use super::location::{Found, Locations, header_name};
use super::requirement::Round;
use super::token::{Failure, Token, claim, claim_text};

/// Envoy's default for clocks that are apart, in seconds.
const CLOCK_SKEW: u64 = 60;

/// For whom tokens may be; for anybody if there is none.
#[derive(Debug)]
pub struct Audiences(Vec<String>);

/// An audience without what does not count: its scheme and a slash at its end.
fn bare(audience: &str) -> &str {
    let rest = audience
        .strip_prefix("http://")
        .or_else(|| audience.strip_prefix("https://"));
    let rest = rest.unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
}

impl Audiences {
    /// These.
    pub fn new(all: &[String]) -> Self {
        Self(all.iter().map(|a| bare(a).to_owned()).collect())
    }

    fn allow(&self, token: &Token<'_>) -> bool {
        let named = |a: &String| self.0.iter().any(|known| known == bare(a));
        self.0.is_empty() || token.audiences.iter().any(named)
    }
}

/// A claim that becomes a header.
struct Copied {
    header: HeaderName,
    path: Vec<Box<str>>,
}

/// A provider, compiled.
pub struct Provider {
    /// Its issuer; empty: any.
    pub issuer: String,
    /// Where its tokens are.
    pub locations: Locations,
    audiences: Audiences,
    keys: Keys,
    clock_skew: u64,
    forward: bool,
    payload_header: Option<HeaderName>,
    pad_payload: bool,
    copied: Vec<Copied>,
    payload_key: String,
    header_key: String,
    space_delimited: Vec<String>,
    clear_route_cache: bool,
}

fn copied(config: &JwtClaimToHeader) -> Result<Copied, ConfigError> {
    let path = match (config.claim_name.as_str(), config.claim_path.as_slice()) {
        (name, []) if !name.is_empty() => name.split('.').map(Into::into).collect(),
        ("", path) if !path.is_empty() => path.iter().map(|s| s.key.as_str().into()).collect(),
        _ => {
            return Err(ConfigError::new(
                "one of claim_name and claim_path is required",
            ));
        }
    };
    Ok(Copied {
        header: header_name(&config.header_name).at("header_name")?,
        path,
    })
}

impl Provider {
    /// Compiles a provider.
    ///
    /// # Errors
    /// It is invalid, or asks for what is unsupported.
    pub fn compile(config: &JwtProvider) -> Result<Self, ConfigError> {
        for (set, field) in [
            (config.subjects.is_some(), "subjects"),
            (config.require_expiration, "require_expiration"),
            (config.max_lifetime.is_some(), "max_lifetime"),
            (
                !config.failed_status_in_metadata.is_empty(),
                "failed_status_in_metadata",
            ),
        ] {
            if set {
                return Err(ConfigError::unsupported(field));
            }
        }
        let keys = match &config.jwks_source_specifier {
            Some(Source::LocalJwks(source)) => {
                let text = data_source::read(source);
                text.and_then(|text| Keys::parse(&text)).at("local_jwks")?
            }
            Some(Source::RemoteJwks(_)) => return Err(ConfigError::unsupported("remote_jwks")),
            None => return Err(ConfigError::new("is required").at("jwks_source_specifier")),
        };
        let name = &config.forward_payload_header;
        let payload_header = (!name.is_empty()).then(|| header_name(name)).transpose();
        let normal = config.normalize_payload_in_metadata.as_ref();
        let claims = config.claim_to_headers.iter().map(copied);
        Ok(Self {
            issuer: config.issuer.clone(),
            locations: Locations::of(std::iter::once(config))?,
            audiences: Audiences::new(&config.audiences),
            keys,
            clock_skew: match config.clock_skew_seconds {
                0 => CLOCK_SKEW,
                seconds => seconds.into(),
            },
            forward: config.forward,
            payload_header: payload_header.at("forward_payload_header")?,
            pad_payload: config.pad_forward_payload_header,
            copied: claims.collect::<Result<_, _>>().at("claim_to_headers")?,
            payload_key: config.payload_in_metadata.clone(),
            header_key: config.header_in_metadata.clone(),
            space_delimited: normal
                .map(|n| n.space_delimited_claims.clone())
                .unwrap_or_default(),
            clear_route_cache: config.clear_route_cache,
        })
    }

    /// The headers that only the filter may set.
    pub fn own_headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.payload_header
            .iter()
            .chain(self.copied.iter().map(|c| &c.header))
    }

    /// Judges a token that was found and, if it is good, does with it what the provider wants.
    ///
    /// # Errors
    /// It is not.
    pub fn judge(
        &self,
        found: &Found<'_>,
        token: Token<'_>,
        audiences: Option<&Audiences>,
        round: &mut Round<'_>,
    ) -> Result<(), Failure> {
        token.check_time(round.now, self.clock_skew)?;
        if !audiences.unwrap_or(&self.audiences).allow(&token) {
            return Err(Failure::Audiences);
        }
        self.keys.check(&token)?;
        let mut add = |name: &HeaderName, text: &str| {
            if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
                round.head.headers.append(name.clone(), value);
            }
        };
        if let Some(name) = &self.payload_header {
            let bare = token.payload.trim_end_matches('=');
            match self.pad_payload {
                true => add(
                    name,
                    &format!("{bare}{}", "=".repeat((4 - bare.len() % 4) % 4)),
                ),
                false => add(name, token.payload),
            }
        }
        for Copied { header, path } in &self.copied {
            if let Some(text) = claim(&token.claims, path).and_then(claim_text) {
                add(header, &text);
            }
        }
        if !self.forward {
            found.location.remove(round.head);
        }
        if !self.header_key.is_empty() {
            round
                .extracted
                .insert(self.header_key.clone(), token.header.into());
        }
        if !self.payload_key.is_empty() {
            let payload = self.normalized(token.claims);
            round
                .extracted
                .insert(self.payload_key.clone(), payload.into());
        }
        round.reroute |= self.clear_route_cache;
        Ok(())
    }

    /// The claims, those that are lists between spaces as lists.
    fn normalized(&self, mut claims: Map<String, Value>) -> Map<String, Value> {
        for name in &self.space_delimited {
            if let Some(value) = claims.get_mut(name)
                && let Value::String(text) = value
            {
                *value = text.split(' ').filter(|part| !part.is_empty()).collect();
            }
        }
        claims
    }
}
