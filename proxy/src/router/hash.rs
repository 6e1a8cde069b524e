//! The hash of a request, by its route's `hash_policy`, for clusters that choose hosts by it.
//!
//! Envoy: `HashPolicyImpl`. The same bytes are hashed in the same way, so that both choose the same host.

use std::borrow::Cow;

use filters::head::{RequestHead, ResponseHead};
use filters::matcher::{cookie, query};
use filters::stream::StreamInfo;
use http::{HeaderValue, header};
use smallvec::SmallVec;
use xxhash_rust::xxh64::xxh64;

use super::action::{HashPolicy, HashSource};

/// A request's hash.
#[derive(Debug, Default)]
pub(super) struct RequestHash {
    /// None if no policy found anything to hash.
    pub(super) hash: Option<u64>,
    /// Cookies that were made for the client, for the response.
    cookies: Vec<HeaderValue>,
}

impl RequestHash {
    /// Hashes a request.
    pub(super) fn of(policies: &[HashPolicy], head: &RequestHead, info: &StreamInfo) -> Self {
        let mut made = Self::default();
        for policy in policies {
            if let Some(new) = made.one(&policy.source, head, info) {
                // Turned, so that two equal hashes do not cancel each other out.
                let old = made.hash.map_or(0, |hash| hash.rotate_left(1));
                made.hash = Some(old ^ new);
            }
            if policy.terminal && made.hash.is_some() {
                break;
            }
        }
        made
    }

    fn one(&mut self, source: &HashSource, head: &RequestHead, info: &StreamInfo) -> Option<u64> {
        match source {
            HashSource::Header(name, rewrite) => {
                let mut values: SmallVec<[Cow<'_, [u8]>; 1]> =
                    name.lines_in_request(head).map(Cow::Borrowed).collect();
                if values.is_empty() {
                    return None;
                }
                if let Some(rewrite) = rewrite {
                    for value in &mut values {
                        let text = String::from_utf8_lossy(value);
                        *value = rewrite.apply(&text).into_owned().into_bytes().into();
                    }
                }
                // The order of the lines makes no difference.
                values.sort();
                let chained = values.iter().fold(0, |seed, value| xxh64(value, seed));
                Some(chained)
            }
            HashSource::Cookie {
                name,
                ttl,
                path,
                attributes,
            } => {
                let value = cookie::value_of(head, name).filter(|value| !value.is_empty());
                if let Some(value) = value {
                    return Some(xxh64(value.as_bytes(), 0));
                }
                let ttl = (*ttl)?;
                // By the connection, so that requests that race get the same cookie.
                let connection = &info.connection;
                let place = format!("{}{}", connection.remote, connection.local);
                let value = format!("{:016x}", xxh64(place.as_bytes(), 0));
                let mut text = format!("{name}=\"{value}\"");
                if !ttl.is_zero() {
                    text.push_str(&format!("; Max-Age={}", ttl.as_secs()));
                }
                if !path.is_empty() {
                    text.push_str(&format!("; Path={path}"));
                }
                for (name, value) in attributes {
                    text.push_str(&match value.as_str() {
                        "" => format!("; {name}"),
                        value => format!("; {name}={value}"),
                    });
                }
                text.push_str("; HttpOnly");
                self.cookies.extend(HeaderValue::try_from(text));
                Some(xxh64(value.as_bytes(), 0))
            }
            HashSource::SourceIp => {
                let ip = info.remote.ip()?.ip();
                Some(xxh64(ip.to_string().as_bytes(), 0))
            }
            HashSource::QueryParameter(name) => {
                let value = query::parameter(head.query()?, name)?;
                Some(xxh64(value.as_bytes(), 0))
            }
            HashSource::FilterState(key) => Some(xxh64(info.filter_state.text(key)?.as_bytes(), 0)),
        }
    }

    /// Gives the client the cookies that were made for it.
    pub(super) fn set_cookies(self, head: &mut ResponseHead) {
        for cookie in self.cookies {
            head.headers.append(header::SET_COOKIE, cookie);
        }
    }
}
