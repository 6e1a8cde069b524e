//! Regular expressions with RE2's meaning.

use std::borrow::Cow;

use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher};
use regex::bytes::{Regex, RegexBuilder};
use xds_client::error::{At, ConfigError};

/// The most memory one compiled expression may take, bytes.
const SIZE_LIMIT: usize = 4 << 20;
/// The longest result of a substitution, bytes; a longer one leaves the input as it is.
const MAX_OUTPUT: usize = 64 << 10;

/// Compiles `pattern`. As in RE2, `\d`, `\w`, `\s` and `\b` are ASCII; patterns that need Unicode
/// (`\p{Greek}`, non-ASCII classes) are compiled with it.
pub(crate) fn build(pattern: &str) -> Result<Regex, ConfigError> {
    let ascii = RegexBuilder::new(pattern)
        .unicode(false)
        .size_limit(SIZE_LIMIT)
        .build();
    let built = match ascii {
        Err(regex::Error::Syntax(_)) => RegexBuilder::new(pattern).size_limit(SIZE_LIMIT).build(),
        other => other,
    };
    built.map_err(|e| {
        // The reason is the error's last line; the rest repeats the pattern.
        let text = e.to_string();
        let last = text.lines().last().unwrap_or_default().trim();
        ConfigError::new(format!("invalid regex {pattern:?}: {last}"))
    })
}

/// An expression that must match the whole input (Envoy's `safe_regex`).
#[derive(Debug, Clone)]
pub struct FullRegex(Regex);

impl FullRegex {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// A pattern that is not valid, or too large.
    pub fn new(pattern: &str) -> Result<Self, ConfigError> {
        // Alone first: `a)(?:b` is no expression, though wrapped it would be.
        build(pattern)?;
        build(&format!(r"\A(?:{pattern})\z")).map(Self)
    }

    /// Compiles Envoy's `RegexMatcher`.
    ///
    /// # Errors
    /// A pattern that is empty, not valid, or too large.
    pub fn compile(config: &RegexMatcher) -> Result<Self, ConfigError> {
        if config.regex.is_empty() {
            return Err(ConfigError::new("must not be empty").at("regex"));
        }
        Self::new(&config.regex).at("regex")
    }

    /// The number of the group of this name.
    pub(super) fn group(&self, name: &str) -> Option<usize> {
        self.0.capture_names().position(|n| n == Some(name))
    }

    /// Whether the whole of `text` matches.
    pub fn is_match(&self, text: &[u8]) -> bool {
        self.0.is_match(text)
    }
}

/// A piece of a replacement.
#[derive(Debug, Clone)]
pub(super) enum Piece {
    Literal(Box<[u8]>),
    Group(usize),
}

/// Envoy's `RegexMatchAndSubstitute`: RE2's `GlobalReplace`, with `\0` to `\9` for groups and `\\`.
#[derive(Debug, Clone)]
pub struct Substitution {
    regex: Regex,
    pieces: Box<[Piece]>,
}

impl Substitution {
    /// Compiles the message.
    ///
    /// # Errors
    /// A pattern that is not valid; a `\` before anything but a digit or `\`; a group that does not exist.
    pub fn compile(config: &RegexMatchAndSubstitute) -> Result<Self, ConfigError> {
        let pattern = config.pattern.as_ref().map_or("", |p| p.regex.as_str());
        if pattern.is_empty() {
            return Err(ConfigError::new("must not be empty").at("pattern.regex"));
        }
        let regex = build(pattern).at("pattern.regex")?;
        let pieces = parse(&config.substitution, regex.captures_len()).at("substitution")?;
        Ok(Self { regex, pieces })
    }

    /// What matches the whole of `pattern` becomes these pieces.
    pub(super) fn whole(pattern: &FullRegex, pieces: Vec<Piece>) -> Self {
        Self {
            regex: pattern.0.clone(),
            pieces: pieces.into(),
        }
    }

