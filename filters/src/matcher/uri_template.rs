//! `envoy.extensions.path.match.uri_template.v3` and `envoy.extensions.path.rewrite.uri_template.v3`: paths by template,
//! `/a/*/{name}/{rest=b/**}`, and new paths of what its variables stand for.

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use envoy_types::pb::envoy::extensions::path::rewrite::uri_template::v3::UriTemplateRewriteConfig;
use prost::{Message, Name};
use xds_client::any;
use xds_client::error::{At, ConfigError};

use super::regex::{FullRegex, Piece, Substitution};

/// What a literal is made of: RFC 3986's pchar without `*`.
const LITERAL: &str = r"a-zA-Z0-9\-._~%!$&'()+,;:@=";
/// The most variables of a template.
const MAX_VARIABLES: usize = 5;
/// The longest name of a variable.
const MAX_NAME: usize = 16;

type Result<T> = std::result::Result<T, ConfigError>;

/// A compiled template.
#[derive(Debug, Clone)]
pub struct UriTemplate {
    regex: FullRegex,
    text: Box<str>,
}

impl UriTemplate {
    /// Compiles the message.
    ///
    /// # Errors
    /// Not a template: literals, `*` for a segment, `**` for any number of them, and up to five variables, with
    /// nothing but literals behind `**`.
    pub fn compile(proto: &UriTemplateMatchConfig) -> Result<Self> {
        Self::new(&proto.path_template).at("path_template")
    }

    /// Compiles it where it stands as an extension.
    ///
    /// # Errors
    /// Another extension, or as [`compile`](Self::compile).
    pub fn of_extension(config: &TypedExtensionConfig) -> Result<Self> {
        let compiled = unpack(config).and_then(|proto| Self::compile(&proto));
        compiled.at("typed_config")
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
        Ok(Self {
            regex: FullRegex::new(&parser.regex)?,
            text: template.into(),
        })
    }

    /// Whether a path, without its query, fits.
    pub fn matches(&self, path: &str) -> bool {
        self.regex.is_match(path.as_bytes())
    }

    /// The text that every path which fits begins with.
    pub fn literal_prefix(&self) -> &str {
        self.text.split(['*', '{']).next().unwrap_or_default()
    }

    /// Compiles a rewrite of the paths that fit, which stands as an extension.
    ///
    /// # Errors
    /// Another extension; it does not begin with a slash, has two of them in a row, characters that no path has, or variables that this
    /// template does not have.
    pub fn rewrite(&self, config: &TypedExtensionConfig) -> Result<Substitution> {
        let pieces = unpack(config).and_then(|proto: UriTemplateRewriteConfig| {
            let pieces = self.pieces(&proto.path_template_rewrite);
            pieces.at("path_template_rewrite")
        });
        let pieces = pieces.at("typed_config")?;
        Ok(Substitution::whole(&self.regex, pieces))
    }

    fn pieces(&self, mut text: &str) -> Result<Vec<Piece>> {
        if !text.starts_with('/') || text.contains("//") {
            let reason = "must begin with a slash, and have no two in a row";
            return Err(ConfigError::new(reason));
        }
        let mut pieces = Vec::new();
        loop {
            let (literal, rest) = text.split_at(text.find('{').unwrap_or(text.len()));
            if !literal.bytes().all(|b| b == b'/' || is_literal(b)) {
                return Err(ConfigError::new(format!("{literal:?} is no literal")));
            }
            if !literal.is_empty() {
                pieces.push(Piece::Literal(literal.as_bytes().into()));
            }
            let Some(rest) = rest.strip_prefix('{') else {
                return Ok(pieces);
            };
            let variable = rest.split_once('}');
            let (name, rest) =
                variable.ok_or_else(|| ConfigError::new("a bracket without its other"))?;
            let group = self.regex.group(name);
            let group =
                group.ok_or_else(|| ConfigError::new(format!("there is no variable {name:?}")))?;
            pieces.push(Piece::Group(group));
            text = rest;
        }
    }
}

/// Whether a literal may have this byte.
fn is_literal(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&byte)
}

fn unpack<M: Message + Name + Default>(config: &TypedExtensionConfig) -> Result<M> {
    let config = config.typed_config.as_ref();
    let config = config.ok_or_else(|| ConfigError::new("value is required"))?;
    any::unpack(config)
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
        self.regex.push_str(&format!("(?P<{name}>"));
        let mut pattern = pattern.unwrap_or("*");
        loop {
            pattern = self.segment(pattern)?;
            match pattern.strip_prefix('/') {
                Some(next) => {
                    self.regex.push('/');
                    pattern = next;
                }
                None if pattern.is_empty() => {
                    self.regex.push(')');
                    return Ok(());
                }
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
            Some(rest) => (rest, format!("[{LITERAL}*/]*")),
            None => (rest, format!("[{LITERAL}*]+")),
        };
        self.open_end = glob.ends_with("/]*");
        self.regex.push_str(&glob);
        Ok(rest)
    }

    fn literal(&mut self, text: &'a str) -> Result<&'a str> {
        let (literal, rest) = text.split_at(text.find('/').unwrap_or(text.len()));
        if literal.is_empty() || !literal.bytes().all(is_literal) {
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
                &["/a/b/c", "/a/%2F/c", "/a/*/c"],
                &["/a//c", "/a/b/b/c", "/a/|/c"],
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
    fn variables_come_in_any_order_and_number() {
        let path = |template: &str, rewrite: &str, path: &str| {
            let proto = any::pack(&UriTemplateRewriteConfig {
                path_template_rewrite: rewrite.into(),
            });
            let config = TypedExtensionConfig {
                typed_config: Some(proto),
                ..Default::default()
            };
            let rewrite = UriTemplate::new(template).unwrap().rewrite(&config)?;
            Ok::<_, ConfigError>(rewrite.apply(path).into_owned())
        };
        for (template, rewrite, from, to) in [
            ("/{a}/{b}", "/{b}/{a}", "/cat/dog", "/dog/cat"),
            ("/v/{lang=l/*}/*", "/{lang}", "/v/l/en/x.m4s", "/l/en"),
            (
                "/c/{f}/{l}/{i}/{n}.vtt",
                "/{l}/{f}/{n}.vtt",
                "/c/h/e/1/x.vtt",
                "/e/h/x.vtt",
            ),
            ("/{a}/{rest=**}", "/x{rest}{a}{a}", "/1/2/3", "/x2/311"),
            ("/a", "/b", "/a", "/b"),
            // A filter has changed the path.
            ("/a/{b}", "/{b}", "/other", "/other"),
        ] {
            assert_eq!(path(template, rewrite, from).unwrap(), to, "{template}");
        }
        for rewrite in ["", "a", "/{b}", "/{a", "/a//b", "/a b", "/}", "/{}", "/*"] {
            assert!(path("/{a}", rewrite, "/").is_err(), "{rewrite}");
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
