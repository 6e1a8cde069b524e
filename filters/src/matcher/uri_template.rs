//! `envoy.extensions.path.match.uri_template.v3`: paths by template, `/a/*/{name}/{rest=b/**}`.

use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use xds_client::error::{At, ConfigError};

use super::regex::FullRegex;

/// What a literal is made of: RFC 3986's pchar without `*`.
const LITERAL: &str = r"a-zA-Z0-9\-._~%!$&'()+,;:@=";
/// The most variables of a template.
const MAX_VARIABLES: usize = 5;
/// The longest name of a variable.
const MAX_NAME: usize = 16;

type Result<T> = std::result::Result<T, ConfigError>;

/// A compiled template.
#[derive(Debug)]
pub struct UriTemplate(FullRegex);

impl UriTemplate {
    /// Compiles the message.
    ///
    /// # Errors
    /// Not a template: literals, `*` for a segment, `**` for any number of them, and up to five variables, with
    /// nothing but literals behind `**`.
    pub fn compile(proto: &UriTemplateMatchConfig) -> Result<Self> {
        Self::new(&proto.path_template).at("path_template")
    }

    fn new(template: &str) -> Result<Self> {
        let printable = template.bytes().all(|b| b.is_ascii_graphic());
        let Some(rest) = template.strip_prefix('/').filter(|_| printable) else {
            return Err(ConfigError::new("must be printable and begin with a slash"));
        };
        let mut parser = Parser {
            rest,
            names: Vec::new(),
            open_end: false,
            regex: "/".to_owned(),
        };
        parser.segments()?;
        FullRegex::new(&parser.regex).map(Self)
    }

    /// Whether a path, without its query, fits.
    pub fn matches(&self, path: &str) -> bool {
        self.0.is_match(path.as_bytes())
    }
}

struct Parser<'a> {
    rest: &'a str,
    names: Vec<&'a str>,
    /// `**` has come.
    open_end: bool,
    regex: String,
}

impl<'a> Parser<'a> {
    fn segments(&mut self) -> Result<()> {
        while !self.rest.is_empty() {
            if self.rest.starts_with('{') {
                self.variable()?;
            } else {
                self.rest = self.segment(self.rest)?;
            }
            if let Some(next) = self.rest.strip_prefix('/') {
                self.regex.push('/');
                self.rest = next;
            } else if !self.rest.is_empty() {
                // What stands directly behind a glob or a variable is the end of the template.
                self.rest = self.literal(self.rest)?;
                if !self.rest.is_empty() {
                    return Err(ConfigError::new("a suffix must be at the end"));
                }
            }
        }
        Ok(())
    }

    /// `{name}` or `{name=segments}`.
    fn variable(&mut self) -> Result<()> {
        let inner = self.rest.strip_prefix('{').and_then(|r| r.split_once('}'));
        let (inner, rest) = inner.ok_or_else(|| ConfigError::new("a bracket without its other"))?;
        let (name, pattern) = inner
            .split_once('=')
            .map_or((inner, None), |(name, pattern)| (name, Some(pattern)));
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let well_formed = name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.bytes().all(word)
            && name.len() <= MAX_NAME;
        if !well_formed || self.names.contains(&name) || self.names.len() == MAX_VARIABLES {
            let reason = format!("{name:?} is no name, not the only one, or one too many");
            return Err(ConfigError::new(reason));
        }
        self.names.push(name);
        self.rest = rest;
        let mut pattern = pattern.unwrap_or("*");
        loop {
            pattern = self.segment(pattern)?;
            match pattern.strip_prefix('/') {
                Some(next) => {
                    self.regex.push('/');
                    pattern = next;
                }
                None if pattern.is_empty() => return Ok(()),
                None => return Err(ConfigError::new(format!("{pattern:?} is no segment"))),
            }
        }
    }

    /// A glob or a literal; what follows it.
    fn segment(&mut self, text: &'a str) -> Result<&'a str> {
        let Some(rest) = text.strip_prefix('*') else {
            return self.literal(text);
        };
        if self.open_end {
            return Err(ConfigError::new("a glob behind `**`"));
        }
        let (rest, glob) = match rest.strip_prefix('*') {
            Some(rest) => (rest, format!("[{LITERAL}/]*")),
            None => (rest, format!("[{LITERAL}]+")),
        };
        self.open_end = glob.ends_with("/]*");
        self.regex.push_str(&glob);
        Ok(rest)
    }

    fn literal(&mut self, text: &'a str) -> Result<&'a str> {
        let (literal, rest) = text.split_at(text.find('/').unwrap_or(text.len()));
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&b);
        if literal.is_empty() || !literal.bytes().all(allowed) {
            return Err(ConfigError::new(format!("{literal:?} is no literal")));
        }
        self.regex.push_str(&regex::escape(literal));
        Ok(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_globs_and_variables() {
        for (template, yes, no) in [
            ("/a/b", &["/a/b"][..], &["/a/b/", "/a", "/a/bb", "/A/b"][..]),
            ("/", &["/"], &["", "/a"]),
            ("/a/", &["/a/"], &["/a"]),
            ("/a.b", &["/a.b"], &["/axb"]),
            (
                "/a/*/c",
                &["/a/b/c", "/a/%2F/c"],
                &["/a//c", "/a/b/b/c", "/a/*/c"],
            ),
            ("/a/**", &["/a/", "/a/b", "/a/b/c"], &["/a", "/b/"]),
            ("/a/**/z", &["/a/b/c/z", "/a//z"], &["/a/z", "/a/b"]),
            ("/*.js", &["/x.js"], &["/.js", "/a/x.js", "/xjs"]),
            (
                "/{a}/{b=x/*}/{c=**}",
                &["/1/x/2/", "/1/x/2/3/4"],
                &["/1/y/2/", "/1/x/"],
            ),
            ("/{a}.txt", &["/b.txt"], &["/btxt"]),
        ] {
            let compiled = UriTemplate::new(template).unwrap();
            for path in yes {
                assert!(compiled.matches(path), "{template} {path}");
            }
            for path in no {
                assert!(!compiled.matches(path), "{template} {path}");
            }
        }
    }

    #[test]
    fn what_is_no_template() {
        for template in [
            "",
            "a",
            "/a b",
            "/a//b",
            "/{",
            "/{a",
            "/{}",
            "/{*}",
            "/{1a}",
            "/{a=}",
            "/{a=b//c}",
            "/{a=b/}",
            "/a}",
            "/**/*",
            "/**/{a}",
            "/{a=**}/{b=*}",
            "/{a}/{a}",
            "/{a23456789012345678}",
            "/*a/b",
            "/a*",
            "/a[b",
            "/{a}/{b}/{c}/{d}/{e}/{f}",
            "/{a=*b}",
            "/\u{e9}",
        ] {
            assert!(UriTemplate::new(template).is_err(), "{template}");
        }
    }
}