    /// Replaces every match in `text`. A result over 64 KiB, or one that is not UTF-8, changes nothing.
    pub fn apply<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut out = Vec::new();
        let mut last = 0;
        for found in self.regex.captures_iter(text.as_bytes()) {
            let Some(all) = found.get(0) else { continue };
            out.extend_from_slice(text.as_bytes().get(last..all.start()).unwrap_or_default());
            for piece in &self.pieces {
                match piece {
                    Piece::Literal(bytes) => out.extend_from_slice(bytes),
                    Piece::Group(n) => {
                        out.extend_from_slice(found.get(*n).map_or(&[][..], |m| m.as_bytes()));
                    }
                }
            }
            last = all.end();
            if out.len() > MAX_OUTPUT {
                return Cow::Borrowed(text);
            }
        }
        if last == 0 && out.is_empty() {
            return Cow::Borrowed(text);
        }
        out.extend_from_slice(text.as_bytes().get(last..).unwrap_or_default());
        String::from_utf8(out).map_or(Cow::Borrowed(text), Cow::Owned)
    }
}

fn parse(text: &str, groups: usize) -> Result<Box<[Piece]>, ConfigError> {
    let mut pieces = Vec::new();
    let mut literal = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            literal.push(byte);
            continue;
        }
        match bytes.next() {
            Some(b'\\') => literal.push(b'\\'),
            Some(digit @ b'0'..=b'9') => {
                let group = usize::from(digit - b'0');
                if group >= groups {
                    return Err(ConfigError::new(format!(
                        "the pattern has no group {group}"
                    )));
                }
                if !literal.is_empty() {
                    pieces.push(Piece::Literal(std::mem::take(&mut literal).into()));
                }
                pieces.push(Piece::Group(group));
            }
            _ => return Err(ConfigError::new(r"'\' must be followed by a digit or '\'")),
        }
    }
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal.into()));
    }
    Ok(pieces.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sub(pattern: &str, substitution: &str) -> Result<Substitution, ConfigError> {
        Substitution::compile(&RegexMatchAndSubstitute {
            pattern: Some(RegexMatcher {
                regex: pattern.into(),
                ..Default::default()
            }),
            substitution: substitution.into(),
        })
    }

    #[test]
    fn full_match_only() {
        let re = FullRegex::new("a|bc").unwrap();
        assert!(re.is_match(b"a") && re.is_match(b"bc"));
        assert!(!re.is_match(b"abc") && !re.is_match(b"a\n"));
        assert!(FullRegex::new("a)(?:b").is_err());
        assert!(FullRegex::new(r"\d+").unwrap().is_match(b"12"));
        assert!(!FullRegex::new(r"\d").unwrap().is_match("٣".as_bytes()));
        assert!(
            FullRegex::new(r"\p{Greek}+")
                .unwrap()
                .is_match("αβ".as_bytes())
        );
        assert!(FullRegex::new("(a{1000}){1000}{1000}").is_err());
    }

    // The examples of route_components.proto for regex_rewrite.
    #[test]
    fn substitutes_as_documented() {
        let s = sub("^/service/([^/]+)(/.*)$", r"\2/instance/\1").unwrap();
        assert_eq!(s.apply("/service/foo/v1/api"), "/v1/api/instance/foo");
        assert_eq!(
            sub("one", "two").unwrap().apply("/xxx/one/yyy/one/zzz"),
            "/xxx/two/yyy/two/zzz"
        );
        assert_eq!(
            sub("^(.*?)one(.*)$", r"\1two\2")
                .unwrap()
                .apply("/xxx/one/yyy/one/zzz"),
            "/xxx/two/yyy/one/zzz"
        );
        assert_eq!(
            sub("(?i)/xxx/", "/yyy/").unwrap().apply("/aaa/XxX/bbb"),
            "/aaa/yyy/bbb"
        );
        assert_eq!(sub("^/get(/?)(.*)", r"/\2").unwrap().apply("/get/a"), "/a");
        assert!(sub("a", r"\1").is_err());
        assert!(sub("a", r"\x").is_err());
    }
}
