//! Operators that read the request's path, its query and its host.

use std::borrow::Cow;

use http::HeaderName;
use xds_client::error::ConfigError;

use super::FormatContext;
use crate::head::RequestHead;

const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");

/// Where a path or a host is taken from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    Original,
    Current,
    /// The original, if it is known.
    Either,
}

/// What of a request is printed.
#[derive(Debug, Clone)]
pub(super) enum RequestFact {
    Path {
        query: bool,
        from: Source,
    },
    Parameter(Box<str>),
    Query {
        decoded: bool,
    },
    ServerName {
        host_first: bool,
        host: Option<Source>,
    },
}

impl RequestFact {
    /// Compiles an operator; `None` if it is not one of these.
    ///
    /// # Errors
    /// An argument that it does not know.
    pub(super) fn compile(name: &str, argument: Option<&str>) -> Result<Option<Self>, ConfigError> {
        let unknown = |option: &str| {
            Err(ConfigError::new(format!(
                "invalid {name} option: '{option}'"
            )))
        };
        let argument = argument.unwrap_or_default();
        let (first, second) = argument.split_once(':').unwrap_or((argument, ""));
        let source = |current: &str, either: &str| match second {
            "ORIG" => Ok(Source::Original),
            "" => Ok(Source::Either),
            other if other == current => Ok(Source::Current),
            other if other == either => Ok(Source::Either),
            other => unknown(other).map(|_: ()| Source::Either),
        };
        Ok(Some(match (name, first) {
            ("PATH", "WQ" | "" | "NQ") => Self::Path {
                query: first != "NQ",
                from: source("PATH", "ORIG_OR_PATH")?,
            },
            ("QUERY_PARAM", _) => Self::Parameter(argument.into()),
            ("QUERY_PARAMS", "" | "ORIG" | "DECODED") => Self::Query {
                decoded: first == "DECODED",
            },
            ("REQUESTED_SERVER_NAME", "" | "SNI_ONLY" | "SNI_FIRST" | "HOST_FIRST") => {
                let host = source("HOST", "ORIG_OR_HOST")?;
                Self::ServerName {
                    host_first: first == "HOST_FIRST",
                    host: first.ends_with("_FIRST").then_some(host),
                }
            }
            ("PATH" | "QUERY_PARAMS" | "REQUESTED_SERVER_NAME", option) => {
                return unknown(option).map(|(): ()| None);
            }
            _ => return Ok(None),
        }))
    }

    pub(super) fn value<'a>(&self, cx: &FormatContext<'a>) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Path { query, from } => {
                let head = cx.request?;
                let path = from.of(head, &ORIGINAL_PATH, &head.path)?;
                let end = memchr::memchr(b'?', path).filter(|_| !query);
                Some(Cow::Borrowed(path.get(..end.unwrap_or(path.len()))?))
            }
            Self::Parameter(name) => {
                let mut pairs = cx.request?.query()?.split('&').map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), value)
                });
                let (_, value) = pairs.find(|(found, _)| **found == *name.as_bytes())?;
                Some(decode(value))
            }
            Self::Query { decoded } => {
                let query = cx.request?.query()?;
                Some(match decoded {
                    true => Cow::Owned(decode_query(query)),
                    false => Cow::Borrowed(query.as_bytes()),
                })
            }
            Self::ServerName { host_first, host } => {
                let of_host = || {
                    let head = cx.request?;
                    (*host)?.of(head, &ORIGINAL_HOST, &head.authority)
                };
                let name = cx.info.connection.server_name.as_deref();
                let name = name.filter(|n| !n.is_empty()).map(str::as_bytes);
                match host_first {
                    true => of_host(),
                    false => name.or_else(of_host),
                }
                .map(Cow::Borrowed)
            }
        }
    }
}

impl Source {
    fn of<'a>(
        self,
        head: &'a RequestHead,
        original: &HeaderName,
        now: &'a str,
    ) -> Option<&'a [u8]> {
        let original = || head.headers.get(original).map(http::HeaderValue::as_bytes);
        let now = Some(now.as_bytes()).filter(|now| !now.is_empty());
        match self {
            Self::Original => original(),
            Self::Current => now,
            Self::Either => original().or(now),
        }
    }
}

fn decode(text: &str) -> Cow<'_, [u8]> {
    percent_encoding::percent_decode_str(text).into()
}

/// Decodes as Envoy does for this operator: only what may stand in a URL, and a percent sign that begins nothing is lost
/// unless it is one of the last two bytes.
fn decode_query(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let (b'%', [high, low, beyond @ ..]) = (byte, after) else {
            out.push(byte);
            continue;
        };
        let digit = |b: u8| {
            char::from(b)
                .to_digit(16)
                .and_then(|d| u8::try_from(d).ok())
        };
        let Some((h, l)) = digit(*high).zip(digit(*low)) else {
            continue;
        };
        let decoded = h * 16 + l;
        if decoded.is_ascii_graphic() && !br#""<>\^{|}"#.contains(&decoded) {
            out.push(decoded);
        } else {
            out.extend_from_slice(&[b'%', *high, *low]);
        }
        rest = beyond;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded_as_in_envoy() {
        let decoded = |text| String::from_utf8(decode_query(text)).unwrap();
        assert_eq!(decoded("a=b%2Fc%3d&c=%zz#f"), "a=b/c=&c=zz#f");
        assert_eq!(decoded("b=%20two&c=x+y%2"), "b=%20two&c=x+y%2");
        assert_eq!(decoded("%7c%5C%41%ff%"), "%7c%5CA%ff%");
    }
}
