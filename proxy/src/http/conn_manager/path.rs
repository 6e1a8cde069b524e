//! Path normalisation (RFC 3986, 6.2.2, with the URL Standard's view of dots and backslashes, as Envoy's
//! `normalize_path`, `merge_slashes` and `path_with_escaped_slashes_action`).

use bytestring::ByteString;

/// What to do with `%2F` and `%5C` in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum EscapedSlashes {
    /// Leave them.
    #[default]
    Keep,
    /// Answer 400.
    Reject,
    /// Unescape, and send the client to the result.
    Redirect,
    /// Unescape and go on.
    Forward,
}

/// The path rules of a connection manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct PathRules {
    pub(super) normalize: bool,
    pub(super) merge_slashes: bool,
    pub(super) escaped_slashes: EscapedSlashes,
    /// Answer 400 to a fragment instead of cutting it off: none is ever part of a request target
    /// (RFC 9110, 7.1; the runtime feature `http_reject_path_with_fragment`).
    pub(super) reject_fragment: bool,
}

/// What became of a path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// As it was.
    Unchanged,
    /// Normalised.
    Changed(ByteString),
    /// The client shall ask for this path instead (307).
    Redirect(ByteString),
    /// 400, `path_normalization_failed`.
    Reject,
}

impl PathRules {
    /// Applies the rules to a path with its query.
    pub(super) fn apply(self, full: &str) -> Outcome {
        let Some((kept, _)) = full.split_once('#') else {
            return self.apply_to_path(full);
        };
        if self.reject_fragment {
            return Outcome::Reject;
        }
        match self.apply_to_path(kept) {
            Outcome::Unchanged => Outcome::Changed(kept.into()),
            outcome => outcome,
        }
    }

    fn apply_to_path(self, full: &str) -> Outcome {
        let idle =
            !self.normalize && !self.merge_slashes && self.escaped_slashes == EscapedSlashes::Keep;
        if idle || !full.starts_with('/') {
            return Outcome::Unchanged;
        }
        let end = full.find('?').unwrap_or(full.len());
        let (path, rest) = full.split_at(end);
        // Most paths need nothing, and say so in one scan.
        if !path.bytes().any(|b| b == b'%' || b == b'\\' || b >= 0x7f)
            && !path.contains("//")
            && !path.contains("/.")
        {
            return Outcome::Unchanged;
        }
        let mut bytes = path.as_bytes().to_vec();
        let mut unescaped = false;
        if self.escaped_slashes != EscapedSlashes::Keep {
            let plain = unescape_slashes(&bytes);
            unescaped = plain != bytes;
            if unescaped && self.escaped_slashes == EscapedSlashes::Reject {
                return Outcome::Reject;
            }
            bytes = plain;
        }
        if self.normalize {
            match decode_unreserved(&bytes) {
                Some(decoded) => bytes = remove_dot_segments(&decoded),
                None => return Outcome::Reject,
            }
        }
        if self.merge_slashes {
            bytes.dedup_by(|a, b| *a == b'/' && *b == b'/');
        }
        if bytes == path.as_bytes() {
            return Outcome::Unchanged;
        }
        let Ok(mut text) = String::from_utf8(bytes) else {
            return Outcome::Reject;
        };
        text.push_str(rest);
        if unescaped && self.escaped_slashes == EscapedSlashes::Redirect {
            Outcome::Redirect(text.into())
        } else {
            Outcome::Changed(text.into())
        }
    }
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte)
        .to_digit(16)
        .and_then(|d| u8::try_from(d).ok())
}

/// The octet that an escape at the start of `bytes` stands for.
fn escape_at(bytes: &[u8]) -> Option<u8> {
    match bytes {
        [b'%', high, low, ..] => Some(hex(*high)? << 4 | hex(*low)?),
        _ => None,
    }
}

