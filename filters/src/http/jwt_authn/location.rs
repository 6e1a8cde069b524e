//! Where in a request tokens are.

use bytestring::ByteString;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::JwtProvider;
use http::header::{AUTHORIZATION, COOKIE, HeaderName};
use percent_encoding::percent_decode_str;
use xds_client::error::{At, ConfigError};

use crate::head::RequestHead;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// A header, from behind this text.
    Header(String, String),
    Parameter(String),
    Cookie(String),
}

/// A place, and whose tokens are looked for there.
#[derive(Debug)]
pub struct Location {
    place: Place,
    /// Where the place is one, the header.
    header: Option<HeaderName>,
    /// Empty: everybody's.
    issuers: Vec<String>,
}

/// A token that was found.
#[derive(Debug)]
pub struct Found<'a> {
    /// As it stands there.
    pub token: String,
    /// Where.
    pub location: &'a Location,
}

/// All places of one provider or of several.
#[derive(Debug)]
pub struct Locations(Vec<Location>);

/// A header's name.
///
/// # Errors
/// It cannot be one.
pub fn header_name(name: &str) -> Result<HeaderName, ConfigError> {
    name.parse()
        .map_err(|_| ConfigError::new("is no header name"))
}

fn places(provider: &JwtProvider) -> Vec<Place> {
    let headers = provider.from_headers.iter();
    let headers =
        headers.map(|h| Place::Header(h.name.to_ascii_lowercase(), h.value_prefix.clone()));
    let parameters = provider.from_params.iter().cloned().map(Place::Parameter);
    let cookies = provider.from_cookies.iter().cloned().map(Place::Cookie);
    let all: Vec<Place> = headers.chain(parameters).chain(cookies).collect();
    match all.is_empty() {
        true => vec![
            Place::Header(AUTHORIZATION.as_str().into(), "Bearer ".into()),
            Place::Parameter("access_token".into()),
        ],
        false => all,
    }
}

impl Locations {
    /// The places of these providers.
    ///
    /// # Errors
    /// A header has an impossible name.
    pub fn of<'a>(providers: impl Iterator<Item = &'a JwtProvider>) -> Result<Self, ConfigError> {
        let mut all: Vec<Location> = Vec::new();
        for provider in providers {
            for place in places(provider) {
                let header = match &place {
                    Place::Header(name, _) => Some(header_name(name).at("from_headers.name")?),
                    _ => None,
                };
                match all.iter_mut().find(|known| known.place == place) {
                    Some(known) if known.issuers.is_empty() => {}
                    Some(known) if provider.issuer.is_empty() => known.issuers.clear(),
                    Some(known) => known.issuers.push(provider.issuer.clone()),
                    None => all.push(Location {
                        place,
                        header,
                        issuers: [provider.issuer.clone()]
                            .into_iter()
                            .filter(|i| !i.is_empty())
                            .collect(),
                    }),
                }
            }
        }
        // The order in which Envoy looks.
        all.sort_by(|a, b| a.place.cmp(&b.place));
        Ok(Self(all))
    }

    /// The tokens of a request.
    pub fn find(&self, head: &RequestHead) -> Vec<Found<'_>> {
        let mut found = Vec::new();
        for location in &self.0 {
            let mut add = |token: String| found.push(Found { token, location });
            match (&location.place, &location.header) {
                (Place::Header(_, prefix), Some(name)) => {
                    let lines = head.headers.get_all(name).iter();
                    let lines = lines.filter_map(|line| std::str::from_utf8(line.as_bytes()).ok());
                    lines.filter_map(|line| behind(line, prefix)).for_each(add);
                }
                (Place::Header(..), None) => {}
                (Place::Parameter(name), _) => {
                    let pairs = head.query().unwrap_or_default().split('&');
                    let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
                    let mut values = pairs.filter(|(key, _)| decoded(key) == *name);
                    if let Some((_, value)) = values.next() {
                        add(decoded(value));
                    }
                }
                (Place::Cookie(name), _) => {
                    if let Some(value) = cookie(head, name) {
                        add(value);
                    }
                }
            }
        }
        found
    }
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// The token behind `prefix`, which may stand anywhere in the line.
fn behind(line: &str, prefix: &str) -> Option<String> {
    let (_, rest) = line.split_once(prefix)?;
    let token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let rest = match (prefix.is_empty(), rest.find(token)) {
        (false, Some(at)) => rest.get(at..).unwrap_or(rest),
        (false, None) => line,
        (true, _) => rest,
    };
    Some(rest.to_owned())
}

fn cookie(head: &RequestHead, name: &str) -> Option<String> {
    let lines = head.headers.get_all(COOKIE).iter();
    let lines = lines.filter_map(|line| std::str::from_utf8(line.as_bytes()).ok());
    let mut pairs = lines
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.find(|(key, _)| *key == name)?;
    let quoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    Some(quoted.unwrap_or(value).to_owned())
}

impl Location {
    /// Whether tokens of this issuer may be there.
    pub fn is_for(&self, issuer: &str) -> bool {
        self.issuers.is_empty() || self.issuers.iter().any(|one| one == issuer)
    }

    /// Takes the place out of a request. Cookies stay, as in Envoy.
    pub fn remove(&self, head: &mut RequestHead) {
        match (&self.place, &self.header) {
            (Place::Header(..), Some(name)) => {
                head.headers.remove(name);
            }
            (Place::Parameter(name), _) => {
                let Some((path, query)) = head.path.split_once('?') else {
                    return;
                };
                let key = |pair: &&str| decoded(pair.split('=').next().unwrap_or(pair)) != *name;
                let rest: Vec<&str> = query.split('&').filter(key).collect();
                head.path = match rest.is_empty() {
                    true => ByteString::from(path.to_owned()),
                    false => ByteString::from(format!("{path}?{}", rest.join("&"))),
                };
            }
            _ => {}
        }
    }
}
