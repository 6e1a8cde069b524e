//! What must hold of a path's rewrite by a regular expression, whatever the expression, its substitution and the path.

use envoy_types::pb::envoy::config::route::v3::{RouteMatch, route_match::PathSpecifier};
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher};
use fairway::router::rewrite::{MatchedPath, PathRewrite};
use regex::bytes::{Captures, RegexBuilder};

fn rewrite(pattern: &str, substitution: &str) -> Option<PathRewrite> {
    let pattern = RegexMatcher {
        regex: pattern.into(),
        ..Default::default()
    };
    let proto = RegexMatchAndSubstitute {
        pattern: Some(pattern),
        substitution: substitution.into(),
    };
    PathRewrite::regex(&proto).ok()
}

/// The first two 0xff part expression, substitution and path. The query stays as it is, and what is before it becomes
/// what the library that finds the matches makes of it; the whole match in place of the match changes nothing.
pub fn rewritten(data: &[u8]) {
    let mut parts = data.splitn(3, |b| *b == 0xff).map(String::from_utf8_lossy);
    let (Some(pattern), Some(substitution), Some(path)) =
        (parts.next(), parts.next(), parts.next())
    else {
        return;
    };
    let matched = MatchedPath::compile(&RouteMatch {
        path_specifier: Some(PathSpecifier::Prefix("/".into())),
        ..Default::default()
    });
    let matched = matched.unwrap_or_else(|error| panic!("{error}"));
    if let Some(same) = rewrite(&pattern, r"\0") {
        assert_eq!(same.apply(&path, &matched), path);
    }
    let Some(rewrite) = rewrite(&pattern, &substitution) else {
        return;
    };
    let only = path.split(['?', '#']).next().unwrap_or_default();
    let (told, query) = (rewrite.apply(&path, &matched), &path[only.len()..]);
    assert!(told.ends_with(query));
    let ascii = RegexBuilder::new(&pattern).unicode(false).build();
    let regex = ascii.or_else(|_| RegexBuilder::new(&pattern).build());
    let regex = regex.unwrap_or_else(|error| panic!("{error}"));
    let expanded = |found: &Captures<'_>| {
        let mut bytes = substitution.bytes();
        let mut out = Vec::new();
        while let Some(byte) = bytes.next() {
            match (byte, if byte == b'\\' { bytes.next() } else { None }) {
                (b'\\', Some(digit @ b'0'..=b'9')) => {
                    let group = found.get(usize::from(digit - b'0'));
                    out.extend_from_slice(group.map_or(&[], |group| group.as_bytes()));
                }
                _ => out.push(byte),
            }
        }
        out
    };
    let wanted = regex.replace_all(only.as_bytes(), expanded);
    let wanted = match std::str::from_utf8(&wanted) {
        Ok(wanted) if wanted.len() <= 64 << 10 => wanted,
        // Longer than a path may become, or no text.
        _ => return,
    };
    assert_eq!(told, format!("{wanted}{query}"));
}