/// Decodes escapes of unreserved characters (RFC 3986, 2.3), turns backslashes into slashes, escapes what
/// may not stand in a path. `None` for an escaped NUL.
fn decode_unreserved(path: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, tail)) = rest.split_first() {
        match escape_at(rest) {
            Some(0) => return None,
            Some(octet)
                if octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'.' | b'_' | b'~') =>
            {
                out.push(octet);
                rest = rest.get(3..).unwrap_or_default();
                continue;
            }
            Some(_) => {
                out.extend_from_slice(rest.get(..3).unwrap_or_default());
                rest = rest.get(3..).unwrap_or_default();
                continue;
            }
            None => {}
        }
        match first {
            b'\\' => out.push(b'/'),
            b'"' | b'<' | b'>' | b'`' | b'{' | b'}' | b'^' | b' ' | 0x7f.. => {
                out.extend_from_slice(format!("%{first:02X}").as_bytes());
            }
            _ => out.push(first),
        }
        rest = tail;
    }
    Some(out)
}

fn unescape_slashes(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, tail)) = rest.split_first() {
        match escape_at(rest) {
            Some(b'/' | b'\\') => {
                out.push(b'/');
                rest = rest.get(3..).unwrap_or_default();
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

/// RFC 3986, 5.2.4. The result always begins with a slash.
fn remove_dot_segments(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut segments = path.split(|b| *b == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"." => {}
            b".." => {
                let parent = out.iter().rposition(|b| *b == b'/').unwrap_or(0);
                out.truncate(parent);
            }
            other => {
                out.push(b'/');
                out.extend_from_slice(other);
                continue;
            }
        }
        if last {
            out.push(b'/');
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(rules: PathRules, path: &str) -> String {
        match rules.apply(path) {
            Outcome::Unchanged => path.to_owned(),
            Outcome::Changed(to) => to.to_string(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn normalisation_follows_rfc_3986() {
        let rules = PathRules {
            normalize: true,
            ..PathRules::default()
        };
        for (from, to) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/./b/..", "/a/"),
            ("/../../x", "/x"),
            ("/..", "/"),
            ("/.", "/"),
            ("/a/%2e%2e/b?x=/../y", "/b?x=/../y"),
            ("/a\\b", "/a/b"),
            ("/%41%7e%2Fz", "/A~%2Fz"),
            ("/a//b", "/a//b"),
            ("/bad%zz/../escape", "/escape"),
            ("/.well-known/x", "/.well-known/x"),
            ("*", "*"),
        ] {
            assert_eq!(changed(rules, from), to, "{from}");
        }
        assert_eq!(rules.apply("/a%00b"), Outcome::Reject);
    }

    #[test]
    fn fragments_are_cut_off_or_refused() {
        let mut rules = PathRules::default();
        assert_eq!(changed(rules, "/a?b#c?d"), "/a?b");
        assert_eq!(changed(rules, "/#"), "/");
        rules.reject_fragment = true;
        assert_eq!(rules.apply("/a?b#c"), Outcome::Reject);
        assert_eq!(rules.apply("/a?b"), Outcome::Unchanged);
    }

    #[test]
    fn slashes_are_merged_only_in_the_path() {
        let rules = PathRules {
            merge_slashes: true,
            ..PathRules::default()
        };
        assert_eq!(changed(rules, "//a///b//?q=//"), "/a/b/?q=//");
    }

    #[test]
    fn escaped_slashes_follow_their_action() {
        let mut rules = PathRules {
            normalize: true,
            ..PathRules::default()
        };
        assert_eq!(changed(rules, "/a%2fb"), "/a%2fb");
        rules.escaped_slashes = EscapedSlashes::Reject;
        assert_eq!(rules.apply("/a%2fb"), Outcome::Reject);
        rules.escaped_slashes = EscapedSlashes::Redirect;
        assert_eq!(rules.apply("/a%5Cb?x"), Outcome::Redirect("/a/b?x".into()));
        rules.escaped_slashes = EscapedSlashes::Forward;
        assert_eq!(changed(rules, "/a%2f..%2fb"), "/b");
    }
}
