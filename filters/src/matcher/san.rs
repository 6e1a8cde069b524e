//! Matching a peer's subject alternative names.

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::SubjectAltNameMatcher;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher as StringMatcherProto;
use xds_client::error::{At, ConfigError};

use super::string::StringMatcher;
use crate::tls::CertificateFacts;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Email,
    Dns,
    Uri,
    Ip,
    Other,
}

/// One of the names that are accepted. A peer needs one that one matcher accepts.
#[derive(Debug, Clone)]
pub struct SanMatcher {
    /// Every kind if unset, for the untyped field.
    kind: Option<Kind>,
    /// Which other names are meant, as a dotted object identifier.
    oid: String,
    matcher: StringMatcher,
}

impl SanMatcher {
    /// Compiles `match_typed_subject_alt_names`.
    ///
    /// # Errors
    /// A bad pattern, or a kind of name that is not supported.
    pub fn compile(proto: &SubjectAltNameMatcher) -> Result<Self, ConfigError> {
        let kind = match proto.san_type() {
            SanType::Email => Kind::Email,
            SanType::Dns => Kind::Dns,
            SanType::Uri => Kind::Uri,
            SanType::IpAddress => Kind::Ip,
            SanType::OtherName => Kind::Other,
            SanType::Unspecified => {
                return Err(ConfigError::new("value is required").at("san_type"));
            }
        };
        if kind == Kind::Other && !is_oid(&proto.oid) {
            // Envoy takes it, and no name ever fits.
            let reason = format!("'{}' is no object identifier", proto.oid);
            return Err(ConfigError::new(reason).at("oid"));
        }
        let matcher = proto
            .matcher
            .as_ref()
            .ok_or_else(|| ConfigError::new("value is required"))
            .and_then(StringMatcher::compile)
            .at("matcher")?;
        Ok(Self {
            kind: Some(kind),
            oid: proto.oid.clone(),
            matcher,
        })
    }

    /// Compiles `match_subject_alt_names`, which every kind of name may satisfy.
    ///
    /// # Errors
    /// A bad pattern.
    pub fn compile_untyped(proto: &StringMatcherProto) -> Result<Self, ConfigError> {
        Ok(Self {
            kind: None,
            oid: String::new(),
            matcher: StringMatcher::compile(proto)?,
        })
    }

    /// A DNS name that must be covered exactly or by a wildcard.
    pub fn dns(name: &str) -> Self {
        Self {
            kind: Some(Kind::Dns),
            oid: String::new(),
            matcher: StringMatcher::exact(name),
        }
    }

    /// Whether a certificate has such a name.
    pub fn matches(&self, facts: &CertificateFacts) -> bool {
        let wants = |kind| self.kind.is_none_or(|k| k == kind);
        let any = |names: &[String]| names.iter().any(|n| self.matcher.matches(n));
        wants(Kind::Uri) && any(&facts.uri_sans)
            || wants(Kind::Dns) && facts.dns_sans.iter().any(|n| self.matches_dns(n))
            || wants(Kind::Email) && any(&facts.email_sans)
            || wants(Kind::Ip) && any(&facts.ip_sans)
            || self.kind == Some(Kind::Other)
                && facts.other_sans.iter().any(|n| self.matches_other(n))
    }

    fn matches_other(&self, (oid, text): &(String, String)) -> bool {
        *oid == self.oid && self.matcher.matches(text)
    }

    /// A certificate's DNS name may be a wildcard, which covers an exact name that is asked for.
    fn matches_dns(&self, name: &str) -> bool {
        match self
            .matcher
            .as_exact()
            .and_then(|b| std::str::from_utf8(b).ok())
        {
            Some(wanted) => covers(name, wanted),
            None => self.matcher.matches(name),
        }
    }
}

/// Whether `text` is numbers with dots between.
fn is_oid(text: &str) -> bool {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    text.contains('.') && text.split('.').all(number)
}

/// Whether a name in a certificate covers `wanted`: equal but for case, or `*.` and the rest after exactly one
/// label (RFC 9525, 6.3). A wildcard directly under the root covers nothing.
pub fn covers(name: &str, wanted: &str) -> bool {
    if name.eq_ignore_ascii_case(wanted) {
        return true;
    }
    let Some(parent) = name.strip_prefix("*.") else {
        return false;
    };
    let Some((label, rest)) = wanted.split_once('.') else {
        return false;
    };
    !label.is_empty()
        && label != "*"
        && parent.trim_end_matches('.').contains('.')
        && rest.eq_ignore_ascii_case(parent)
}

/// Whether a certificate is for `subject`: a DNS name that it covers, or a URI or address that it has.
pub fn names(facts: &CertificateFacts, subject: &str) -> bool {
    facts.dns_sans.iter().any(|name| covers(name, subject))
        || facts.uri_sans.iter().any(|uri| uri == subject)
        || facts.ip_sans.iter().any(|ip| ip == subject)
}

/// Whether one of `matchers` accepts one of the names; no matchers accept everything.
pub fn accepted(matchers: &[SanMatcher], facts: &CertificateFacts) -> bool {
    matchers.is_empty() || matchers.iter().any(|m| m.matches(facts))
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;

    use super::*;

    fn facts() -> CertificateFacts {
        CertificateFacts {
            uri_sans: vec!["spiffe://td/ns/a/sa/b".into()],
            dns_sans: vec!["*.a.example".into(), "b.example".into()],
            email_sans: vec!["me@a.example".into()],
            ip_sans: vec!["10.0.0.1".into()],
            ..CertificateFacts::default()
        }
    }

    fn typed(kind: SanType, pattern: MatchPattern) -> bool {
        SanMatcher::compile(&SubjectAltNameMatcher {
            san_type: kind.into(),
            matcher: Some(StringMatcherProto {
                match_pattern: Some(pattern),
                ..Default::default()
            }),
            ..Default::default()
        })
        .unwrap()
        .matches(&facts())
    }

    #[test]
    fn every_kind_matches_its_own_names_only() {
        let exact = |s: &str| MatchPattern::Exact(s.into());
        assert!(typed(
            SanType::Uri,
            MatchPattern::Prefix("spiffe://td/".into())
        ));
        assert!(!typed(
            SanType::Dns,
            MatchPattern::Prefix("spiffe://td/".into())
        ));
        assert!(typed(SanType::Email, exact("me@a.example")));
        assert!(typed(SanType::IpAddress, exact("10.0.0.1")));
        assert!(!typed(SanType::Email, exact("10.0.0.1")));
        assert!(typed(SanType::Dns, exact("x.a.example")));
        assert!(typed(SanType::Dns, exact("B.EXAMPLE")));
        assert!(typed(SanType::Dns, MatchPattern::Suffix("example".into())));
        let untyped = SanMatcher::compile_untyped(&StringMatcherProto {
            match_pattern: Some(exact("10.0.0.1")),
            ..Default::default()
        });
        assert!(untyped.unwrap().matches(&facts()));
        let unset = SanMatcher::compile(&SubjectAltNameMatcher::default());
        assert!(unset.unwrap_err().path().contains("san_type"));
    }

    #[test]
    fn a_wildcard_stands_for_one_label() {
        assert!(covers("*.a.example", "x.A.example"));
        for wanted in ["a.example", "x.y.a.example", ".a.example", "*.b.example"] {
            assert!(!covers("*.a.example", wanted), "{wanted}");
        }
        assert!(!covers("*.example", "a.example"));
        assert!(!covers("x*.a.example", "xy.a.example"));
    }
}
