//! Which tokens a request must have.

use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::{
    JwtProvider, JwtRequirement, jwt_requirement::RequiresType,
};
use serde_json::{Map, Value};
use xds_client::error::{At, ConfigError};

use super::location::{Found, Locations};
use super::provider::{Audiences, Provider};
use super::token::{Failure, Token};
use crate::head::RequestHead;

/// The deepest nesting of requirements.
const MAX_DEPTH: usize = 16;

/// All providers, by their names in order.
pub struct Providers {
    all: Vec<(String, Provider)>,
    /// The places of all of them.
    locations: Locations,
}

impl Providers {
    /// Compiles providers.
    ///
    /// # Errors
    /// As [`Provider::compile`].
    pub fn compile<'a>(
        configs: impl Iterator<Item = (&'a String, &'a JwtProvider)>,
    ) -> Result<Self, ConfigError> {
        let mut configs: Vec<_> = configs.collect();
        configs.sort_by_key(|(name, _)| *name);
        let one = |(name, config): &(&String, &JwtProvider)| {
            Ok(((*name).clone(), Provider::compile(config).at(name)?))
        };
        Ok(Self {
            all: configs
                .iter()
                .map(one)
                .collect::<Result<_, ConfigError>>()?,
            locations: Locations::of(configs.iter().map(|(_, config)| *config))?,
        })
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Provider> {
        self.all.iter().map(|(_, provider)| provider)
    }

    /// Whose token of this issuer is: the first that names the issuer, or else that names none.
    fn of_issuer(&self, issuer: &str) -> Option<&Provider> {
        self.iter()
            .find(|p| p.issuer == issuer)
            .or_else(|| self.iter().find(|p| p.issuer.is_empty()))
    }
}

/// What a request's tokens have led to so far.
pub struct Round<'a> {
    /// The request.
    pub head: &'a mut RequestHead,
    /// Seconds since 1970.
    pub now: u64,
    /// What goes into the dynamic metadata.
    pub extracted: Map<String, Value>,
    /// Whether the route is to be chosen again.
    pub reroute: bool,
}

/// A requirement, compiled.
pub enum Requirement {
    /// Nothing.
    Nothing,
    /// Tokens of this provider (by number), perhaps for others than it says.
    Provider(usize, Option<Audiences>),
    /// Tokens of any provider, if any; with `true`, bad ones too.
    Optional(bool),
    /// One of these.
    Any {
        /// Which.
        of: Vec<Requirement>,
        /// Or no token.
        missing: bool,
        /// Or whatever.
        failed: bool,
    },
    /// Each of these.
    All(Vec<Requirement>),
}

impl Requirement {
    /// Compiles a requirement.
    ///
    /// # Errors
    /// It names an unknown provider, asks for what is unsupported, or has more than 16 levels.
    pub fn compile(config: &JwtRequirement, providers: &Providers) -> Result<Self, ConfigError> {
        Self::nested(config, providers, 0)
    }

    fn nested(
        config: &JwtRequirement,
        providers: &Providers,
        depth: usize,
    ) -> Result<Self, ConfigError> {
        if depth > MAX_DEPTH {
            return Err(ConfigError::new("nested too deeply"));
        }
        let number = |name: &str| {
            let number = providers.all.iter().position(|(known, _)| known == name);
            number.ok_or_else(|| ConfigError::new(format!("no provider {name:?}")))
        };
        let children = |all: &[JwtRequirement], skip: fn(&RequiresType) -> bool| {
            let kept = all
                .iter()
                .filter(|r| !r.requires_type.as_ref().is_some_and(skip));
            kept.map(|r| Self::nested(r, providers, depth + 1))
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(match &config.requires_type {
            None => Self::Nothing,
            Some(RequiresType::ProviderName(name)) => {
                Self::Provider(number(name).at("provider_name")?, None)
            }
            Some(RequiresType::ProviderAndAudiences(of)) => {
                let audiences = (!of.audiences.is_empty()).then(|| Audiences::new(&of.audiences));
                Self::Provider(
                    number(&of.provider_name).at("provider_and_audiences")?,
                    audiences,
                )
            }
            Some(RequiresType::RequiresAny(list)) => {
                let has = |kind: fn(&RequiresType) -> bool| {
                    let mut types = list.requirements.iter().flat_map(|r| &r.requires_type);
                    types.any(kind)
                };
                let missing = has(|r| matches!(r, RequiresType::AllowMissing(_)));
                let failed = has(|r| matches!(r, RequiresType::AllowMissingOrFailed(_)));
                let skip = |r: &RequiresType| {
                    matches!(
                        r,
                        RequiresType::AllowMissing(_) | RequiresType::AllowMissingOrFailed(_)
                    )
                };
                let of = children(&list.requirements, skip).at("requires_any")?;
                match of.is_empty() && (missing || failed) {
                    true => Self::Optional(failed),
                    false => Self::Any {
                        of,
                        missing,
                        failed,
                    },
                }
            }
            Some(RequiresType::RequiresAll(list)) => {
                Self::All(children(&list.requirements, |_| false).at("requires_all")?)
            }
            Some(RequiresType::AllowMissing(_)) => Self::Optional(false),
            Some(RequiresType::AllowMissingOrFailed(_)) => Self::Optional(true),
            Some(RequiresType::ExtractOnlyWithoutValidation(_)) => {
                return Err(ConfigError::unsupported("extract_only_without_validation"));
            }
        })
    }

    /// Whether a request has what is required.
    ///
    /// # Errors
    /// It has not.
    pub fn check(&self, providers: &Providers, round: &mut Round<'_>) -> Result<(), Failure> {
        match self {
            Self::Nothing => Ok(()),
            Self::Provider(number, audiences) => {
                let Some((_, provider)) = providers.all.get(*number) else {
                    return Err(Failure::Issuer);
                };
                let judge = |found: &Found<'_>, round: &mut Round<'_>| {
                    let token = parsed(found)?;
                    provider.judge(found, token, audiences.as_ref(), round)
                };
                every(&provider.locations, round, false, judge)
            }
            Self::Optional(failed) => {
                let judge = |found: &Found<'_>, round: &mut Round<'_>| {
                    let token = parsed(found)?;
                    let provider = providers.of_issuer(&token.issuer).ok_or(Failure::Issuer)?;
                    provider.judge(found, token, None, round)
                };
                match every(&providers.locations, round, true, judge) {
                    Err(Failure::Missing) => Ok(()),
                    Err(_) if *failed => Ok(()),
                    other => other,
                }
            }
            Self::Any {
                of,
                missing,
                failed,
            } => {
                let mut last = Failure::Missing;
                for one in of {
                    match one.check(providers, round) {
                        Ok(()) => return Ok(()),
                        // The better reason: neither a token that is missing nor one of somebody else, or else the latter.
                        Err(failure) => {
                            let weak = matches!(failure, Failure::Missing | Failure::Issuer);
                            if !weak || last == Failure::Missing {
                                last = failure;
                            }
                        }
                    }
                }
                match *failed || *missing && last == Failure::Missing {
                    true => Ok(()),
                    false => Err(last),
                }
            }
            Self::All(all) => all.iter().try_for_each(|one| one.check(providers, round)),
        }
    }
}

fn parsed<'a>(found: &'a Found<'_>) -> Result<Token<'a>, Failure> {
    let token = Token::parse(&found.token)?;
    match found.location.is_for(&token.issuer) {
        true => Ok(token),
        false => Err(Failure::Issuer),
    }
}

/// Judges the tokens of a request from the last to the first. All must be good: a bad one beside a good one would pass to
/// whoever comes next. Where tokens are `optional`, the judgement of the first one is what counts, as in Envoy.
fn every(
    locations: &Locations,
    round: &mut Round<'_>,
    optional: bool,
    judge: impl Fn(&Found<'_>, &mut Round<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut outcome = Err(Failure::Missing);
    for found in locations.find(round.head).iter().rev() {
        outcome = judge(found, round);
        if outcome.is_err() && !optional {
            break;
        }
    }
    outcome
}
